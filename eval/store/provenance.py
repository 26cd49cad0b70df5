"""Where a result comes from, so that results of different things are never mixed."""
import hashlib
import importlib
import inspect
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backbones import DividedOutput, FlipAveraged
from utils import InputError
from utils.files import sha256

SUBJECT = ("backbone", "weights_sha256", "flip", "bin_sha256")
ORIGIN = (*SUBJECT, "lipschitz", "image_size", "protocol", "far_target", "tau", "code_sha256")
_ROOT = Path(__file__).resolve().parents[2]
# what figures depend on; how they are asked for and shown is not
_CODE = ("attacks*.py", "datasets.py", "backbones/**/*.py", "eval/*.py", "eval/store/*.py", "eval/audit/*.py", "utils/**/*.py")


def code_version() -> str | None:
    """The commit that this code is at, with "-dirty" where it was edited; None outside a git checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None if found.returncode == 0 else None


def code_sha256(*names: str) -> str:
    """The SHA-256 of the code that figures depend on, that of outside things `package.module:Name` among `names` included."""
    paths = {path.relative_to(_ROOT).as_posix(): path for pattern in _CODE for path in _ROOT.glob(pattern)}
    for name in names:
        if ":" in name:
            source = inspect.getsourcefile(importlib.import_module(name.partition(":")[0]))
            paths |= {name: Path(source)} if source else {}
    digest = hashlib.sha256()
    for name, path in sorted(paths.items()):
        digest.update(name.encode() + b"\0" + path.read_bytes().replace(b"\r\n", b"\n") + b"\0")
    return digest.hexdigest()


def origin(backbone: str, weights: str | os.PathLike[str], network: Any = None) -> dict[str, Any]:
    """Where the embeddings of a result come from, for its summary: the network, its weights, whether mirrored images are
    averaged in ("average" or "none"), the constant that its embeddings were divided by (`tight`) and the code.
    """
    averaged = isinstance(network, FlipAveraged)
    inner = network.network if averaged else network
    return {"backbone": backbone, "weights_sha256": sha256(weights), "flip": "average" if averaged else "none",
            "lipschitz": inner.lipschitz if isinstance(inner, DividedOutput) else 1.0, "lipschitz_assumed": False,
            "code_version": code_version(), "code_sha256": code_sha256(backbone)}


def fingerprint(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What tells results of one network, .bin, protocol and threshold from those of others."""
    return {key: summary.get(key) for key in ORIGIN}


def refuse_others(place: Path, summary: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Raise InputError, naming the file `place`, where its results are not of what is asked for; None stands for anything."""
    for key, found in fingerprint(summary).items():
        if asked.get(key) not in (None, found):
            raise InputError(f"{place}: these results have {key} {found}, expected {asked[key]}; choose another folder (--out)")
