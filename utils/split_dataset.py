"""Split the people of a training set: the first to train on, all others for pairs, so that nothing is chosen on faces that were learnt."""
import math
import random
from itertools import combinations, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils import InputError
from utils.build_dataset import write_bin
from utils.files import atomic_write
from utils.images import image_size
from utils.record_layout import image_keys, keys_at
from utils.recordio import IndexedRecordFile, RecordWriter, pack, unpack


class Split(NamedTuple):
    """How much there is of each: people and images to train on, other people, and their true and false pairs."""
    identities: int
    images: int
    others: int
    true_pairs: int
    false_pairs: int


def split_rec(rec: Path, out: Path, identities: int, false_pairs: int | None = None, seed: int = 0, name: str = "heldout",
              per_person: int | None = None) -> Split:
    """Write to the folder `out` train.rec, train.idx and `property` with the first `identities` people of a .rec, in the order of their
    labels, and {name}.bin with pairs of the others: all true ones, or `per_person` random ones of those who have more, and `false_pairs`
    random ones of two people (None: as many). With per_person both people of a false pair are drawn first, then an image of each: who has
    many images counts no more than others, as in LFW.

    rec: a .rec file, or a folder with train.rec. Records of images are taken over byte by byte; the header, and a record for each
    identity with the range of its keys, are those of the new file. Which false pairs are drawn, no two alike, and the order of all pairs
    are keyed by `seed`. Raises InputError where a file cannot be used, nobody would be left for one of the two parts, the others have no
    true pair, or there are not so many false ones.
    """
    rec = rec if rec.suffix == ".rec" else rec / "train.rec"
    idx = rec.with_suffix(".idx")
    file = IndexedRecordFile(rec, idx if idx.exists() else None)
    keys = keys_at(image_keys(file)[0], slice(None))
    labels = file.first_labels(keys)
    people = np.unique(labels)
    if not 0 < identities < len(people):
        raise InputError(f"{rec}: {len(people)} identities, expected more than the {identities} to train on, of which there must be some")
    if out.resolve() == rec.parent.resolve():
        raise InputError(f"{out}: holds {rec.name} itself, expected another folder")
    taken = labels <= people[identities - 1]
    others = keys[~taken]
    pairs = _pairs(labels[~taken], false_pairs, per_person, seed, str(rec))
    _write_rec(file, keys[taken], labels[taken], out)
    _write_pairs(file, [(int(others[left]), int(others[right]), same) for left, right, same in pairs], out / f"{name}.bin")
    true = sum(same for *_, same in pairs)
    return Split(identities, int(taken.sum()), len(people) - identities, true, len(pairs) - true)


def _write_rec(file: IndexedRecordFile, keys: np.ndarray, labels: np.ndarray, out: Path) -> None:
    """The records of `keys` as a data set of insightface's layout: people in the order of their labels, images in that of their keys."""
    order = np.lexsort((keys, labels))
    keys, labels = keys[order], labels[order]
    starts = [*np.flatnonzero(np.append(True, labels[1:] != labels[:-1])) + 1, len(keys) + 1]
    first_identity, height_width = len(keys) + 1, image_size(bytes(_image(file, int(keys[0]))), file.name(int(keys[0])))
    with atomic_write(out / "property") as properties, RecordWriter(out / "train") as writer:
        writer.write(0, pack([first_identity, first_identity + len(starts) - 1]))
        for key, source in enumerate(keys, 1):
            writer.write(key, file.read(int(source)))
        for number, (start, end) in enumerate(zip(starts, starts[1:])):
            writer.write(first_identity + number, pack([start, end], first_identity + number))
        properties.write(f"{len(starts) - 1},{height_width[0]},{height_width[1]}\n")


def _write_pairs(file: IndexedRecordFile, pairs: list[tuple[int, int, bool]], path: Path) -> None:
    """A .bin of the images of pairs of keys, each image once in the file however many pairs it is in."""
    images = {key: bytes(_image(file, key)) for pair in pairs for key in pair[:2]}
    write_bin(path, [images[key] for pair in pairs for key in pair[:2]], [same for *_, same in pairs])


def _image(file: IndexedRecordFile, key: int) -> memoryview:
    return unpack(file.read(key), file.name(key)).image


def _pairs(labels: np.ndarray, false_pairs: int | None, per_person: int | None, seed: int, name: str) -> list[tuple[int, int, bool]]:
    """(left, right, same): true pairs of images with these labels and random false ones, in random order, so that each fold of ten has
    both kinds.
    """
    images, numbers = [np.flatnonzero(labels == label).tolist() for label in np.unique(labels)], random.Random(seed)
    all_true = [list(combinations(own, 2)) for own in images]
    true = [pair for own in all_true for pair in (own if per_person is None else numbers.sample(own, min(per_person, len(own))))]
    possible = math.comb(len(labels), 2) - sum(map(len, all_true))
    if per_person is not None:
        possible //= 2  # drawn by people, the last ones of those with many images would hardly ever come
    wanted = min(len(true), possible) if false_pairs is None else false_pairs
    if not true:
        raise InputError(f"{name}: no two images of one of the people to be evaluated, so that there is no true pair")
    if wanted > possible:
        raise InputError(f"{name}: {possible} false pairs, expected at least {wanted}")
    false = _false_by_image(labels, wanted, numbers) if per_person is None else _false_by_person(images, wanted, numbers)
    pairs = [*((*pair, True) for pair in true), *((*pair, False) for pair in false)]
    numbers.shuffle(pairs)
    return pairs


def _false_by_image(labels: np.ndarray, wanted: int, numbers: random.Random) -> list[tuple[int, int]]:
    """Of all false pairs, each as likely as any other."""
    possible = math.comb(len(labels), 2)
    true = sum(math.comb(int(count), 2) for count in np.unique(labels, return_counts=True)[1])
    # of so many different pairs, true ones among them, enough are false
    drawn = map(_pair_number, numbers.sample(range(possible), min(possible, wanted + true)))
    return list(islice((pair for pair in drawn if labels[pair[0]] != labels[pair[1]]), wanted))


def _false_by_person(images: list[list[int]], wanted: int, numbers: random.Random) -> list[tuple[int, int]]:
    """Two people, then an image of each; no pair twice."""
    found: dict[tuple[int, int], None] = {}
    while len(found) < wanted:
        left, right = sorted(numbers.choice(own) for own in numbers.sample(images, 2))
        found[left, right] = None
    return list(found)


def _pair_number(number: int) -> tuple[int, int]:
    """Pair of this number in (0, 1), (0, 2), (1, 2), (0, 3), ..."""
    right = (1 + math.isqrt(1 + 8 * number)) // 2
    return number - right * (right - 1) // 2, right
