"""The images of a dataset, decoded once: an epoch over a small one is otherwise spent on decoding."""
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from utils import InputError, RecordError
from utils.faults.launch import launch
from utils.faults.resources import free_memory
from utils.shared_arrays import SharedArray


class InMemory(Dataset):
    """The same items, labels, names and fingerprint as `dataset`, a `Faces` of datasets.py, with its images as uint8 in memory.

    Other processes of this one share them. What is damaged is an error where it is asked for, as in the dataset itself. Raises InputError
    where the images would take more than half of the memory that is free, shared by the processes of a start on this machine.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        height, width = self.image_size
        _require_room(3 * height * width * len(dataset), f"{len(dataset)} images of {height} x {width} pixels")
        # channels last, as decoders write them and the loader stacks them
        self._images = torch.empty((len(dataset), height, width, 3), dtype=torch.uint8)
        labels = np.zeros(len(dataset), np.int64)
        self._damaged: dict[int, str] = {}
        for index in range(len(dataset)):
            try:
                image, labels[index] = dataset[index]
                self._images[index] = image.permute(1, 2, 0)
            except RecordError as error:
                self._damaged[index] = str(error)
        self._labels = SharedArray(labels)

    def __getattr__(self, name: str) -> Any:
        """Whatever else the dataset has: num_classes, image_size, labels, name, fingerprint, remarks, identities_seen."""
        if name == "dataset":  # of an object that is being unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if index in self._damaged:
            raise RecordError(self._damaged[index])
        return self._images[index].permute(2, 0, 1), int(self._labels.array[index])


def _require_room(needed: int, what: str) -> None:
    free = free_memory()
    room = None if free is None else free // (2 * launch().local_world_size)
    if room is not None and needed > room:
        raise InputError(f"setting in_memory=True: {what} take {needed / 2**20:.0f} MB, expected at most {room / 2**20:.0f} MB, half "
                         "of the memory that is free for each process")
