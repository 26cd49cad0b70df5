"""`python -m eval table`: tables of results folders."""
import argparse
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from eval.commands.arguments import inside
from utils import InputError

_WHICH = {"1": "certified", "2": "empirical", "ablation": "both, by xi", "verification": "accuracies without attacks"}


def declare(commands: Any) -> None:
    """Add the command to a parser."""
    parser = commands.add_parser("table", help="tables of results folders",
                                 description="Tables 1 and 2 of the paper, its ablation, how well clean images are verified, or any "
                                             "figures, of any number of results.")
    parser.add_argument("results", nargs="+", metavar="RESULTS",
                        help="folder that certify or attack wrote, a folder of such folders, or a summary.json under any name")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--which", choices=tuple(_WHICH), default="1",
                      help=f"{'; '.join(f'{name}: {text}' for name, text in _WHICH.items())} (default 1)")
    what.add_argument("--columns", nargs="+", metavar="KEY",
                      help="figures and labels by their names in summary.json: tar auc cra_d@0.25 cra_d:both@0.25 cra_d:p=inf@1 "
                           "cra_d_sound@0.25 era_d:pgd@0.25 limit:pgd name ... (docs/columns.md)")
    parser.add_argument("--group", action="store_true",
                        help="one row for runs that differ in their seeds (of one name, or run_0 run_1 ...): mean [smallest, largest]")
    parser.add_argument("--with-paper", action="store_true", help="the published rows of the table beside them")
    parser.add_argument("--paper", nargs="+", default=[], metavar="ROW",
                        help="these published rows below: xi0 xi1 xi3 xi5 lfw cfp_fp agedb_30 ArcFace AdaCos ElasticFace")
    parser.add_argument("--format", choices=("text", "markdown", "latex", "csv"), default="text",
                        help="latex: with booktabs; csv: all digits (default text)")
    parser.add_argument("--bold", action=argparse.BooleanOptionalAction,
                        help="the best figures of one dataset, protocol and FAR stand out (default: in latex)")
    parser.add_argument("--digits", type=inside(int, -1, 16), metavar="N",
                        help="behind the point of percentages, and one more of all else (default 2)")
    parser.add_argument("--names", nargs="+", metavar="NAME",
                        help="of the models, one for each RESULTS (default: what the results say, or their folders)")
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
    if args.columns and args.with_paper:
        raise InputError("--with-paper: --columns may be of any table, expected --paper with the rows that are meant")
    if "seeds" in (args.columns or ()) and not args.group:
        raise InputError("--columns seeds: expected --group with it")
    from eval.show import tables
    from eval.show.cells import with_digits
    from utils.files import atomic_write
    table = _table(args)
    if args.digits is not None:
        table = with_digits(table, args.digits)
    text = tables.render(table, args.format, args.bold)
    if args.out is None:
        print(text)
        return
    with atomic_write(args.out) as file:
        file.write(text + "\n")
    print(args.out)


def _table(args: argparse.Namespace) -> Any:
    from eval.show import published, tables
    makers: dict[str, tuple[Callable, Callable]] = {
        "1": (tables.table1, published.table1), "2": (partial(tables.table2, attacks=args.attacks), published.table2),
        "ablation": (partial(tables.ablation, attacks=args.attacks), published.ablation),
        "verification": (tables.verification, published.table2)}
    make, theirs = makers[args.which]
    if args.columns:
        make = partial(tables.chosen, columns=args.columns)
    table = make([*_rows(args), *(theirs() if args.with_paper else ()), *published.rows(args.paper)])
    if args.group:
        table = tables.grouped(table, args.columns or ())
    return tables.refuse_alike(table)


def _rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The summaries of all results, each with the name of its row and, for the ablation, its xi."""
    from eval.show import names, tables
    from eval.store import results
    summaries = results.read_summaries(*args.results)
    places = [(number, path) for number, given in enumerate(args.results) for path in results.places_in(given).values()
              if path in summaries]
    found = [(path, {**summaries[path], "name": args.names[number]} if args.names else summaries[path]) for number, path in places]
    rows: list[dict[str, Any]] = []
    for (number, path), (_, summary), name in zip(places, found, (names.names_of_groups if args.group else names.names_of)(found)):
        row = {**summary, "name": name}
        if args.which == "ablation" and not args.columns:
            row["xi"] = args.xi[number] if args.xi else tables.xi_of(summary, path)
        rows.append(row)
    if args.group:
        _say_groups([names.given_name(result) for result in found], [row["name"] for row in rows])
    rows.sort(key=lambda row: "smoothing" in row)  # what holds with confidence stands below what is proven
    return rows


def _say_groups(given: Sequence[str], names: Sequence[str]) -> None:
    """What was taken to be seeds of one network by the look of its names."""
    for name in dict.fromkeys(names):
        members = list(dict.fromkeys(theirs for theirs, ours in zip(given, names) if ours == name))
        if members != [name]:
            warnings.warn(f"--group: {', '.join(members)} are taken for seeds of {name}; --names tells them apart", stacklevel=2)
