"""The files of a data set: pairs, people to train on who are in none of them, and a summary of where all came from.

NAME.bin is removed before anything else takes its name and is written last: where it is there, the others belong to it.
"""
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils import InputError
from utils.build_dataset import bar, write_bin, write_rec
from utils.files import write_json
from utils.public_faces.crops import Crop

Pairs = Sequence[tuple[Path, Path, bool]]
_TRAINING = ("train.rec", "train.idx", "property")


def write_pairs(out: Path, name: str, pairs: Pairs, crop: Crop, about: dict[str, Any], root: Path, progress: bool = False) -> None:
    """Write NAME.bin and NAME.json to the folder `out`. root: what the paths of images are relative to in the summary's checksum.

    Raises InputError where `out` holds a NAME.bin of another origin, and where images cannot be used; then all is as before.
    """
    _refuse_others(out, name, f"{name}.bin")
    images = _encoded(pairs, crop, progress)
    _summary(out, name, pairs, crop, about, root)
    _finish(out, name, pairs, images)


def write_split(out: Path, name: str, pairs: Pairs, people: dict[str, list[Path]], crop: Crop, about: dict[str, Any], root: Path,
                progress: bool = False) -> None:
    """`write_pairs`, and train.rec, train.idx and `property` of `people`, labelled in their order. Without people, a training set that an
    earlier run has written there is removed: people of these pairs may be in it.

    Raises InputError as `write_pairs`, and where `out` holds a train.rec of another origin.
    """
    _refuse_others(out, name, "train.rec", f"{name}.bin")
    images = _encoded(pairs, crop, progress)
    samples = [(path, label) for label, paths in enumerate(people.values()) for path in paths]
    about = {**about, "train": {"identities": len(people), "images": len(samples), "names": list(people)}}
    if samples:
        write_rec(out / "train", samples, len(people), crop, progress, lambda: _summary(out, name, pairs, crop, about, root))
    else:
        _summary(out, name, pairs, crop, about, root)
        for each in _TRAINING:
            (out / each).unlink(missing_ok=True)
    _finish(out, name, pairs, images)


def _refuse_others(out: Path, name: str, *files: str) -> None:
    """What is there without a summary may be another's, and cost them days."""
    for file in files:
        if (out / file).exists() and not (out / f"{name}.json").exists():
            raise InputError(f"{out}: holds a {file} without {name}.json, of another origin: choose another --out")


def _encoded(pairs: Pairs, crop: Crop, progress: bool) -> dict[Path, bytes]:
    """The images of the pairs, each once; as JPEG they take 6 kB each at 112 pixels."""
    with bar(list(dict.fromkeys(path for pair in pairs for path in pair[:2])), progress) as paths:
        return {path: crop(path) for path in paths}


def _summary(out: Path, name: str, pairs: Pairs, crop: Crop, about: dict[str, Any], root: Path) -> None:
    (out / f"{name}.bin").unlink(missing_ok=True)
    true = sum(same for *_, same in pairs)
    write_json(out / f"{name}.json", {
        "dataset": name, "format": 1, **about,
        "pairs": {"true": true, "false": len(pairs) - true, "images": len({path for pair in pairs for path in pair[:2]})},
        "crop": crop.kind, "size": crop.size[0], "quality": crop.quality,
        "images_read": len(crop.read), "images_sha256": crop.digest(root)})


def _finish(out: Path, name: str, pairs: Pairs, images: dict[Path, bytes]) -> None:
    write_bin(out / f"{name}.bin", [images[path] for pair in pairs for path in pair[:2]], [same for *_, same in pairs])
