"""Evaluate face-recognition networks from the command line: `python -m eval COMMAND --help`.

Each command is a file of eval/commands; heavy imports happen when it runs, so that help is instant. Errors of the user's input end in one
line on standard error and exit status 2.
"""
import argparse
import importlib
import pkgutil
import sys
from collections.abc import Sequence

import eval.commands
import utils.cores  # noqa: F401  # ahead of torch
from utils import InputError, RunError, one_line
from utils.console import Parser, complain, lasting_console
from utils.faults.signals import INTERRUPTED, stopped, stops
from utils.files import with_homes
from utils.remarks import warnings_as_lines


@lasting_console()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 1 where an audit finds a violation, 2 where the input cannot be used, 130 after
    Ctrl-C, or 75 after another signal that asks to stop. Attacks and audits then go on with the same command.
    """
    parser = Parser(prog="python -m eval", description="Evaluate face-recognition networks on pairs.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in pkgutil.iter_modules(eval.commands.__path__, "eval.commands."):
        getattr(importlib.import_module(module.name), "declare", lambda commands: None)(commands)
    args = with_homes(parser.parse_args(argv))
    with warnings_as_lines():
        try:
            return _run(args)
        except (InputError, RunError, OSError) as error:
            complain("error", _said(error))
            return 2
        except KeyboardInterrupt as error:
            return stopped(error, "nothing that was finished is lost; the same command goes on from it", INTERRUPTED)


def _said(error: Exception) -> object:
    """What went wrong, beginning with the file where there is one."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return error


def _run(args: argparse.Namespace) -> int:
    try:
        with stops():
            return args.run(args) or 0
    except (RuntimeError, MemoryError) as error:
        from utils.distributed import raise_for_lost_process
        from utils.faults.resources import advice, shortage
        if not isinstance(error, RunError) and (kind := shortage(error)):
            raise RunError(f"{one_line(error)[:200]}: {advice(kind)}") from error
        if isinstance(error, RuntimeError):
            raise_for_lost_process(error)
        raise


if __name__ == "__main__":
    sys.exit(main())
