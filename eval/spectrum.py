"""How nonlinear a network is: the singular values of its layers' linear parts, and how differently it treats different images.

Layers say what their linear parts are, and which signs choose their linear pieces (backbones/spectra.py). Where singular values are small,
signs hardly ever differ, or the embedding of the middle of two images is the middle of their embeddings, the network does little that an
affine map would not.
"""
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from backbones.chain import Step, chain
from backbones.export import fold
from backbones.proof import covers
from eval.store.subject import decoded
from eval.verification import PairSet
from utils.precision import full_precision

COLUMNS = ("layer", "kind", "input", "count", "mean_square", "largest", "above_half", "units", "switching", "disagreement")


def steps_of(network: nn.Module, image_size: Sequence[int], certified: bool) -> list[Step]:
    """The layers of a network in their order, folded; one that is not 1-Lipschitz (certified=False) is taken as a single layer, of which
    nothing is known. Raises InputError as `backbones.chain.chain`.
    """
    return chain(fold(network), image_size) if certified else [Step("", network, torch.Size(image_size))]


def spectra(steps: Sequence[Step]) -> dict[str, np.ndarray]:
    """Singular values, float64, the largest first, by the names of the layers that say them."""
    return {name: layer.singular_values(shape).cpu().numpy() for name, layer, shape in steps  # type: ignore[operator]
            if covers(layer, "singular_values")}


@torch.no_grad()
def activity(steps: Sequence[Step], pair_set: PairSet, images: np.ndarray, device: torch.device | str = "cpu", batch_size: int = 64
             ) -> dict[str, np.ndarray]:
    """For each unit of the layers that say them, by the names of these, the share of the images of these numbers for which the
    preactivation is positive, float64.
    """
    active: dict[str, Any] = {}
    with full_precision():
        for z in _batches(pair_set, images, device, batch_size):
            for name, layer, _ in steps:
                if covers(layer, "preactivations"):
                    active[name] = active.get(name, 0) + (layer.preactivations(z) > 0).sum(0)  # type: ignore[operator]
                z = layer(z)
    return {name: count.double().cpu().numpy() / len(images) for name, count in active.items()}


@torch.no_grad()
def midpoint_deviations(steps: Sequence[Step], pair_set: PairSet, left: np.ndarray, right: np.ndarray,
                        device: torch.device | str = "cpu", batch_size: int = 64) -> np.ndarray:
    """|f((x + y) / 2) - (f(x) + f(y)) / 2| / |f(x) - f(y)| of pairs (left[k], right[k]) of images, float64 [N]; NaN where f(x) = f(y).

    It is 0, to rounding, where f is affine, and at most |x - y| / (2 |f(x) - f(y)|) where f is 1-Lipschitz.
    """
    found = []
    with full_precision():
        for x, y in zip(*(_batches(pair_set, side, device, batch_size) for side in (left, right))):
            of_x, of_y, of_middle = (_embedded(steps, z).double() for z in (x, y, (x + y) / 2))
            distance = (of_x - of_y).norm(dim=1)
            deviation = (of_middle - (of_x + of_y) / 2).norm(dim=1)
            found.append(torch.where(distance > 0, deviation / distance, torch.nan).cpu())
    return torch.cat(found).numpy()


def first_pairs(pair_set: PairSet, limit: int | None) -> np.ndarray:
    """The numbers of the first `limit` true and false pairs, ascending; None: of all."""
    return np.sort(np.concatenate([np.flatnonzero(pair_set.same == kind)[:limit] for kind in (True, False)]))


def mean_deviation(deviations: np.ndarray) -> dict[str, Any]:
    """n_pairs and midpoint_deviation, the mean, of the deviations that are numbers; None where none is."""
    known = deviations[~np.isnan(deviations)]
    return {"n_pairs": len(known), "midpoint_deviation": float(known.mean()) if len(known) else None}


def rows(steps: Sequence[Step], values: Mapping[str, np.ndarray], active: Mapping[str, np.ndarray], count: int) -> list[dict[str, Any]]:
    """What there is to say of each layer, from `spectra` and, over `count` images, `activity`: those of COLUMNS that it has.

    layer, kind (its class), input (its shape without the batch); count of the singular values, their mean_square, the largest and the share
    above_half of those above 0.5; units, the share switching of those whose sign is not the same for all images, and disagreement, the
    share that differs between two images, averaged over all pairs.
    """
    found: list[dict[str, Any]] = []
    for name, layer, shape in steps:
        row: dict[str, Any] = {}
        if name in values:
            row |= {"count": len(values[name]), "mean_square": float((values[name]**2).mean()), "largest": float(values[name][0]),
                    "above_half": float((values[name] > 0.5).mean())}
        if name in active:
            share = active[name]
            row |= {"units": share.size, "switching": float(((share > 0) & (share < 1)).mean()),
                    "disagreement": float((2 * share * (1 - share)).mean()) * count / max(1, count - 1)}
        if row:
            kind = type(layer).__name__.removeprefix("Folded")
            found.append({"layer": name, "kind": kind, "input": " x ".join(map(str, shape)), **row})
    return found


def table(found: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """`rows` as a table, NaN where a layer does not say something."""
    return pd.DataFrame(found, columns=list(COLUMNS)).astype({"count": "Int64", "units": "Int64"})


def _batches(pair_set: PairSet, numbers: np.ndarray, device: torch.device | str, batch_size: int) -> Iterator[Tensor]:
    for start in range(0, len(numbers), batch_size):
        part = numbers[start:start + batch_size].tolist()
        yield decoded(pair_set, part, [False] * len(part), device)


def _embedded(steps: Sequence[Step], z: Tensor) -> Tensor:
    for step in steps:
        z = step.layer(z)
    return z
