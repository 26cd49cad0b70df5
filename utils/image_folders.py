"""A folder with a folder of images for each identity: what torchvision's ImageFolder reads, and what build_dataset makes records of."""
import os

from utils import InputError
from utils.files import files_under, folders_in

# how data sets call their parts: a folder of these is no folder of identities
_PARTS = {"train", "training", "trainset", "val", "valid", "validation", "dev", "test", "testing", "testset", "eval", "gallery", "probe",
          "query"}


def labelled_images(root: str | os.PathLike[str]) -> tuple[list[tuple[str, int]], list[str]]:
    """([(path, label), ...], names of the identities): labels are numbers in the order of sorted names, paths are sorted by folder and
    name.

    What tools leave in folders is none of it (`utils.files.is_left_by_tools`), and links to folders inside those of identities are not
    followed. Raises InputError where an identity has no images, where there is none, and where the folder seems to be the one above.
    """
    from torchvision.datasets.folder import IMG_EXTENSIONS

    try:
        names = folders_in(root)
    except OSError as error:
        raise InputError(f"{root}: not a folder of image folders: {error.strerror}") from None
    samples = []
    for label, name in enumerate(names):
        found = files_under(os.path.join(root, name), IMG_EXTENSIONS)
        if not found:
            raise InputError(f"{root}: not a folder of image folders: no images in {name}{_records_in(os.path.join(root, name))}")
        samples += [(path, label) for path in found]
    if not samples:
        raise InputError(f"{root}: not a folder of image folders: no folders in it")
    if len(names) == 1 or _PARTS.issuperset(map(str.casefold, names)):
        _refuse_one_level_up(root, names, samples)
    return samples, names


def _records_in(folder: str) -> str:
    return f", but train.rec: it may be {folder} that is meant" if os.path.isfile(os.path.join(folder, "train.rec")) else ""


def _refuse_one_level_up(root: str | os.PathLike[str], names: list[str], samples: list[tuple[str, int]]) -> None:
    """Raise InputError where no image is in one of these folders itself, but all of them in folders inside."""
    parts = [os.path.relpath(path, root).split(os.sep) for path, _ in samples]
    if all(len(part) > 2 for part in parts):
        inside = len({part[1] for part in parts if part[0] == names[0]})
        raise InputError(f"{root}: one folder too high: {', '.join(names[:3])} {'holds' if len(names) == 1 else 'hold'} folders of images, "
                         f"expected images; {os.path.join(root, names[0])} has {inside} folders of them")
