"""`python -m eval table`: tables of results folders."""
import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from utils import InputError


def declare(commands: Any) -> None:
    """Add the command to a parser."""
    parser = commands.add_parser("table", help="tables of results folders",
                                 description="Tables 1 and 2 of the paper, its ablation, and how well clean images are verified, of "
                                             "any number of results.")
    parser.add_argument("results", nargs="+", metavar="RESULTS", help="folder that certify or attack wrote")
    parser.add_argument("--which", choices=("1", "2", "ablation", "verification"), default="1",
                        help="1: certified; 2: empirical; ablation: both, by xi; verification: accuracies without attacks (default 1)")
    parser.add_argument("--with-paper", action="store_true", help="the published rows beside them")
    parser.add_argument("--format", choices=("text", "markdown", "latex", "csv"), default="text", help="(default text)")
    parser.add_argument("--names", nargs="+", metavar="NAME",
                        help="of the models, one for each RESULTS (default: its folder's name)")
    parser.add_argument("--xi", nargs="+", type=float, metavar="XI",
                        help="of the models, one for each RESULTS (default: from the summary or a folder's name, as in "
                             "xi3)")
    parser.add_argument("--attacks", nargs="+", default=["pgd", "cw"], metavar="NAME",
                        help="columns of Table 2 (default pgd cw; python -m eval list has all)")
    parser.add_argument("--out", metavar="FILE", help="write it there instead of printing it")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print or write the table."""
    for option, given in (("names", args.names), ("xi", args.xi)):
        if given and len(given) != len(args.results):
            raise InputError(f"--{option}: {len(given)} given, expected one for each of the "
                             f"{len(args.results)} RESULTS")
    from eval.show import published, tables
    from utils.files import atomic_write
    makers: dict[str, tuple[Callable, Callable]] = {
        "1": (tables.table1, published.table1), "2": (partial(tables.table2, attacks=args.attacks), published.table2),
        "ablation": (partial(tables.ablation, attacks=args.attacks), published.ablation),
        "verification": (tables.verification, published.table2)}
    make, theirs = makers[args.which]
    table = make([*_rows(args), *(theirs() if args.with_paper else ())])
    if args.out is None:
        print(tables.render(table, args.format))
        return
    with atomic_write(args.out) as file:
        file.write(tables.render(table, args.format) + "\n")
    print(args.out)


def _rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The summaries of all results, each with the name of its row and, for the ablation, its xi."""
    from eval.show import tables
    from eval.store.results import read_summaries
    rows: list[dict[str, Any]] = []
    for number, results in enumerate(args.results):
        for folder, found in read_summaries(results).items():
            summary: dict[str, Any] = {**found}
            summary["name"] = args.names[number] if args.names else Path(results).resolve().name
            if args.which == "ablation":
                summary["xi"] = args.xi[number] if args.xi else tables.xi_of(summary, folder)
            rows.append(summary)
    return rows
