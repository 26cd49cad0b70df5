"""`python -m eval spectrum`: how nonlinear a network is."""
import argparse
from pathlib import Path
from typing import Any

from eval.commands.arguments import count, device_named, result_folders
from utils import InputError


def declare(commands: Any) -> None:
    """Add the command to a parser."""
    parser = commands.add_parser("spectrum", help="how nonlinear a network is: singular values of its layers, signs, midpoints",
                                 description="Prints and writes (spectrum.csv, spectrum.json, spectrum.png) the singular values of the "
                                             "linear part of each layer and, with --bin, how many signs differ between images and how far "
                                             "the embedding of the middle of two images is from the middle of theirs.")
    parser.add_argument("--backbone", required=True, metavar="NAME", help="name of the network, or package.module:Name")
    parser.add_argument("--weights", required=True, metavar="FILE", help="its state dict")
    parser.add_argument("--bin", metavar="FILE", help="a .bin file of pairs, for what depends on images")
    parser.add_argument("--limit", type=count, metavar="N", help="only the first N true and N false pairs")
    parser.add_argument("--out", required=True, metavar="DIR", help="where the files go")
    parser.add_argument("--batch-size", type=count, default=64, metavar="N", help="images at a time (default 64)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Measure, then write, then print."""
    folder = result_folders(args.out, [args.out])[0]
    from eval.store.subject import load_model
    from utils.faults.folder import owned
    device = device_named(args.device)
    model = load_model(args.backbone, args.weights, device)
    if not model.certified and not args.bin:
        raise InputError(f"--backbone {args.backbone}: this network is not 1-Lipschitz, and its layers say nothing of themselves; with "
                         "--bin there is its deviation at midpoints")
    with owned(folder):
        _measure(args, folder, model, device)


def _measure(args: argparse.Namespace, folder: Path, model: Any, device: Any) -> None:
    import numpy as np

    from backbones import image_size, naming
    from eval import spectrum
    from eval.show.drawing import literal
    from eval.show.spectrum import plot_spectra
    from eval.store.subject import open_pairs
    from utils.files import write_csv, write_json
    pair_set, origin = open_pairs(model, args.bin, "strict") if args.bin else (None, model.origin)
    with naming(args.weights):
        steps = spectrum.steps_of(model.network, pair_set.image_size if pair_set else image_size(args.backbone), model.certified)
    values, active, images = spectrum.spectra(steps), {}, np.empty(0, dtype=np.int64)
    summary = {**origin}
    if pair_set:
        chosen = spectrum.first_pairs(pair_set, args.limit)
        left, right = pair_set.left[chosen], pair_set.right[chosen]
        images = np.unique(np.concatenate([left, right]))
        active = spectrum.activity(steps, pair_set, images, device, args.batch_size)
        deviations = spectrum.midpoint_deviations(steps, pair_set, left, right, device, args.batch_size)
        summary |= {"n_images": len(images), **spectrum.mean_deviation(deviations)}
    layers = spectrum.rows(steps, values, active, len(images))
    table = spectrum.table(layers)
    write_csv(folder / "spectrum.csv", table)
    (folder / "spectrum.png").unlink(missing_ok=True)  # that of another network, if this one has none
    if values:
        plot_spectra(values, folder / "spectrum.png", f"{literal(args.backbone)}: singular values of the layers")
    write_json(folder / "spectrum.json", {**summary, "layers": layers})
    if layers:
        print(table.to_string(index=False, na_rep="-", float_format=lambda value: f"{value:.4f}"))
    if "midpoint_deviation" in summary:
        print(_said(summary))


def _said(summary: dict[str, Any]) -> str:
    deviation = summary["midpoint_deviation"]
    said = "none, no pair has two embeddings" if deviation is None else f"{deviation:.3g}"
    return f"{summary['bin']}, {summary['n_pairs']} pairs of {summary['n_images']} images: midpoint deviation {said}"
