"""Face verification: .bin files of image pairs, embeddings of their images, and the field's figures of merit.

A pair is accepted iff its cosine is > tau. An embedding that is zero or not finite has no direction: its pairs get the
cosine -inf, so that they are rejected at every threshold and still count in every denominator.
"""
import contextlib
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from backbones import embedding_size
from datasets import to_float
from eval.certification import is_paper
from utils import InputError, RecordError
from utils.distributed import all_gather_interleaved, rank, world_size
from utils.images import decode_image, encode_image
from utils.untrusted.pickles import load_plain
from utils.precision import full_precision

CPU_BATCH = 16  # images in the network at a time: more are no faster on a CPU, and the full SLLNet takes 10 MB for each


@dataclass(frozen=True)
class PairSet:
    """The pairs of a .bin file.

    images: encoded images, unique by content, in order of first appearance; left, right: their numbers for each pair,
    int64 [N]; same: whether a pair shows one person, bool [N]; positions: where each unique image first stands in the
    file.
    """
    path: str
    images: list[bytes]
    left: np.ndarray
    right: np.ndarray
    same: np.ndarray
    positions: np.ndarray
    resize: "tuple[int, int] | None" = None

    @property
    def resized(self) -> bool:
        """Whether images are brought to another size."""
        return self.resize is not None

    @property
    def image_size(self) -> tuple[int, int, int]:
        """(C, H, W) of the first image, which all are to have."""
        return tuple(self.decode(0).shape)

    def decode(self, number: int) -> Tensor:
        """The unique image of a number, uint8 [C, H, W]."""
        return self.decode_image(self.images[number], self.describe(number))

    def decode_image(self, image: bytes, name: str) -> Tensor:
        """An encoded image as this set sees it."""
        return decode_image(image, name)

    @property
    def name(self) -> str:
        """The file's name without folder and ending, e.g. "lfw"."""
        return Path(self.path).stem

    def describe(self, image: int) -> str:
        """The file and the place in it of a unique image, for messages."""
        return f"{self.path}: image {self.positions[image]}"


def read_bin(path: "str | os.PathLike[str]", unique: str = "bytes", resize: "tuple[int, int] | None" = None) -> PairSet:
    """Read a .bin: the pickle of (images, issame), two images a pair, pair k being images 2k and 2k + 1.

    Images are encoded (bytes, or uint8 arrays of the encoded bytes) or decoded (uint8 arrays [H, W, 3] in RGB); nothing
    is decoded here. Pickles of Python 2 and 3 are read, plain data only. Raises OSError where the file cannot be read,
    InputError where it is no such file.
    """
    content = load_plain(path)
    if not isinstance(content, (list, tuple)) or len(content) != 2:
        raise InputError(f"{path}: not a .bin of image pairs: expected (images, issame), found {_describe(content)}")
    images, same = (_elements(path, what, part) for what, part in zip(("images", "issame"), content))
    if len(images) != 2 * len(same) or not same:
        raise InputError(f"{path}: {len(images)} images for {len(same)} labels, expected two for each, and some")
    if bad := [number for number, label in enumerate(same) if not _is_boolean(label)]:
        raise InputError(f"{path}: label {bad[0]}: expected True or False, found {_describe(same[bad[0]])}")
    numbers: dict[bytes, int] = {}
    encoded = (_encoded(path, place, image) for place, image in enumerate(images))
    order = np.array([numbers.setdefault(image, len(numbers)) for image in encoded], dtype=np.int64)
    positions = np.unique(order, return_index=True)[1]
    return PairSet(str(path), list(numbers), order[0::2], order[1::2], np.array(same, dtype=bool), positions, resize)


def _elements(path: Any, what: str, part: Any) -> "list | tuple | np.ndarray":
    if isinstance(part, (list, tuple)) or isinstance(part, np.ndarray) and part.ndim:
        return list(part)
    raise InputError(f"{path}: {what}: expected a list, found {_describe(part)}")


def _describe(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array {list(value.shape)} of {value.dtype}"
    return f"{type(value).__name__}" + (f" of {len(value)}" if isinstance(value, (list, tuple, bytes, str)) else "")


def _is_boolean(label: Any) -> bool:
    return isinstance(label, (bool, int, np.bool_, np.integer)) and label in (0, 1)


def _encoded(path: Any, place: int, image: Any) -> bytes:
    if isinstance(image, (bytes, bytearray)):
        return bytes(image)
    shape = image.shape if isinstance(image, np.ndarray) and image.dtype == np.uint8 else ()
    if len(shape) == 1:
        return image.tobytes()
    if len(shape) == 3 and shape[2] == 3 and image.size:
        # losslessly, so that everything past here sees encoded images only
        return encode_image(torch.from_numpy(image.copy()).permute(2, 0, 1).contiguous(), "png")
    raise InputError(f"{path}: image {place}: expected encoded bytes or a uint8 array, found {_describe(image)}")


class _Decoded(Dataset):
    """Uint8 images of encoded ones, or the message of what is wrong: an exception would cross processes as a page of
    traceback.
    """

    def __init__(self, images: Sequence[Any], order: Sequence[int], describe: Callable[[int], str],
                 decode: Callable[[Any, str], Tensor]):
        self.images, self.order, self.describe, self.decode = images, order, describe, decode
        self.shape = decode(images[0], describe(0)).shape

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> "Tensor | str":
        number = self.order[index]
        try:
            image = self.decode(self.images[number], self.describe(number))
        except InputError as error:
            return str(error)
        if image.shape != self.shape:
            return f"{self.describe(number)} is {list(image.shape)}, expected {list(self.shape)} as the first image"
        return image


def require_size(network: nn.Module, pair_set: PairSet) -> None:
    """Raise InputError where the first image has a size that the network is not made for, before a batch of them is decoded."""
    try:
        embedding_size(network, decode_image(pair_set.images[0], pair_set.describe(0)).shape)
    except RecordError:
        raise
    except InputError as error:
        raise InputError(f"{pair_set.describe(0)}: {error}") from None


def _stack(batch: "list[Tensor | str]") -> "Tensor | str":
    return next((item for item in batch if isinstance(item, str)), None) or torch.stack(batch)


def _embed(network: Callable[[Tensor], Tensor], batch: Tensor, name: str) -> Tensor:
    try:
        return torch.cat([network(part) for part in batch.split(len(batch) if batch.is_cuda else CPU_BATCH)])
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # what layers raise for images of a size that they were not made for
        size = list(batch.shape[1:])
        raise InputError(f"{name} is {size}, which the network cannot take: {str(error).splitlines()[0]}") from error


@contextlib.contextmanager
def _evaluating(network: Callable) -> Iterator[None]:
    """Eval mode inside; each module is put back into the mode it was found in."""
    modes = [(module, module.training) for module in network.modules()] if isinstance(network, nn.Module) else []
    try:
        for module, _ in modes[:1]:
            module.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@torch.no_grad()  # not inference_mode: what a network caches during its first pass must stay usable for attacks
def embed_images(network: Callable[[Tensor], Tensor], images: Sequence[Any], flips: Sequence[bool] = (False,),
                 batch_size: int = 64, device: "torch.device | str | None" = None, dtype: "torch.dtype | None" = None,
                 describe: Callable[[int], str] = "image {}".format, progress: str = "", num_workers: int = 0,
                 distributed: bool = False, decode: Callable[[Any, str], Tensor] = decode_image) -> Tensor:
    """Embeddings [len(flips), len(images), D] on the CPU of encoded images; True in `flips` asks for the mirrored
    images.

    Each image is decoded once; one batch of float images exists at a time. The network (images in [-0.5, 0.5] to
    embeddings) runs in eval mode and full float32 precision, and is left in the mode it was in. device and dtype
    default to those of its parameters. progress names a bar on standard error, shown on a terminal only. With
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
                        pin_memory=device.type == "cuda")
    embeddings, done = None, 0
    with full_precision(), _evaluating(network), torch.autocast(device.type, enabled=False), \
            tqdm(total=len(order), desc=progress, unit="image", disable=None if progress else True) as bar:
        for batch in loader:
            if isinstance(batch, str):
                raise InputError(batch)
            batch = to_float(batch, device, dtype)
            views = (batch.flip(-1) if flip else batch for flip in flips)
            found = torch.stack([_embed(network, view, describe(0)) for view in views], dim=1)
            if embeddings is None:
                # one tensor: small results kept in between would break up the memory that large batches give back
                embeddings = found.new_empty(len(order), *found.shape[1:], device=device if ranks > 1 else "cpu")
            embeddings[done:done + len(batch)] = found  # [images, flips, D]: images first, as gathering needs them
            done += len(batch)
            bar.update(len(batch))
    if ranks > 1:
        embeddings = all_gather_interleaved(embeddings)[:len(images)].cpu()
    return embeddings.transpose(0, 1)


def norms(embeddings: Tensor) -> Tensor:
    """Euclidean norms [...] in float64 of embeddings [..., D]; 0 for an embedding that is not finite, as for one
    that is zero.
    """
    values = embeddings.double().norm(dim=-1)
    return torch.where(values.isfinite(), values, 0.)


def pair_cosines(embeddings: Tensor, left: Any, right: Any) -> np.ndarray:
    """Cosines float64 [N] of the pairs (left[k], right[k]) of rows of embeddings [n, D]; -inf where one has no
    direction.
    """
    embeddings = embeddings.double()
    lengths = norms(embeddings)
    unit = embeddings / lengths[:, None]
    left, right = torch.as_tensor(left), torch.as_tensor(right)
    chunks = zip(left.split(4096), right.split(4096))  # both sides of all pairs would be several times the embeddings
    cosines = torch.cat([(unit[one] * unit[two]).sum(-1) for one, two in chunks]).clamp(-1, 1)
    return torch.where((lengths[left] > 0) & (lengths[right] > 0), cosines, -torch.inf).numpy()


def ten_fold_accuracy(cosines: np.ndarray, same: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation over ten folds of the accuracy at the threshold that is best on the other nine.

    As the field does it: consecutive folds, thresholds 0, 0.01, ..., 3.99 on the squared distance 2 - 2 cos of unit
    embeddings, the first of the best ones, same iff the distance is below it. Raises InputError for fewer than ten
    pairs.
    """
    same = np.asarray(same, dtype=bool)
    if len(same) < 10:
        raise InputError(f"10-fold accuracy needs at least 10 pairs, found {len(same)}")
    distances = 2 - 2 * np.asarray(cosines, dtype=np.float64)
    right = (distances < np.arange(0, 4, 0.01)[:, None]) == same
    totals, accuracies = right.sum(1), []
    for fold in np.array_split(np.arange(len(same)), 10):
        best = np.argmax(totals - right[:, fold].sum(1))
        accuracies.append(right[best, fold].mean())
    return float(np.mean(accuracies)), float(np.std(accuracies))


def threshold_at_far(cosines: np.ndarray, same: np.ndarray, far: float, protocol: str = "strict",
                     names: tuple[str, str] = ("false pairs", "FAR")) -> float:
    """The threshold tau for the target false-acceptance rate `far`.

    strict: the smallest of the scores whose FAR is <= far. paper: the first of 1,000 even steps from 1 down to -1 whose
    FAR exceeds far (section 5 of the reproduced paper). names: what messages call the false ones and their rate. Warns where
    the set has too few false pairs to resolve `far`; raises InputError where there are none, where no threshold inside
    (-1, 1) exists, and unless 0 < far < 1.
    """
    if not 0 < far < 1:
        raise InputError(f"far is {far}, expected a number between 0 and 1")
    negatives = np.sort(np.asarray(cosines, dtype=np.float64)[~np.asarray(same, dtype=bool)])[::-1]
    count = len(negatives)
    if not count:
        raise InputError(f"no {names[0]}, so no threshold has a {names[1]}: give tau")
    if count * far < 1:
        warnings.warn(f"{count} {names[0]} are too few for {names[1]} {far:g}: the finest they support is {1 / count:.2g}",
                      stacklevel=2)
    if is_paper(protocol):
        grid = np.linspace(-1, 1, 1000)[::-1]
        accepted = count - np.searchsorted(negatives[::-1], grid, side="right")
        exceeding = accepted / count > far
        tau = grid[np.argmax(exceeding)] if exceeding.any() else -1.
    else:
        # FAR changes only at scores of false pairs: take the one with as many of them above itself as are tolerable
        tolerated = np.searchsorted(np.arange(count) / count, far, side="right") - 1
        tau = negatives[tolerated]
    if not -1 < tau < 1:
        raise InputError(f"no threshold inside (-1, 1) has {names[1]} {far:g}: the scores give {tau:g}; give tau")
    return float(tau)


def tar_far(cosines: np.ndarray, same: np.ndarray, tau: float) -> "tuple[float | None, float | None]":
    """(TAR, FAR): shares of the true and of the false pairs with cosine > tau; None where there are no such pairs."""
    accepted, same = np.asarray(cosines) > tau, np.asarray(same, dtype=bool)
    return tuple(float(accepted[kind].mean()) if kind.any() else None for kind in (same, ~same))


def best_accuracy(cosines: np.ndarray, same: np.ndarray) -> tuple[float, float]:
    """(accuracy, threshold): the largest share of right decisions that any threshold has on these very pairs, and that threshold, a score
    (or -1, at which all with a direction are accepted).
    """
    cosines, same = np.asarray(cosines, dtype=np.float64), np.asarray(same, dtype=bool)
    order = np.argsort(-cosines, kind="stable")
    scores = cosines[order]
    last = np.append(np.flatnonzero(scores[1:] != scores[:-1]), len(scores) - 1)  # equal scores pass together
    right = np.append(0, np.cumsum(np.where(same[order], 1, -1))[last]) + (~same).sum()  # with the first 0, 1, ... scores accepted
    right[-1] = -1 if np.isneginf(scores[-1]) else right[-1]  # which no threshold accepts
    thresholds = np.append(scores[np.append(0, last[:-1] + 1)], -1.)
    best = int(np.argmax(right))
    return float(right[best] / len(same)), float(max(thresholds[best], -1.))


def roc(cosines: np.ndarray, same: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(FAR, TAR) at every distinct score, from (0, 0) to (1, 1). Raises InputError unless there are both true and
    false pairs.
    """
    cosines, same = np.asarray(cosines), np.asarray(same, dtype=bool)
    if same.all() or not same.any():
        raise InputError("a ROC curve needs both true and false pairs")
    order = np.argsort(-cosines)
    falling, same = cosines[order], same[order]
    ends = np.append(np.flatnonzero(falling[1:] != falling[:-1]), len(falling) - 1)  # equal scores pass together
    far, tar = (np.append(0, np.cumsum(kind)[ends]) / kind.sum() for kind in (~same, same))
    return far, tar


def auc(cosines: np.ndarray, same: np.ndarray) -> float:
    """Area under the ROC curve. Raises InputError unless there are both true and false pairs."""
    far, tar = roc(cosines, same)
    return float(np.sum(np.diff(far) * (tar[1:] + tar[:-1]) / 2))


def eer(cosines: np.ndarray, same: np.ndarray) -> float:
    """Equal error rate: FAR where it equals 1 - TAR, the ROC curve taken as straight between its points. Raises as
    `roc`.
    """
    far, tar = roc(cosines, same)
    return float(np.interp(0, far + tar - 1, far))
