"""Records of an evaluation: one row a pair, one row an image, and the summary that is computed from these rows
alone.
"""
import hashlib
import os
import subprocess
from pathlib import Path
from typing import Any, Callable, Mapping, NamedTuple, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from backbones import DividedOutput, FlipAveraged
from eval import certification, verification
from eval.store import schema
from eval.verification import PairSet
from utils import InputError
from utils.files import atomic_write, sha256, write_json
from utils.images import decode_image

PAIRS, IMAGES, SUMMARY, AUDIT = "pairs.csv", "images.csv", "summary.json", "audit.json"
AUDIT_OF = {"both": "audit_both.json", "joint": "audit_joint.json"}
_COLUMNS = {
    PAIRS: {"pair", "flipped", "same", "left", "right", "cosine", "norm_left", "norm_right", "accepted", "radius"},
    IMAGES: {"image", "flipped", "norm", "radius_u"}}
_RADII = {"radius", "radius_u"}
SOUND = ("radius_sound", "radius_u_sound")  # columns of the pairs and of the images that eval/sound.py adds
_NONE = pd.Series(dtype=float)
# who may be attacked, besides one image of a pair: both, each by eps, or both with one budget; the same under either protocol, as
# the paper has none of these
THREATS = {"both": certification.two_sided_radius, "joint": certification.joint_radius}
_SUBJECT = ("backbone", "weights_sha256", "flip", "bin_sha256")
_ORIGIN = (*_SUBJECT, "lipschitz", "protocol", "far_target", "tau", "code_sha256")
# what figures depend on; how they are printed is not
_CODE = ("attacks*.py", "datasets.py", "backbones/*.py", "utils/directions.py", "utils/images.py", "utils/untrusted/pickles.py",
         "utils/precision.py", "eval/*.py", "eval/audit/*.py", "eval/store/*.py")
_CHUNK = 4096  # pairs whose embeddings are gathered at a time


class Records(NamedTuple):
    """pairs: pair, flipped, same, left, right (image numbers), cosine, norm_left, norm_right, accepted, radius,
    upper_bound (of the radius, where the pair is rejected), radius_both and radius_joint (`THREATS`); images: image, flipped,
    norm, radius_u; summary: what `summarise` makes of them and where they come from. A wrong decision has radius 0.
    """
    pairs: pd.DataFrame
    images: pd.DataFrame
    summary: dict[str, Any]


def certify(network: Callable[[Tensor], Tensor], pair_set: PairSet, protocol: str = "strict", far: float = 1e-3,
            tau: "float | None" = None, eps_u: Sequence[float] = (1.5, 3.0), eps: Sequence[float] = (0.25, 0.75),
            **embedding: Any) -> Records:
    """Embed the unique images of a pair set once, choose tau (unless given) and certify each pair and each image.

    Under protocol "paper" the mirrored copies are further pairs and images. eps_u: budgets of the untargeted radius;
    eps: of dodging and impersonation; `embedding` goes to `verification.embed_images`. The network must be 1-Lipschitz.
    Raises InputError where an image cannot be used or no threshold can be chosen.
    """
    embeddings = verification.embed_images(network, pair_set.images, flips(protocol), describe=pair_set.describe,
                                           **embedding)
    return evaluate(pair_set, embeddings, protocol, far, tau, eps_u, eps)


def flips(protocol: str) -> tuple[bool, ...]:
    """Which views of an image are evaluated: as it is and, under "paper", mirrored."""
    return (False, True) if certification.is_paper(protocol) else (False,)


def evaluate(pair_set: PairSet, embeddings: Tensor, protocol: str, far: float, tau: "float | None",
             eps_u: Sequence[float], eps: Sequence[float], lipschitz: bool = True) -> Records:
    """The records of embeddings [flips, n, D]. Those of a network that is not 1-Lipschitz have no radii, and None for
    every certified figure.
    """
    check_budgets(eps_u, eps)
    pairs, images = measure(pair_set, embeddings)
    far_target = None if tau is not None else far
    if tau is None:
        try:
            tau = verification.threshold_at_far(pairs["cosine"], pairs["same"], far, protocol)
        except InputError as error:
            raise InputError(f"{pair_set.path}: {error}") from None
    theta = pairs.pop("theta").to_numpy()
    pairs["accepted"] = pairs["cosine"] > tau
    if lipschitz:
        norms = (pairs["norm_left"].to_numpy(), pairs["norm_right"].to_numpy())
        radius = certification.pair_radius(*norms, theta, tau, protocol)
        right = pairs["accepted"] == pairs["same"]
        pairs["radius"] = np.where(right, radius.numpy(), 0.)
        distance = np.tile(image_distances(pair_set), 1 + pairs["flipped"].any())  # mirrored images are as far apart
        pairs["upper_bound"] = certification.upper_bound(distance, theta, tau, protocol).numpy()
        for threat, radius in THREATS.items():
            pairs[f"radius_{threat}"] = np.where(right, radius(*norms, theta, tau).numpy(), 0.)
        images["radius_u"] = certification.untargeted_radius(images["norm"].to_numpy(), tau, protocol).numpy()
    return Records(pairs, images, summarise(pairs, images, protocol, tau, far_target, eps_u, eps))


def check_budgets(*budgets: Sequence[float]) -> None:
    """Raise InputError unless all are positive and finite."""
    for eps in (eps for some in budgets for eps in some):
        if not 0 < eps < np.inf:
            raise InputError(f"budget eps is {eps}, expected positive and finite")


def image_distances(pair_set: PairSet) -> np.ndarray:
    """|x - y| [N] in float64 of the two images of each pair, in the scale of [-0.5, 0.5]. Decodes pair by pair.
    """
    def image(number: int) -> Tensor:
        return decode_image(pair_set.images[number], pair_set.describe(number)).to(torch.int32)
    squares = [(image(left) - image(right)).square().sum().item() for left, right in zip(pair_set.left, pair_set.right)]
    return np.sqrt(np.array(squares, dtype=np.float64)) / 255


def measure(pair_set: PairSet, embeddings: Tensor) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(pairs, images) as far as they need no threshold, of embeddings [flips, n, D] of the unique images, flip 0 first.

    pairs has the angle `theta` of the two embeddings besides cosine and norms. A zero or non-finite embedding has norm
    0 and makes the cosine -inf.
    """
    left, right, pairs, images = pair_set.left, pair_set.right, [], []
    for flipped, rows in enumerate(embeddings):
        norm = verification.norms(rows)
        rows = torch.where(norm[:, None] > 0, rows.double(), 0.)
        parts = [slice(start, start + _CHUNK) for start in range(0, len(left), _CHUNK)]
        theta = torch.cat([certification.angle(rows[left[part]], rows[right[part]]) for part in parts])
        norm = norm.numpy()
        pairs.append(pd.DataFrame({
            "pair": np.arange(len(left)), "flipped": bool(flipped), "same": pair_set.same, "left": left, "right": right,
            "cosine": verification.pair_cosines(rows, left, right), "norm_left": norm[left], "norm_right": norm[right],
            "theta": theta.numpy()}))
        images.append(pd.DataFrame({"image": np.arange(len(norm)), "flipped": bool(flipped), "norm": norm}))
    return pd.concat(pairs, ignore_index=True), pd.concat(images, ignore_index=True)


def summarise(pairs: pd.DataFrame, images: pd.DataFrame, protocol: str, tau: float, far_target: "float | None",
              eps_u: Sequence[float], eps: Sequence[float]) -> dict[str, Any]:
    """Every figure of a result, from its rows and the settings that they do not hold.

    A figure that cannot be computed is None and `reasons` says why. Accuracy (10-fold) is over the pairs as they are,
    everything else over all rows. Medians are the lower of two middle values.
    """
    original, true, false = pairs[~pairs["flipped"]], pairs[pairs["same"]], pairs[~pairs["same"]]
    cosines, same = pairs["cosine"].to_numpy(), pairs["same"].to_numpy()
    tar, far = verification.tar_far(cosines, same, tau)
    few = len(original) < 10
    one_kind = true.empty or false.empty
    accuracy, deviation = (None, None) if few else verification.ten_fold_accuracy(original["cosine"], original["same"])
    norms = np.concatenate([pairs["norm_left"], pairs["norm_right"]])
    reasons = {"far_target": "tau was given" if far_target is None else ""}
    reasons |= dict.fromkeys(("accuracy", "accuracy_std"), "fewer than 10 pairs" if few else "")
    reasons |= dict.fromkeys(("tar", "cra_d", "med_d"), "no true pairs" if true.empty else "")
    reasons |= dict.fromkeys(("far", "cra_i", "med_i"), "no false pairs" if false.empty else "")
    reasons |= dict.fromkeys(("auc", "eer"), "only one kind of pairs" if one_kind else "")
    if "radius" not in pairs:
        reasons |= dict.fromkeys(schema.CERTIFIED, "the network is not 1-Lipschitz: it has no certified radii")
    radii = {"u": images.get("radius_u", _NONE), "d": true.get("radius", _NONE), "i": false.get("radius", _NONE)}
    return {
        "protocol": protocol, "far_target": far_target, "tau": tau, "tar": tar, "far": far,
        "accuracy": accuracy, "accuracy_std": deviation,
        "auc": None if one_kind else verification.auc(cosines, same),
        "eer": None if one_kind else verification.eer(cosines, same),
        "feature_norm": float(norms.mean()),
        "cra_u": certified_accuracies(radii["u"], eps_u), "med_u": _median(radii["u"]),
        "cra_d": certified_accuracies(radii["d"], eps), "med_d": _median(radii["d"]),
        "cra_i": certified_accuracies(radii["i"], eps), "med_i": _median(radii["i"]),
        "threats": {threat: _dodging_impersonation(true, false, f"radius_{threat}", eps)
                    for threat in THREATS if f"radius_{threat}" in pairs},
        "n_pairs": len(pairs), "n_images": len(images), "n_invalid_embeddings": int((images["norm"] == 0).sum()),
        "reasons": {key: reason for key, reason in reasons.items() if reason}}


def certified_accuracies(radius: Any, budgets: Sequence[float]) -> dict[str, "float | None"]:
    """Certified accuracy by budget: in the records a wrong decision has radius 0, so the radius says it all."""
    radius = np.asarray(radius)
    return {str(float(eps)): certification.certified_accuracy(radius > 0, radius, eps) if len(radius) else None
            for eps in budgets}


def _dodging_impersonation(true: pd.DataFrame, false: pd.DataFrame, radius: str, eps: Sequence[float]) -> dict[str, Any]:
    """{cra_d, med_d, cra_i, med_i} of a column of radii."""
    figures = {}
    for kind, table in (("d", true), ("i", false)):
        figures |= {f"cra_{kind}": certified_accuracies(table[radius], eps), f"med_{kind}": _median(table[radius])}
    return figures


def _median(radius: pd.Series) -> "float | None":
    return certification.lower_median(radius.to_numpy()) if len(radius) else None


def code_version() -> "str | None":
    """The commit that this code is at, with "-dirty" where it was edited; None outside a git checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None if found.returncode == 0 else None


def code_sha256() -> str:
    """The SHA-256 of the code that figures depend on, so that they are never mixed with those of other code, in git or not."""
    root, digest = Path(__file__).resolve().parents[1], hashlib.sha256()
    for path in sorted(path for pattern in _CODE for path in root.glob(pattern)):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes().replace(b"\r\n", b"\n") + b"\0")
    return digest.hexdigest()


def origin(backbone: str, weights: "str | os.PathLike[str]", network: Any = None) -> dict[str, Any]:
    """Where the embeddings of a result come from, for its summary: the network, its weights, whether mirrored images are
    averaged in ("average" or "none"), the constant that its embeddings were divided by (`tight`) and the code.
    """
    averaged = isinstance(network, FlipAveraged)
    inner = network.network if averaged else network
    return {"backbone": backbone, "weights_sha256": sha256(weights), "flip": "average" if averaged else "none",
            "lipschitz": inner.lipschitz if isinstance(inner, DividedOutput) else 1.0,
            "code_version": code_version(), "code_sha256": code_sha256()}


def write_records(folder: "str | os.PathLike[str]", records: Records) -> None:
    """Write pairs.csv, images.csv and, last, summary.json to `folder`, each whole or not at all."""
    for name, table in ((PAIRS, records.pairs), (IMAGES, records.images)):
        with atomic_write(Path(folder) / name) as file:
            table.to_csv(file, index=False, lineterminator="\n")  # floats by repr: reading gives the same numbers back
    write_json(Path(folder) / SUMMARY, records.summary)


def read_summaries(folder: "str | os.PathLike[str]") -> dict[Path, dict[str, Any]]:
    """The summaries in a results folder, or in the folders inside it, by folder. Raises InputError where there are
    none.
    """
    folder = Path(folder)
    files = [folder / SUMMARY] if (folder / SUMMARY).is_file() else sorted(folder.glob(f"*/{SUMMARY}"))
    if not files:
        raise InputError(f"{folder}: no {SUMMARY} in it or in the folders inside it")
    return {file.parent: schema.read_summary(file) for file in files}


def fingerprint(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What tells results of one network, .bin, protocol and threshold from those of others."""
    summary = {"flip": "none", **summary}  # which older results do not say
    return {key: summary.get(key) for key in _ORIGIN}


def refuse_others(folder: "str | os.PathLike[str]", summary: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Raise InputError where the results in a folder are not of what is asked for; None stands for anything."""
    for key, found in fingerprint(summary).items():
        if asked.get(key) not in (None, found):
            raise InputError(f"{Path(folder) / SUMMARY}: these results have {key} {found}, expected {asked[key]}")


def refuse_another_subject(folder: "str | os.PathLike[str]", asked: Mapping[str, Any]) -> None:
    """Raise InputError where a folder has results of another network or .bin than is asked for, whatever their settings."""
    if (Path(folder) / SUMMARY).is_file():
        refuse_others(folder, schema.read_summary(Path(folder) / SUMMARY), {key: asked[key] for key in _SUBJECT})


def refuse_other_rows(folder: "str | os.PathLike[str]", found: Records, pair_set: PairSet, protocol: str) -> None:
    """Raise InputError unless the rows of records are those of the pairs and images of a .bin, in their order."""
    views, pairs, images = len(flips(protocol)), len(pair_set.left), len(pair_set.images)
    expected = {
        PAIRS: (found.pairs, {"pair": np.arange(pairs), "same": pair_set.same, "left": pair_set.left, "right": pair_set.right}),
        IMAGES: (found.images, {"image": np.arange(images)})}
    for name, (table, columns) in expected.items():
        for column, values in columns.items():
            if not np.array_equal(table[column], np.tile(values, views)):
                raise InputError(f"{Path(folder) / name}: column {column} is not that of {pair_set.path}")
        if not np.array_equal(table["flipped"], np.repeat([False, True][:views], len(table) // views)):
            raise InputError(f"{Path(folder) / name}: column flipped is not that of the {protocol} protocol")


def read_records(folder: "str | os.PathLike[str]", certified: bool = True) -> Records:
    """What `write_records` wrote, to the last bit. Raises InputError where a file or a column is missing; with
    certified=False the radii may be.
    """
    folder = Path(folder)
    tables = []
    for name, columns in _COLUMNS.items():
        table = schema.read_table(folder / name)
        if missing := sorted(columns - set(table.columns) - (set() if certified else _RADII)):
            raise InputError(f"{folder / name}: columns {', '.join(missing)} missing")
        tables.append(table)
    return Records(*tables, schema.read_summary(folder / SUMMARY) if (folder / SUMMARY).is_file() else {})
