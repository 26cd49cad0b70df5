"""Face verification: .bin files of image pairs, embeddings of their images, and the field's names for them.

A pair is accepted iff its cosine is > tau; one with an embedding without direction (`utils.directions`) is rejected at every threshold and
counts in every denominator. Figures of merit are in eval/rates.py and eval/folds.py; all of it can be had from here, by the names that
scripts call.
"""
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, get_worker_info

from backbones import embedding_size
from datasets import to_float
from eval.certification import is_paper
from eval.folds import LFold, calculate_accuracy, calculate_roc, calculate_val, calculate_val_far, evaluate, ten_fold_accuracy
from eval.rates import auc, best_accuracy, eer, roc, tar_far, threshold_at_far
from utils import InputError, RecordError, printable
from utils.directions import cosine, norms
from utils.distributed import all_gather_interleaved, rank, world_size
from utils.images import decode_image, encode_image
from utils.images import image_size as size_of
from utils.loader import begin_worker, lasting, shared
from utils.modes import evaluating
from utils.precision import full_precision
from utils.progress import Work
from utils.untrusted.pickles import load_plain

__all__ = ["LFold", "PairSet", "auc", "best_accuracy", "calculate_accuracy", "calculate_roc", "calculate_val", "calculate_val_far", "eer",
           "embed_images", "evaluate", "load_bin", "norms", "pair_cosines", "read_bin", "require_size", "resized", "roc",
           "tar_far", "ten_fold_accuracy", "test", "threshold_at_far"]

CPU_BATCH = 16  # images in the network at a time: more are no faster on a CPU, and the full SLLNet takes 10 MB for each


@dataclass(frozen=True)
class PairSet:
    """The pairs of a .bin file.

    images: encoded images, unique by content (`read_bin`), in order of first appearance; left, right: their numbers for each pair,
    int64 [N]; same: whether a pair shows one person, bool [N]; positions: where each unique image first stands in the
    file.
    """
    path: str
    images: list[bytes]
    left: np.ndarray
    right: np.ndarray
    same: np.ndarray
    positions: np.ndarray

    @property
    def image_size(self) -> tuple[int, int, int]:
        """(C, H, W) of the first image, which all are to have."""
        channels, height, width = self.decode(0).shape
        return channels, height, width

    def decode(self, number: int) -> Tensor:
        """The unique image of a number, uint8 [C, H, W]."""
        return decode_image(self.images[number], self.describe(number))

    @property
    def name(self) -> str:
        """The file's name without folder and ending, e.g. "lfw", as it can be shown and written down."""
        return printable(Path(self.path).stem)

    def describe(self, image: int) -> str:
        """The file and the place in it of a unique image, for messages."""
        return f"{self.path}: image {self.positions[image]}"


def read_bin(path: str | os.PathLike[str], unique: str = "bytes") -> PairSet:
    """Read a .bin: the pickle of (images, issame), two images a pair, pair k being images 2k and 2k + 1.

    Images are encoded (bytes, or uint8 arrays [N] or [N, 1] of the encoded bytes) or decoded (uint8 arrays [H, W, 3] in RGB, or [H, W] and
    [H, W, 1] in grey), labels are booleans or 0 and 1, also as floats; lists, tuples and arrays hold them. Two are one image where
    their bytes are the same, and nothing is decoded here; unique="pixels": where their pixels are. Pickles of Python 2 and 3 are read,
    plain data only. Raises OSError where the file cannot be read, InputError where it is no such file or, for "pixels", an image cannot be
    decoded.
    """
    if unique not in ("bytes", "pixels"):
        raise InputError(f"unique is {unique!r}, expected bytes or pixels")
    content = load_plain(path)
    if isinstance(content, np.ndarray) and content.shape == (2,) and content.dtype == object:
        content = content.tolist()
    if not isinstance(content, (list, tuple)) or len(content) != 2:
        raise InputError(f"{path}: not a .bin of image pairs: expected (images, issame), found {_describe(content)}")
    images, same = (_elements(path, what, part) for what, part in zip(("images", "issame"), content))
    if len(images) != 2 * len(same) or not same:
        raise InputError(f"{path}: {len(images)} images for {len(same)} labels, expected two for each, and some")
    same = [label.item() if isinstance(label, np.ndarray) and label.size == 1 else label for label in same]
    if bad := [number for number, label in enumerate(same) if not _is_boolean(label)]:
        raise InputError(f"{path}: label {bad[0]}: expected True or False, found {_describe(same[bad[0]])}")
    made: dict[int, bytes] = {}  # by identity: what a file names again and again is not copied as often
    for place, image in enumerate(images):
        if id(image) not in made:
            made[id(image)] = _encoded(path, place, image)
    encoded = [made[id(image)] for image in images]
    keys = encoded if unique == "bytes" else _digests(path, encoded)
    numbers: dict[bytes, int] = {}
    order = np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)
    positions = np.unique(order, return_index=True)[1]
    return PairSet(str(path), [encoded[k] for k in positions], order[0::2], order[1::2], np.array(same, dtype=bool), positions)


def _digests(path: Any, encoded: Sequence[bytes]) -> Iterator[bytes]:
    """Of the pixels of each image."""
    known: dict[bytes, bytes] = {}
    for place, image in enumerate(encoded):
        if image not in known:
            pixels = decode_image(image, f"{path}: image {place}")
            known[image] = hashlib.sha256(repr(pixels.shape).encode() + pixels.contiguous().numpy().tobytes()).digest()
        yield known[image]


def _elements(path: Any, what: str, part: Any) -> list:
    if isinstance(part, (list, tuple)) or isinstance(part, np.ndarray) and part.ndim:
        return list(part)
    raise InputError(f"{path}: {what}: expected a list, found {_describe(part)}")


def _describe(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array {list(value.shape)} of {value.dtype}"
    return f"{type(value).__name__}" + (f" of {len(value)}" if isinstance(value, (list, tuple, bytes, str)) else "")


def _is_boolean(label: Any) -> bool:
    return isinstance(label, (bool, int, float, np.bool_, np.integer, np.floating)) and label in (0, 1)


def _encoded(path: Any, place: int, image: Any) -> bytes:
    if isinstance(image, (bytes, bytearray)):
        return bytes(image)
    shape = image.shape if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.size else ()
    if len(shape) == 1 or len(shape) == 2 and 1 in shape:  # [N, 1]: of OpenCV's imencode before 4.5.4
        return image.tobytes()
    image = image[:, :, None] if len(shape) == 2 else image
    if len(shape) == 2 or len(shape) == 3 and shape[2] in (1, 3):
        # losslessly, so that everything past here sees encoded images only
        return encode_image(torch.from_numpy(np.broadcast_to(image, (*shape[:2], 3)).copy()).permute(2, 0, 1).contiguous(), "png")
    raise InputError(f"{path}: image {place}: expected encoded bytes or a uint8 array [H, W, 3] or [H, W], found {_describe(image)}")


def resized(pair_set: PairSet, size: Sequence[int]) -> PairSet:
    """The pair set with its images in another size (height, width), by bicubic interpolation without smoothing, as the field's readers do
    it (OpenCV's, to rounding); images of that size stay as they are, others are decoded and encoded again, losslessly.

    Raises InputError for an image that cannot be decoded, and for one that is not square or is not to be: its face would be distorted or
    cut.
    """
    images = [_resized(image, tuple(size), pair_set.describe(number)) for number, image in enumerate(pair_set.images)]
    return replace(pair_set, images=images)


def _resized(image: bytes, size: tuple[int, ...], name: str) -> bytes:
    height, width = size_of(image, name)
    if (height, width) == size:
        return image
    if height != width or size[0] != size[1]:
        raise InputError(f"{name} is {height} x {width}, which is not resized to {size[0]} x {size[1]}: both have to be square")
    pixels = F.interpolate(decode_image(image, name)[None].float(), size, mode="bicubic")[0]
    return encode_image(pixels.round().clamp(0, 255).to(torch.uint8), "png")


class Images(Protocol):
    """What has images, encoded or not, by their numbers."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> Any: ...


class _Decoded(Dataset):
    """Uint8 images of encoded ones, or the message of what is wrong: an exception would cross processes as a page of
    traceback.
    """

    def __init__(self, images: Images, order: Sequence[int], describe: Callable[[int], str],
                 decode: Callable[[Any, str], Tensor]):
        self.images, self.order, self.describe, self.decode = images, order, describe, decode
        self.shape = decode(images[0], describe(0)).shape

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> Tensor | str:
        number = self.order[index]
        try:
            image = self.decode(self.images[number], self.describe(number))
        except InputError as error:
            return str(error)
        if image.shape != self.shape:
            return f"{self.describe(number)} is {list(image.shape)}, expected {list(self.shape)} as the first image"
        return image


def require_size(network: nn.Module, pair_set: PairSet, name: str | None = None) -> None:
    """Raise InputError where the first image has a size that the network (called `name`) is not made for, before a batch is decoded."""
    try:
        embedding_size(network, pair_set.image_size, name, "; --resize brings them to that size")
    except RecordError:
        raise
    except InputError as error:
        raise InputError(f"{pair_set.describe(0)}: {error}") from None


def _stack(batch: list[Tensor | str]) -> Tensor | str:
    """What is wrong with one of them, or all of them, in a worker in memory that it shares."""
    if wrong := next((item for item in batch if isinstance(item, str)), None):
        return wrong
    images = torch.stack(cast(list[Tensor], batch))
    try:
        return images if get_worker_info() is None else shared(images)
    except InputError as error:
        return str(error)


def _embed(network: Callable[[Tensor], Tensor], batch: Tensor, name: str) -> Tensor:
    try:
        return torch.cat([network(part) for part in batch.split(len(batch) if batch.is_cuda else CPU_BATCH)])
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # what layers raise for images of a size that they were not made for
        size = list(batch.shape[1:])
        raise InputError(f"{name} is {size}, which the network cannot take: {str(error).splitlines()[0]}") from error


@torch.no_grad()  # not inference_mode: what a network caches during its first pass must stay usable for attacks
def embed_images(network: Callable[[Tensor], Tensor], images: Images, flips: Sequence[bool] = (False,),
                 batch_size: int = 64, device: torch.device | str | None = None, dtype: torch.dtype | None = None,
                 describe: Callable[[int], str] = "image {}".format, progress: str = "", num_workers: int = 0,
                 distributed: bool = False, decode: Callable[[Any, str], Tensor] = decode_image) -> Tensor:
    """Embeddings [len(flips), len(images), D] on the CPU of encoded images; True in `flips` asks for the mirrored
    images.

    Each image is decoded once; one batch of float images exists at a time. The network (images in [-0.5, 0.5] to
    embeddings) runs in eval mode and full float32 precision, and is left in the mode it was in. device and dtype
    default to those of its parameters. progress names a bar on a terminal, elsewhere lines (`utils.progress`), on standard error. With
    num_workers > 0 images are decoded in that many processes. With `distributed` each rank embeds its share and all
    ranks return everything. decode makes a uint8 image of an element of `images` and its name. Raises InputError, through
    `describe`, for an image that cannot be decoded or has another size than the first.
    """
    weight = next(network.parameters(), None) if isinstance(network, nn.Module) else None
    device = torch.device(device if device is not None else weight.device if weight is not None else "cpu")
    dtype = dtype or (weight.dtype if weight is not None else torch.float32)
    share, ranks = (rank(), world_size()) if distributed else (0, 1)
    # equal shares, as gathering needs: a rank that runs out takes the last image again, which is cut off below
    order = [min(number, len(images) - 1) for number in range(share, -(-len(images) // ranks) * ranks, ranks)]
    loader = DataLoader(_Decoded(images, order, describe, decode), batch_size, collate_fn=_stack, num_workers=num_workers,
                        pin_memory=device.type == "cuda", worker_init_fn=begin_worker)
    embeddings, done = torch.empty(0), 0
    with full_precision(), evaluating(network), torch.autocast(device.type, enabled=False), \
            Work(progress, len(order), shown=bool(progress) and rank() == 0).stage("", len(order), leave=True) as stage:
        for batch in lasting(loader):
            if isinstance(batch, str):
                raise InputError(batch)
            batch = to_float(batch, device, dtype)
            views = (batch.flip(-1) if flip else batch for flip in flips)
            found = torch.stack([_embed(network, view, describe(0)) for view in views], dim=1)
            if found.dim() != 3:
                raise InputError(f"{type(network).__name__} makes {list(found[:, 0].shape)} of {len(batch)} images, expected embeddings "
                                 "[N, D]")
            if not done:
                # one tensor: small results kept in between would break up the memory that large batches give back
                embeddings = found.new_empty(len(order), *found.shape[1:], device=device if ranks > 1 else "cpu")
            embeddings[done:done + len(batch)] = found  # [images, flips, D]: images first, as gathering needs them
            done += len(batch)
            stage.tick(len(batch))
            stage.update(len(batch))
    if ranks > 1:
        embeddings = all_gather_interleaved(embeddings)[:len(images)].cpu()
    return embeddings.transpose(0, 1)


def pair_cosines(embeddings: Tensor, left: Any, right: Any) -> np.ndarray:
    """Cosines float64 [N] of the pairs (left[k], right[k]) of rows of embeddings [n, D]; -inf where one has no direction."""
    left, right = torch.as_tensor(left), torch.as_tensor(right)
    chunks = zip(left.split(4096), right.split(4096))  # both sides of all pairs would be several times the embeddings
    cosines = torch.cat([cosine(embeddings[one].double(), embeddings[two].double()) for one, two in chunks])
    return torch.where(cosines.isfinite(), cosines.clamp(-1, 1), cosines).numpy()


def load_bin(path: str | os.PathLike[str], image_size: Sequence[int]) -> tuple[list[Tensor], list[bool]]:
    """([images, mirrored images], issame) of a .bin: uint8 [2 N, 3, H, W], those of a pair one after the other, and N labels.

    Pixels are 0 ... 255, as elsewhere under this name, held as bytes, a quarter of the memory: `x / 255` and `x - 127.5` make floats of
    them.
    Images of another size are `resized` to image_size (H, W). `read_bin` and `embed_images` do the same work without all images in memory.
    Raises as these.
    """
    pair_set = resized(read_bin(path), image_size)
    order = np.stack([pair_set.left, pair_set.right], 1).flatten()
    images = torch.empty((len(order), 3, *image_size), dtype=torch.uint8)
    for number, image in enumerate(pair_set.images):
        images[torch.from_numpy(order == number)] = decode_image(image, pair_set.describe(number))
    return [images, images.flip(-1)], pair_set.same.tolist()


def test(data_set: tuple[Sequence[Tensor], Sequence[bool]], backbone: Callable[[Tensor], Tensor], batch_size: int, nfolds: int = 10,
         protocol: str = "strict") -> tuple[float, float, float, float, float, list[np.ndarray]]:
    """(acc1, std1, acc2, std2, xnorm, embeddings_list) of what `load_bin` returns.

    The backbone gets images in [-0.5, 0.5], as every one here expects. acc1, std1: `ten_fold_accuracy` of the images as they are; acc2,
    std2: of the sums of the embeddings of both views, under protocol "paper" the same as acc1, as its code had it. xnorm: the mean norm
    over both views; embeddings_list: their embeddings [2 N, D]. Raises InputError for images that are not 0 ... 255.
    """
    data_list, same = data_set
    views = [embed_images(backbone, images, batch_size=batch_size, decode=_as_bytes)[0] for images in data_list]
    first = np.arange(0, 2 * len(same), 2)
    plain, summed = (ten_fold_accuracy(pair_cosines(rows, first, first + 1), np.asarray(same), nfolds)
                     for rows in (views[0], torch.stack(views).sum(0)))
    xnorm = norms(torch.cat(views)).mean().item()
    return *plain, *(plain if is_paper(protocol) else summed), xnorm, [rows.numpy() for rows in views]


def _as_bytes(image: Tensor, name: str) -> Tensor:
    found = image.to(torch.uint8)
    if not torch.equal(found.to(image.dtype), image):
        raise InputError(f"{name}: values from {image.min():g} to {image.max():g}, expected whole numbers from 0 to 255")
    return found
