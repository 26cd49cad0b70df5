"""Trained networks by name: what each is made of, where its file is, and the thresholds that were found for it.

The one home of these values is params/models.json, a list of `Model`. A model is a backbone with weights, and with `flip` the way in which
it is run: names of models are not names of backbones.
"""
import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils import InputError
from utils.files import read_json, sha256

FOLDER = Path(__file__).resolve().parents[1] / "params"
REGISTRY = FOLDER / "models.json"


@dataclasses.dataclass(frozen=True)
class Model:
    """A trained network.

    backbone, arguments: what its weights are of. flip: "average" where its embeddings are means over an image and its mirror image.
    file: the name of its weights in params/, with their sha256; url: where they can be downloaded; page: where a person can. thresholds:
    [{"far", "tau"}, ...], the first one the default, of the images that found_on says. pupils: [[x, y], [x, y]] of the left and right one
    in the images that it was trained on, in pixels of 112 x 112 from their centres; () for the field's template. note: what to know.
    """
    name: str
    backbone: str
    note: str
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    flip: str = "none"
    file: str = ""
    sha256: str = ""
    url: str = ""
    page: str = ""
    thresholds: Sequence[Mapping[str, float]] = ()
    found_on: str = ""
    pupils: Sequence[Sequence[float]] = ()

    @property
    def path(self) -> Path:
        """Where its weights are, or would be."""
        return FOLDER / self.file

    def threshold(self, far: "float | None" = None) -> Mapping[str, float]:
        """{"far", "tau"} that was found for this FAR; None: the first one. Raises InputError where there is none."""
        found = [entry for entry in self.thresholds if far in (None, entry["far"])]
        if not found:
            known = " or ".join(f"{entry['far']:g}" for entry in self.thresholds)
            raise InputError(f"model {self.name}: no threshold of it is known{'' if far is None else f' for FAR {far:g}'}, expected "
                             + (f"--far {known}, or --tau" if known else "--tau"))
        return found[0]


def models() -> dict[str, Model]:
    """All models by name, in the order of params/models.json, whether their weights are here or not."""
    content = read_json(REGISTRY)
    try:
        found = [Model(**entry) for entry in content["models"]]
    except (TypeError, KeyError) as error:
        raise InputError(f"{REGISTRY}: not a list of models: {error}") from None
    return {model.name: model for model in found}


def find(name: str) -> Model:
    """The model of a name. Raises InputError where there is none."""
    known = models()
    if name not in known:
        raise InputError(f"model {name!r} is not known (there are {', '.join(known)}); a backbone without weights is no model")
    return known[name]


def weights_of(model: Model) -> Path:
    """The file of its weights, its SHA-256 compared. Raises InputError where it is not here, saying how to get it, or is another file."""
    if not model.file:
        where = f"by hand from {model.page}" if model.page else "by hand; no address is known"
        raise InputError(f"model {model.name}: its weights are to be had {where}, and then given as --backbone {model.backbone} "
                         "--weights FILE")
    if not model.path.is_file():
        how = f"`python -m eval fetch {model.name}` downloads it from {model.url}" if model.url else "no address of it is known"
        raise InputError(f"{model.path}: not here; {how}")
    if (found := sha256(model.path)) != model.sha256:
        raise InputError(f"{model.path}: its SHA-256 is {found}, expected {model.sha256} by {REGISTRY.name}: damaged, or another file")
    return model.path


def fetch(model: Model, progress: bool = False) -> Path:
    """Download the weights of a model that has a url, unless they are here; returns their path.

    The file takes its name once all of it was read and its SHA-256 is right. Raises InputError where there is no url or no such file.
    """
    import torch

    if not model.url or model.path.is_file():
        return weights_of(model)
    os.makedirs(FOLDER, exist_ok=True)
    try:
        torch.hub.download_url_to_file(model.url, str(model.path), hash_prefix=model.sha256, progress=progress)
    except (OSError, RuntimeError, ValueError) as error:  # no such host or page, another checksum, no address
        raise InputError(f"{model.url}: cannot be downloaded: {error}") from None
    return weights_of(model)
