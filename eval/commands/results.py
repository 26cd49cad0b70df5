"""The commands of `python -m eval` that need results alone, and no network: table, plot, curves, toy."""
import argparse
import math
from pathlib import Path
from typing import Any

from eval.commands.arguments import ATTACKS, device_named, inside, load
from utils import InputError


def table_command(commands: Any) -> None:
    parser = commands.add_parser("table", help="tables of results folders",
                                 description="Tables 1 and 2 of the paper and its ablation, of any number of results.")
    parser.add_argument("results", nargs="+", metavar="RESULTS", help="folder that certify or attack wrote")
    parser.add_argument("--which", choices=("1", "2", "ablation"), default="1",
                        help="1: certified; 2: empirical; ablation: both, by xi (default 1)")
    parser.add_argument("--with-paper", action="store_true", help="the published rows beside them")
    parser.add_argument("--format", choices=("text", "markdown", "latex", "csv"), default="text", help="(default text)")
    parser.add_argument("--names", nargs="+", metavar="NAME",
                        help="of the models, one for each RESULTS (default: its folder's name)")
    parser.add_argument("--xi", nargs="+", type=float, metavar="XI",
                        help="of the models, one for each RESULTS (default: from the summary or a folder's name, as in "
                             "xi3)")
    parser.add_argument("--attacks", nargs="+", choices=ATTACKS, default=["pgd", "cw"], metavar="NAME",
                        help=f"columns of Table 2, of {', '.join(ATTACKS)} (default pgd cw)")
    parser.add_argument("--out", metavar="FILE", help="write it there instead of printing it")
    parser.set_defaults(run=table)


def table(args: argparse.Namespace) -> None:
    for option, given in (("names", args.names), ("xi", args.xi)):
        if given and len(given) != len(args.results):
            raise InputError(f"--{option}: {len(given)} given, expected one for each of the "
                             f"{len(args.results)} RESULTS")
    from eval.show import published, tables
    from utils.files import atomic_write
    rows = _rows(args)
    if args.which == "1":
        frame = tables.table1([*rows, *(published.table1() if args.with_paper else ())])
    elif args.which == "2":
        frame = tables.table2([*rows, *(published.table2() if args.with_paper else ())], args.attacks)
    else:
        frame = tables.ablation([*rows, *(published.ablation() if args.with_paper else ())], args.attacks)
    if args.out is None:
        print(tables.render(frame, args.format))
        return
    with atomic_write(args.out) as file:
        file.write(tables.render(frame, args.format) + "\n")
    print(args.out)


def _rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The summaries of all results, each with the name of its row and, for the ablation, its xi."""
    from eval import records
    from eval.show import tables
    rows = []
    for number, results in enumerate(args.results):
        for folder, summary in records.read_summaries(results).items():
            summary["name"] = args.names[number] if args.names else Path(results).resolve().name
            if args.which == "ablation":
                summary["xi"] = args.xi[number] if args.xi else tables.xi_of(summary, folder)
            rows.append(summary)
    return rows


def plot_command(commands: Any) -> None:
    parser = commands.add_parser("plot", help="plots of results folders",
                                 description="All plots that the records of each result support; with --out also one "
                                             "of all results' certified accuracies and one of their feature norms. "
                                             "With --bin, --backbone and --weights, those of a single result, also "
                                             "adversarial examples.")
    parser.add_argument("results", nargs="+", metavar="RESULTS", help="folder that certify or attack wrote")
    parser.add_argument("--out", metavar="DIR", help="where the plots go (default: each into its results folder)")
    parser.add_argument("--bin", metavar="FILE", help="its .bin file of pairs")
    parser.add_argument("--backbone", metavar="NAME", help="its network")
    parser.add_argument("--weights", metavar="FILE", help="the state dict of the network")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")
    parser.set_defaults(run=plot)


def plot(args: argparse.Namespace) -> None:
    from eval import records
    from eval.show import plots
    from utils.files import sha256
    folders = [folder for results in args.results for folder in records.read_summaries(results)]
    names = [folder.resolve().name for folder in folders]
    if args.out and len(set(names)) < len(names):
        raise InputError(f"--out {args.out}: several results folders have the same name, and so would their plots")
    subject = (args.bin, args.backbone, args.weights)
    if any(subject) and not (all(subject) and len(folders) == 1):
        raise InputError(f"adversarial examples need --bin, --backbone and --weights of one result, found {len(folders)} "
                         f"results and {sum(map(bool, subject))} of these options")
    if all(subject):  # first, as this is where something can be wrong
        flip = records.read_summaries(folders[0])[folders[0]].get("flip", "none")
        asked = {**records.origin(args.backbone, args.weights), "flip": flip, "bin_sha256": sha256(args.bin)}
        records.refuse_another_subject(folders[0], asked)
    results = {folder: records.read_records(folder, certified=False) for folder in folders}
    for (folder, result), name in zip(results.items(), names):
        print(*plots.write_plots(result, args.out or folder, f"{name}_" if args.out else ""), sep="\n")
    if args.out and len(folders) > 1:
        print(*plots.write_comparison(dict(zip(names, results.values())), args.out), sep="\n")
    if all(subject):
        path = Path(args.out or folders[0]) / f"{f'{names[0]}_' if args.out else ''}adversarial_examples.png"
        _draw_examples(args, results[folders[0]], path)
        print(path)


def _draw_examples(args: argparse.Namespace, found: Any, path: Path) -> None:
    from eval import verification
    from eval.show import examples, plots
    device = device_named(args.device)
    network = load(args.backbone, args.weights, device, found.summary.get("flip", "none"))
    pictures = examples.adversarial_examples(network, verification.read_bin(args.bin), found, device=device)
    plots.plot_adversarial_examples(pictures.sources, pictures.targets, pictures.adversarials, path, pictures.captions)


def curves_command(commands: Any) -> None:
    parser = commands.add_parser("curves", help="curves of a training log (Fig. 4)",
                                 description="Loss, verification accuracy and mean feature norm of a training log against the step.")
    parser.add_argument("log", metavar="LOG", help="training.log of train.py, or a log of the published runs")
    parser.add_argument("--out", required=True, metavar="PNG", help="the figure")
    parser.add_argument("--target", metavar="NAME", help="only this verification set (default: all)")
    parser.add_argument("--norm", type=inside(float, 0, math.inf), metavar="NORM",
                        help="dashed line among the norms; 13.07 in Fig. 4 (default: none)")
    parser.add_argument("--title", default="", help="of the figure")
    parser.set_defaults(run=curves)


def curves(args: argparse.Namespace) -> None:
    from eval.show.curves import plot_training_log
    from utils.utils_logging import read_training_log
    plot_training_log(read_training_log(args.log), args.out, args.title, args.target, args.norm)
    print(args.out)


def toy_command(commands: Any) -> None:
    parser = commands.add_parser("toy", help="table and figures of toy runs (Fig. 2, Fig. 1b)",
                                 description="Results of train_toy.py beside the published ones, and their figures.")
    parser.add_argument("runs", metavar="DIR", help="folder of the runs: the output of train_toy.py")
    parser.add_argument("--out", required=True, metavar="DIR", help="where fig2_DATASET.png and fig1b_DATASET.png go")
    parser.set_defaults(run=toy)


def toy(args: argparse.Namespace) -> None:
    from eval.show.curves import write_toy_figures
    from eval.show.toy import beside_published, formatted, read_results
    for dataset, results in read_results(args.runs).groupby("dataset"):
        print(f"{dataset}:", formatted(beside_published(results)).to_string(index=False), sep="\n")
    print(*write_toy_figures(args.runs, args.out), sep="\n")
