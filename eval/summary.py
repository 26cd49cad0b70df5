"""The summary of a result: what its keys mean."""
from typing import Any, TypedDict

ByBudget = dict[float, float | None]


class Summary(TypedDict, total=False):
    """summary.json as it is in Python. Shares are from 0 to 1; radii, norms and budgets are l2 of images in [-0.5, 0.5], norms those of
    embeddings; thresholds are cosines. None stands for a figure that could not be computed, and `reasons` says why. Figures by budget are
    dicts from the budget to the figure (in the file: lists of {"eps": budget, "value": figure}).

    What was asked: protocol ("strict" or "paper"), far_target (None: tau was given), flip ("none" or "average").
    Where it comes from: backbone, weights_sha256, bin (the name of the .bin file), bin_sha256, image_size ([C, H, W] as the network sees
    images), resized (whether they were brought to that size), lipschitz (what embeddings were divided by; 1: as they are),
    lipschitz_assumed (the caller's word, not proven), code_version, code_sha256; n_pairs, n_images (rows), n_invalid_embeddings (images
    whose embedding has no direction).
    Verification: tau, tar and far at tau, accuracy and accuracy_std (10-fold, of pairs as they are), accuracy_at_tau, best_accuracy and
    best_threshold (over all thresholds, on the same pairs: an optimistic figure), auc, eer, feature_norm (mean over the images of pairs).
    Certified: cra_u, cra_d, cra_i (shares by budget), med_u, med_d, med_i (median radii, wrong decisions counting as 0); certificates: the
    same of D and I by the name of each further certificate; certified_far, lp and keys ending in _sound where they were asked for.
    Smoothed: certificate (what tables call it), smoothing (the settings of `eval.smoothing.Smoothing`; tau_mean, the threshold of means;
    abstained, the share of decisions that are not certified; forward_passes).
    Attacked: attacks (by name: settings, limit, budgets, cost), era_u, era_d, era_i (by attack, then by budget: the share that stays
    robust), cra_attacked_u, _d, _i (certified shares of the same rows), med_attack_u, _d, _i (by minimum-norm attack: median norm of the
    smallest success), never_u, _d, _i (by minimum-norm attack: the share that it never turned).
    """
    format: int
    protocol: str
    far_target: float | None
    flip: str
    backbone: str
    weights_sha256: str
    bin: str
    bin_sha256: str
    image_size: list[int]
    resized: bool
    lipschitz: float
    lipschitz_assumed: bool
    code_version: str | None
    code_sha256: str
    n_pairs: int
    n_images: int
    n_invalid_embeddings: int
    tau: float
    tar: float | None
    far: float | None
    accuracy: float | None
    accuracy_std: float | None
    accuracy_at_tau: float | None
    best_accuracy: float | None
    best_threshold: float | None
    auc: float | None
    eer: float | None
    feature_norm: float
    cra_u: ByBudget
    cra_d: ByBudget
    cra_i: ByBudget
    med_u: float | None
    med_d: float | None
    med_i: float | None
    certificates: dict[str, dict[str, Any]]
    certified_far: dict[float, dict[str, Any]]
    lp: list[dict[str, Any]]
    sound_lipschitz: float
    sound_error: float
    certificate: str
    smoothing: dict[str, Any]
    attacks: dict[str, dict[str, Any]]
    era_u: dict[str, ByBudget]
    era_d: dict[str, ByBudget]
    era_i: dict[str, ByBudget]
    cra_attacked_u: dict[str, ByBudget]
    cra_attacked_d: dict[str, ByBudget]
    cra_attacked_i: dict[str, ByBudget]
    med_attack_u: dict[str, float | None]
    med_attack_d: dict[str, float | None]
    med_attack_i: dict[str, float | None]
    never_u: dict[str, float | None]
    never_d: dict[str, float | None]
    never_i: dict[str, float | None]
    reasons: dict[str, str]
    name: str
    seed: int
    xi: float
