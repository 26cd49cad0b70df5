"""Labeled Faces in the Wild: downloaded and laid out by scikit-learn, split by the folds of its view 2.

scikit-learn's fetchers get the archive and the lists, with their checksums. Images are read from the folder that they make, not taken
from what they return: that is all images at once, as floats, without file names, and a copy of it in a cache.
"""
import sys
import tarfile
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from utils import InputError
from utils.build_dataset import read_bytes
from utils.faults.folder import owned
from utils.files import sha256, text_of
from utils.image_folders import labelled_images
from utils.pair_lists import parse_pairs
from utils.public_faces import AT_LEAST, FOLDS, QUALITY, SIZE
from utils.public_faces.crops import Crop
from utils.public_faces.written import write_split

LISTS = ("pairsDevTrain.txt", "pairsDevTest.txt", "pairs.txt")  # what the fetcher wants to be there; the last one is view 2
IMAGES, PEOPLE = 13_233, 5_749  # of LFW

Pairs = list[tuple[Path, Path, bool]]


class Built(NamedTuple):
    """How much there is of each: people and images to train on, true and false pairs, and the people of these; images and people in all."""
    identities: int
    images: int
    true_pairs: int
    false_pairs: int
    tested: int
    all_images: int
    all_people: int

    @property
    def whole(self) -> bool:
        """Whether all images of LFW were there."""
        return (self.all_images, self.all_people) == (IMAGES, PEOPLE)


def build_lfw(out: Path, home: Path | None = None, folds: Sequence[int] = FOLDS, crop: str = "lfwcrop", size: int = SIZE,
              quality: int = QUALITY, at_least: int = AT_LEAST, original: bool = False, progress: bool = False) -> Built:
    """Write to the folder `out` lfw.bin, the pairs of some folds of view 2, train.rec, train.idx and `property` of people who are in none
    of these pairs, and lfw.json, which says what all is made of.

    home: scikit-learn's folder of data (None: its own default); what is missing there is downloaded. folds: numbers from 1 in the order of
    pairs.txt; none: all. crop: see `Crop`. at_least: people with fewer images are left out of training. original: the images as they were
    found, not the funneled (aligned) ones. Where fewer than two people are left there is no train.rec. Raises InputError where something
    cannot be had or used; what was in `out` is then as it was.
    """
    images, view = located(home, original, progress)
    people = people_of(images)
    by_fold = fold_pairs(view, images)
    chosen = _chosen(folds, len(by_fold), view)
    pairs = [pair for fold in chosen for pair in by_fold[fold - 1]]
    tested = {path.parent.name for pair in pairs for path in pair[:2]}
    trained = {name: paths for name, paths in people.items() if name not in tested and len(paths) >= at_least}
    trained = trained if len(trained) > 1 else {}
    count = sum(map(len, people.values()))
    about = {"folds": chosen, "people_of_pairs": len(tested), "pairs_sha256": sha256(view), "at_least": at_least, "original": original,
             "found": {"images": count, "people": len(people)}}
    write_split(out, "lfw", pairs, trained, Crop(crop, size, quality), about, images, progress)
    true = sum(same for *_, same in pairs)
    return Built(len(trained), sum(map(len, trained.values())), true, len(pairs) - true, len(tested), count, len(people))


def located(home: Path | None = None, original: bool = False, progress: bool = False) -> tuple[Path, Path]:
    """(folder of the images, pairs.txt), downloaded where something is missing. Raises InputError, saying what belongs where."""
    from sklearn.datasets import get_data_home

    place = (home or Path(get_data_home())) / "lfw_home"
    images, view = place / ("lfw" if original else "lfw_funneled"), place / LISTS[-1]
    archive = place / ("lfw.tgz" if original else "lfw-funneled.tgz")
    if not (images.is_dir() and view.is_file()):
        if progress:
            print(f"{place}: downloading LFW (200 MB)", file=sys.stderr)
        with owned(place):
            _fetch(images, view, archive, original)
    elif archive.exists():
        with owned(place):
            _unpack_rest(archive, images)
    return images, view


def _fetch(images: Path, view: Path, archive: Path, original: bool) -> None:
    """What the fetcher downloads and unpacks. The pairs of view 1, one pixel of each image, are the least that it can be asked for."""
    from sklearn.datasets import fetch_lfw_pairs

    place, corner, reason = view.parent, slice(0, 1), "nothing was downloaded"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a warning for each time that it tries again
            fetch_lfw_pairs(subset="test", data_home=place.parent, funneled=not original, color=True, slice_=(corner, corner), resize=None)
    except Exception as error:  # of a network, an archive or an image; an image that matters is named when it is read
        reason = str(error) or type(error).__name__
    if not (images.is_dir() and view.is_file()):
        raise InputError(f"{place}: LFW is not there and could not be fetched ({reason}): put {', '.join(LISTS)} and {images.name} or "
                         f"{archive.name} there by hand, or name the folder that holds {place.name} by --home")
    if archive.exists():
        raise InputError(f"{archive}: could not be unpacked ({reason}): remove it and {images}, and try again")


def _unpack_rest(archive: Path, images: Path) -> None:
    """The fetcher removes the archive once it is unpacked: it was interrupted. What is missing or short is unpacked, and it is removed."""
    safe = getattr(tarfile, "data_filter", None)
    try:
        with tarfile.open(archive) as tar:
            tar.extraction_filter = safe
            for member in tar:
                inside = member.isfile() and Path(member.name).parts[:1] == (images.name,) and ".." not in Path(member.name).parts
                path = images.parent / member.name
                if inside and not (path.is_file() and path.stat().st_size == member.size):
                    tar.extract(member, images.parent)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise InputError(f"{archive}: could not be unpacked ({error}): remove it and {images}, and try again") from None
    archive.unlink()


def people_of(images: Path) -> dict[str, list[Path]]:
    """The paths of the images of each person, by sorted names. Raises InputError where somebody has none."""
    samples, names = labelled_images(images)
    people: dict[str, list[Path]] = {name: [] for name in names}
    for path, label in samples:
        people[names[label]].append(Path(path))
    return people


def fold_pairs(view: Path, images: Path) -> list[Pairs]:
    """The pairs of each fold of a pairs.txt of view 2: its first line says how many folds there are, and how many true and as many false
    pairs are in each, in this order. Raises InputError, naming file and line, for any other list, and for images that are not there.
    """
    text = text_of(read_bytes(view))
    counts = text.split("\n", 1)[0].split()
    if len(counts) != 2 or not all(word.isascii() and word.isdigit() and 0 < int(word) < 10**6 for word in counts):
        raise InputError(f"{view}: line 1 is {' '.join(counts)[:80]!r}, expected the number of folds and that of true pairs in each")
    folds, each = map(int, counts)
    pairs = [(images / left, images / right, same) for left, right, same in parse_pairs(text, str(view), images)]
    if len(pairs) != 2 * folds * each or [same for *_, same in pairs] != folds * (each * [True] + each * [False]):
        raise InputError(f"{view}: {len(pairs)} pairs, expected {folds} folds of {each} true and then {each} false ones")
    return [pairs[start:start + 2 * each] for start in range(0, len(pairs), 2 * each)]


def _chosen(folds: Iterable[int], there: int, view: Path) -> list[int]:
    chosen = sorted(set(folds)) or list(range(1, there + 1))
    if not 1 <= chosen[0] <= chosen[-1] <= there:
        raise InputError(f"{view}: {there} folds, expected --folds from 1 to {there}, not {' '.join(map(str, chosen))}")
    return chosen
