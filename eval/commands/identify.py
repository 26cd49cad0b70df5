"""`python -m eval identify`: certified 1:N identification."""
import argparse
import math
from pathlib import Path
from typing import Any

from eval.commands.arguments import budget, count, device_named, inside, network_arguments, result_folders, share
from eval.evaluation import Evaluation
from utils import InputError, printable


def declare(commands: Any) -> None:
    """Add the command to a parser."""
    parser = commands.add_parser("identify", help="certified 1:N identification",
                                 description="Enrols some images of each identity as its template, searches for the others among all "
                                             "templates, and certifies who is found: prints certified rank-1 and TPIR at FPIR and "
                                             "writes probes.csv and summary.json.")
    parser.add_argument("--rec", required=True, metavar="PATH",
                        help="faces with identities: a folder with train.rec and train.idx, a .rec file, a folder with a folder of "
                             "images for each identity, several of these with commas between them, or synthetic")
    parser.add_argument("--out", required=True, metavar="DIR", help="results folder")
    network_arguments(parser)
    parser.add_argument("--enrolled", type=count, default=1, metavar="K", help="images of an identity in its template (default 1)")
    parser.add_argument("--poisoned", type=inside(int, -1, math.inf), default=0, metavar="M",
                        help="how many of the K an attacker moves as well, each by the budget (default 0)")
    parser.add_argument("--unknown", type=share, default=0.3, metavar="SHARE",
                        help="share of the identities that are searched for without being enrolled; 0: none (default 0.3)")
    parser.add_argument("--fpir", type=inside(float, 0, 1), default=1e-2,
                        help="target false-positive identification rate (default 1e-2)")
    parser.add_argument("--tau", type=inside(float, -1, 1), help="use this threshold instead of choosing one by --fpir")
    parser.add_argument("--eps", type=budget, nargs="+", default=Evaluation.eps, metavar="EPS",
                        help=f"budgets (default {' '.join(map(str, Evaluation.eps))})")
    parser.add_argument("--limit", type=count, metavar="N", help="only the first N identities")
    parser.add_argument("--seed", type=inside(int, -1, 2**63), default=0, metavar="S",
                        help="of who and which images are enrolled (default 0)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Identify the faces of a dataset."""
    folder = result_folders(args.out, [args.rec])[0]
    if args.poisoned > args.enrolled:
        raise InputError(f"--poisoned {args.poisoned}: expected at most --enrolled {args.enrolled}")
    from eval.store.subject import require_lipschitz
    from utils.faults.folder import owned
    require_lipschitz(args.backbone, "certified radii")
    device = device_named(args.device)
    with owned(folder):
        _identify(args, folder, device)


def _identify(args: argparse.Namespace, folder: Path, device: Any) -> None:
    from backbones import embedding_size
    from datasets import get_dataset, sources
    from eval import identification
    from eval.store.subject import load_model
    from utils.build_dataset import RESIZES
    dataset = get_dataset(args.rec)
    model = load_model(args.backbone, args.weights, device, args.flip, args.tight)
    try:
        embedding_size(model.network, (3, *dataset.image_size), args.backbone, RESIZES)
    except InputError as error:
        raise InputError(f"--rec {args.rec}: {error}") from error
    faces = printable("+".join(Path(part).name for part in sources(args.rec)))
    origin = {**model.origin, "faces": faces, "faces_fingerprint": dataset.fingerprint()}
    identification.refuse_other_results(folder, origin)
    split = identification.split_identities(dataset.labels(), args.enrolled, args.unknown, args.limit, args.seed)
    probes, summary = identification.identify(model.network, dataset, split, args.fpir, args.tau, args.eps, args.poisoned, device=device,
                                              batch_size=args.batch_size, num_workers=args.num_workers, progress=origin["faces"])
    summary.update({**origin, "unknown": args.unknown, "limit": args.limit, "seed": args.seed})
    identification.write_results(folder, probes, summary)
    print(identification.describe(summary))
