"""`python -m eval compare`: whether a difference between results is more than chance."""
import argparse
from pathlib import Path
from typing import Any

from eval.commands.arguments import budget, count, inside
from utils import InputError

_SAME = ("bin_sha256", "protocol", "far_target")


def declare(commands: Any) -> None:
    """Add the command to a parser."""
    parser = commands.add_parser("compare", help="difference of two results on the same pairs, by a bootstrap over people",
                                 description="TAR and CRA in dodging of two networks on one .bin, their difference, the interval of "
                                             "95 % of the samples of a paired bootstrap over people, and how often it is above 0. "
                                             "Each sample chooses the threshold of each result anew, at the FAR of the results; beside "
                                             "results of smooth, which keep theirs, at the FAR that these have there.")
    for name, other in (("first", "FIRST"), ("second", "SECOND")):
        parser.add_argument(name, metavar=other, help="results folder of certify or smooth, a folder of such folders, or several with "
                                                      "commas between them: figures are averaged over these, as over seeds")
    parser.add_argument("--budget", type=budget, nargs="+", default=[0.25], metavar="EPS", help="budgets of CRA_D (default 0.25)")
    parser.add_argument("--samples", type=count, default=2000, metavar="N", help="(default 2000)")
    parser.add_argument("--seed", type=inside(int, -1, 2**63), default=0, metavar="S", help="of the samples (default 0)")
    parser.add_argument("--out", metavar="FILE", help="also write it there, as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print the comparison."""
    import pandas as pd

    from eval.bootstrap import compare
    from eval.store.results import read_records
    from utils.files import write_json
    sides = [[read_records(folder, smoothed=True) for folder in _folders(text)] for text in (args.first, args.second)]
    summaries: list[Any] = [found.summary for side in sides for found in side]
    origin = {key: summaries[0][key] for key in _SAME}
    for found in summaries:
        if other := [key for key in _SAME if found[key] != origin[key]]:
            raise InputError(f"results with {other[0]} {origin[other[0]]} and {found[other[0]]}, expected one")
    if origin["protocol"] != "strict" or origin["far_target"] is None:
        raise InputError(f"results under protocol {origin['protocol']} at FAR {origin['far_target']}, expected those of protocol strict, "
                         "and a threshold that --far chose")
    first, second = ([found.pairs for found in side] for side in sides)
    figures, people, far = compare(first, second, origin["far_target"], args.budget, args.samples, args.seed)
    names = ["TAR", *(f"CRA_D {eps:g}" for eps in args.budget)]
    rows = {name: [*(f"{100 * value:.2f}" for value in figure[:5]), f"{100 * figure.above:.1f}"] for name, figure in zip(names, figures)}
    print(f"{summaries[0]['bin']}: {len(first[0])} pairs of {people} people, FAR {far:.4g}, {args.samples} samples; in percent")
    print(pd.DataFrame.from_dict(rows, "index", columns=["first", "second", "difference", "from", "to", "above 0"]).to_string())
    if args.out:
        write_json(args.out, {**origin, "bin": summaries[0]["bin"], "n_pairs": len(first[0]), "n_people": people, "far": far,
                              "samples": args.samples, "seed": args.seed, "first": [found.summary["weights_sha256"] for found in sides[0]],
                              "second": [found.summary["weights_sha256"] for found in sides[1]],
                              "figures": [{"figure": name, **figure._asdict()} for name, figure in zip(names, figures)]})


def _folders(text: str) -> list[Path]:
    from eval.store.results import read_summaries
    return [folder for part in text.split(",") for folder in read_summaries(Path(part).expanduser())]
