"""Further figures of a certification, by request: budgets in other norms, and TAR where the threshold is chosen under attack."""
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from eval import certification
from eval.certificates import OneImageLp
from eval.evaluation import budgets
from eval.records import Records, certified_accuracies

GREY = 255  # grey levels in the unit of radii


def further(found: Records, far: float, certified_far: Sequence[float], orders: Sequence[float], eps_p: Sequence[float]
            ) -> dict[str, Any]:
    """What is asked for, for the summary: `certified_far` by budget, `lp` for each norm."""
    certified_far, eps_p = budgets(certified_far), budgets(eps_p)
    summary: dict[str, Any] = {}
    if certified_far:
        summary["certified_far"] = {eps: tar_at_certified_far(found.pairs, far, eps) for eps in certified_far}
    if orders:
        summary["lp"] = [lp_accuracies(found, p, eps_p) for p in orders]
    return summary


def tar_at_certified_far(pairs: pd.DataFrame, far: float, eps: float) -> dict[str, Any]:
    """{target, tau, far, tar}: the loosest threshold whose FAR is at most `far` when one image of each pair is moved by eps, that
    FAR, and the TAR that is certified then. None, with the reason, where there is no such threshold.
    """
    norm = np.minimum(pairs["norm_left"], pairs["norm_right"]).to_numpy()
    try:
        points = certification.certified_roc(pairs["cosine"].to_numpy(), norm, pairs["same"].to_numpy(), eps)
        tau, worst, tar = certification.threshold_under_attack(points, far)
    except ValueError as error:
        return {"target": far, "tau": None, "far": None, "tar": None, "reason": str(error)}
    return {"target": far, "tau": tau, "far": worst, "tar": tar}


def lp_accuracies(found: Records, p: float, eps_p: Sequence[float]) -> dict[str, Any]:
    """{p ("inf" for infinity), dimension, cra_u, cra_d, cra_i}: certified accuracies at l_p budgets in grey levels, of inputs of
    `dimension` numbers.
    """
    same, dimension = found.pairs["same"], int(np.prod(found.summary["image_size"]))
    radii = {"u": found.images["radius_u"], "d": found.pairs.loc[same, "radius"], "i": found.pairs.loc[~same, "radius"]}
    shares: dict[str, Any] = {"p": "inf" if np.isinf(p) else p, "dimension": dimension}
    for kind, radius in radii.items():
        shares[f"cra_{kind}"] = certified_accuracies(GREY * OneImageLp(p).from_l2(radius.to_numpy(), dimension), eps_p)
    return shares


def describe(summary: Mapping[str, Any]) -> Iterator[str]:
    """A line for each of these figures, each with its end."""
    for eps, found in summary.get("certified_far", {}).items():
        about = f"{summary['bin']}, FAR <= {found['target']:g} under attack at {eps}"
        yield f"{about}: " + (found["reason"] if found["tau"] is None else
                              f"tau {found['tau']:.3f}, FAR {found['far']:.2e}, certified TAR {found['tar']:.2%}") + "\n"
    for found in summary.get("lp", []):
        about = f"{summary['bin']}, l_{float(found['p']):g}, budgets in grey levels"
        shares = (f"CRA_{kind.upper()} {eps}: {'-' if share is None else f'{share:.2%}'}" for kind in "udi"
                  for eps, share in found[f"cra_{kind}"].items())
        yield f"{about}: {', '.join(shares)}\n"
