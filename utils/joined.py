"""Several datasets as one."""
import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from utils import InputError


class Joined(Dataset):
    """The images of `datasets`, each a `Faces` of datasets.py, one after the other. Identities of a later one have the labels after
    those of all before it, so that nobody is in two of them.

    num_classes: None takes the sum of theirs. Raises InputError where it has no room for that, and where images of one are of another size
    than those of the first.
    """

    def __init__(self, datasets: Sequence[Any], num_classes: int | None = None) -> None:
        self.datasets, self.image_size = list(datasets), datasets[0].image_size
        self._ends = list(accumulate(map(len, datasets)))
        *self._labels, identities = accumulate((dataset.num_classes for dataset in datasets), initial=0)
        self.num_classes = num_classes or identities
        self.identities_seen = sum(getattr(dataset, "identities_seen", dataset.num_classes) for dataset in datasets)
        self.remarks = [remark for dataset in datasets for remark in getattr(dataset, "remarks", ())]
        if identities > self.num_classes:
            raise InputError(f"{' + '.join(str(dataset.num_classes) for dataset in datasets)} = {identities} identities, expected at most "
                             f"num_classes = {num_classes}")
        for dataset in datasets:
            if dataset.image_size != self.image_size:
                raise InputError(f"{dataset.name(0)}: the image has (height, width) {dataset.image_size}, expected {self.image_size} as in "
                                 f"{self.datasets[0].name(0)}")

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        number, inside = self._place(index)
        image, label = self.datasets[number][inside]
        return image, label + self._labels[number]

    def name(self, index: int) -> str:
        """How messages call an image."""
        number, inside = self._place(index)
        return self.datasets[number].name(inside)

    def labels(self) -> np.ndarray:
        """The identity of each image, int64."""
        return np.concatenate([dataset.labels() + before for dataset, before in zip(self.datasets, self._labels)])

    def fingerprint(self) -> str:
        """What tells these images from others: a SHA-256 of those of the parts and of how many identities each has, hexadecimal."""
        parts = [f"{dataset.fingerprint()} {dataset.num_classes}" for dataset in self.datasets]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def _place(self, index: int) -> tuple[int, int]:
        """(number of the dataset, number of the image in it)."""
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        number = bisect_right(self._ends, index)
        return number, index - (self._ends[number - 1] if number else 0)
