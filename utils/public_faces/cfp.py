"""Celebrities in Frontal-Profile (CFP): the pairs of its protocol FP, an image from the front and one in profile."""
import re
from pathlib import Path

from utils import InputError
from utils.build_dataset import read_bytes
from utils.files import folders_in, text_of

Pairs = list[tuple[Path, Path, bool]]


def cfp_pairs(folder: Path) -> tuple[list[Pairs], Path]:
    """(pairs of each split, true ones first, in the order of the splits; folder of the images).

    folder: has Protocol, with Pair_list_F.txt, Pair_list_P.txt and Split/FP/01/same.txt and diff.txt, and Data/Images or Images, with
    001/frontal/01.jpg and 001/profile/01.jpg. Raises InputError, naming file and line, where one of them is not there or cannot be read.
    """
    protocol = folder / "Protocol"
    images = next((place for place in (folder / "Data" / "Images", folder / "Images") if place.is_dir()), None)
    if images is None:
        raise InputError(f"{folder}: no folder Data/Images or Images, expected CFP as it is unpacked")
    frontal, profile = (_images(protocol / f"Pair_list_{view}.txt", images) for view in "FP")
    place = protocol / "Split" / "FP"
    try:
        splits = folders_in(place)
    except OSError as error:
        raise InputError(f"{place}: cannot be read: {error.strerror}") from None
    if not splits:
        raise InputError(f"{place}: no folders in it, expected 01, 02, ...")
    return [_pairs(place / split / "same.txt", frontal, profile, True) + _pairs(place / split / "diff.txt", frontal, profile, False)
            for split in splits], images


def _images(path: Path, images: Path) -> dict[int, Path]:
    """Number -> image, of lines like `1 ../Data/Images/001/frontal/01.jpg`, whose last three parts count."""
    found = {}
    for number, line in _lines(path):
        match = re.fullmatch(r"(\d{1,9})\s+(?:.*[/\\])?(\w+)[/\\](frontal|profile)[/\\](\w+\.\w+)", line)
        image = images.joinpath(*match.groups()[1:]) if match else None
        if image is None or not image.is_file():
            raise InputError(f"{path}: line {number} is {line[:80]!r}, expected a number and an image that is in {images}")
        found[int(match[1])] = image
    return found


def _pairs(path: Path, frontal: dict[int, Path], profile: dict[int, Path], same: bool) -> Pairs:
    """Of lines like `7,4`: a number of each list. Who they are must be what the file's name says."""
    pairs = []
    for number, line in _lines(path):
        match = re.fullmatch(r"(\d{1,9})\s*,\s*(\d{1,9})", line)
        left, right = (frontal.get(int(match[1])), profile.get(int(match[2]))) if match else (None, None)
        if left is None or right is None or (left.parts[-3] == right.parts[-3]) != same:
            raise InputError(f"{path}: line {number} is {line[:80]!r}, expected the numbers of two images of "
                             f"{'one person' if same else 'two people'}, with a comma")
        pairs.append((left, right, same))
    return pairs


def _lines(path: Path) -> list[tuple[int, str]]:
    lines = [(number, line.strip()) for number, line in enumerate(text_of(read_bytes(path)).splitlines(), 1) if line.strip()]
    if not lines:
        raise InputError(f"{path}: empty")
    return lines
