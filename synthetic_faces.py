"""Made-up people with simple faces: something to train and verify on without any download.

A person (made_up_people.py) is a face with its own shape, colours and hair. A picture of one (drawn_faces.py) has its own light, place,
turn, expression, background and grain. All of it follows from (seed, identity, sample) alone, in whatever order or process they are made.
"""
import itertools

import numpy as np
import torch
from torch.utils.data import Dataset

from drawn_faces import draw
from made_up_people import person_of, view_of
from utils.images import encode_image

# Identities from here on are for verification: training, which counts from 0, never sees them.
HELD_OUT = 2**20
LIGHT, GRAIN = 0.06, 0.04  # standard deviation of the logarithm of the light; how much a pixel is off at most


class SyntheticFaces(Dataset):
    """(uint8 [3, size, size], label) of the identities first_identity .. first_identity + num_classes - 1, labelled from 0.

    images_per_class: sample k of class c is item c * images_per_class + k. size: in pixels.
    """

    def __init__(self, num_classes: int = 200, images_per_class: int = 20, size: int = 112, seed: int = 0,
                 first_identity: int = 0) -> None:
        self.num_classes, self.images_per_class = num_classes, images_per_class
        self.seed, self.first_identity = seed, first_identity
        self.image_size = (size, size)

    def __len__(self) -> int:
        return self.num_classes * self.images_per_class

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"{index} is not in [0, {len(self)})")
        label, sample = divmod(index, self.images_per_class)
        identity = self.first_identity + label
        rng = _generator(self.seed, identity, sample)
        image = draw(person_of(_generator(self.seed, identity)), view_of(rng), self.image_size[0])
        gain, warmth, green = rng.standard_normal(3).clip(-2, 2).tolist()
        light = torch.tensor([gain + 0.5 * warmth, gain + 0.2 * green, gain - 0.5 * warmth]).mul_(LIGHT).exp_().mul_(255)
        grain = torch.frombuffer(bytearray(rng.bytes(image.numel())), dtype=torch.uint8).view(image.shape)
        image.mul_(light[:, None, None]).add_(grain, alpha=2 * GRAIN).add_(-255 * GRAIN)
        return image.round_().clamp_(0, 255).to(torch.uint8), label

    def labels(self) -> np.ndarray:
        """The identity of each image, int64."""
        return np.repeat(np.arange(self.num_classes), self.images_per_class)

    def fingerprint(self) -> str:
        """What tells these images from others, beside the settings of a run."""
        return "made-up people"


def synthetic_pairs(num_pairs: int = 600, size: int = 112, seed: int = 0, first_identity: int = HELD_OUT,
                    num_classes: int | None = None, kind: str = "jpeg") -> tuple[list[bytes], list[bool]]:
    """Verification pairs of identities that training does not see, as the two lists of a .bin file.

    Returns (2 * num_pairs encoded images, pair i being images 2i and 2i + 1; num_pairs times whether both show the same identity).
    Same and different take turns, so that any ten folds are balanced; no image is used twice. num_classes: how many identities, at
    least 2 (None: a quarter of num_pairs). kind: "jpeg" or "png".
    """
    classes = max(2, num_pairs // 4) if num_classes is None else num_classes
    same = [pair % 2 == 0 for pair in range(num_pairs)]
    lefts = [pair // 2 % classes for pair in range(num_pairs)]  # each same pair is followed by a different one of that identity
    rights = [left if alike else (left + 1 + pair // 2 // classes % (classes - 1)) % classes
              for pair, (left, alike) in enumerate(zip(lefts, same))]
    labels = [label for pair in zip(lefts, rights) for label in pair]
    faces = SyntheticFaces(classes, max(labels.count(label) for label in range(classes)), size, seed, first_identity)
    samples = [itertools.count(label * faces.images_per_class) for label in range(classes)]
    return [encode_image(faces[next(samples[label])][0], kind) for label in labels], same


def _generator(seed: int, identity: int, sample: int = -1) -> np.random.Generator:
    """The generator of a person, or of one of the pictures (+ 1, as numpy takes [a, b] and [a, b, 0] for the same)."""
    return np.random.default_rng([seed, identity, sample + 1])
