"""Verification of a network while it is trained: the .bin files beside its data -> 10-fold accuracies and feature norms."""
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from torch import nn

from eval.verification import PairSet, embed_images, norms, pair_cosines, read_bin, ten_fold_accuracy
from utils import InputError
from utils.distributed import rank
from utils.files import found_in
from utils.images import decode_image


def validations(names: Sequence[str] | None, folder: str | Path, image_size: Sequence[int]) -> dict[str, Callable[[nn.Module], dict]]:
    """For each {name}.bin of a folder (names: None for all there are) `verify` of it, which takes a network.

    Raises InputError for names without a file, and for files that `verify` could not use: where an image cannot be decoded or is not of
    `image_size` (height, width), and where there are too few pairs for the 10-fold accuracy.
    """
    found = {path.stem: path for path in found_in(folder, "*.bin")}
    wanted = list(found) if names is None else list(names)
    missing = sorted(set(wanted) - found.keys())
    if missing:
        there = ", ".join(path.name for path in found.values()) or "none"
        raise InputError(f"setting val_targets: no {missing[0]}.bin in {folder}; there are {there}")
    sets = [read_bin(path) for name, path in found.items() if name in wanted]
    for pairs in sets:
        _require_usable(pairs, tuple(image_size))
    return {pairs.name: partial(verify, pairs=pairs) for pairs in sets}


def _require_usable(pairs: PairSet, image_size: tuple[int, ...]) -> None:
    if len(pairs.same) < 10:
        raise InputError(f"{pairs.path}: {len(pairs.same)} pairs, expected at least 10 for the 10-fold accuracy (val_targets= leaves it "
                         "out)")
    for number, data in enumerate(pairs.images):
        size = tuple(decode_image(data, pairs.describe(number)).shape[1:])
        if size != image_size:
            raise InputError(f"{pairs.describe(number)}: the image has (height, width) {size}, expected {image_size} as the training "
                             "images have")


def verify(network: nn.Module, pairs: PairSet) -> dict[str, float]:
    """Of a network of pixels in [-0.5, 0.5], on all ranks: the 10-fold accuracy of flip-summed embeddings and of the unflipped ones
    (accuracy, unflipped, and their deviations accuracy_std, unflipped_std), and the mean norm over all images of the pairs (xnorm).
    """
    embeddings = embed_images(network, pairs.images, flips=(False, True), describe=pairs.describe,
                              progress=pairs.name if rank() == 0 else "", distributed=True)
    accuracy, accuracy_std = ten_fold_accuracy(pair_cosines(embeddings.sum(0), pairs.left, pairs.right), pairs.same)
    unflipped, unflipped_std = ten_fold_accuracy(pair_cosines(embeddings[0], pairs.left, pairs.right), pairs.same)
    xnorm = norms(embeddings)[:, [*pairs.left, *pairs.right]].mean().item()
    return dict(xnorm=xnorm, accuracy=accuracy, accuracy_std=accuracy_std, unflipped=unflipped, unflipped_std=unflipped_std)
