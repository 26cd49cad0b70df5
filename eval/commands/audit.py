"""`python -m eval audit`: try to break certificates."""
import argparse
from typing import Any

from eval.commands.arguments import evaluation_arguments, print_once, search_arguments, search_settings, subjects


def declare(commands: Any) -> None:
    """Add the command to a parser."""
    parser = commands.add_parser("audit", help="try to break certificates",
                                 description="Attack every certified decision just below its radius, check each step "
                                             "against the Lipschitz bound and write audit.json; exit status 1 where a "
                                             "certificate is broken.")
    evaluation_arguments(parser)
    search_arguments(parser)
    parser.add_argument("--threat", default="one", metavar="CERTIFICATE",
                        help="the certificate: one (one image of a pair moves), both (each just below radius_both), joint (together just "
                             "below radius_joint) or package.module:Name (default one)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Audit the pairs of each .bin file; returns the exit status."""
    from eval.audit import driver
    from eval.certificates import certificate
    from eval.store.subject import require_lipschitz
    require_lipschitz(args.backbone, "certificates to audit")
    certificate(args.threat)
    violations = 0
    for subject in subjects(args):
        report = driver.audit(subject, args.threat, limit=args.limit, seed=args.seed, **search_settings(args))
        print_once(driver.describe(report))
        violations += report["n_violations"]
    return int(violations > 0)
