"""`python -m eval list`: what is there by name."""
import argparse
from typing import Any


def declare(commands: Any) -> None:
    """Add the command to a parser."""
    parser = commands.add_parser("list", help="networks, models, headers, attacks, certificates, detectors by name",
                                 description="What is registered, by the names that commands and settings take. A thing of your own is "
                                             "given as package.module:Name instead.")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print the names."""
    import attacks
    import backbones
    import headers
    from backbones import models
    from eval.certificates import CERTIFICATES, certificate
    from eval.detection import DETECTORS
    lipschitz = {name: "1-Lipschitz" if backbones.is_lipschitz(name) else "" for name in backbones.backbone_names()}
    labels = {name: attacks.ATTACKS.find(name).label for name in attacks.ATTACKS.names()}
    _print("networks", lipschitz)
    _print("models", {name: f"{model.backbone}: {model.note}" for name, model in models.models().items()})
    _print("headers", dict.fromkeys(headers.HEADERS.names(), ""))
    _print("attacks", labels)
    _print("certificates", {name: certificate(name).label for name in CERTIFICATES.names()})
    _print("detectors", dict.fromkeys(DETECTORS.names(), ""))


def _print(heading: str, labels: dict[str, str]) -> None:
    width = max(map(len, labels))
    print(f"{heading}:", *(f"  {name:{width}}  {label}".rstrip() for name, label in labels.items()), sep="\n")
