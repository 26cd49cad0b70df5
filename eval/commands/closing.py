"""How commands that take long end: what came of it in a sentence, what was written, and the command that one goes on with."""
import argparse
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from eval.commands.arguments import print_once

_FLAGS = ("resize", "tight")
_NETWORK = ("flip", "device", "batch_size", "num_workers")


def found(folder: Path, sentences: Iterable[str], files: Iterable[str]) -> None:
    """Print the sentences, and where those of the files are that were written."""
    print_once("\n".join([*sentences, f"written to {folder}: {', '.join(name for name in files if (folder / name).exists())}"]))


def go_on(command: Sequence[str], why: str) -> None:
    """Print the command that comes next, as a shell takes it."""
    print_once(f"next: {shlex.join(['python', '-m', 'eval', *command])}    # {why}")


def same_subject(args: argparse.Namespace) -> list[str]:
    """The options that name network, pairs and folder, as they were given, for another command on the same."""
    from eval.commands.arguments import evaluation_arguments
    parser = argparse.ArgumentParser()
    evaluation_arguments(parser)
    defaults: Any = parser.get_default
    more = [part for name in _NETWORK if getattr(args, name) != defaults(name)
            for part in (f"--{name.replace('_', '-')}", str(getattr(args, name)))]
    return ["--bin", *args.bin, "--backbone", args.backbone, "--weights", args.weights, *more,
            *(f"--{name}" for name in _FLAGS if getattr(args, name)), "--out", args.out]


def report(args: argparse.Namespace) -> None:
    """The page of the results comes next."""
    go_on(["report", args.out, "--out", str(Path(args.out) / "report.html")], "all of it as one page")
