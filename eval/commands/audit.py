"""`python -m eval audit`: try to break certificates."""
import argparse
from collections.abc import Callable, Iterator
from typing import Any

from eval.commands import closing
from eval.commands.arguments import (
    are_smoothed,
    evaluation_arguments,
    print_once,
    search_arguments,
    search_settings,
    smoothed_subjects,
    subjects,
)
from utils import InputError


def declare(commands: Any) -> None:
    """Add the command to a parser."""
    parser = commands.add_parser("audit", help="try to break certificates",
                                 description="Attack every certified decision just below its radius, check each step "
                                             "against the Lipschitz bound and write audit.json; exit status 1 where a "
                                             "certificate is broken. Results of smooth are attacked through the noise: status 1 where more "
                                             "decisions fall than their confidence allows.")
    evaluation_arguments(parser)
    search_arguments(parser)
    parser.add_argument("--threat", metavar="CERTIFICATE",
                        help="the certificate: one (one image of a pair moves), both (each just below radius_both), joint (together just "
                             "below radius_joint) or package.module:Name (default one)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Audit the pairs of each .bin file; returns the exit status."""
    violations = 0
    for subject, describe, report, threat in (_smoothed if are_smoothed(args) else _certified)(args):
        from eval.show import sentence
        from eval.store import results
        print_once(describe(report))
        closing.found(subject.folder, sentence.in_words(subject.records.summary, audits=[report]), [results.audit_file(threat)])
        violations += report["n_violations"]
    closing.report(args)
    return int(violations > 0)


# subject, what describes a report, the report, and the threat that names its file
_Reports = Iterator[tuple[Any, Callable[[dict[str, Any]], str], dict[str, Any], str]]


def _certified(args: argparse.Namespace) -> _Reports:
    from eval.audit import driver
    from eval.certificates import certificate
    from eval.store.subject import require_lipschitz
    if args.draws:
        raise InputError("--draws: nothing of these results is smoothed, leave it out")
    require_lipschitz(args.backbone, "certificates to audit")
    threat = args.threat or "one"
    certificate(threat)
    for subject in subjects(args):
        yield subject, driver.describe, driver.audit(subject, threat, limit=args.limit, seed=args.seed, **search_settings(args)), threat


def _smoothed(args: argparse.Namespace) -> _Reports:
    from eval.audit import smoothed
    for subject in smoothed_subjects(args):
        if args.threat not in (None, subject.records.summary["smoothing"]["threat"]):
            raise InputError(f"--threat {args.threat}: {subject.folder} is not of it, leave it out")
        settings = search_settings(args) | ({"draws": args.draws} if args.draws else {})
        yield subject, smoothed.describe, smoothed.audit(subject, limit=args.limit, seed=args.seed, **settings), "one"
