"""`python -m eval certify`: certified radii and accuracies."""
import argparse
import contextlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.commands import closing
from eval.commands.arguments import budget, device_named, evaluation_arguments, given, order, result_folders, size_of
from eval.evaluation import Evaluation
from utils import InputError


def declare(commands: Any) -> None:
    """Add the command to a parser."""
    parser = commands.add_parser("certify", help="certified radii and accuracies (Table 1)",
                                 description="Certified robustness of a 1-Lipschitz network on pairs of faces: prints "
                                             "Table 1 and writes pairs.csv, images.csv and summary.json.")
    evaluation_arguments(parser)
    parser.add_argument("--certificate", dest="certificates", nargs="+", default=argparse.SUPPRESS, metavar="NAME",
                        help="further certificates, of what `python -m eval list` has or package.module:Name (default both joint)")
    parser.add_argument("--certified-far", type=budget, nargs="+", default=[], metavar="EPS",
                        help="also TAR at the threshold that keeps FAR at the target when one image of each pair moves by EPS")
    parser.add_argument("--p", type=order, nargs="+", default=[], metavar="P",
                        help="also certified accuracies for budgets --eps-p in these l_p norms, from 1 to inf")
    parser.add_argument("--eps-p", type=budget, nargs="+", default=[0.5, 1.0], metavar="EPS",
                        help="budgets of --p in grey levels, which are 1/255 (default 0.5 1)")
    parser.add_argument("--sound", action="store_true",
                        help="also radii that are proven in floating point (columns radius_sound, radius_u_sound), from embeddings in "
                             "float64; three to seven times the time")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Compute everything, then write everything: nothing is left behind by a run that fails."""
    folders = result_folders(args.out, args.bin)
    evaluation = Evaluation(**given(args))
    if args.sound and args.tight:
        raise InputError("--sound: its radii are divided by the Lipschitz constant already, leave --tight out")
    from eval.store.subject import require_lipschitz
    from utils.faults.folder import owned
    require_lipschitz(args.backbone, "certified radii")
    device = device_named(args.device)
    with contextlib.ExitStack() as stack:
        for folder in folders:
            stack.enter_context(owned(folder))
        _certify(args, folders, evaluation, device)


def _certify(args: argparse.Namespace, folders: Sequence[Path], evaluation: Evaluation, device: Any) -> None:
    from backbones import naming
    from backbones.chain import followed
    from eval import budgets, records, robustness
    from eval.audit import sound
    from eval.show import sentence, tables
    from eval.store import results
    from eval.store.subject import open_pairs
    model, proven = model_of(args, device)
    found = []
    for folder, path in zip(folders, args.bin):
        pair_set, origin = open_pairs(model, path, evaluation.protocol, size_of(args))
        results.refuse_another_subject(folder, origin)
        embedding = dict(device=device, batch_size=args.batch_size, num_workers=args.num_workers, progress=pair_set.name)
        # what is proven of a network under --sound is said below, with its rounding; its plain radii are for 1
        with naming(args.weights):
            network = followed(model.network, pair_set.image_size) if proven else model.network
        result = records.certify(network, pair_set, evaluation, 1.0 if proven else None, **embedding)
        result.figures.update({**origin, **budgets.further(result, evaluation.far, args.certified_far, args.p, args.eps_p)})
        if proven:
            with naming(args.weights):
                sound.add(result, sound.prove(proven, pair_set))
        found.append(robustness.keep_attacks(folder, result))
    for folder, result in zip(folders, found):
        results.write_records(folder, result)
    if proven:
        print("In exact arithmetic, for L = 1:")
    print(tables.render(tables.table1((result.summary for result in found), sound=False)))
    print(*(line for result in found for line in budgets.describe(result.summary)), sep="", end="")
    if args.tight:
        print(f"L = {model.origin['lipschitz']:.9g}, which embeddings are divided by")
    if proven:
        print(f"\nIn floating point (--sound), L = {proven.lipschitz:.9g}, E = "
              f"{max(result.summary['sound_error'] for result in found):.3g}: these radii hold as they are computed:")
        print(tables.render(tables.table1(result.summary for result in found)))
    for folder, result in zip(folders, found):
        closing.found(folder, sentence.in_words(result.summary), (results.PAIRS, results.IMAGES, results.SUMMARY))
    closing.go_on(["audit", *closing.same_subject(args), "--limit", "10", "--steps", "20"], "tries to break it, quickly; more without "
                                                                                           "--limit and --steps")


def model_of(args: argparse.Namespace, device: Any, **arguments: Any) -> tuple[Any, Any]:
    """The network, and under --sound the one whose rounding is proven inside it. arguments: of the network, beside those of its file."""
    from backbones import averaged
    from backbones.bounds import TOLERANCE
    from backbones.sound import load_sound
    from eval.store import provenance
    from eval.store.subject import Model, load_model
    if not args.sound:
        return load_model(args.backbone, args.weights, device, args.flip, args.tight, **arguments), None
    proven = load_sound(args.backbone, args.weights, device, **arguments)
    if proven.lipschitz > 1 + TOLERANCE:
        warnings.warn(f"{args.weights}: L is {proven.lipschitz:.9g}: radii that are not called sound, the first table, are for 1 and "
                      "do not hold", stacklevel=2)
    network = averaged(proven, args.flip)
    return Model(network, provenance.origin(args.backbone, args.weights, network), True), proven
