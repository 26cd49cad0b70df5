"""`python -m eval attack`: empirical robust accuracies."""
import argparse
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
from eval.evaluation import Evaluation


def declare(commands: Any) -> None:
    """Add the command to a parser."""
    parser = commands.add_parser("attack", help="empirical robust accuracies (Table 2)",
                                 description="Attack pairs of faces and their images: adds attacks.csv and figures to summary.json of "
                                             "--out, whose records are made first where there are none. Under torchrun the work is "
                                             "shared by its processes. An interrupted run goes on where it was.")
    evaluation_arguments(parser)
    search_arguments(parser)
    parser.add_argument("--attack", required=True, metavar="NAME",
                        help="pgd, cw, ... (python -m eval list has all), or package.module:Name")
    parser.add_argument("--no-skip", dest="skip", action="store_false", help="also attack decisions that are certified at the budget")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Attack the pairs of each .bin file."""
    import attacks
    from eval import robustness
    from eval.show import sentence
    from eval.store import results
    attacks.ATTACKS.find(args.attack)  # before anything is loaded
    budgets = {name: getattr(args, name, getattr(Evaluation, name)) for name in ("eps_u", "eps")}
    for subject in smoothed_subjects(args) if are_smoothed(args) else subjects(args):
        found = robustness.attack_records(subject, args.attack, **budgets, skip=args.skip, limit=args.limit, seed=args.seed,
                                          draws=args.draws, **search_settings(args))
        print_once(robustness.describe(found, args.attack))
        closing.found(subject.folder, sentence.in_words(found.summary, [args.attack]), (results.ATTACKS, results.SUMMARY))
    closing.report(args)
