"""How insightface lays out the records of a data set: a header in key 0, the images, a record for each identity; `property` beside it.

The header's two labels are the first key past the images, F, and the first key past the identities, E, as float32: from 2**24 on they
are rounded. What is lost is found again where nothing else can be meant: keys in the index are exact, the records on either side of F are
an image and none, and E is one past the last key. The ranges in the records of identities, which are rounded as well, are not needed: an
image has its own label. Identities that were left out after the labels had been numbered make fewer identity records than there are
labels.
"""
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils import InputError, RecordError
from utils.files import text_of
from utils.record_table import blocks
from utils.recordio import IndexedRecordFile, Record, unpack

EXACT = 2**24  # from here on float32 has gaps between integers
MOST_LABELS = 2**31


def image_keys(file: IndexedRecordFile) -> tuple[np.ndarray | range, int | None]:
    """(keys of the images, number of identities that the header speaks of: 0 without a header, None where it was rounded and the index
    does not say it either).

    Without a header all keys are images, in the order of the index: file.keys itself. Raises InputError for a header that cannot be, or
    that promises images which the index has not, where a rounded one leaves open how many images there are, and as
    `IndexedRecordFile.read` does.
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
    if sum(int(np.count_nonzero(_within(file.keys[block], first))) for block in blocks(len(file.keys))) < first - 1:
        there = np.zeros(first, bool)
        there[file.keys[_within(file.keys, first)]] = True
        raise InputError(f"{file.idx_path}: key {1 + there[1:].argmin()} is not in the index, but the header in key 0 promises "
                         f"{first - 1} images")
    return range(1, first), _identities(file, first, label[1])


def _within(keys: np.ndarray, first: int) -> np.ndarray:
    return (keys >= 1) & (keys < first)


def keys_at(keys: np.ndarray | range, places: np.ndarray | slice) -> np.ndarray:
    """keys[places] of what `image_keys` returns, as int64."""
    if isinstance(keys, range):
        return keys.start + (np.arange(*places.indices(len(keys))) if isinstance(places, slice) else places)
    return keys[places]


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
    return 0 if value < EXACT else int(np.spacing(np.float32(value)))


def _first_past_images(file: IndexedRecordFile, rounded: float) -> int:
    """The first key past the images: of those that are rounded to `rounded`, the one that is not there or no image, behind an image.

    Raises InputError where records that are damaged, or in another order, leave open which one that is.
    """
    doubt = _doubt(rounded)
    if not doubt:
        return int(rounded)
    near = [key for key in range(int(rounded) - doubt, int(rounded) + doubt + 1) if np.float32(key) == rounded]
    kinds = {key: _kind(file, key) for key in near}
    images = [key for key in near if kinds[key] == "image"]
    last = max(images, default=near[0] - 1)  # below the nearest keys there are images, by the header
    first = min((key for key in near if kinds[key] in ("none", "absent")), default=None)
    if first is None or last > first:
        raise InputError(f"{file.name(0)}: the header promises about {rounded - 1:.0f} images, float32 having no number between, but key "
                         f"{last} is one" + (f" as well, and key {first} none" if first else ""))
    if first - last == 1:
        return first
    if kinds[first] == "none":  # of an identity, whose range says whether it is the first one
        if unpack(file.read(first)).label[0] == 1:
            return first
        if first - last == 2:
            return first - 1
    raise InputError(f"{file.name(0)}: the header promises about {rounded - 1:.0f} images, float32 having no number between, and key "
                     f"{last + 1}, where they may end, is damaged")


def _kind(file: IndexedRecordFile, key: int) -> str:
    """What is at a key: "image", "none", "absent" or "damaged"."""
    if key not in file:
        return "absent"
    try:
        return "none" if _is_without_image(unpack(file.read(key), file.name(key))) else "image"
    except RecordError:  # a damaged record says nothing of what it was
        return "damaged"


def _identities(file: IndexedRecordFile, first: int, rounded: float) -> int | None:
    """How many identities there are from key `first` on; where the header rounded that, as many as the index has records of, if they are
    one behind the other and their number is rounded to what the header says.
    """
    if not _doubt(rounded):
        return max(0, int(rounded) - first)
    there, end = int(np.count_nonzero(file.keys >= first)), 1 + int(file.keys.max())
    return there if there == max(0, end - first) and np.float32(first + there) == rounded else None


class Seen(NamedTuple):
    """What labels there are: how many different ones, the largest (-1: none), and the first key that has it."""
    count: int
    largest: int
    key: int


def labels_seen(file: IndexedRecordFile, keys: np.ndarray | range, most: int) -> Seen:
    """The labels of at most `most` of the records, evenly spread from the first to the last: of those that can be read and have one.

    Labels are mostly in order, so that the last record has the largest.
    """
    count = min(most, len(keys))
    places = None if count == len(keys) else np.unique(np.linspace(0, len(keys) - 1, count).astype(np.int64))
    found, largest, of = np.empty(0, np.int32), -1, -1
    for block in blocks(count if places is None else len(places)):
        part = keys_at(keys, block if places is None else places[block])
        labels = file.first_labels(part, damaged=-1)
        labels = np.where((labels >= 0) & (labels < MOST_LABELS) & (labels == np.floor(labels)), labels, -1).astype(np.int32)
        found = np.union1d(found, labels[labels >= 0])
        if len(labels) and labels.max() > largest:
            largest, of = int(labels.max()), int(part[labels.argmax()])
    return Seen(len(found), largest, of)


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
