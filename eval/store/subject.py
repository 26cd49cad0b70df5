"""What attacks and audits work on: a network, a .bin and its records, and the list of all single attacks they allow."""
from pathlib import Path
from typing import Any, Callable, Mapping, NamedTuple, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from datasets import to_float
from eval import certification, records, verification
from eval.records import Records
from eval.verification import PairSet
from utils.distributed import barrier, rank
from utils.images import decode_image

OBJECTIVES = {"u": "untargeted", "d": "dodging", "i": "impersonation"}
_SIDES = ((("left", "right"), ("right", "left")), (("image", "image"),))  # attacked, compared with: of pairs, of images


class Subject(NamedTuple):
    """What is attacked: a network on the pairs of a .bin, with their embeddings [flips, n, D] and records."""
    network: Callable[[Tensor], Tensor]
    pair_set: PairSet
    embeddings: Tensor
    records: Records
    folder: Path
    device: torch.device
    batch_size: int
    progress: str

    def images(self, numbers: Sequence[int], flipped: Sequence[bool]) -> Tensor:
        """Float images [N, 3, H, W] in [-0.5, 0.5] by their numbers, decoded on demand."""
        return decoded(self.pair_set, numbers, flipped, self.device)

    def embedded(self, numbers: Sequence[int], flipped: Sequence[bool]) -> Tensor:
        """Embeddings [N, D] of the same."""
        flips = torch.as_tensor(np.asarray(flipped, dtype=np.int64))
        return self.embeddings[flips, torch.as_tensor(np.array(numbers))].to(self.device)

    def bar(self, total: int, title: str) -> tqdm:
        """A progress bar over images, on the first process and on a terminal only."""
        return tqdm(total=total, desc=f"{self.progress} {title}", unit="image", leave=False,
                    disable=None if self.progress and rank() == 0 else True)


def decoded(pair_set: PairSet, numbers: Sequence[int], flipped: Sequence[bool], device: "torch.device | str") -> Tensor:
    """Float images [N, 3, H, W] in [-0.5, 0.5] of a pair set, mirrored where `flipped` says so."""
    images = [decode_image(pair_set.images[k], pair_set.describe(k)) for k in numbers]
    return to_float(torch.stack([x.flip(-1) if flip else x for x, flip in zip(images, flipped)]), device)


def prepare(network: Callable[[Tensor], Tensor], pair_set: PairSet, folder: Path, origin: Mapping[str, Any],
            lipschitz: bool, protocol: str = "strict", far: "float | None" = None, tau: "float | None" = None,
            eps_u: Sequence[float] = (1.5, 3.0), eps: Sequence[float] = (0.25, 0.75), *, device: torch.device,
            batch_size: int = 64, num_workers: int = 0, progress: str = "") -> Subject:
    """Take up the records in a folder, or make and write them where there are none (far: 1e-3 unless given).

    origin: backbone, weights_sha256, bin, bin_sha256 ..., which go into the summary. Raises InputError where the folder
    holds results of another network, .bin, protocol or threshold.
    """
    asked = {**origin, "protocol": protocol, "tau": tau, "far_target": far}
    found = None
    if (folder / records.SUMMARY).is_file():
        found = records.read_records(folder, certified=lipschitz)
        records.refuse_others(folder, found.summary, asked)
        records.refuse_other_rows(folder, found, pair_set, protocol)
    embeddings = verification.embed_images(
        network, pair_set.images, records.flips(protocol), batch_size, device, describe=pair_set.describe,
        progress=progress, num_workers=num_workers, distributed=True)
    if found is None:
        found = records.evaluate(pair_set, embeddings, protocol, far or 1e-3, tau, eps_u, eps, lipschitz)
        found.summary.update(origin)
        barrier()  # no rank looks for records any more
        if rank() == 0:
            records.write_records(folder, found)
    return Subject(network, pair_set, embeddings, found, folder, device, batch_size, progress)


def table_of(found: Records, kind: str) -> pd.DataFrame:
    """The rows that a kind of attack is about: images (u), true pairs (d), false pairs (i)."""
    return found.images if kind == "u" else found.pairs[found.pairs["same"] == (kind == "d")]


def is_right(table: pd.DataFrame) -> pd.Series:
    """Which rows are right when clean: the decision is, and the embeddings have a direction."""
    if "same" not in table:
        return table["norm"] > 0
    return (table["accepted"] == table["same"]) & (table["norm_left"] > 0) & (table["norm_right"] > 0)


def plan(found: Records, kind: str, limit: "int | None" = None) -> pd.DataFrame:
    """Every single attack that the first `limit` rows of a kind allow, indexed by a number that is unique in the kind.

    Columns: row (of pairs or images), side (0: left, 1: right), image (attacked), target (whose embedding it is
    compared with), flipped, right (when clean), radius (certified for an attack on this image:
    `one_sided_radius`; 0 where the decision is wrong or the network is not 1-Lipschitz).
    """
    table, tau = table_of(found, kind)[:limit], found.summary["tau"]
    right, certified = is_right(table), "radius" in found.pairs
    parts = []
    for side, (image, target) in enumerate(_SIDES[kind == "u"]):
        theta = 0. if kind == "u" else np.arccos(table["cosine"].clip(-1, 1).to_numpy())
        norm = table["norm" if kind == "u" else f"norm_{image}"].to_numpy()
        radius = certification.one_sided_radius(norm, theta, tau).numpy()
        parts.append(pd.DataFrame({
            "row": table.index, "side": side, "image": table[image].to_numpy(), "target": table[target].to_numpy(),
            "flipped": table["flipped"].to_numpy(), "right": right.to_numpy(),
            "radius": np.where(right & certified, radius, 0.)}, index=2 * table.index + side))
    return pd.concat(parts)
