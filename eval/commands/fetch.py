"""`python -m eval fetch`: download the weights of a model."""
import argparse
from typing import Any


def declare(commands: Any) -> None:
    """Add the command to a parser."""
    parser = commands.add_parser("fetch", help="download the weights of a trained model",
                                 description="Downloads the weights of a model of params/models.json into params/ and compares their "
                                             "SHA-256. Nothing else here downloads weights.")
    parser.add_argument("name", metavar="NAME", help="a model, as `python -m eval list` shows them")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Fetch one model."""
    import sys

    from backbones import models
    print(models.fetch(models.find(args.name), progress=sys.stderr.isatty()))
