"""What becomes of a published image: a square of it, resized, as JPEG."""
import hashlib
import os
from pathlib import Path
from typing import Any

from utils import InputError
from utils.build_dataset import read_bytes
from utils.images import decode_image, encode_image
from utils.public_faces import QUALITY, SIZE

WHOLE = 250  # pixels a side of an image of LFW
REGION = (83, 92, 167, 176)  # left, upper, right, lower: the face on it, one place for all, as LFWcrop has published it
SMALL = 64  # pixels a side of an image of LFWcrop


class Crop:
    """Path -> JPEG of size x size pixels of its image, in which colours have half the resolution. All resizing is Pillow's bicubic one.

    kind "lfwcrop": of an image of 250 x 250 pixels the square REGION, resized to 64 x 64 and then to `size`; "region": the same square,
    resized once; "square": the largest square in the middle of an image of any size, as it is where it is `size` x `size`.
    Keeps the SHA-256 of each file that it has read. Raises InputError naming the file that cannot be used.
    """

    def __init__(self, kind: str, size: int = SIZE, quality: int = QUALITY) -> None:
        self.kind, self.size, self.quality = kind, (size, size), quality
        self.read: dict[Path, str] = {}

    def __call__(self, path: Path) -> bytes:  # noqa: D102 - what the class says
        import torch

        data = read_bytes(path)
        self.read[path] = hashlib.sha256(data).hexdigest()
        pixels = self.pixels(decode_image(data, str(path)).permute(1, 2, 0).numpy(), str(path))
        return encode_image(torch.from_numpy(pixels).permute(2, 0, 1), "jpeg", self.quality)

    def pixels(self, pixels: Any, name: str) -> Any:
        """uint8 [H, W, 3] -> uint8 [size, size, 3]. Raises InputError, with `name` in it, for a height and width that cannot be cropped."""
        import numpy as np
        from PIL import Image

        image = Image.fromarray(pixels)
        if self.kind == "square":
            image = image.crop(_middle(*image.size))
        elif image.size != (WHOLE, WHOLE):
            raise InputError(f"{name}: (height, width) {image.size[::-1]}, expected {(WHOLE, WHOLE)} as all images of LFW have")
        else:
            image = image.crop(REGION)
        if self.kind == "lfwcrop":
            image = image.resize((SMALL, SMALL), Image.Resampling.BICUBIC)
        return np.array(image.resize(self.size, Image.Resampling.BICUBIC))

    def digest(self, root: Path) -> str:
        """The SHA-256 of a line for each file that was read, by name: its own SHA-256, two blanks and its path in the folder `root`, that
        is, of what `sha256sum` prints there.
        """
        lines = sorted((os.path.relpath(path, root), digest) for path, digest in self.read.items())
        text = "".join(f"{digest}  {path}\n" for path, digest in lines)
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _middle(width: int, height: int) -> tuple[int, int, int, int]:
    side = min(width, height)
    left, upper = (width - side) // 2, (height - side) // 2
    return left, upper, left + side, upper + side
