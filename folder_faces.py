"""Faces with identities from a folder with a folder of images for each of them."""
import hashlib
import os
from collections.abc import Callable, Sized

import numpy as np
import torch
from torch.utils.data import Dataset

from utils import InputError, RecordError
from utils.files import read_file
from utils.image_folders import labelled_images
from utils.images import MAX_ENCODED, decode_image

PathLike = str | os.PathLike[str]


class ImageFolderFaces(Dataset):
    """A folder for each identity, numbered in the order of their sorted names, as torchvision's ImageFolder has them.

    Raises InputError where the folder has no identities, an identity no images, an image cannot be decoded or has another size than
    the first one, and where there are more identities than num_classes (None: as many as there are).
    """

    def __init__(self, root: PathLike, num_classes: int | None = None) -> None:
        self.samples, self.classes = labelled_images(root)
        self.identities_seen = len(self.classes)
        self.num_classes = num_classes or len(self.classes)
        if len(self.classes) > self.num_classes:
            raise InputError(f"{root}: {len(self.classes)} identities, expected at most num_classes = {self.num_classes}")
        self.root, self.image_size = root, first_size(self, self._decode)

    def __len__(self) -> int:
        return len(self.samples)

    def name(self, index: int) -> str:
        """How messages call an image."""
        return self.samples[index][0]

    def labels(self) -> np.ndarray:
        """The identity of each image, int64."""
        return np.array([label for _, label in self.samples], dtype=np.int64)

    def fingerprint(self) -> str:
        """What tells these images from others: a SHA-256 of their paths inside the folder, hexadecimal."""
        paths = "\0".join(os.path.relpath(path, self.root) for path, _ in self.samples)
        return hashlib.sha256(paths.encode("utf-8", "surrogateescape")).hexdigest()

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = self._decode(index)
        if tuple(image.shape[1:]) != self.image_size:
            raise RecordError(f"{self.samples[index][0]}: the image has (height, width) {tuple(image.shape[1:])}, expected "
                             f"{self.image_size} as in {self.samples[0][0]}")
        return image, self.samples[index][1]

    def _decode(self, index: int) -> torch.Tensor:
        path = self.samples[index][0]
        try:
            return decode_image(read_file(path, MAX_ENCODED), path)
        except RecordError:
            raise
        except InputError as error:  # a pipe, or a file that is too long
            raise RecordError(str(error)) from None
        except OSError as error:
            raise RecordError(f"{path}: cannot be read: {error.strerror}") from None


def first_size(images: Sized, decode: Callable[[int], torch.Tensor], tries: int = 16) -> tuple[int, int]:
    """(height, width) of the first image, or, where that is damaged, of the next one."""
    reasons = []
    for index in range(min(len(images), tries)):
        try:
            height, width = decode(index).shape[1:]
            return height, width
        except RecordError as error:
            reasons.append(error)
    raise reasons[0]
