"""How insightface lays out the records of a data set: a header in key 0, the images, a record for each identity; `property` beside it.

The header's two labels are the first key past the images and the first key past the identities, as float32: from 2**24 on they are
rounded. Identities that were left out after the labels had been numbered make fewer identity records than there are labels.
"""
from pathlib import Path
from typing import Any

import numpy as np

from utils import InputError, RecordError
from utils.files import text_of
from utils.recordio import IndexedRecordFile, Record, unpack

_EXACT = 2**24  # from here on float32 has gaps between integers
MOST_LABELS = 2**31


def image_keys(file: IndexedRecordFile) -> tuple[np.ndarray, int]:
    """(keys of the images, number of identities that the header speaks of, or 0).

    Without a header all keys are images, in the order of the index. Raises InputError for a header that cannot be, or that promises
    images which the index has not, and as `IndexedRecordFile.read` does.
    """
    header = unpack(file.read(0), file.name(0)) if 0 in file else None
    if header is None or not _is_without_image(header):
        return file.keys, 0
    label = header.label.astype(np.float64)
    if len(label) < 2 or not np.all(np.isfinite(label)) or label[0] < 2 or label[1] < label[0]:
        raise InputError(f"{file.name(0)}: header labels {label[:4].tolist()}, expected the first key past the images and the "
                         "first key past the identities")
    if label[0] - _doubt(label[0]) - 1 > len(file):
        raise InputError(f"{file.name(0)}: the header promises {label[0] - 1:.0f} images, but {file.idx_path} has only "
                         f"{len(file)} entries")
    first = _first_past_images(file, label[0])
    _check_border(file, first)
    keys = np.arange(1, first)
    there = np.zeros(first, bool)
    there[file.keys[(file.keys >= 0) & (file.keys < first)]] = True
    if not there[1:].all():
        raise InputError(f"{file.idx_path}: key {1 + there[1:].argmin()} is not in the index, but the header in key 0 promises "
                         f"{len(keys)} images")
    return keys, _identities(file, first, label[1])


def _check_border(file: IndexedRecordFile, first: int) -> None:
    """Raise InputError where the last image is none, or the first record past the images is one: no record is damaged, the header is wrong
    about how many there are.
    """
    for key, wrong, found in ((first - 1, True, "none"), (first, False, "one as well")):
        try:
            if key in file and _is_without_image(unpack(file.read(key), file.name(key))) == wrong:
                raise InputError(f"{file.name(0)}: the header promises {first - 1} images, but key {key} is {found}")
        except RecordError:  # a damaged record says nothing of what it was
            continue


def _is_without_image(record: Record) -> bool:
    """As a header and the records of identities are: labels, and nothing behind them."""
    return record.flag > 0 and not len(record.image)


def _doubt(value: float) -> int:
    """How far a count may be from the float32 that it was rounded to."""
    return 0 if value < _EXACT else int(np.spacing(np.float32(value)))


def _first_past_images(file: IndexedRecordFile, rounded: float) -> int:
    """The first key past the images. Where the header had to round it, that is the first one near by that is not there or no image."""
    doubt = _doubt(rounded)
    for key in range(int(rounded) - doubt, int(rounded) + doubt + 1) if doubt else ():
        if key not in file:
            return key
        try:
            if _is_without_image(unpack(file.read(key), file.name(key))):
                return key
        except RecordError:  # a damaged record says nothing of what it was
            continue
    return int(rounded)


def _identities(file: IndexedRecordFile, first: int, rounded: float) -> int:
    """How many identity records there are from key `first` on, where the header rounded that: as many as the index has, or might have."""
    there, doubt = int((file.keys >= first).sum()), _doubt(rounded)
    if doubt and abs(first + there - rounded) <= doubt:
        return there
    return max(0, int(rounded) + doubt - first)


def labels_seen(file: IndexedRecordFile, keys: np.ndarray, most: int) -> dict[int, int]:
    """{label: a key that has it} of at most `most` of the records, from the first to the last: those that can be read and have one.

    Labels are mostly in order, so that the last record has the largest.
    """
    places: Any = np.unique(np.linspace(0, len(keys) - 1, min(most, len(keys))).astype(np.int64)) if len(keys) else []
    seen: dict[int, int] = {}
    for key in keys[places].tolist() if len(keys) else ():
        try:
            label = float(file.first_labels(np.array([key]))[0])
        except RecordError:
            continue
        if label.is_integer() and 0 <= label < MOST_LABELS:
            seen.setdefault(int(label), key)
    return seen


def property_classes(path: Path) -> int:
    """The number of identities of a `property` file ("classes,height,width"); 0 where there is no such file."""
    if not path.is_file():
        return 0
    with open(path, "rb") as file:
        text = text_of(file.read(1000)).strip()
    first = text.split(",")[0].strip()
    if not (first.isascii() and first.isdigit() and 0 < int(first) < MOST_LABELS):
        raise InputError(f"{path}: {text[:60]!r}, expected classes,height,width")
    return int(first)
