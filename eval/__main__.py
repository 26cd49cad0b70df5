"""Evaluate face-recognition networks from the command line: `python -m eval COMMAND --help`.

Each command is one function that declares its arguments and names the function that runs it; heavy imports happen in
the latter, so that help is instant. Errors of the user's input end in one line on standard error and exit status 2.
"""
import argparse
import math
import sys
import warnings
from pathlib import Path
from typing import Any, Iterator, Sequence

from eval.commands.arguments import ATTACKS, device_named, inside, load, order, share
from eval.commands.results import curves_command, plot_command, table_command, toy_command
from utils import InputError, RunError, one_line


def main(argv: "Sequence[str] | None" = None) -> int:
    """Run the command line; returns the exit status: 0, 1 where an audit finds a violation, or 2 where the input cannot
    be used.
    """
    parser = argparse.ArgumentParser(prog="python -m eval", description="Evaluate face-recognition networks on pairs.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for declare in (certify_command, attack_command, audit_command, identify_command, table_command, plot_command, curves_command,
                    toy_command):
        declare(commands)
    args = parser.parse_args(argv)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of libraries: nothing that a user here can act on
        warnings.showwarning = lambda message, *_: print(f"warning: {one_line(message)}", file=sys.stderr)
        try:
            return _run(args)
        except (InputError, RunError, OSError) as error:
            print(f"error: {one_line(error)}", file=sys.stderr)
            return 2


def _run(args: argparse.Namespace) -> int:
    try:
        return args.run(args) or 0
    except RuntimeError as error:
        from utils.distributed import raise_for_lost_process
        raise_for_lost_process(error)
        raise


def _evaluation_arguments(parser: argparse.ArgumentParser) -> None:
    """What every command that embeds images takes."""
    budget = inside(float, 0, math.inf)
    parser.add_argument("--bin", action="append", required=True, metavar="FILE", help=".bin file of pairs; repeatable")
    parser.add_argument("--out", required=True, metavar="DIR",
                        help="results folder; with several .bin files one folder each inside it")
    _network_arguments(parser)
    parser.add_argument("--far", type=inside(float, 0, 1), default=1e-3,
                        help="target false-acceptance rate (default 1e-3)")
    parser.add_argument("--tau", type=inside(float, -1, 1), help="use this threshold instead of choosing one by --far")
    parser.add_argument("--eps-u", type=budget, nargs="+", default=[1.5, 3.0], metavar="EPS",
                        help="untargeted budgets (default 1.5 3.0)")
    parser.add_argument("--eps", type=budget, nargs="+", default=[0.25, 0.75], metavar="EPS",
                        help="dodging and impersonation budgets (default 0.25 0.75)")
    parser.add_argument("--protocol", choices=("strict", "paper"), default="strict",
                        help="strict: by the definitions; paper: as the published figures were made (default strict)")


def _network_arguments(parser: argparse.ArgumentParser) -> None:
    """Which network, and how it is run."""
    parser.add_argument("--backbone", required=True, metavar="NAME", help="name of the network, e.g. sllnet")
    parser.add_argument("--weights", required=True, metavar="FILE", help="its state dict")
    parser.add_argument("--flip", choices=("none", "average"), default="none",
                        help="average: the embedding is the mean of those of the image and its mirror image (default none)")
    parser.add_argument("--tight", action="store_true",
                        help="divide embeddings by the proven Lipschitz constant of the network: no cosine changes, and radii grow")
    parser.add_argument("--batch-size", type=inside(int, 0, math.inf), default=64, metavar="N", help="images at a time (default 64)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")
    parser.add_argument("--num-workers", type=inside(int, -1, 1025), default=2, metavar="N",
                        help="processes that decode images; 0: none (default 2)")


def certify_command(commands: Any) -> None:
    parser = commands.add_parser("certify", help="certified radii and accuracies (Table 1)",
                                 description="Certified robustness of a 1-Lipschitz network on pairs of faces: prints "
                                             "Table 1 and writes pairs.csv, images.csv and summary.json.")
    _evaluation_arguments(parser)
    parser.add_argument("--certified-far", type=inside(float, 0, math.inf), nargs="+", default=[], metavar="EPS",
                        help="also TAR at the threshold that keeps FAR at the target when one image of each pair moves by EPS")
    parser.add_argument("--p", type=order, nargs="+", default=[], metavar="P",
                        help="also certified accuracies for budgets --eps-p in these l_p norms, from 1 to inf")
    parser.add_argument("--eps-p", type=inside(float, 0, math.inf), nargs="+", default=[0.5, 1.0], metavar="EPS",
                        help="budgets of --p in grey levels, which are 1/255 (default 0.5 1)")
    parser.add_argument("--sound", action="store_true",
                        help="also radii that are proven in floating point (columns radius_sound, radius_u_sound), from embeddings in "
                             "float64; three to seven times the time")
    parser.set_defaults(run=certify)


def certify(args: argparse.Namespace) -> None:
    """Compute everything, then write everything: nothing is left behind by a run that fails."""
    folders = _result_folders(args.out, args.bin)
    _refuse_flip_twice(args)
    from backbones import averaged, is_lipschitz, naming
    if not is_lipschitz(args.backbone):
        raise InputError(f"--backbone {args.backbone}: this network is not 1-Lipschitz, so it has no certified radii")
    if args.sound and args.tight:
        raise InputError("--sound: its radii are divided by the Lipschitz constant already, leave --tight out")
    from backbones.bounds import TOLERANCE
    from backbones.sound import load_sound
    from eval import budgets, records, robustness, verification
    from eval.audit import sound
    from eval.show import tables
    from utils.files import sha256
    device = device_named(args.device)
    proven = load_sound(args.backbone, args.weights, device) if args.sound else None
    if args.sound and proven.lipschitz > 1 + TOLERANCE:
        warnings.warn(f"{args.weights}: L is {proven.lipschitz:.9g}: radii that are not called sound, the first table, are for 1 and "
                      "do not hold")
    network = averaged(proven, args.flip) if args.sound else load(args.backbone, args.weights, device, args.flip, args.tight)
    origin = records.origin(args.backbone, args.weights, network)
    results = []
    for folder, path in zip(folders, args.bin):
        pair_set = verification.read_bin(path)
        verification.require_size(network, pair_set)
        source = {**origin, "bin": pair_set.name, "bin_sha256": sha256(path)}
        records.refuse_another_subject(folder, source)
        result = records.certify(network, pair_set, args.protocol, args.far, args.tau, args.eps_u, args.eps,
                                 device=device, batch_size=args.batch_size, num_workers=args.num_workers,
                                 progress=pair_set.name)
        result.summary.update({**source, **budgets.further(result, pair_set, args.far, args.certified_far, args.p, args.eps_p)})
        if args.sound:
            with naming(args.weights):
                proof = sound.prove(proven, pair_set)
            sound.add(result, proof, args.eps_u, args.eps)
        results.append(robustness.keep_attacks(folder, result))
    for folder, result in zip(folders, results):
        records.write_records(folder, result)
    print(tables.render(tables.table1(result.summary for result in results)))
    print(*(line for result in results for line in budgets.describe(result.summary)), sep="", end="")
    if args.tight:
        print(f"L = {origin['lipschitz']:.9g}, which embeddings are divided by")
    if args.sound:
        print(tables.render(tables.table1(sound.summary(result) for result in results)))
        print(f"L = {proven.lipschitz:.9g}, E = {max(result.summary['sound_error'] for result in results):.3g}: the radii of the second "
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
    parser.add_argument("--threat", choices=("one", "both", "joint"), default="one",
                        help="attacked are one image of a pair, or both, each just below radius_both or together just below "
                             "radius_joint (default one)")
    parser.set_defaults(run=audit, far=None)


def audit(args: argparse.Namespace) -> int:
    from backbones import is_lipschitz
    if not is_lipschitz(args.backbone):
        raise InputError(f"--backbone {args.backbone}: this network is not 1-Lipschitz, so it has no certificates to "
                         "audit")
    from eval.audit import one as audits, pairs as audit_pairs
    chosen = {name: getattr(args, name) for name in ("steps", "restarts") if getattr(args, name) is not None}
    violations = 0
    for subject in _subjects(args):
        if args.threat == "one":
            report = audits.audit(subject, limit=args.limit, seed=args.seed, **chosen)
            _print(audits.describe(report))
        else:
            report = audit_pairs.audit(subject, args.threat, limit=args.limit, seed=args.seed, **chosen)
            _print(audit_pairs.describe(report))
        violations += report["n_violations"]
    return int(violations > 0)


def identify_command(commands: Any) -> None:
    count = inside(int, 0, math.inf)
    parser = commands.add_parser("identify", help="certified 1:N identification",
                                 description="Enrols some images of each identity as its template, searches for the others among all "
                                             "templates, and certifies who is found: prints certified rank-1 and TPIR at FPIR and "
                                             "writes probes.csv and summary.json.")
    parser.add_argument("--rec", required=True, metavar="PATH",
                        help="faces with identities: a folder with train.rec and train.idx, a .rec file, a folder with a folder of "
                             "images for each identity, or synthetic")
    parser.add_argument("--out", required=True, metavar="DIR", help="results folder")
    _network_arguments(parser)
    parser.add_argument("--enrolled", type=count, default=1, metavar="K", help="images of an identity in its template (default 1)")
    parser.add_argument("--poisoned", type=inside(int, -1, math.inf), default=0, metavar="M",
                        help="how many of the K an attacker moves as well, each by the budget (default 0)")
    parser.add_argument("--unknown", type=share, default=0.3, metavar="SHARE",
                        help="share of the identities that are searched for without being enrolled; 0: none (default 0.3)")
    parser.add_argument("--fpir", type=inside(float, 0, 1), default=1e-2,
                        help="target false-positive identification rate (default 1e-2)")
    parser.add_argument("--tau", type=inside(float, -1, 1), help="use this threshold instead of choosing one by --fpir")
    parser.add_argument("--eps", type=inside(float, 0, math.inf), nargs="+", default=[0.25, 0.75], metavar="EPS",
                        help="budgets (default 0.25 0.75)")
    parser.add_argument("--limit", type=count, metavar="N", help="only the first N identities")
    parser.add_argument("--seed", type=inside(int, -1, 2**63), default=0, metavar="S",
                        help="of who and which images are enrolled (default 0)")
    parser.set_defaults(run=identify)


def identify(args: argparse.Namespace) -> None:
    folder = _result_folders(args.out, [args.rec])[0]
    if args.poisoned > args.enrolled:
        raise InputError(f"--poisoned {args.poisoned}: expected at most --enrolled {args.enrolled}")
    from backbones import is_lipschitz
    if not is_lipschitz(args.backbone):
        raise InputError(f"--backbone {args.backbone}: this network is not 1-Lipschitz, so it has no certified radii")
    from datasets import get_dataset
    from eval import identification, records
    device = device_named(args.device)
    dataset = get_dataset(args.rec)
    network = load(args.backbone, args.weights, device, args.flip, args.tight)
    origin = {**records.origin(args.backbone, args.weights, network), "faces": Path(args.rec).name,
              "faces_fingerprint": dataset.fingerprint()}
    identification.refuse_other_results(folder, origin)
    split = identification.split_identities(dataset.labels(), args.enrolled, args.unknown, args.limit, args.seed)
    probes, summary = identification.identify(network, dataset, split, args.fpir, args.tau, args.eps, args.poisoned, device=device,
                                              batch_size=args.batch_size, num_workers=args.num_workers, progress=origin["faces"])
    summary.update({**origin, "unknown": args.unknown, "limit": args.limit, "seed": args.seed})
    identification.write_results(folder, probes, summary)
    print(identification.describe(summary))


def _search_arguments(parser: argparse.ArgumentParser) -> None:
    """What attacks and audits share."""
    count = inside(int, 0, math.inf)
    parser.add_argument("--steps", type=count, metavar="N", help="steps of an attack (default: its own)")
    parser.add_argument("--restarts", type=count, metavar="N", help="random starts of pgd, apgd and ddn")
    parser.add_argument("--limit", type=count, metavar="N", help="only the first N true pairs, false pairs and images")
    parser.add_argument("--seed", type=inside(int, -1, 2**63), default=0, metavar="S",
                        help="of all random starts (default 0)")


def _subjects(args: argparse.Namespace) -> Iterator[Any]:
    """Each .bin file with its records, inside the process group of torchrun where there is one."""
    folders = _result_folders(args.out, args.bin)
    _refuse_flip_twice(args)
    from backbones import is_lipschitz
    from eval import records, verification
    from eval.store import subject
    from utils.distributed import process_group
    from utils.files import sha256
    with process_group(args.device) as device:
        network = load(args.backbone, args.weights, device, args.flip, args.tight)
        origin = records.origin(args.backbone, args.weights, network)
        for folder, path in zip(folders, args.bin):
            pair_set = verification.read_bin(path)
            verification.require_size(network, pair_set)
            origin |= {"bin": pair_set.name, "bin_sha256": sha256(path)}
            yield subject.prepare(network, pair_set, folder, origin, is_lipschitz(args.backbone), args.protocol,
                                  args.far, args.tau, args.eps_u, args.eps, device=device, batch_size=args.batch_size,
                                  num_workers=args.num_workers, progress=pair_set.name)


def _refuse_flip_twice(args: argparse.Namespace) -> None:
    if args.flip == "average" and args.protocol == "paper":
        raise InputError("--flip average --protocol paper: this protocol counts mirrored copies as further pairs, which would be the "
                         "same pairs twice; expected --protocol strict or --flip none")


def _print(text: str) -> None:
    """On the first process only."""
    from utils.distributed import rank
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


if __name__ == "__main__":
    sys.exit(main())
