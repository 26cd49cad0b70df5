"""Where the records of a file are: what an index says, in arrays that find one among tens of millions and that processes share."""
import hashlib
from collections.abc import Iterator

import numpy as np

from utils import InputError
from utils.shared_arrays import SharedArray

_BLOCK = 2**20  # entries


class RecordTable:
    """Keys and offsets, int64 [N], in the order of an index; `name` is how messages call it, `size` the bytes of the file it is of.

    Where both ascend, as in a file that was written in the order of its keys, these 16 bytes are all that is kept of a record. Keys that do
    not ascend take 4 more, 12 where there are gaps between them, and offsets that do not 8. Raises InputError where a key or an offset is
    there twice.
    """

    def __init__(self, keys: np.ndarray, offsets: np.ndarray, size: int, name: str) -> None:
        self.size, self.name = size, name
        self._keys, self._offsets = SharedArray(keys), SharedArray(offsets)
        self._by_key: SharedArray | None = None  # the order of the keys
        self._sorted_keys: SharedArray | range = self._keys
        self._sorted_offsets = self._offsets
        if not _ascend(keys):
            self._sort_keys(keys)
        if not _ascend(offsets):
            self._sorted_offsets = SharedArray(self._unique(np.sort(offsets), "offset"))

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, key: int) -> bool:
        return self._place(key) is not None

    @property
    def keys(self) -> np.ndarray:
        """int64 [N], in the order of the index."""
        return self._keys.array

    @property
    def last(self) -> int:
        """The key of the record that is the last one in the file."""
        return int(self.keys[self._offsets.array.argmax() if self._sorted_offsets is not self._offsets else -1])

    def span(self, key: int) -> tuple[int, int]:
        """(the byte at which a record begins, the one at which the next record in the file does). Raises InputError for an unknown key."""
        place = self._place(key)
        if place is None:
            raise InputError(f"{self.name}: key {key} is not in the index")
        start, offsets = self._offsets.array[place], self._sorted_offsets.array
        following = place + 1 if self._sorted_offsets is self._offsets else offsets.searchsorted(start) + 1
        return int(start), int(offsets[following]) if following < len(offsets) else self.size

    def fingerprint(self) -> str:
        """The SHA-256 of the size, of all keys, and of the offsets in the order of the keys, hexadecimal."""
        digest = hashlib.sha256(str(self.size).encode())
        digest.update(memoryview(self.keys).cast("B"))
        for part in blocks(len(self)):
            order = part if self._by_key is None else self._by_key.array[part]
            digest.update(self._offsets.array[order].tobytes())
        return digest.hexdigest()

    def _sort_keys(self, keys: np.ndarray) -> None:
        """Keys without gaps, in whatever order, as im2rec writes them for a list that was shuffled, need no sorting, which takes longer
        than all the rest.
        """
        kind, least = least_integer(len(keys)), int(keys.min())
        if int(keys.max()) - least == len(keys) - 1:
            order = np.full(len(keys), -1, kind)
            for block in blocks(len(keys)):
                order[keys[block] - least] = np.arange(block.start, block.stop, dtype=kind)
            if order.min() >= 0:
                self._by_key, self._sorted_keys = SharedArray(order), range(least, least + len(keys))
                return
        self._by_key = SharedArray(np.argsort(keys).astype(kind))
        self._sorted_keys = SharedArray(self._unique(np.sort(keys), "key"))

    def _place(self, key: int) -> int | None:
        """Where a key is in the index."""
        keys = self._sorted_keys
        place = int(key) - keys.start if isinstance(keys, range) else int(keys.array.searchsorted(key))
        if not 0 <= place < len(keys) or not isinstance(keys, range) and keys.array[place] != key:
            return None
        return place if self._by_key is None else int(self._by_key.array[place])

    def _unique(self, values: np.ndarray, what: str) -> np.ndarray:
        twice = np.flatnonzero(values[1:] == values[:-1])
        if len(twice):
            raise InputError(f"{self.name}: {what} {values[twice[0]]} is there twice, expected once")
        return values


def _ascend(values: np.ndarray) -> bool:
    return bool((values[1:] > values[:-1]).all())


def least_integer(count: int) -> type[np.signedinteger]:
    """The type for numbers below `count`: of tens of millions, 8 bytes each are memory that counts."""
    return np.int32 if count <= 2**31 else np.int64


def blocks(count: int) -> Iterator[slice]:
    """Slices of 0 .. count, for arithmetic whose intermediate values are to be no longer than a block."""
    return (slice(start, min(start + _BLOCK, count)) for start in range(0, count, _BLOCK))
