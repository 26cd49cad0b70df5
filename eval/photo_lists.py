"""Many photos at once: lists of pairs, folders of people, and the crops of all of them."""
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from eval.alignment import Crop
from eval.photos import Photo, read_photo
from eval.store.schema import read_csv
from utils import InputError, one_line
from utils.files import files_under

ENDINGS = (".jpg", ".jpeg", ".png", ".webp")
_LABELS = {"1": True, "0": False, "true": True, "false": False}


def read_list(path: "str | os.PathLike[str]") -> pd.DataFrame:
    """A csv of pairs: left, right and, where it has that column, same (bool); left_path and right_path are relative to its folder.

    Raises InputError, with the file and the line, for another table.
    """
    table = read_csv(Path(path), dtype=str, keep_default_na=False, skipinitialspace=True)
    if not {"left", "right"} <= set(table) <= {"left", "right", "same"}:
        raise InputError(f"{path}: columns {', '.join(map(str, table))}, expected left, right and, if known, same"[:300])
    if "same" in table:
        labels = table["same"].str.casefold().map(_LABELS)
        if labels.isna().any():
            place = int(labels.isna().to_numpy().argmax())
            raise InputError(f"{path}: line {place + 2}: same is {table['same'][place][:40]!r}, expected 1 or 0")
        table["same"] = labels.astype(bool)
    for side in ("left", "right"):
        if (empty := table[side] == "").any():
            raise InputError(f"{path}: line {int(empty.to_numpy().argmax()) + 2}: {side} is empty, expected an image file")
        table[f"{side}_path"] = [os.path.join(os.path.dirname(path), name) for name in table[side]]
    return table


def photos_in(folder: "str | os.PathLike[str]") -> list[tuple[str, str]]:
    """[(path, person), ...] of the photos in a folder and those inside it, by folder and name.

    The person is the name of the folder inside it that a photo is in, or the name without ending of one that is in none. Raises InputError
    where there are no photos.
    """
    found = []
    for path in files_under(folder, ENDINGS):
        first, *inside = os.path.relpath(path, folder).split(os.sep)
        found.append((path, first if inside else os.path.splitext(first)[0]))
    if not found:
        raise InputError(f"{folder}: no photos in it ({', '.join(ENDINGS)})")
    return found


def crops_of(paths: Iterable[str], align: Callable[[Photo], Crop], skip: bool, progress: str = ""
             ) -> tuple[dict[str, Crop], dict[str, str]]:
    """(crops, what is wrong with the others), by path. skip: go on after a photo that cannot be used, which raises otherwise.

    Raises InputError where none can be used.
    """
    crops, unusable = {}, {}
    for path in tqdm(list(dict.fromkeys(paths)), desc=progress, unit="photo", disable=None if progress else True):
        try:
            crops[path] = align(read_photo(path))._replace(view=None)  # thousands of them would fill the memory
        except (InputError, OSError) as error:
            if not skip:
                raise
            unusable[path] = one_line(f"{path}: {error.strerror}" if isinstance(error, OSError) else error)
    if not crops:
        raise InputError(f"no photo can be used: {next(iter(unusable.values()), 'there is none')}")
    return crops, unusable


def reasons(unusable: dict[str, str], *paths: Sequence[str]) -> list[str]:
    """For each row of columns of paths what is wrong with the first photo in it that cannot be used; ""."""
    return [next((unusable[path] for path in row if path in unusable), "") for row in zip(*paths)]
