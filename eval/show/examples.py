"""Adversarial examples to look at."""
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

import attacks
from eval.records import Records
from eval.store.subject import OBJECTIVES, decoded, plan
from eval.verification import PairSet
from utils import InputError
from utils.precision import full_precision


class Examples(NamedTuple):
    """sources, targets (what they are compared with), adversarials: images [N, 3, H, W] in [-0.5, 0.5]; captions: N."""
    sources: Tensor
    targets: Tensor
    adversarials: Tensor
    captions: list[str]


def adversarial_examples(network: Callable[[Tensor], Tensor], pair_set: PairSet, found: Records, per_kind: int = 1,
                         name: str = "ddn", seed: int = 0, device: torch.device | str = "cpu", **settings: Any) -> Examples:
    """Attack the left images of the first pairs of each kind that are decided rightly, by a minimum-norm attack.

    found: records of the same network and pairs; settings go to the attack. A failed attack shows the source, and its
    caption says so. Raises InputError where no decision is right.
    """
    parts = []
    for kind, objective in OBJECTIVES.items():
        samples = plan(found, kind)
        samples = samples[samples["right"] & (samples["side"] == 0)][:per_kind]
        if len(samples):
            sources, targets = (decoded(pair_set, samples[column], samples["flipped"], device)
                                for column in ("image", "target"))
            with full_precision(), torch.no_grad():
                embeddings = network(targets)
            attack = attacks.preset(name, protocol=found.summary["protocol"], **settings)
            result = attack(network, sources, embeddings, objective, found.summary["tau"], seed=seed)
            norms = [rf"$\ell_2$ norm {norm:.2f}" if done else "no success"
                     for norm, done in zip(result.norm, result.success)]
            radii = [f"\ncertified {radius:.2f}" if found.certified else "" for radius in samples["radius"]]
            captions = [f"{objective}\n{norm}{radius}" for norm, radius in zip(norms, radii)]
            parts.append((sources, targets, result.adversarial, captions))
    if not parts:
        raise InputError(f"{pair_set.path}: no decision is right at tau {found.summary['tau']:.3f}, nothing "
                         f"can be attacked")
    sources, targets, adversarials, captions = zip(*parts)
    return Examples(torch.cat(sources), torch.cat(targets), torch.cat(adversarials), sum(captions, []))
