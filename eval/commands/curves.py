"""`python -m eval curves`: curves of a training log."""
import argparse
from typing import Any

from eval.commands.arguments import budget


def declare(commands: Any) -> None:
    """Add the command to a parser."""
    parser = commands.add_parser("curves", help="curves of a training log (Fig. 4)",
                                 description="Loss, verification accuracy and mean feature norm of a training log against the step.")
    parser.add_argument("log", metavar="LOG", help="training.log of train.py, or a log of the published runs")
    parser.add_argument("--out", required=True, metavar="PNG", help="the figure")
    parser.add_argument("--target", metavar="NAME", help="only this verification set (default: all)")
    parser.add_argument("--norm", type=budget, metavar="NORM",
                        help="dashed line among the norms; 13.07 in Fig. 4 (default: none)")
    parser.add_argument("--title", default="", help="of the figure")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Draw the curves."""
    from eval.show.curves import plot_training_log
    from utils.utils_logging import read_training_log
    plot_training_log(read_training_log(args.log), args.out, args.title, args.target, args.norm)
    print(args.out)
