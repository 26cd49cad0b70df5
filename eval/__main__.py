"""Evaluate face-recognition networks from the command line: `python -m eval COMMAND --help`.

Each command is one function that declares its arguments and names the function that runs it; heavy imports happen in
the latter, so that help is instant. Errors of the user's input end in one line on standard error and exit status 2.
"""
import argparse
import math
import sys
import warnings
from pathlib import Path
from typing import Any, Callable, Iterator, Sequence

from utils import InputError, RunError

ATTACKS = ("pgd", "apgd", "cw", "ddn", "fgsm")


def main(argv: "Sequence[str] | None" = None) -> int:
    """Run the command line; returns the exit status: 0, 1 where an audit finds a violation, or 2 where the input cannot
    be used.
    """
    parser = argparse.ArgumentParser(prog="python -m eval", description="Evaluate face-recognition networks on pairs.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for declare in (certify_command, attack_command, audit_command, table_command, plot_command, curves_command, toy_command):
        declare(commands)
    args = parser.parse_args(argv)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of libraries: nothing that a user here can act on
        warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
        try:
            return _run(args)
        except (InputError, RunError, OSError) as error:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            return 2


def _run(args: argparse.Namespace) -> int:
    try:
        return args.run(args) or 0
    except RuntimeError as error:
        from utils.utils_distributed import raise_for_lost_process
        raise_for_lost_process(error)
        raise


def _inside(kind: Callable[[str], Any], low: float, high: float) -> Callable[[str], Any]:
    """An argument type: numbers strictly between low and high."""
    def number(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not low < value < high:
            raise argparse.ArgumentTypeError(f"{text} is not inside ({low:g}, {high:g})")
        return value
    return number


def _evaluation_arguments(parser: argparse.ArgumentParser) -> None:
    """What every command that embeds images takes."""
    budget, count = _inside(float, 0, math.inf), _inside(int, 0, math.inf)
    parser.add_argument("--bin", action="append", required=True, metavar="FILE", help=".bin file of pairs; repeatable")
    parser.add_argument("--backbone", required=True, metavar="NAME", help="name of the network, e.g. sllnet")
    parser.add_argument("--weights", required=True, metavar="FILE", help="its state dict")
    parser.add_argument("--out", required=True, metavar="DIR",
                        help="results folder; with several .bin files one folder each inside it")
    parser.add_argument("--far", type=_inside(float, 0, 1), default=1e-3,
                        help="target false-acceptance rate (default 1e-3)")
    parser.add_argument("--tau", type=_inside(float, -1, 1), help="use this threshold instead of choosing one by --far")
    parser.add_argument("--eps-u", type=budget, nargs="+", default=[1.5, 3.0], metavar="EPS",
                        help="untargeted budgets (default 1.5 3.0)")
    parser.add_argument("--eps", type=budget, nargs="+", default=[0.25, 0.75], metavar="EPS",
                        help="dodging and impersonation budgets (default 0.25 0.75)")
    parser.add_argument("--protocol", choices=("strict", "paper"), default="strict",
                        help="strict: by the definitions; paper: as the published figures were made (default strict)")
    parser.add_argument("--tight", action="store_true",
                        help="divide embeddings by the proven Lipschitz constant of the network: no cosine changes, and radii grow")
    parser.add_argument("--batch-size", type=count, default=64, metavar="N", help="images at a time (default 64)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")
    parser.add_argument("--num-workers", type=_inside(int, -1, 1025), default=2, metavar="N",
                        help="processes that decode images; 0: none (default 2)")


def certify_command(commands: Any) -> None:
    parser = commands.add_parser("certify", help="certified radii and accuracies (Table 1)",
                                 description="Certified robustness of a 1-Lipschitz network on pairs of faces: prints "
                                             "Table 1 and writes pairs.csv, images.csv and summary.json.")
    _evaluation_arguments(parser)
    parser.add_argument("--sound", action="store_true",
                        help="also radii that are proven in floating point (columns radius_sound, radius_u_sound), from embeddings in "
                             "float64; three to seven times the time")
    parser.set_defaults(run=certify)


def certify(args: argparse.Namespace) -> None:
    """Compute everything, then write everything: nothing is left behind by a run that fails."""
    folders = _result_folders(args.out, args.bin)
    from backbones import is_lipschitz, load_network
    if not is_lipschitz(args.backbone):
        raise InputError(f"--backbone {args.backbone}: this network is not 1-Lipschitz, so it has no certified radii")
    if args.sound and args.tight:
        raise InputError("--sound: its radii are divided by the Lipschitz constant already, leave --tight out")
    from backbones.sound import load_sound
    from eval import records, robustness, sound, tables, verification
    from utils.utils_files import sha256
    device = _device(args.device)
    network = (load_sound(args.backbone, args.weights, device) if args.sound else
               load_network(args.backbone, args.weights, device=device, tight=args.tight))
    origin = records.origin(args.backbone, args.weights, network)
    results = []
    for folder, path in zip(folders, args.bin):
        pair_set = verification.read_bin(path)
        source = {**origin, "bin": pair_set.name, "bin_sha256": sha256(path)}
        records.refuse_another_subject(folder, source)
        result = records.certify(network, pair_set, args.protocol, args.far, args.tau, args.eps_u, args.eps,
                                 device=device, batch_size=args.batch_size, num_workers=args.num_workers,
                                 progress=pair_set.name)
        result.summary.update(source)
        if args.sound:
            sound.add(result, sound.prove(network, pair_set), args.eps_u, args.eps)
        results.append(robustness.keep_attacks(folder, result))
    for folder, result in zip(folders, results):
        records.write_records(folder, result)
    print(tables.render(tables.table1(result.summary for result in results)))
    if args.tight:
        print(f"L = {network.lipschitz:.9g}, which embeddings are divided by")
    if args.sound:
        print(tables.render(tables.table1(sound.summary(result) for result in results)))
        print(f"L = {network.lipschitz:.9g}, E = {max(result.summary['sound_error'] for result in results):.3g}: the radii of the second "
              "table hold in floating point")


def attack_command(commands: Any) -> None:
    parser = commands.add_parser("attack", help="empirical robust accuracies (Table 2)",
                                 description="Attack pairs of faces and their images: adds columns to pairs.csv and "
                                             "images.csv and figures to summary.json of --out, made first where there "
                                             "are none. Under torchrun the work is shared by its processes. An "
                                             "interrupted run goes on where it was.")
    _evaluation_arguments(parser)
    _search_arguments(parser)
    parser.add_argument("--attack", required=True, choices=ATTACKS)
    parser.add_argument("--no-skip", dest="skip", action="store_false",
                        help="also attack decisions that are certified at the budget")
    parser.set_defaults(run=attack, far=None)


def attack(args: argparse.Namespace) -> None:
    from eval import robustness
    chosen = {name: getattr(args, name) for name in ("steps", "restarts") if getattr(args, name) is not None}
    for subject in _subjects(args):
        found = robustness.attack_records(subject, args.attack, args.eps_u, args.eps, args.skip, args.limit, args.seed,
                                          **chosen)
        _print(robustness.describe(found, args.attack))


def audit_command(commands: Any) -> None:
    parser = commands.add_parser("audit", help="try to break certificates",
                                 description="Attack every certified decision just below its radius, check each step "
                                             "against the Lipschitz bound and write audit.json; exit status 1 where a "
                                             "certificate is broken.")
    _evaluation_arguments(parser)
    _search_arguments(parser)
    parser.set_defaults(run=audit, far=None)


def audit(args: argparse.Namespace) -> int:
    from backbones import is_lipschitz
    if not is_lipschitz(args.backbone):
        raise InputError(f"--backbone {args.backbone}: this network is not 1-Lipschitz, so it has no certificates to "
                         "audit")
    from eval import audit as audits
    chosen = {name: getattr(args, name) for name in ("steps", "restarts") if getattr(args, name) is not None}
    violations = 0
    for subject in _subjects(args):
        report = audits.audit(subject, limit=args.limit, seed=args.seed, **chosen)
        violations += report["n_violations"]
        _print(audits.describe(report))
    return int(violations > 0)


def _search_arguments(parser: argparse.ArgumentParser) -> None:
    """What attacks and audits share."""
    count = _inside(int, 0, math.inf)
    parser.add_argument("--steps", type=count, metavar="N", help="steps of an attack (default: its own)")
    parser.add_argument("--restarts", type=count, metavar="N", help="random starts of pgd and apgd")
    parser.add_argument("--limit", type=count, metavar="N", help="only the first N true pairs, false pairs and images")
    parser.add_argument("--seed", type=_inside(int, -1, 2**63), default=0, metavar="S",
                        help="of all random starts (default 0)")


def _subjects(args: argparse.Namespace) -> Iterator[Any]:
    """Each .bin file with its records, inside the process group of torchrun where there is one."""
    folders = _result_folders(args.out, args.bin)
    from backbones import is_lipschitz, load_network
    from eval import records, subject, verification
    from utils.utils_distributed import process_group
    from utils.utils_files import sha256
    with process_group(args.device) as device:
        network = load_network(args.backbone, args.weights, device=device, tight=args.tight)
        origin = records.origin(args.backbone, args.weights, network)
        for folder, path in zip(folders, args.bin):
            pair_set = verification.read_bin(path)
            origin |= {"bin": pair_set.name, "bin_sha256": sha256(path)}
            yield subject.prepare(network, pair_set, folder, origin, is_lipschitz(args.backbone), args.protocol,
                                  args.far, args.tau, args.eps_u, args.eps, device=device, batch_size=args.batch_size,
                                  num_workers=args.num_workers, progress=pair_set.name)


def _print(text: str) -> None:
    """On the first process only."""
    from utils.utils_distributed import rank
    if rank() == 0:
        print(text)


def _result_folders(out: str, bins: Sequence[str]) -> list[Path]:
    """One results folder a .bin file, checked before hours are spent on what could not be written."""
    stems = [Path(path).stem for path in bins]
    if twice := {stem for stem in stems if stems.count(stem) > 1}:
        raise InputError(f"--bin: several files are called {min(twice)}; their results would share a folder")
    parent = Path(out)
    while not parent.exists() and parent != parent.parent:
        parent = parent.parent
    if not parent.is_dir():
        raise InputError(f"--out {out}: {parent} is not a folder")
    return [Path(out)] if len(bins) == 1 else [Path(out) / stem for stem in stems]


def _device(name: "str | None") -> Any:
    import torch
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # an unknown name, a missing device, a build without CUDA
        raise InputError(f"--device {name}: {str(error).splitlines()[0]}") from None
    return device


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
    from eval import published, tables
    from utils.utils_files import atomic_write
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
    from eval import records, tables
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
                                             "of all results' certified accuracies and one of their feature norms.")
    parser.add_argument("results", nargs="+", metavar="RESULTS", help="folder that certify or attack wrote")
    parser.add_argument("--out", metavar="DIR", help="where the plots go (default: each into its results folder)")
    parser.set_defaults(run=plot)


def plot(args: argparse.Namespace) -> None:
    from eval import plots, records
    folders = [folder for results in args.results for folder in records.read_summaries(results)]
    names = [folder.resolve().name for folder in folders]
    if args.out and len(set(names)) < len(names):
        raise InputError(f"--out {args.out}: several results folders have the same name, and so would their plots")
    results = {folder: records.read_records(folder, certified=False) for folder in folders}
    for (folder, result), name in zip(results.items(), names):
        print(*plots.write_plots(result, args.out or folder, f"{name}_" if args.out else ""), sep="\n")
    if args.out and len(folders) > 1:
        print(*plots.write_comparison(dict(zip(names, results.values())), args.out), sep="\n")


def curves_command(commands: Any) -> None:
    parser = commands.add_parser("curves", help="curves of a training log (Fig. 4)",
                                 description="Loss, verification accuracy and mean feature norm of a training log against the step.")
    parser.add_argument("log", metavar="LOG", help="training.log of train.py, or a log of the published runs")
    parser.add_argument("--out", required=True, metavar="PNG", help="the figure")
    parser.add_argument("--target", metavar="NAME", help="only this verification set (default: all)")
    parser.add_argument("--norm", type=_inside(float, 0, math.inf), metavar="NORM",
                        help="dashed line among the norms; 13.07 in Fig. 4 (default: none)")
    parser.add_argument("--title", default="", help="of the figure")
    parser.set_defaults(run=curves)


def curves(args: argparse.Namespace) -> None:
    from eval.curves import plot_training_log
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
    from eval.curves import write_toy_figures
    from eval.toy import beside_published, formatted, read_results
    for dataset, results in read_results(args.runs).groupby("dataset"):
        print(f"{dataset}:", formatted(beside_published(results)).to_string(index=False), sep="\n")
    print(*write_toy_figures(args.runs, args.out), sep="\n")


if __name__ == "__main__":
    sys.exit(main())
