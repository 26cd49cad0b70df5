"""`python -m eval plot`: figures of results folders."""
import argparse
from pathlib import Path
from typing import Any

from eval.commands.arguments import device_named
from utils import InputError


def declare(commands: Any) -> None:
    """Add the command to a parser."""
    parser = commands.add_parser("plot", help="plots of results folders",
                                 description="All plots that the records of each result support; with --out also one "
                                             "of all results' certified accuracies, one of their feature norms and, where "
                                             "some are of smooth, one of what is proven and what holds with confidence. "
                                             "With --bin, --backbone and --weights, those of a single result, also "
                                             "adversarial examples.")
    parser.add_argument("results", nargs="+", metavar="RESULTS", help="folder that certify, smooth or attack wrote")
    parser.add_argument("--out", metavar="DIR", help="where the plots go (default: each into its results folder)")
    parser.add_argument("--format", choices=("png", "pdf", "svg"), default="png",
                        help="png has 300 dpi; pdf and svg are for papers (default png)")
    parser.add_argument("--bin", metavar="FILE", help="its .bin file of pairs")
    parser.add_argument("--backbone", metavar="NAME", help="its network")
    parser.add_argument("--weights", metavar="FILE", help="the state dict of the network")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Draw all that the results support."""
    from eval.show import names, plots, smoothing
    from eval.store import provenance, results
    from utils.files import sha256
    summaries = results.read_summaries(*args.results)
    folders = list(summaries)
    prefixes = names.prefixes_of(folders) if args.out else [""] * len(folders)
    if args.out and len(set(prefixes)) < len(folders):
        raise InputError(f"--out {args.out}: several results folders have the same name, and so would their plots")
    subject = (args.bin, args.backbone, args.weights)
    if any(subject) and not (all(subject) and len(folders) == 1):
        raise InputError(f"adversarial examples need --bin, --backbone and --weights of one result, found {len(folders)} "
                         f"results and {sum(map(bool, subject))} of these options")
    if all(subject) and "smoothing" in summaries[folders[0]]:
        raise InputError(f"{folders[0]}: results of randomised smoothing; adversarial examples are drawn of networks without noise, leave "
                         "--bin, --backbone and --weights out")
    if all(subject):  # first, as this is where something can be wrong
        flip = summaries[folders[0]].get("flip", "none")
        asked = {**provenance.origin(args.backbone, args.weights), "flip": flip, "bin_sha256": sha256(args.bin)}
        results.refuse_another_subject(folders[0], asked)
    found = {folder: results.read_records(folder, certified=False, smoothed=True) for folder in folders}
    for (folder, result), prefix in zip(found.items(), prefixes):
        print(*plots.write_plots(result, args.out or folder, prefix, args.format), sep="\n")
    if args.out and len(folders) > 1:
        called = dict(zip(names.names_of(list(summaries.items()), alone=True), found.values()))
        print(*plots.write_comparison(called, args.out, args.format),
              *smoothing.write_comparison([*called.items()], args.out, args.format), sep="\n")
    if all(subject):
        path = Path(args.out or folders[0]) / f"{prefixes[0]}adversarial_examples.{args.format}"
        _draw_examples(args, found[folders[0]], path)
        print(path)


def _draw_examples(args: argparse.Namespace, found: Any, path: Path) -> None:
    from eval.show import examples, plots
    from eval.store.subject import load_model, open_pairs
    device, summary = device_named(args.device), found.summary
    model = load_model(args.backbone, args.weights, device, summary.get("flip", "none"))
    pair_set, _ = open_pairs(model, args.bin, summary["protocol"], tuple(summary["image_size"][1:]) if summary.get("resized") else None)
    pictures = examples.adversarial_examples(model.network, pair_set, found, device=device)
    plots.plot_adversarial_examples(pictures.sources, pictures.targets, pictures.adversarials, path, pictures.captions,
                                    f"Adversarial examples\n{plots.title_of(summary)}")
