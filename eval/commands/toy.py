"""`python -m eval toy`: table and figures of toy runs."""
import argparse
from typing import Any


def declare(commands: Any) -> None:
    """Add the command to a parser."""
    parser = commands.add_parser("toy", help="table and figures of toy runs (Fig. 2, Fig. 1b)",
                                 description="Results of train_toy.py beside the published ones, and their figures.")
    parser.add_argument("runs", metavar="DIR", help="folder of the runs: the output of train_toy.py")
    parser.add_argument("--out", required=True, metavar="DIR", help="where fig2_DATASET.png and fig1b_DATASET.png go")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print the table and draw the figures."""
    from eval.show.curves import write_toy_figures
    from eval.show.toy import beside_published, formatted, read_results
    for dataset, results in read_results(args.runs).groupby("dataset"):
        print(f"{dataset}:", formatted(beside_published(results)).to_string(index=False), sep="\n")
    print(*write_toy_figures(args.runs, args.out), sep="\n")
