"""Procedural identities: something to train and verify on without any download.

An identity is a smooth random pattern of colours, added to a pattern that all of them share, as faces share their layout. A sample
is the pattern turned, scaled, shifted and bent a little, lit by a random gain, gradient and colour, and noised. All of it follows
from (seed, identity, sample) alone, in whatever order or process the samples are made.
"""
import itertools
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset

from utils.images import encode_image

# Identities from here on are for verification: training, which counts from 0, never sees them.
HELD_OUT = 2**20

PATTERN = 6  # control points of an identity's pattern, per side
TEXTURE = 32  # pixels per side of the pattern as it is sampled from
BEND = 4  # control points of the displacement field, per side
TURN, SCALE, SHIFT, BENDING = 0.2, 0.1, 0.1, 0.05  # standard deviations: radians, log factor, half images, half images
GAIN, SLOPE, TINT, NOISE = 0.25, 0.15, 0.1, 0.05  # log factor, brightness over half an image, brightness, brightness
CONTRAST = 0.16
MIRRORED = 0.5  # how much of its mirror image a pattern holds: faces are nearly symmetric, so mirrored ones keep their identity


class SyntheticFaces(Dataset):
    """(uint8 [3, size, size], label) of the identities first_identity .. first_identity + num_classes - 1, labelled from 0.

    images_per_class: sample k of class c is item c * images_per_class + k. size: in pixels.
    """

    def __init__(self, num_classes: int = 200, images_per_class: int = 20, size: int = 112, seed: int = 0,
                 first_identity: int = 0) -> None:
        self.num_classes, self.images_per_class = num_classes, images_per_class
        self.seed, self.first_identity = seed, first_identity
        self.image_size = (size, size)
        shared = np.random.default_rng([seed]).standard_normal((3, PATTERN, PATTERN))
        own = np.stack([_identity(seed, first_identity + number).standard_normal(shared.shape) for number in range(num_classes)])
        patterns = shared + own
        self._patterns = torch.from_numpy((patterns + MIRRORED * patterns[..., ::-1]).astype(np.float32))
        self._to_texture, self._to_bend = _upsampling(TEXTURE, PATTERN), _upsampling(size, BEND)
        line = (2 * torch.arange(size) + 1) / size - 1  # pixel centres in [-1, 1], as grid_sample counts
        self._grid = torch.stack([line.expand(size, size), line[:, None].expand(size, size)])

    def __len__(self) -> int:
        return self.num_classes * self.images_per_class

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"{index} is not in [0, {len(self)})")
        label, sample = divmod(index, self.images_per_class)
        rng = _identity(self.seed, self.first_identity + label, sample)
        texture = self._to_texture @ self._patterns[label] @ self._to_texture.T
        image = F.grid_sample(texture[None], self._warp(rng)[None], mode="bilinear", padding_mode="reflection", align_corners=False)[0]
        image = self._light(image.mul_(CONTRAST), rng)
        image.add_(torch.from_numpy(rng.standard_normal(image.shape, dtype=np.float32)), alpha=NOISE)
        return image.add_(0.5).mul_(255).round_().clamp_(0, 255).to(torch.uint8), label

    def labels(self) -> np.ndarray:
        """The identity of each image, int64."""
        return np.repeat(np.arange(self.num_classes), self.images_per_class)

    def fingerprint(self) -> str:
        """What tells these images from others, beside the settings of a run."""
        return "synthetic"

    def _warp(self, rng: np.random.Generator) -> torch.Tensor:
        """Where each pixel is taken from, [size, size, 2]: a random similarity and a smooth displacement."""
        turn, scale, right, down = _normal(rng, 4).tolist()
        turn, scale = TURN * turn, math.exp(SCALE * scale)
        x, y = self._grid
        cos, sin = scale * math.cos(turn), scale * math.sin(turn)
        bend = self._to_bend @ (BENDING * _normal(rng, 2, BEND, BEND)) @ self._to_bend.T
        bend[0].add_(x, alpha=cos).sub_(y, alpha=sin).add_(SHIFT * right)
        bend[1].add_(x, alpha=sin).add_(y, alpha=cos).add_(SHIFT * down)
        return bend.permute(1, 2, 0)

    def _light(self, image: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        gain, right, down, *tint = _normal(rng, 6).tolist()
        slope = SLOPE * (right * self._grid[0] + down * self._grid[1])
        return image.mul_(math.exp(GAIN * gain)).add_(slope).add_(TINT * torch.tensor(tint)[:, None, None])


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


def _identity(seed: int, identity: int, sample: int = -1) -> np.random.Generator:
    """The generator of an identity's pattern, or of one of its samples (+ 1, as numpy takes [a, b] and [a, b, 0] for the same)."""
    return np.random.default_rng([seed, identity, sample + 1])


def _normal(rng: np.random.Generator, *shape: int) -> torch.Tensor:
    """Normal values cut at two standard deviations: a rare far-off sample would only be a wrong label."""
    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)).clamp_(-2, 2)


def _upsampling(size: int, points: int) -> torch.Tensor:
    """The matrix [size, points] that interpolates a row of control points by cubics."""
    rows = torch.eye(points)[None, None]
    return F.interpolate(rows, size=(points, size), mode="bicubic", align_corners=True)[0, 0].T.contiguous()
