"""Record files of tens of millions of entries that are in no file."""
import numpy as np

from utils import RecordError
from utils.recordio import pack


class Many:
    """A header, images and identity records, of which only what is asked for is made; `ends`: the header's two numbers;
    `tiled`: whether the ranges of identities follow each other, or all begin at 1."""
    idx_path = "many.idx"

    def __init__(self, images, identities, damaged=(), ends=None, kept=None, tiled=True):
        self.images, self.damaged, self.tiled = images, damaged, tiled
        self.keys = np.arange(1 + images + (identities if kept is None else kept))
        first, end = ends or (images + 1, images + 1 + identities)
        self.header = pack([float(first), float(end)])

    def __len__(self):
        return len(self.keys)

    def __contains__(self, key):
        return 0 <= key < len(self.keys)

    def name(self, key):
        return f"many.rec: key {key}"

    def read(self, key):
        if key in self.damaged:
            raise RecordError(f"many.rec: key {key}: damaged")
        start = 5.0 * (key - self.images - 1) + 1 if self.tiled else 1.0
        return self.header if key == 0 else pack(0.0, key, b"image") if key <= self.images else pack([start, start + 5], key)
