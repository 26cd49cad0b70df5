"""`python -m eval report`: results folders as one page."""
import argparse
from pathlib import Path
from typing import Any

from utils import InputError


def declare(commands: Any) -> None:
    """Add the command to a parser."""
    parser = commands.add_parser("report", help="results folders as one page to read",
                                 description="One HTML file that needs nothing else, neither a network nor scripts: what was found, in "
                                             "plain words, tables, figures, adversarial examples that `plot` drew, what was run, a "
                                             "glossary. Several results stand side by side.")
    parser.add_argument("results", nargs="+", metavar="RESULTS",
                        help="folder that certify, smooth or attack wrote, or a folder of such folders")
    parser.add_argument("--out", required=True, metavar="FILE", help="the page, FILE.html")
    parser.add_argument("--names", nargs="+", default=[], metavar="NAME",
                        help="of the results, one for each (default: from their summaries or folders)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Write the page and print where it is."""
    if Path(args.out).suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--out {args.out}: expected a name that ends in .html")
    if Path(args.out).is_dir():
        raise InputError(f"--out {args.out}: a folder, expected the name of a file")
    from eval.show import page
    shown, remarks = page.read(args.results, args.names)
    page.write(args.out, shown, remarks)
    print(args.out)
