"""What attacks and audits work on: a network, a .bin and its records, and the list of all single attacks they allow."""
import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

import backbones
from datasets import to_float
from eval import records, verification
from eval.certificates import ONE, Case, Certificate, OneImage, checked
from eval.evaluation import Evaluation
from eval.records import Records, is_right, table_of
from eval.store import provenance, results
from eval.verification import PairSet
from utils import InputError
from utils.distributed import barrier, per_rank, rank
from utils.files import sha256
from utils.progress import Work

OBJECTIVES = {"u": "untargeted", "d": "dodging", "i": "impersonation"}
_SIDES = ((("left", "right"), ("right", "left")), (("image", "image"),))  # attacked, compared with: of pairs, of images


class Model(NamedTuple):
    """The network that is evaluated, images in [-0.5, 0.5] -> embeddings; where it comes from, for summaries; whether its layers prove it
    1-Lipschitz.
    """
    network: nn.Module
    origin: dict[str, Any]
    certified: bool


def load_model(backbone: str, weights: str | os.PathLike[str], device: torch.device | str = "cpu", flip: str = "none",
               tight: bool = False, **kw: Any) -> Model:
    """With flip="average" the averaging is part of the network, so that attacks see it too; tight, kw: as `backbones.load_network`."""
    network = backbones.averaged(backbones.load_network(backbone, weights, device=device, tight=tight, **kw), flip)
    return Model(network, provenance.origin(backbone, weights, network), backbones.is_lipschitz(backbone))


def require_lipschitz(backbone: str, what: str) -> None:
    """Raise InputError where a network is not 1-Lipschitz, so that it has no `what`."""
    if not backbones.is_lipschitz(backbone):
        raise InputError(f"--backbone {backbone}: this network is not 1-Lipschitz, so it has no {what}")


def open_pairs(model: Model, path: str | os.PathLike[str], protocol: str, resize: tuple[int, int] | None = None
               ) -> tuple[PairSet, dict[str, Any]]:
    """The pairs of a .bin file and where results on them come from. Raises InputError where the network is made for another size.

    resize: (height, width) that images of another size are brought to.
    """
    read = pair_set = verification.read_bin(path, unique="pixels" if protocol == "paper" else "bytes")
    if resize is not None:
        pair_set = verification.resized(read, resize)
    verification.require_size(model.network, pair_set, model.origin["backbone"])
    return pair_set, {**model.origin, "bin": pair_set.name, "bin_sha256": sha256(path), "image_size": list(pair_set.image_size),
                      "resized": pair_set.images != read.images}


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is attacked: a network on the pairs of a .bin, with their embeddings [flips, n, D] and records."""
    network: Callable[[Tensor], Tensor]
    pair_set: PairSet
    embeddings: Tensor
    records: Records
    folder: Path
    device: torch.device
    batch_size: int
    progress: str

    @property
    def tau(self) -> float:
        """The threshold of the records."""
        return self.records.summary["tau"]

    def images(self, numbers: Sequence[int], flipped: Sequence[bool]) -> Tensor:
        """Float images [N, 3, H, W] in [-0.5, 0.5] by their numbers, decoded on demand."""
        return decoded(self.pair_set, numbers, flipped, self.device)

    def embedded(self, numbers: Sequence[int], flipped: Sequence[bool]) -> Tensor:
        """Embeddings [N, D] of the same."""
        flips = torch.as_tensor(np.asarray(flipped, dtype=np.int64))
        return self.embeddings[flips, torch.as_tensor(np.array(numbers))].to(self.device)

    def work(self, title: str, samples: int, each: int, of_attacks: bool = True) -> Work:
        """How far work on so many samples is, of at most `each` passes of an image; the first process says so, and first, of attacks, what
        they cost.
        """
        first = f"at most {samples:,} attacks, of at most {each:,} passes of an image through the network each" \
            if samples and of_attacks else ""
        return Work(f"{self.progress} {title}", per_rank(samples) * each, first, bool(self.progress) and rank() == 0, each)

    def with_records(self, found: Records) -> "Subject":
        """The same with other records."""
        return dataclasses.replace(self, records=found)


def decoded(pair_set: PairSet, numbers: Sequence[int], flipped: Sequence[bool], device: torch.device | str) -> Tensor:
    """Float images [N, 3, H, W] in [-0.5, 0.5] of a pair set, mirrored where `flipped` says so."""
    images = [pair_set.decode(k) for k in numbers]
    return to_float(torch.stack([x.flip(-1) if flip else x for x, flip in zip(images, flipped)]), device)


def open_subject(model: Model, path: str | os.PathLike[str], folder: Path, given: Mapping[str, Any] = {}, *,
                 device: torch.device | str = "cpu", batch_size: int = 64, num_workers: int = 0, resize: tuple[int, int] | None = None,
                 progress: str = "", remarks: Mapping[str, Any] = {}) -> Subject:
    """The pairs of a .bin with their records: those of a folder, or new ones, which are written there.

    given: fields of `Evaluation`. Records that are there must be of these, whatever they leave open; new ones take the defaults for it.
    remarks: what else a new summary is to say. Raises InputError where the folder holds results of another network, .bin, protocol or
    threshold.
    """
    found = results.read_records(folder, certified=model.certified) if (folder / results.SUMMARY).is_file() else None
    evaluation = Evaluation(**{**({} if found is None else vars(Evaluation.of(found.summary))), **_one_threshold(given)})
    pair_set, origin = open_pairs(model, path, evaluation.protocol, resize)
    network = records.proven_or_divided(model.network, pair_set.image_size) if model.certified else model.network
    if found is not None:
        asked = {**origin, "protocol": evaluation.protocol, "tau": evaluation.tau, "far_target": given.get("far")}
        provenance.refuse_others(folder / results.SUMMARY, found.summary, asked)
        results.refuse_other_pairs(folder, found, pair_set, evaluation)
    embeddings = verification.embed_images(network, pair_set.images, evaluation.views, batch_size, device,
                                           describe=pair_set.describe, progress=progress, num_workers=num_workers, distributed=True)
    if found is None:
        found = records.evaluate(pair_set, embeddings, evaluation, model.certified)
        found.figures.update({**origin, **remarks})
        barrier()  # no rank looks for records any more
        if rank() == 0:
            results.write_records(folder, found)
    return Subject(network, pair_set, embeddings, found, folder, torch.device(device), batch_size, progress)


def plan(found: Records, kind: str, limit: int | None = None, certificate: Certificate = ONE) -> pd.DataFrame:
    """Every single attack that the first `limit` rows of a kind allow, indexed by a number that is unique in the kind.

    Columns: row (of pairs or images), side (0: left, 1: right), image (attacked), target (whose embedding it is
    compared with), flipped, right (when clean), radius (certified, of `certificate`, for an attack on this image alone; 0 where the
    decision is wrong or the network is not 1-Lipschitz). Of smoothed decisions `_smoothed_plan`.
    """
    if found.smoothed:
        return _smoothed_plan(found, kind, limit)
    table, tau = table_of(found, kind)[:limit], found.summary["tau"]
    right = is_right(table)
    radii = (OneImage.side(table["norm"].to_numpy(), 0., tau),) if kind == "u" else certificate.sides(case_of(found, table))
    parts = []
    for side, ((image, target), radius) in enumerate(zip(_SIDES[kind == "u"], radii)):
        parts.append(pd.DataFrame({
            "row": table.index, "side": side, "image": table[image].to_numpy(), "target": table[target].to_numpy(),
            "flipped": table["flipped"].to_numpy(), "right": right.to_numpy(),
            "radius": np.where(right & found.certified, checked(certificate, radius, len(table)), 0.)}, index=2 * table.index + side))
    return pd.concat(parts)


def _smoothed_plan(found: Records, kind: str, limit: int | None) -> pd.DataFrame:
    """As `plan`, with the radius of each decision and `before`, the share of draws that decided rightly. Where both images are smoothed
    they are attacked together: a row each, as of the left side, and none of the images.
    """
    table, smoothing = table_of(found, kind)[:limit], found.summary["smoothing"]
    names = [("radius_left", "votes_left"), ("radius_right", "votes_right")]
    if kind == "u" or smoothing["threat"] == "joint":
        names = [("radius_u" if kind == "u" else "radius", "votes")]
    parts = []
    for side, ((image, target), (radius, votes)) in enumerate(zip(_SIDES[kind == "u"], names)):
        share = table[votes].to_numpy() / smoothing["n"]
        parts.append(pd.DataFrame({
            "row": table.index, "side": side, "image": table[image].to_numpy(), "target": table[target].to_numpy(), "flipped": False,
            "right": is_right(table).to_numpy(), "radius": table[radius].to_numpy(), "before": 1 - share if kind == "i" else share},
            index=2 * table.index + side))
    return pd.concat(parts)


def case_of(found: Records, table: pd.DataFrame) -> Case:
    """Some rows of the pairs, as certificates take them; by the definitions, whatever the protocol is."""
    left, right, theta = (table[name].to_numpy() for name in ("norm_left", "norm_right", "theta"))
    return Case(left, right, theta, found.summary["tau"], dimension=int(np.prod(found.summary["image_size"])))


def side_name(kind: str, side: int) -> str:
    """What attacks.csv calls a side."""
    return "image" if kind == "u" else ("left", "right")[side]


def _one_threshold(given: Mapping[str, Any]) -> dict[str, Any]:
    """A FAR that is asked for takes the place of a given tau, unless both are."""
    return {**({"tau": None} if "far" in given and given.get("tau") is None else {}), **given}
