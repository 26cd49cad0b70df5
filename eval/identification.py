"""1:N identification with a 1-Lipschitz network, certified: each probe is searched for among the templates of a gallery.

A template is the mean of the embeddings of an identity's K enrolled images. A probe is found to be the identity of the nearest
template, by the angle, and accepted iff that cosine is > tau. Under attack the probe moves by up to eps and, where m of the K
enrolled images of each identity are poisoned, so does each of these: the template then moves by up to m eps / K. docs/certificates.md
has the radii and their proofs.

    rank-1      an enrolled probe is found, whatever tau is
    TPIR        an enrolled probe is found and accepted (true-positive identification rate)
    FPIR        a probe of nobody who is enrolled is accepted (false-positive identification rate)
"""
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from datasets import Faces
from eval import certification, verification
from eval.evaluation import Evaluation, budgets
from eval.records import certified_accuracies, proven_or_divided
from eval.store.results import SUMMARY
from eval.store.schema import IDENTIFICATION, write_summary
from utils import InputError
from utils.files import read_json, write_csv

PROBES = "probes.csv"
_SUBJECT = ("backbone", "weights_sha256", "flip", "lipschitz", "faces_fingerprint")
_CHUNK = 512  # probes that are compared with all templates at a time


class Split(NamedTuple):
    """Who is enrolled: identities [M] and the numbers [M, K] of their images; probes [P]: numbers of images, labels [P]: whose."""
    identities: np.ndarray
    enrolled: np.ndarray
    probes: np.ndarray
    labels: np.ndarray


def split_identities(labels: np.ndarray, enrolled: int, unknown: float, limit: "int | None" = None, seed: int = 0) -> Split:
    """Draw the identities that are not enrolled, and of each of the others `enrolled` images for its template.

    labels [n]: of all images, of which only those of the first `limit` identities count. unknown: the share of the identities that
    is not enrolled; those with fewer images than `enrolled` cannot be and come on top. All images that are in no template are
    probes. Raises InputError where nobody can be enrolled or no image is left to find somebody by.
    """
    rng = np.random.default_rng(seed)
    identities = np.unique(labels)[:limit]
    strangers = set(rng.permutation(identities)[:round(unknown * len(identities))].tolist())
    order = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[order], [identities, identities + 1])
    chosen, templates, probes = [], [], []
    for identity, start, end in zip(identities.tolist(), *starts.tolist()):
        images = rng.permutation(order[start:end])
        if identity not in strangers and len(images) >= enrolled:
            chosen.append(identity)
            templates.append(images[:enrolled])
            images = images[enrolled:]
        probes.append(np.sort(images))
    if not chosen:
        raise InputError(f"nobody can be enrolled: of {len(identities)} identities {len(strangers)} are to be unknown, and no other has "
                         f"{enrolled} images")
    probes = np.concatenate(probes)
    if not np.isin(labels[probes], chosen).any():
        raise InputError(f"no image is left to find anybody by: no enrolled identity has more than {enrolled} images")
    return Split(np.array(chosen), np.stack(templates), probes, labels[probes])


class _Images:
    """Some images of a dataset, decoded on demand, as `verification.embed_images` takes them."""

    def __init__(self, dataset: Faces, numbers: np.ndarray):
        self.dataset, self.numbers = dataset, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place: int) -> Tensor:
        return self.dataset[int(self.numbers[place])][0]

    def describe(self, place: int) -> str:
        number = int(self.numbers[place])
        return self.dataset.name(number) if hasattr(self.dataset, "name") else f"image {number}"


def _as_it_is(image: Tensor, name: str) -> Tensor:
    return image


def identify(network: Callable[[Tensor], Tensor], dataset: Faces, split: Split, fpir: float = 1e-2, tau: "float | None" = None,
             eps: Sequence[float] = Evaluation.eps, poisoned: int = 0, progress: str = "", lipschitz: float | None = None,
             **embedding: Any) -> tuple[pd.DataFrame, dict[str, Any]]:
    """(probes, summary) of a dataset that was split. tau: None chooses the loosest with FPIR at most `fpir`; without unknown probes
    there is none, and only rank-1 is certified. poisoned: of the enrolled images of each identity. lipschitz: as `records.certify`.
    `embedding` goes to `verification.embed_images`.

    probes has a row a probe: probe (number of the image), identity, enrolled, found (whose template is the nearest), cosine, norm,
    radius_rank1 (NaN of those not enrolled), accepted, radius (of the decision: found and accepted, or rejected). A wrong decision
    has radius 0. Raises InputError where an image cannot be used or no threshold can be chosen.
    """
    eps = budgets(eps)
    network = proven_or_divided(network, dataset[0][0].shape, lipschitz)
    images = _Images(dataset, np.concatenate([split.enrolled.ravel(), split.probes]))
    embeddings = verification.embed_images(network, images, describe=images.describe, decode=_as_it_is, progress=progress,
                                           **embedding)[0].double()
    enrolled = embeddings[:split.enrolled.size].view(*split.enrolled.shape, -1)
    search = Search(embeddings[split.enrolled.size:], enrolled.mean(1), poisoned / split.enrolled.shape[1], progress)
    probes = pd.DataFrame({
        "probe": split.probes, "identity": split.labels, "enrolled": np.isin(split.labels, split.identities),
        "found": split.identities[search.nearest.numpy()], "cosine": search.cosine.numpy(), "norm": search.norm.numpy()})
    right = (probes["found"] == probes["identity"]) & (probes["norm"] > 0)
    probes["radius_rank1"] = np.where(probes["enrolled"], np.where(right, search.rank1.numpy(), 0.), np.nan)
    target = fpir if tau is None else None
    if tau is None and not probes["enrolled"].all():
        tau = verification.threshold_at_far(probes["cosine"], probes["enrolled"], fpir, names=("unknown probes", "FPIR"))
    if tau is not None:
        probes["accepted"] = probes["cosine"] > tau
        decided = np.where(probes["enrolled"], right & probes["accepted"], ~probes["accepted"])
        radius = np.where(probes["enrolled"], np.minimum(probes["radius_rank1"], search.acceptance(tau)), search.rejection(tau))
        probes["radius"] = np.where(decided, radius, 0.)
    return probes, {**summarise(probes, search, fpir, target, tau, eps), "n_templates": len(split.identities),
                    "enrolled": split.enrolled.shape[1], "poisoned": poisoned,
                    "lipschitz": 1.0 if lipschitz is None else float(lipschitz), "lipschitz_assumed": lipschitz is not None}


class Search:
    """Probes [P, D] compared with templates [M, D]: nearest, cosine (-inf without a direction), norm and rank1 (radius), [P] each.

    poisoned: the share of a template's images that moves. Raises InputError where no template has a direction.
    """

    def __init__(self, probes: Tensor, templates: Tensor, poisoned: float, progress: str = ""):
        self.units, self.lengths = certification.unit_templates(templates)
        if not (self.lengths > 0).any():
            raise InputError("no template has a direction: the embeddings of all enrolled images are zero or not finite")
        self.norm = verification.norms(probes)
        self.probes = torch.where(self.norm[:, None] > 0, probes, 0.)
        self.reach = self.lengths / poisoned if poisoned else torch.full_like(self.lengths, torch.inf)
        top, rank1 = [], []
        with tqdm(total=len(probes), desc=f"{progress} search", unit="probe", leave=False, disable=None if progress else True) as bar:
            for part in self._parts(torch.arange(len(probes))):
                top.append(self._cosines(part).max(1))
                rank1.append(certification.identification_radius(self.probes[part], templates, poisoned))
                bar.update(len(part))
        self.cosine, self.nearest = (torch.cat(values) for values in zip(*top))
        self.rank1 = torch.cat(rank1)
        self.theta = certification.angle(self.probes, self.units[self.nearest])

    def acceptance(self, tau: float) -> np.ndarray:
        """Radius [P] at which the nearest template stays nearer than arccos tau, if it is."""
        return _moved(self.norm, self.reach[self.nearest], self.theta, tau).numpy()

    def rejection(self, tau: float) -> np.ndarray:
        """Radius [P] at which no template comes nearer than arccos tau, if none is."""
        if self.reach.isinf().all():  # the nearest is the first to come
            return self.acceptance(tau)
        return torch.cat([_moved(self.norm[part, None], self.reach, self._angles(part), tau).amin(1)
                          for part in self._parts(torch.arange(len(self.norm)))]).numpy()

    def operating_points(self, enrolled: Any, right: Any, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        """(tau, FPIR, TPIR) under an attack of eps, as `certification.operating_points`."""
        enrolled, right = (torch.as_tensor(np.array(flags, dtype=bool)) for flags in (enrolled, right))
        nearest = self.theta + certification.turn(self.norm, eps) + certification.turn(self.reach[self.nearest], eps)
        found = torch.where(right & (self.rank1 > eps), nearest, torch.inf)[enrolled]
        others = [(self._angles(part) - certification.turn(self.norm[part], eps)[:, None] - certification.turn(self.reach, eps)).amin(1)
                  for part in self._parts((~enrolled).nonzero().flatten())]
        return certification.operating_points(found, torch.cat(others))

    def _parts(self, rows: Tensor) -> Iterator[Tensor]:
        return iter(rows.split(_CHUNK))

    def _cosines(self, rows: Tensor) -> Tensor:
        defined = (self.norm[rows, None] > 0) & (self.lengths > 0)
        products = self.probes[rows] @ self.units.T / self.norm[rows, None].clamp(min=torch.finfo(torch.float64).tiny)
        return torch.where(defined, products.clamp(-1, 1), -torch.inf)

    def _angles(self, rows: Tensor) -> Tensor:
        return self._cosines(rows).clamp(-1, 1).arccos()


def _moved(norm: Tensor, reach: Tensor, theta: Tensor, tau: float) -> Tensor:
    """The radius of one decision about a probe and a template that moves norm / reach times as far for its length."""
    fixed = reach.isinf()
    both = certification.two_sided_radius(norm, torch.where(fixed, 1., reach), theta, tau)
    return torch.where(fixed, certification.one_sided_radius(norm, theta, tau), both)


def summarise(probes: pd.DataFrame, search: Search, fpir: float, target: "float | None", tau: "float | None", eps: Sequence[float]
              ) -> dict[str, Any]:
    """rank1, cra_rank1, med_rank1; tau, tpir, fpir; cra_tpir and worst_fpir by budget (FPIR under attack); certified_fpir by budget:
    the threshold that keeps FPIR at the target under attack, and the TPIR that is certified there. What there is not is None.
    """
    known, others = probes[probes["enrolled"]], probes[~probes["enrolled"]]
    right = (probes["found"] == probes["identity"]) & (probes["norm"] > 0)
    summary: dict[str, Any] = {
        "task": IDENTIFICATION, "fpir_target": target, "tau": tau, "n_probes": len(known), "n_unknown_probes": len(others),
        "n_invalid_embeddings": int((probes["norm"] == 0).sum()), "rank1": float(right[known.index].mean()),
        "cra_rank1": certified_accuracies(known["radius_rank1"], eps),
        "med_rank1": certification.lower_median(known["radius_rank1"].to_numpy()),
        "tpir": None, "fpir": None, "cra_tpir": None, "worst_fpir": None, "certified_fpir": None}
    if tau is not None:
        summary |= {"tpir": float((right & probes["accepted"])[known.index].mean()), "cra_tpir": certified_accuracies(known["radius"], eps)}
    if tau is not None and len(others):
        summary |= {"fpir": float(others["accepted"].mean()),
                    "worst_fpir": {budget: 1 - cast(float, share) for budget, share in certified_accuracies(others["radius"], eps).items()},
                    "certified_fpir": {budget: _tpir(search.operating_points(probes["enrolled"], right, budget), fpir)
                                       for budget in eps}}
    return summary


def _tpir(points: tuple[Tensor, Tensor, Tensor], target: float) -> dict[str, Any]:
    try:
        tau, fpir, tpir = certification.threshold_under_attack(points, target)
    except ValueError as error:
        return {"target": target, "tau": None, "fpir": None, "tpir": None, "reason": str(error).replace("FAR", "FPIR")}
    return {"target": target, "tau": tau, "fpir": fpir, "tpir": tpir}


def describe(summary: Mapping[str, Any]) -> str:
    """The figures in a few lines."""
    lines = [f"{summary['faces']}: {summary['n_probes']} probes of {summary['n_templates']} enrolled identities "
             f"({summary['enrolled']} images each, {summary['poisoned']} of them poisoned), {summary['n_unknown_probes']} of others",
             f"rank-1 {summary['rank1']:.2%}, certified " + _shares(summary["cra_rank1"])]
    if summary["cra_tpir"] is not None:
        fpir = "" if summary["fpir"] is None else f" at FPIR {summary['fpir']:.2%}"
        lines.append(f"TPIR {summary['tpir']:.2%}{fpir} (tau {summary['tau']:.3f}), certified " + _shares(summary["cra_tpir"]))
    if summary["worst_fpir"] is not None:
        lines.append("FPIR under attack at most " + _shares(summary["worst_fpir"]))
        for eps, found in summary["certified_fpir"].items():
            lines.append(f"FPIR <= {found['target']:g} under attack at {eps}: " + (found["reason"] if found["tau"] is None else
                         f"tau {found['tau']:.3f}, certified TPIR {found['tpir']:.2%}"))
    return "\n".join(lines)


def _shares(by_budget: Mapping[str, float]) -> str:
    return ", ".join(f"{share:.2%} at {eps}" for eps, share in by_budget.items())


def refuse_other_results(folder: Path, origin: Mapping[str, Any]) -> None:
    """Raise InputError where a folder has results of another command, network or set of faces: they would be lost."""
    file = folder / SUMMARY
    if not file.is_file():
        return
    found = read_json(file)
    if not isinstance(found, dict) or found.get("task") != IDENTIFICATION:
        raise InputError(f"{file}: not results of identify; choose another folder (--out)")
    for key in _SUBJECT:
        if found.get(key) != origin[key]:
            raise InputError(f"{file}: these results have {key} {found.get(key)}, expected {origin[key]}; choose another folder (--out)")


def write_results(folder: "str | os.PathLike[str]", probes: pd.DataFrame, summary: Mapping[str, Any]) -> None:
    """Write probes.csv and then summary.json to `folder`, each whole or not at all."""
    write_csv(Path(folder) / PROBES, probes)
    write_summary(Path(folder) / SUMMARY, summary)
