"""Arguments that commands share, and what they name. Nothing heavy is imported before it is used, so that help is instant."""
import argparse
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from eval.evaluation import FLIPS, PROTOCOLS, Evaluation
from utils import InputError

_FIELDS = {field.name for field in dataclasses.fields(Evaluation)}


def inside(kind: Callable[[str], Any], low: float, high: float) -> Callable[[str], Any]:
    """An argument type: numbers strictly between low and high."""
    def number(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not low < value < high:
            raise argparse.ArgumentTypeError(f"{text}: expected {_range(kind, low, high)}")
        return value
    return number


def _range(kind: Callable[[str], Any], low: float, high: float) -> str:
    """The same range in words."""
    if kind is int:
        return f"a whole number, at least {low + 1}" + (f" and at most {high - 1}" if high < math.inf else "")
    return f"a number above {low:g}" + (f" and below {high:g}" if high < math.inf else "")


budget, count = inside(float, 0, math.inf), inside(int, 0, math.inf)


def order(text: str) -> float:
    """An argument type: the p of an l_p norm, from 1 up to inf."""
    try:
        p = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not p >= 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return p


def share(text: str) -> float:
    """An argument type: a part of a whole, from 0 up to but not including 1."""
    return 0. if text == "0" else inside(float, 0, 1)(text)


def evaluation_arguments(parser: argparse.ArgumentParser) -> None:
    """What every command that embeds the images of pairs takes. What is left out has no attribute: `evaluation_of` knows the defaults."""
    def add(name: str, text: str, **how: Any) -> None:
        default = getattr(Evaluation, name.lstrip("-").replace("-", "_"))
        said = " ".join(map(str, default)) if isinstance(default, tuple) else default
        parser.add_argument(name, default=argparse.SUPPRESS, help=text + ("" if default is None else f" (default {said})"), **how)
    parser.add_argument("--bin", action="extend", nargs="+", required=True, metavar="FILE", help=".bin files of pairs; repeatable")
    parser.add_argument("--out", required=True, metavar="DIR", help="results folder; with several .bin files one folder each inside it")
    parser.add_argument("--resize", action="store_true", help="bring images of another size to the one that the network takes")
    network_arguments(parser)
    add("--far", "target false-acceptance rate", type=inside(float, 0, 1))
    add("--tau", "use this threshold instead of choosing one by --far", type=inside(float, -1, 1))
    add("--eps-u", "untargeted budgets", type=budget, nargs="+", metavar="EPS")
    add("--eps", "dodging and impersonation budgets", type=budget, nargs="+", metavar="EPS")
    add("--protocol", "strict: by the definitions; paper: as the published figures were made", choices=PROTOCOLS)


def network_arguments(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Which network, and how it is run. Where it is not required, a model may take its place, and photos come one by one."""
    parser.add_argument("--backbone", required=required, metavar="NAME",
                        help="name of the network, e.g. sllnet (python -m eval list has all), or package.module:Name")
    parser.add_argument("--weights", required=required, metavar="FILE", help="its state dict")
    parser.add_argument("--flip", choices=FLIPS, default=Evaluation.flip if required else None,
                        help="average: the embedding is the mean of those of the image and its mirror image (default "
                             + ("none)" if required else "that of the model, or none)"))
    parser.add_argument("--tight", action="store_true",
                        help="divide embeddings by the proven Lipschitz constant of the network: no cosine changes, and radii grow")
    parser.add_argument("--batch-size", type=count, default=64, metavar="N", help="images at a time (default 64)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")
    if required:
        parser.add_argument("--num-workers", type=inside(int, -1, 1025), default=2, metavar="N",
                            help="processes that decode images; 0: none (default 2)")


def search_arguments(parser: argparse.ArgumentParser) -> None:
    """What attacks and audits share."""
    attack_arguments(parser)
    parser.add_argument("--draws", type=count, metavar="N", help="of noise in each step, for results of smooth (default 32)")
    limit_argument(parser)


def attack_arguments(parser: argparse.ArgumentParser) -> None:
    """How hard an attack tries."""
    parser.add_argument("--steps", type=count, metavar="N", help="steps of an attack (default: its own)")
    parser.add_argument("--restarts", type=count, metavar="N", help="random starts of pgd, apgd and ddn")
    seed_argument(parser)


def limit_argument(parser: argparse.ArgumentParser) -> None:
    """How much is looked at."""
    parser.add_argument("--limit", type=count, metavar="N", help="only the first N true pairs, false pairs and images")


def seed_argument(parser: argparse.ArgumentParser) -> None:
    """Of random numbers."""
    parser.add_argument("--seed", type=inside(int, -1, 2**63), default=0, metavar="S", help="of all random numbers (default 0)")


def given(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of `Evaluation` that were asked for."""
    return {name: value for name, value in vars(args).items() if name in _FIELDS}


def search_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The settings of an attack that were asked for."""
    return {name: getattr(args, name) for name in ("steps", "restarts") if getattr(args, name) is not None}


def device_named(name: str | None) -> Any:
    """The torch.device of --device for a command that is one process; None: cuda where there is one. Raises InputError for one that is not
    there, and for one of several processes.
    """
    import torch

    from utils.cores import limit_threads
    from utils.faults.launch import launch
    limit_threads()
    if launch().world_size > 1:
        raise InputError(f"environment: WORLD_SIZE={launch().world_size}: this command is one process, leave torchrun out")
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device).cpu()
    except (RuntimeError, AssertionError) as error:  # an unknown name, a missing device, a build without CUDA
        raise InputError(f"--device {name}: {str(error).splitlines()[0]}") from None
    return device


def size_of(args: argparse.Namespace) -> tuple[int, int] | None:
    """The (height, width) that --resize brings images to."""
    from backbones import image_size
    _, height, width = image_size(args.backbone)
    return (height, width) if args.resize else None


def subjects(args: argparse.Namespace, smoothed: bool = False) -> Iterator[Any]:
    """Each .bin file with its records, inside the process group of torchrun where there is one; smoothed: those of randomised smoothing."""
    folders = result_folders(args.out, args.bin)
    Evaluation(**given(args))  # what is wrong with it is said before anything is loaded
    from eval.smoothed import open_smoothed
    from eval.store.subject import load_model, open_subject
    from utils.distributed import process_group
    from utils.faults.folder import owned
    with process_group(args.device) as device:
        model = load_model(args.backbone, args.weights, device, args.flip, args.tight)
        for folder, path in zip(folders, args.bin):
            with owned(folder, shared=True):  # all ranks read its records and journals
                open_one = open_smoothed if smoothed else open_subject
                yield open_one(model, path, folder, given(args), device=device, batch_size=args.batch_size,
                               num_workers=args.num_workers, resize=size_of(args), progress=Path(path).stem)


def smoothed_subjects(args: argparse.Namespace) -> Iterator[Any]:
    """As `subjects`, of results of `smooth` that are there. Raises InputError where they are not, or of another threshold or other code."""
    from eval.store import provenance, results
    for subject in subjects(args, smoothed=True):
        place, found = subject.folder / results.SUMMARY, subject.records
        if not found.smoothed:
            raise InputError(f"{place}: expected results of python -m eval smooth, made by the code as it is")
        provenance.refuse_others(place, found.summary, {"tau": getattr(args, "tau", None), "far_target": getattr(args, "far", None)})
        yield subject


def are_smoothed(args: argparse.Namespace) -> bool:
    """Whether the results folders are of `smooth`. Raises InputError where some are and some are not."""
    from eval.store.results import is_smoothed
    kinds = {is_smoothed(folder) for folder in result_folders(args.out, args.bin)}
    if len(kinds) > 1:
        raise InputError(f"--out {args.out}: results of certify and of smooth, expected one --bin at a time")
    return kinds.pop()


def result_folders(out: str, bins: Sequence[str]) -> list[Path]:
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


def print_once(text: str) -> None:
    """On the first process only."""
    from utils.distributed import rank
    if rank() == 0:
        print(text)
