"""Faces with identities as uint8 images: RecordIO files, image folders and synthetic identities, and the loader over them.

    dataset = get_dataset("faces/ms1mv3")                     # or an image folder, "synthetic", or several: "faces/a,faces/b"
    loader = get_dataloader(dataset, batch_size=128, num_workers=4)
    loader.set_epoch(0)
    for images, labels in loader:                             # uint8 [128, 3, H, W], int64 [128]
        images = to_float(images, device)                     # [-0.5, 0.5]

What every dataset has is said by `Faces`.
"""
import os
from collections.abc import Iterator, Sequence
from functools import singledispatch
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from folder_faces import ImageFolderFaces, first_size
from synthetic_faces import SyntheticFaces, synthetic_pairs  # noqa: F401
from utils import InputError, RecordError
from utils.files import at_home, files_under, folders_in, found_in
from utils.images import decode_image
from utils.joined import Joined
from utils.loader import Loader
from utils.record_layout import EXACT, MOST_LABELS, image_keys, keys_at, labels_seen, property_classes
from utils.record_table import blocks
from utils.recordio import IndexedRecordFile, MXNetRecordFile, unpack
from utils.utils_distributed_sampler import DistributedSampler, Partners

PathLike = str | os.PathLike[str]
# A part of a dataset keeps the labels of the whole, such as MS1MV3's 93,431; many more could ask for any amount of memory.
SPARE_CLASSES = 2**17
# So many labels are read before training, evenly spread; the others are looked at when their images are.
LABELS_CHECKED = 2**16
RECORD_FILES = {"builtin": IndexedRecordFile, "mxnet": MXNetRecordFile}


class Faces(Protocol):
    """A dataset: (uint8 tensor [3, H, W], int label) by number; image_size is (H, W)."""
    num_classes: int
    image_size: tuple[int, int]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]: ...

    def labels(self) -> np.ndarray:
        """The identity of each image, int64, without decoding any."""

    def fingerprint(self) -> str:
        """What tells these images from others."""


class RecordDataset(Dataset):
    """The images of a .rec/.idx pair as insightface lays them out.

    root_or_rec: a folder with train.rec and train.idx, or the .rec file itself with its .idx beside it.
    num_classes: the number of identities; None takes the largest that record 0, the `property` file beside the .rec and the labels
    speak of. recordio_backend: "builtin" or "mxnet".

    Record 0 is a header if it has labels and no image: the images are then keys 1 .. label[0] - 1 and there are label[1] - label[0]
    identities, or more labels than that, if identities were left out. Without a header all keys are images, in the order of the index.
    Where a record has several labels the first is the identity. Where there is no .idx, the .rec is read once for it. Raises InputError
    naming the file that cannot be used, or that says it has far more identities than images, a header that leaves open how many there
    are, or the record whose label num_classes has no room for, or is so large that float32 may have rounded it; RecordError naming file
    and key for damaged records, for labels that are no integers from 0 on and for images of another size than the first one's.
    """

    def __init__(self, root_or_rec: PathLike, num_classes: int | None = None, recordio_backend: str = "builtin") -> None:
        rec = Path(root_or_rec)
        rec = rec if rec.suffix == ".rec" else rec / "train.rec"
        if recordio_backend not in RECORD_FILES:
            raise InputError(f"recordio_backend is {recordio_backend!r}, expected one of {', '.join(RECORD_FILES)}")
        idx = rec.with_suffix(".idx")
        self.remarks = [] if idx.exists() or not rec.exists() else [
            f"{idx}: there is no such file, so all of {rec} was read for it; python -m utils.build_dataset idx --rec {rec} writes it"]
        self.file = RECORD_FILES[recordio_backend](rec, None if self.remarks else idx)
        keys, identities = image_keys(self.file)
        self._first_keys = keys if isinstance(keys, range) else None  # or all keys, which the file has: they are not pickled twice
        if num_classes is not None and identities is not None and identities > num_classes:
            raise InputError(f"{rec}: {identities} identities, expected at most num_classes = {num_classes}")
        said = num_classes or max(identities or 0, property_classes(rec.parent / "property"))
        if not said and identities is None:
            raise InputError(f"{self.file.name(0)}: a rounded number of identities, but {len(self.keys)} images; num_classes=, or a file "
                             f"`property`, says how many: float32 is not exact from {EXACT} on, and the index has not as many records")
        seen = labels_seen(self.file, self.keys, LABELS_CHECKED if said else len(self.keys))
        self.identities_seen = seen.count
        self.num_classes = num_classes or max(said, seen.largest + 1, 1)
        if seen.largest >= self.num_classes:
            raise self._no_room(self.file.name(seen.key), seen.largest)
        if num_classes is None and self.num_classes > max(len(self.keys), SPARE_CLASSES):
            raise InputError(f"{rec}: {self.num_classes} identities, but {len(self.keys)} images; num_classes={self.num_classes} takes "
                             "them all the same")
        if seen.largest >= EXACT:
            raise self._rounded(self.file.name(seen.key), seen.largest)
        self.image_size = first_size(self, lambda index: self._decode(index)[0])

    @property
    def keys(self) -> np.ndarray | range:
        """Those of the images."""
        return self.file.keys if self._first_keys is None else self._first_keys

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image, label = self._decode(index)
        if tuple(image.shape[1:]) != self.image_size:
            raise RecordError(f"{self.name(index)}: the image has (height, width) {tuple(image.shape[1:])}, expected {self.image_size} "
                             "as in the first record")
        return image, label

    def _decode(self, index: int) -> tuple[torch.Tensor, int]:
        name = self.name(index)
        record = unpack(self.file.read(int(self.keys[index])), name)
        label = float(record.label[0]) if record.flag else record.label
        if not (label.is_integer() and 0 <= label < MOST_LABELS):
            raise RecordError(f"{name}: label {label:g}, expected an integer in [0, {self.num_classes})")
        if label >= self.num_classes:
            raise self._no_room(name, int(label))
        if label >= EXACT:
            raise self._rounded(name, int(label))
        return decode_image(record.image, name), int(label)

    def _no_room(self, name: str, label: int) -> InputError:
        """Of a number of classes that is too small: nothing is damaged, and leaving records out would leave out identities."""
        return InputError(f"{name}: label {label}, expected an integer in [0, {self.num_classes}); num_classes={label + 1} has room for it")

    def _rounded(self, name: str, label: int) -> InputError:
        """Of a label that may be that of several identities."""
        return InputError(f"{name}: label {label}, expected one below {EXACT}: from there on float32 has one for several identities")

    def name(self, index: int) -> str:
        """How messages call an image."""
        return self.file.name(int(self.keys[index]))

    def fingerprint(self) -> str:
        """What tells these images from others: a SHA-256 of the index, hexadecimal."""
        return self.file.fingerprint()

    def labels(self) -> np.ndarray:
        """The identity of each image, int64."""
        labels = np.empty(len(self), np.int64)
        for block in blocks(len(self)):
            found = self.file.first_labels(keys_at(self.keys, block))
            wrong = np.flatnonzero(~(found >= 0) | (found != np.floor(found)) | (found >= EXACT))
            if len(wrong):
                name, label = self.name(block.start + wrong[0]), found[wrong[0]]
                if EXACT <= label < MOST_LABELS:
                    raise self._rounded(name, int(label))
                raise RecordError(f"{name}: label {label:g}, expected an integer >= 0")
            labels[block] = found
        return labels


def sources(rec: PathLike | Sequence[PathLike]) -> list[PathLike]:
    """The data sets that `rec` names: those of a list, or between commas, unless a file or folder is called so. Raises InputError where
    one is named twice or there is nothing between two commas.
    """
    if isinstance(rec, str | os.PathLike):
        rec = [rec] if "," not in os.fspath(rec) or os.path.exists(rec) else [at_home(part.strip()) for part in os.fspath(rec).split(",")]
    parts = [at_home(part) for part in rec]
    places = [os.path.realpath(part) for part in parts]
    if not parts or not all(map(os.fspath, parts)):
        raise InputError(f"rec={','.join(map(str, parts))}: expected a path on either side of each comma")
    if twice := next((part for part, place in zip(parts, places) if places.count(place) > 1), None):
        raise InputError(f"rec={','.join(map(str, parts))}: {twice} is there twice, expected once: its people would be others each time")
    return parts


def get_dataset(rec: PathLike | Sequence[PathLike], num_classes: int | None = None, recordio_backend: str = "builtin",
                seed: int = 0) -> Faces:
    """The dataset that `rec` names: "synthetic", a .rec file or a folder with train.rec, or a folder with a folder of images for
    each identity; or several of the latter (see `sources`), as one: identities of later ones get the labels after those of the former, and
    num_classes and the number of images are the sums. num_classes: None takes it from the data. Raises InputError that says what was
    looked for.
    """
    parts = sources(rec)
    if len(parts) == 1:
        return _dataset(parts[0], num_classes, recordio_backend, seed)
    if "synthetic" in parts:
        raise InputError(f"rec={','.join(map(str, parts))}: synthetic is there beside others, expected files and folders")
    return Joined([_dataset(part, None, recordio_backend, seed) for part in parts], num_classes)


def _dataset(rec: PathLike, num_classes: int | None, recordio_backend: str, seed: int) -> Faces:
    if str(rec) == "synthetic":
        return SyntheticFaces(**({} if num_classes is None else {"num_classes": num_classes}), seed=seed)
    path = Path(rec)
    if path.suffix == ".rec" or (path / "train.rec").is_file() or (path / "train.idx").is_file():
        return RecordDataset(path, num_classes, recordio_backend)
    if path.is_dir() and folders_in(path):
        return ImageFolderFaces(path, num_classes)
    from torchvision.datasets.folder import IMG_EXTENSIONS
    found = "has neither" if path.is_dir() else "is a file" if path.exists() else "does not exist"
    if path.is_dir() and files_under(path, IMG_EXTENSIONS):
        found = f"holds images itself, so it may be {path.parent} that is meant"
    elif path.is_dir() and (others := found_in(path, "*.rec")):
        found = f"has no train.rec, but {others[0]}, which can be named itself"
    raise InputError(f"rec={rec}: {found}; expected a folder with train.rec and train.idx, a .rec file, a folder with a folder of images "
                     "for each identity, or the word synthetic")


@singledispatch
def get_dataloader(dataset: Dataset, batch_size: int, seed: int = 0, num_workers: int = 0, flip: bool = True, shuffle: bool = True,
                   prefetch_factor: int = 4, pin_memory: bool | None = None, start_method: str | None = None,
                   num_replicas: int | None = None, rank: int | None = None, skip_bad_records: bool = False,
                   timeout: float = 0, partners: bool = False) -> Loader:
    """A `Loader` of this rank's share of `dataset`. With a path in its place: `published_dataloader`.

    batch_size: of this rank; the batches of all W ranks at one step are together the batch of W * batch_size that a single process
    has at that step: sample k of rank r is sample k * W + r there. The last, smaller batch of an epoch is left out. Order, and
    horizontal flips with probability 1/2 (`flip`), are keyed by (seed, epoch, sample).
    pin_memory: None pins where CUDA is available. start_method: of the workers; None is the platform's. num_replicas, rank: None
    takes them from the process group. skip_bad_records: a record that cannot be used is replaced by the next one that can, and noted
    in `Loader.bad_records`; otherwise it is an error. timeout: seconds in which workers must have a batch ready; 0: any time.
    partners: the second half of every global batch are further images of the persons in its first half (`Partners`); takes
    dataset.labels(). Raises InputError where the dataset is smaller than one global batch, and as Partners does.
    """
    sampler = DistributedSampler(dataset, num_replicas, rank, shuffle, seed)
    if len(sampler) < batch_size:
        raise InputError(f"batch_size: {batch_size} on each of {sampler.num_replicas} ranks, but the dataset has {len(dataset)} images")
    if partners:
        sampler.partners = Partners(cast(Faces, dataset).labels(), sampler.num_replicas * batch_size, seed)
    pin_memory = torch.cuda.is_available() if pin_memory is None else pin_memory
    return Loader(dataset, sampler, batch_size, flip, seed, num_workers, prefetch_factor, pin_memory, start_method, skip_bad_records,
                  timeout)


def to_float(images: torch.Tensor, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32,
             non_blocking: bool = True, memory_format: torch.memory_format = torch.contiguous_format) -> torch.Tensor:
    """uint8 images [N, 3, H, W] -> (x - 127.5) / 255 in [-0.5, 0.5], on `device`, in `dtype`.

    The copy to the device is of bytes, a quarter of what floats would be. Raises TypeError for images that are not uint8.
    """
    if images.dtype != torch.uint8:
        raise TypeError(f"images are {images.dtype}, expected torch.uint8")
    images = images.to(device, non_blocking=non_blocking)
    return images.to(dtype, memory_format=memory_format).sub_(127.5).div_(255)


# --- as scripts of the published repository call them


class MXFaceDataset(RecordDataset):
    """train.rec in `root_dir` as (float32 [3, H, W] in [-0.5, 0.5], mirrored with probability 1/2; 0-d int64 label).

    local_rank: taken for the sake of those scripts; items are on the CPU. Mirror images are drawn from PyTorch's generator.
    """

    def __init__(self, root_dir: PathLike, local_rank: int = 0) -> None:
        super().__init__(root_dir)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image, label = super().__getitem__(index)
        image = to_float(image)
        return image.flip(-1) if torch.rand(()) < 0.5 else image, torch.tensor(label)


class DeviceLoader(DataLoader):
    """The batches of a `Loader` as (float32 images [B, 3, H, W] in [-0.5, 0.5], int64 labels [B]) on a device.

    A DataLoader for those who ask whether it is one before they call `sampler.set_epoch(epoch)`, which chooses the epoch here as well.
    """

    def __init__(self, loader: Loader, device: torch.device) -> None:
        super().__init__(loader.dataset, loader.batch_size, sampler=loader.sampler, drop_last=True)
        self.loader, self.device = loader, device

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for images, labels in self.loader:
            yield to_float(images, self.device), labels.to(self.device, non_blocking=True)


@get_dataloader.register(str)
@get_dataloader.register(os.PathLike)
def published_dataloader(root_dir: PathLike, local_rank: int, batch_size: int, dali: bool = False, dali_aug: bool = False, seed: int = 2048,
                         num_workers: int = 2) -> DeviceLoader:
    """The loader over what `get_dataset` finds at `root_dir`, on the GPU number `local_rank` where there is CUDA.

    batch_size: of this rank. Raises InputError as `get_dataset` does, and for dali: images are decoded by worker processes here.
    """
    if dali or dali_aug:
        raise InputError("dali=True: there is no DALI pipeline here, expected False")
    device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    return DeviceLoader(get_dataloader(get_dataset(root_dir), batch_size, seed=seed, num_workers=num_workers), device)
