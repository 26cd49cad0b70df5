"""Lists of verification pairs, in the forms that the field uses: lines of two paths and a label, and LFW's own pairs.txt."""
import csv
import os
from pathlib import Path

from utils import InputError

_LABELS = {"1": True, "0": False, "true": True, "false": False, "1.0": True, "0.0": False}
_HEADINGS = {"same", "issame", "is_same", "label", "labels", "imagenum2"}

Pairs = list[tuple[str, str, bool]]


def parse_pairs(text: str, name: str, images: Path) -> Pairs:
    """[(left, right, same), ...]: paths of images relative to the folder `images`.

    A line is two paths and 1, True, 0 or False, separated by tabs, by commas or, where paths hold no blanks, by blanks; a first line may
    name the columns. Or it is one of LFW: a name and two numbers (same), or two names with a number each (not the same), mostly under a
    first line of one or two numbers; number 3 of name N is the image N/N_0003 of any format. Raises InputError, with the name of the
    list, for a line that is neither and for images of LFW that are not there.
    """
    lines = [(number, _fields(line)) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    folds = bool(lines) and len(lines[0][1]) <= 2 and all(map(_is_number, lines[0][1]))
    if folds or lines and lines[0][1][-1].casefold() in _HEADINGS:
        lines = lines[1:]
    of_lfw = folds or bool(lines) and _is_of_lfw(lines[0][1])
    pairs = []
    for number, fields in lines:
        pair = _of_lfw(fields, images) if of_lfw else _of_paths(fields)
        if pair is None:
            expected = "a name and two numbers, or two names with a number each, of images that are there" if of_lfw \
                else "two paths and 0 or 1"
            raise InputError(f"{name}: line {number} is {' '.join(fields)[:80]!r}, expected {expected}")
        pairs.append(pair)
    if not pairs:
        raise InputError(f"{name}: no pairs")
    return pairs


def _fields(line: str) -> list[str]:
    """By tabs, where there are some; by commas, where that makes three or four; else by blanks."""
    if "\t" in line:
        return [field.strip() for field in line.strip().split("\t")]
    try:
        fields = [field.strip() for field in next(csv.reader([line.strip().rstrip(",")], skipinitialspace=True))]
    except csv.Error:  # a line that is too long for it
        return line.split()
    return fields if 3 <= len(fields) <= 4 else line.split()


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10


def _of_paths(fields: list[str]) -> tuple[str, str, bool] | None:
    same = _LABELS.get(fields[2].casefold()) if len(fields) == 3 else None
    return None if same is None or not fields[0] or not fields[1] else (fields[0], fields[1], same)


def _is_of_lfw(fields: list[str]) -> bool:
    return len(fields) in (3, 4) and _is_number(fields[1]) and _is_number(fields[-1])


def _of_lfw(fields: list[str], images: Path) -> tuple[str, str, bool] | None:
    if not _is_of_lfw(fields):
        return None
    fields = [fields[0], fields[1], fields[0], fields[2]] if len(fields) == 3 else fields
    left, right = _image_of(images, *fields[:2]), _image_of(images, *fields[2:])
    return None if left is None or right is None else (left, right, fields[0] == fields[2])


def _image_of(images: Path, name: str, number: str) -> str | None:
    from torchvision.datasets.folder import IMG_EXTENSIONS

    stem = os.path.join(name, f"{name}_{int(number):04d}")
    return next((stem + ending for ending in IMG_EXTENSIONS if (images / (stem + ending)).is_file()), None)
