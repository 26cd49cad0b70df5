"""The small image sets of the toy experiments (paper, Section 3.2), each held in memory as one uint8 tensor.

digits    1,797 images of scikit-learn, 8x8 enlarged to 28x28: nothing to download; every fifth image of a class is for testing
mnist     60,000 + 10,000 images through torchvision: `root` holds MNIST/raw, or receives it
cifar10   50,000 + 10,000 images through torchvision: `root` holds cifar-10-batches-py, or receives it; or an image folder of any
size, `root`/train/CLASS/*.jpg and `root`/test/CLASS/*.jpg
"""
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torchvision.transforms import v2

from utils import InputError


class ToySet(NamedTuple):
    """Images uint8 [N, C, H, W] and labels int64 [N] for training and for testing; classes are numbered from 0."""
    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    @property
    def num_classes(self) -> int:
        """Labels run from 0 to one less."""
        return int(self.labels.max()) + 1


class ToyKind(NamedTuple):
    """What the experiments on a set are made of: its reader, its networks (sllnet_NETWORKS and net_NETWORKS), how a training image
    is varied, and the epochs and batch size unless others are asked for (those of the paper, except on digits).
    """
    read: Callable[[Path], ToySet]
    networks: str
    augment: Callable[[Tensor], Tensor] | None
    epochs: int
    batch_size: int


def digits(root: Path) -> ToySet:
    """The handwritten digits that come with scikit-learn; `root` is not used."""
    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float()[:, None] * (255 / 16)
    images = F.interpolate(images, size=(28, 28), mode="bilinear", align_corners=False).round().clamp(0, 255).to(torch.uint8)
    train, test = train_test_split(np.arange(len(images)), test_size=0.2, stratify=bunch.target, random_state=0)
    labels = torch.from_numpy(bunch.target).long()
    return ToySet(images[train], labels[train], images[test], labels[test])


def mnist(root: Path) -> ToySet:
    """MNIST, downloaded where `root` does not hold it. Raises InputError where that fails."""
    parts = [_torchvision(torchvision.datasets.MNIST, root, train) for train in (True, False)]
    return ToySet(*(tensor for part in parts for tensor in (part.data[:, None], part.targets)))


def cifar10(root: Path) -> ToySet:
    """CIFAR-10 from an image folder, else through torchvision, downloaded where `root` does not hold it. Raises InputError where
    that fails, or where the folder's images are not all 32x32.
    """
    if (root / "train").is_dir() and (root / "test").is_dir():
        return ToySet(*_image_folder(root / "train"), *_image_folder(root / "test"))
    parts = [_torchvision(torchvision.datasets.CIFAR10, root, train) for train in (True, False)]
    return ToySet(*(tensor for part in parts for tensor in (_channels_first(part.data), torch.tensor(part.targets))))


def _torchvision(kind: type, root: Path, train: bool) -> torchvision.datasets.VisionDataset:
    try:
        return kind(str(root), train=train, download=True)  # downloads nothing where the files are there
    except (RuntimeError, OSError) as error:
        raise InputError(f"{root}: no {kind.__name__} there, and it cannot be downloaded ({str(error).splitlines()[0]}); "
                         "data_root names a folder that has it") from error


def _image_folder(folder: Path) -> tuple[Tensor, Tensor]:
    try:
        files = torchvision.datasets.ImageFolder(str(folder))
    except FileNotFoundError as error:
        raise InputError(f"{folder}: {str(error).splitlines()[0]}") from error
    images = []
    for number, (path, _) in enumerate(files.samples):
        image = np.asarray(files[number][0])
        if image.shape != (32, 32, 3):
            raise InputError(f"{path}: expected 32x32 pixels, found {image.shape[1]}x{image.shape[0]}")
        images.append(image)
    return _channels_first(np.stack(images)), torch.tensor(files.targets)


def _channels_first(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


TOY_SETS = {
    "digits": ToyKind(digits, "mnist", None, epochs=40, batch_size=128),
    "mnist": ToyKind(mnist, "mnist", None, epochs=100, batch_size=512),
    "cifar10": ToyKind(cifar10, "cifar", v2.Compose([v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()]), epochs=100,
                       batch_size=512),
}
