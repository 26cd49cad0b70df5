"""The figures of the paper (Tables 1 and 2, the ablation on xi and Fig. 2), as summaries and results that stand beside one's own.

The protocol "published" marks the summaries wherever they appear.
"""
from collections.abc import Sequence
from typing import Any

import pandas as pd

from utils import InputError

_BUDGETS = {"u": (1.5, 3.0), "d": (0.25, 0.75), "i": (0.25, 0.75)}

# TAR, tau, then for U, D and I: CRA at the two budgets and the median radius; feature norm
_CERTIFIED = {
    "lfw": (83.97, 0.231, 100, 74.76, 3.136, 66.82, 30.05, 0.469, 98.21, 40.33, 0.703, 3.245),
    "cfp_fp": (18.86, 0.207, 100, 69.80, 3.096, 4.56, 0.07, 0, 96.40, 15.71, 0.586, 3.183),
    "agedb_30": (16.83, 0.253, 100, 71.09, 3.112, 4.83, 0.32, 0, 98.32, 41.52, 0.708, 3.231),
}
_CERTIFIED_XI = {  # on LFW
    0: (97.73, 0.231, 0, 0, 0.006, 0, 0, 0.002, 0, 0, 0.001, 0.007),
    1: (93.75, 0.223, 0, 0, 1.077, 46.68, 0.57, 0.234, 39.91, 0, 0.233, 1.109),
    3: _CERTIFIED["lfw"],
    5: (65.27, 0.273, 100, 100, 5.127, 53.06, 31.58, 0.309, 99.51, 93.95, 1.341, 5.372),
}
# on LFW, for U, D and I: ERA under PGD-20 at the two budgets and the median of C&W-100
_PROPOSED = (100, 100, 5.203, 74.22, 50.57, 1.889, 99.35, 88.88, 5.892)
_EMPIRICAL = {  # TAR and tau before
    "ArcFace": (99.75, 0.161, 26.06, 0.22, 0.955, 98.03, 20.33, 0.712, 60.30, 0, 1.314),
    "AdaCos": (99.60, 0.379, 0.77, 0, 0.794, 83.37, 2.52, 0.683, 95.78, 63.57, 1.073),
    "ElasticFace": (99.70, 0.229, 14.58, 0.11, 0.951, 97.30, 15.83, 0.735, 75.00, 0.07, 1.268),
    "Proposed": (83.97, 0.231, *_PROPOSED),
}
_EMPIRICAL_XI = {
    0: (70.65, 0.18, 1.343, 75.80, 8.68, 0.700, 73.95, 0.02, 1.556),
    1: (100, 87.89, 3.351, 81.23, 39.73, 1.357, 98.02, 28.88, 3.494),
    3: _PROPOSED,
    5: (100, 100, 8.783, 56.77, 40.15, 2.330, 99.65, 98.07, 8.523),
}
# Fig. 2: epoch, then accuracy and norm of the unconstrained network and of the SLL networks with xi = 0, 1, 3 and 5; one seed
TOY_RUNS = (("net", 0.0), ("sll", 0.0), ("sll", 1.0), ("sll", 3.0), ("sll", 5.0))
_TOY = {
    "mnist": (
        (1, (0.8167, 3.03), (0.9213, 0.421), (0.9123, 1.305), (0.8860, 3.303), (0.8363, 5.121)),
        (5, (0.9924, 71.1), (0.9846, 0.134), (0.9668, 1.207), (0.9500, 3.269), (0.8941, 5.224)),
        (10, (0.9917, 76.4), (0.9898, 0.095), (0.9808, 1.210), (0.9702, 3.213), (0.9444, 5.295)),
        (20, (0.9926, 94.0), (0.9887, 0.067), (0.9871, 1.233), (0.9773, 3.264), (0.9573, 5.274)),
        (50, (0.9935, 143), (0.9899, 0.051), (0.9898, 1.219), (0.9818, 3.203), (0.9660, 5.152)),
        (100, (0.9933, 249), (0.9893, 0.047), (0.9903, 1.208), (0.9849, 3.148), (0.9706, 5.187)),
    ),
    "cifar10": (
        (1, (0.1543, 30.4), (0.3261, 5.380), (0.3568, 5.178), (0.3223, 9.850), (0.3082, 15.45)),
        (5, (0.5511, 180), (0.5237, 0.631), (0.5105, 1.177), (0.4645, 3.359), (0.4773, 7.237)),
        (10, (0.7430, 225), (0.6033, 0.247), (0.5620, 1.121), (0.5059, 3.486), (0.4761, 5.709)),
        (20, (0.8215, 217), (0.6833, 0.124), (0.6074, 1.091), (0.5404, 3.256), (0.5117, 5.432)),
        (50, (0.8637, 262), (0.7477, 0.075), (0.6769, 1.055), (0.6025, 3.104), (0.5601, 5.202)),
        (100, (0.8832, 343), (0.7742, 0.052), (0.7051, 1.025), (0.6231, 3.057), (0.5955, 5.149)),
    ),
}
TOY_IMAGES = {"mnist": 60000, "cifar10": 50000}  # that an epoch goes through


def table1() -> list[dict[str, Any]]:
    """The rows of Table 1."""
    return [_summary("Proposed", name) | _certified(line) for name, line in _CERTIFIED.items()]


def table2() -> list[dict[str, Any]]:
    """The rows of Table 2: three baselines and the proposed model."""
    return [_summary(name) | _verified(line) | _attacked(line[2:]) for name, line in _EMPIRICAL.items()]


def ablation() -> list[dict[str, Any]]:
    """The ablation on xi, certified and empirical."""
    return [_summary("Proposed") | {"xi": float(xi)} | _certified(line) | _attacked(_EMPIRICAL_XI[xi])
            for xi, line in _CERTIFIED_XI.items()]


def named_ablation() -> list[dict[str, Any]]:
    """The same for a table that has no column for xi: it is in the names."""
    return [{key: value for key, value in row.items() if key != "xi"} | {"name": f"published, xi = {row['xi']:g}"} for row in ablation()]


def rows(names: Sequence[str]) -> list[dict[str, Any]]:
    """Published rows by name: xi0 ... xi5 of the ablation, lfw, cfp_fp and agedb_30 of Table 1, ArcFace ... of Table 2. Raises InputError
    for others.
    """
    known = {f"xi{row['xi']:g}": named for row, named in zip(ablation(), named_ablation())}
    known |= {row["bin"]: row | {"name": "published"} for row in table1()}
    known |= {row["name"]: row | {"name": f"published, {row['name']}"} for row in table2() if row["name"] != "Proposed"}
    if other := [name for name in names if name not in known]:
        raise InputError(f"--paper {other[0]}: not a published row, expected {', '.join(known)}")
    return [known[name] for name in names]


def toy(dataset: str) -> pd.DataFrame:
    """Fig. 2 at a few epochs: network, xi, epoch, accuracy (0 to 1) and norm on the test images; no rows for another dataset."""
    rows = []
    for epoch, *cells in _TOY.get(dataset, ()):
        rows += [(*run, epoch, *cell) for run, cell in zip(TOY_RUNS, cells)]
    return pd.DataFrame(rows, columns=["network", "xi", "epoch", "accuracy", "norm"])


def _summary(name: str, dataset: str = "lfw") -> dict[str, Any]:
    return {"name": name, "bin": dataset, "protocol": "published", "far_target": 1e-3, "tau": None, "tar": None,
            "feature_norm": None, **{f"cra_{kind}": {} for kind in "udi"}, **{f"med_{kind}": None for kind in "udi"}}


def _verified(line: Sequence[float]) -> dict[str, Any]:
    return {"tar": line[0] / 100, "tau": line[1]}


def _certified(line: Sequence[float]) -> dict[str, Any]:
    shares, medians = _by_kind(line[2:-1])
    return {**_verified(line), "feature_norm": line[-1], **{f"cra_{kind}": shares[kind] for kind in shares},
            **{f"med_{kind}": medians[kind] for kind in medians}}


def _attacked(line: Sequence[float]) -> dict[str, Any]:
    shares, medians = _by_kind(line)
    return {"attacks": {"pgd": {"minimum_norm": False}, "cw": {"minimum_norm": True}},
            **{f"era_{kind}": {"pgd": shares[kind]} for kind in shares},
            **{f"med_attack_{kind}": {"cw": medians[kind]} for kind in medians}}


def _by_kind(line: Sequence[float]) -> tuple[dict[str, dict[float, float]], dict[str, float]]:
    """Three figures each for U, D and I: shares by budget, and medians."""
    parts = {kind: line[3 * place:3 * place + 3] for place, kind in enumerate(_BUDGETS)}
    shares = {kind: dict(zip(_BUDGETS[kind], (share / 100 for share in part))) for kind, part in parts.items()}
    return shares, {kind: part[2] for kind, part in parts.items()}
