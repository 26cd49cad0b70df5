"""Records of as many pairs as one likes, without images: embeddings are drawn, and all figures are those of them."""
import dataclasses

import numpy as np
import pandas as pd
import torch
from scipy.special import ndtri

from eval import certification, records
from eval.evaluation import Evaluation
from eval.records import ATTACK_TYPES, Records
from eval.smoothing import Smoothing, lower_probability
from eval.store.results import write_records

ORIGIN = {"format": 2, "flip": "none", "backbone": "tiny", "weights_sha256": "1" * 64, "bin": "many", "bin_sha256": "2" * 64, "lipschitz": 1.0,
          "lipschitz_assumed": False, "code_version": None, "code_sha256": "3" * 64, "image_size": [3, 112, 112], "resized": False, "far_target": 1e-2}


def many(pairs: int, shift: float = 0.0) -> Records:
    """Half of them true. shift: of the norms of embeddings, so that results differ."""
    rng = np.random.default_rng(0)
    same = np.arange(pairs) % 2 == 0
    cosine = np.clip(rng.normal(np.where(same, 0.45, 0.05), 0.15), -0.99, 0.99)
    norm = rng.gamma(40, 0.1, 2 * pairs) + shift
    left = np.arange(0, 2 * pairs, 2)
    tau = float(np.quantile(cosine[~same], 0.99))
    table = pd.DataFrame({"pair": np.arange(pairs), "flipped": False, "same": same, "left": left, "right": left + 1, "cosine": cosine,
                          "theta": np.arccos(cosine), "norm_left": norm[left], "norm_right": norm[left + 1], "accepted": cosine > tau})
    radius = certification.pair_radius(*(torch.tensor(table[name].to_numpy()) for name in ("norm_left", "norm_right", "theta")), tau, "strict").numpy()
    table["radius"] = np.where(table["accepted"] == same, radius, 0.)
    table["upper_bound"] = 5 * table["radius"] + 1
    images = pd.DataFrame({"image": np.arange(2 * pairs), "flipped": False, "norm": norm, "radius_u": norm * np.sqrt(1 - tau**2)})
    evaluation = dataclasses.replace(Evaluation(far=1e-2), tau=tau, certificates=())
    summary = records.summarise(table, images, evaluation)
    return Records(table, images, {**summary, **ORIGIN})


def with_audit(found: Records) -> Records:
    """The same with a successful attack on each certified decision, as an audit leaves them."""
    parts = []
    for kind, table, radius in (("u", found.images, "radius_u"), ("d", found.pairs[found.pairs["same"]], "radius"),
                                ("i", found.pairs[~found.pairs["same"]], "radius")):
        table = table[table[radius] > 0]
        parts.append(pd.DataFrame({"kind": kind, "row": table.index, "side": "image" if kind == "u" else "left", "attack": "audit", "eps": np.nan,
                                   "success": True, "norm": 1.5 * table[radius].to_numpy(), "seed": 0, "settings": "audit"}))
    return dataclasses.replace(found, attacks=pd.concat(parts, ignore_index=True)[list(ATTACK_TYPES)].astype(ATTACK_TYPES))


def smoothed(found: Records, sigma: float = 0.25, n: int = 100) -> Records:
    """The same pairs as if their decisions were smoothed, and all draws agreed."""
    settings = Smoothing(sigma, 20, n)
    radius = settings.sigma * float(ndtri(lower_probability(n, n, settings.alpha)))
    pairs = found.pairs.drop(columns="upper_bound").assign(radius=np.where(found.pairs["radius"] > 0, radius, 0.), radius_mean=0., samples=n, alpha=settings.alpha)
    for side in ("left", "right"):
        pairs = pairs.assign(**{f"cosine_{side}": pairs["cosine"], f"radius_{side}": pairs["radius"], f"votes_{side}": np.where(pairs["cosine"] > found.summary["tau"], n, 0)})
    images = found.images.assign(cosine=1., votes=n, radius_u=radius, radius_u_mean=0., samples=n, alpha=settings.alpha)
    figures = records.summarise(pairs, images, dataclasses.replace(Evaluation(far=1e-2), tau=found.summary["tau"], certificates=()))
    figures["certificates"] = {"mean": {"cra_d": {0.25: 0.}, "med_d": 0., "cra_i": {0.25: 0.}, "med_i": 0., "tau": 0.3, "tar": 0.4, "far": 0.01}}
    said = {**dataclasses.asdict(settings), "tau_mean": 0.3, "abstained": 0.0, "forward_passes": 100}
    return Records(pairs, images, {**figures, **ORIGIN, "certificate": settings.label, "smoothing": said})


def write(folder, pairs: int, shift: float = 0.0) -> None:
    """A results folder of them."""
    write_records(folder, with_audit(many(pairs, shift)))
