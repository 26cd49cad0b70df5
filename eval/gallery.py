"""Whom a photo shows: probes searched for among the people of a gallery, and the radius of each answer.

It is the search of identification.py, without knowing who the probes are: the radius is that of the answer as it is. An answer that names
somebody stays while that template stays the nearest and nearer than the threshold; one that names nobody, while none comes nearer.
"""
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from eval import verification
from eval.alignment import Crop
from eval.answer import pair_set_of
from eval.certification import lower_median
from eval.identification import Search
from eval.records import proven_or_divided
from eval.sizes import rounded_down


def search(network: Callable[[Tensor], Tensor], gallery: Sequence[Crop], people: Sequence[str], probes: Sequence[Crop], tau: float,
           side: int, lipschitz: float | None = None, **embedding: Any) -> pd.DataFrame:
    """A row a probe: probe (path), found (whose template is the nearest), accepted, cosine, radius (l2 of the probe's crop).

    people: whom each crop of the gallery shows; a template is the mean of the embeddings of a person. Raises as `records.certify`.
    """
    crops = [*gallery, *probes]
    pair_set = pair_set_of(crops, [0], [0], side)
    network = proven_or_divided(network, pair_set.image_size, lipschitz)
    embeddings = verification.embed_images(network, pair_set.images, describe=lambda number: crops[number].path, **embedding)[0].double()
    names, owner = np.unique(np.array(people), return_inverse=True)
    templates = torch.stack([embeddings[:len(gallery)][torch.from_numpy(owner == number)].mean(0) for number in range(len(names))])
    found = Search(embeddings[len(gallery):], templates, poisoned=0)
    accepted = found.cosine.numpy() > tau
    radius = np.where(accepted, np.minimum(found.rank1.numpy(), found.acceptance(tau)), found.rejection(tau))
    return pd.DataFrame({"probe": [crop.path for crop in probes], "found": names[found.nearest.numpy()], "accepted": accepted,
                         "cosine": found.cosine.numpy(), "radius": radius})


def describe(table: pd.DataFrame, people: Sequence[str], origin: Mapping[str, Any]) -> str:
    """How many probes were found among how many people."""
    good = table[table["accepted"].notna()]
    return (f"{len(good)} of {len(table)} probes, searched for among {len(set(people))} people ({len(people)} photos): "
            f"{int(good['accepted'].sum())} found, median radius {rounded_down(lower_median(good['radius'].to_numpy(float)))}\n"
            f"Threshold: {origin['tau']:g}, {origin['tau_from']}; it was chosen for pairs: among many people more strangers are found.")
