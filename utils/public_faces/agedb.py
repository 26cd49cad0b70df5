"""AgeDB: pairs of images 30 years apart. The published pairs are no part of what is distributed with the images: these are drawn anew."""
import random
import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from itertools import accumulate, islice
from pathlib import Path
from typing import NamedTuple

from utils import InputError
from utils.files import files_under

FOLDS, EACH, GAP = 10, 300, 30  # as the published list: folds, true and as many false pairs in each, years
_NAME = re.compile(r"\d+_(.+)_(\d{1,3})_[fm]\.jpe?g", re.IGNORECASE)


class Portrait(NamedTuple):
    """An image, whom it shows, and at what age, in years."""
    path: Path
    name: str
    age: int


Couple = tuple[Portrait, Portrait]


def agedb_pairs(folder: Path, seed: int = 0) -> list[list[tuple[Path, Path, bool]]]:
    """The pairs of each of ten folds, true ones first: of all that are 30 years apart, the younger image first, each is as likely as any
    other of its kind; no pair comes twice, a person may be in several folds. 300 true and 300 false ones a fold, fewer where there are
    not so many.

    folder: images called NUMBER_NAME_AGE_GENDER.jpg, in it or in folders inside. Raises InputError where an image is called otherwise,
    and where there are fewer than ten pairs of either kind.
    """
    images, numbers = portraits(folder), random.Random(seed)
    true, apart = true_pairs(images), Apart(images)
    false = apart.count - len(true)
    each = min(EACH, len(true) // FOLDS, false // FOLDS)
    if not each:
        raise InputError(f"{folder}: {len(true)} true and {false} false pairs {GAP} years apart among {len(images)} images, expected at "
                         f"least {FOLDS} of each")
    of_one = numbers.sample(true, FOLDS * each)
    # among so many different ones that are apart, enough are of two people
    drawn = map(apart.pair, numbers.sample(range(apart.count), min(apart.count, FOLDS * each + len(true))))
    of_two = list(islice((pair for pair in drawn if pair[0].name != pair[1].name), FOLDS * each))
    return [[(young.path, old.path, same) for kind, same in ((of_one, True), (of_two, False)) for young, old in kind[start:start + each]]
            for start in range(0, FOLDS * each, each)]


def portraits(folder: Path) -> list[Portrait]:
    """All images, by their paths. Raises InputError, naming the image, where a name is not of this form."""
    found = []
    for path in map(Path, files_under(folder, (".jpg", ".jpeg"))):
        match = _NAME.fullmatch(path.name)
        if match is None:
            raise InputError(f"{path}: expected a name like 0_MariaCallas_35_f.jpg: number, name, age and gender")
        found.append(Portrait(path, match[1], int(match[2])))
    if not found:
        raise InputError(f"{folder}: no images NUMBER_NAME_AGE_GENDER.jpg, expected the folder of AgeDB")
    return found


def true_pairs(images: Sequence[Portrait]) -> list[Couple]:
    """All pairs of one person whose ages are GAP years apart."""
    own = defaultdict(list)
    for image in images:
        own[image.name, image.age].append(image)
    return [(young, old) for young in images for old in own.get((young.name, young.age + GAP), ())]


class Apart:
    """All pairs whose ages are GAP years apart, whoever is in them: numbered, but not held, as there are millions."""

    def __init__(self, images: Sequence[Portrait]) -> None:
        by_age = defaultdict(list)
        for image in images:
            by_age[image.age].append(image)
        self._sides = [(young, by_age[age + GAP]) for age, young in sorted(by_age.items()) if age + GAP in by_age]
        self._ends = [0, *accumulate(len(young) * len(old) for young, old in self._sides)]
        self.count = self._ends[-1]

    def pair(self, number: int) -> Couple:
        """The pair of a number in 0 .. count - 1."""
        age = bisect_right(self._ends, number) - 1
        young, old = self._sides[age]
        left, right = divmod(number - self._ends[age], len(old))
        return young[left], old[right]
