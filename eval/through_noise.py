"""Attacks on smoothed decisions, through the noise that smooths them.

An attack lowers the mean margin over draws of noise that stay: it follows the cosine of `noise.MeanCosine`, never stops early, and returns
the point where that is furthest on the other side. What the smoothed verifier decides there is found out with fresh draws, as many as
certified the decision.
"""
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from torch import Tensor

import attacks
from eval import smoothing
from eval.noise import FRESH, SEARCH, Draws, MeanCosine, decisions_of, gaussian, noisy_embeddings
from eval.smoothing import Smoothing
from eval.store import results
from eval.store.journal import Outcome
from eval.store.subject import OBJECTIVES, Subject
from utils import InputError
from utils.directions import cosine
from utils.modes import evaluating
from utils.precision import full_precision

DRAWS = 32  # in each step, unless others are asked for
_FAR = 0.999999  # a cosine that no attack is to get to


def most_passes(settings: Smoothing, draws: int, attack: attacks.Attack) -> int:
    """Of an image through the network, at most, for an attack on one decision: from its start, and to decide anew at the end."""
    return (1 + (settings.threat == "joint")) * (draws * (attack.most_passes + 1) + settings.n)


class NoiseSearch:
    """Attacks on decisions of records that `eval.smoothed` opened. Raises InputError where these are of other pairs."""

    def __init__(self, subject: Subject, draws: int = DRAWS, seed: int = 0):
        self.subject, self.settings, self.seed = subject, Smoothing.of(subject.records.summary), seed
        self.joint = self.settings.threat == "joint"
        self.group = max(1, subject.batch_size // draws)  # decisions at a time
        channels, *size = subject.pair_set.image_size
        noise = np.stack([gaussian((seed, SEARCH), draw, ((1 + self.joint) * channels, *size)) for draw in range(draws)])
        self.embed = MeanCosine(subject.network, self.settings.sigma * torch.from_numpy(noise).to(subject.device), self.joint)
        self._refuse_other_rows()

    def _refuse_other_rows(self) -> None:
        subject, found = self.subject, self.subject.records
        wanted = decisions_of(subject.pair_set, self.settings)
        of_pairs = wanted[(wanted["kind"] == "pair") & (wanted["side"] == 0)].sort_values("row")
        columns = {"pair": of_pairs["row"], "left": of_pairs["image"], "right": of_pairs["other"], "same": of_pairs["same"]}
        tables = [(results.PAIRS, found.pairs, columns)]
        if not self.joint:
            tables.append((results.IMAGES, found.images, {"image": wanted.loc[wanted["kind"] == "image", "row"]}))
        for name, table, columns in tables:
            for column, values in columns.items():
                if not np.array_equal(table[column], values):
                    raise InputError(f"{subject.folder / name}: column {column} is not that of {subject.pair_set.path}")

    def attack(self, kind: str, attack: attacks.Attack, tick: Callable[[int], None], samples: pd.DataFrame) -> Outcome:
        """An attack on one batch of decisions of a kind, of `plan`; tick is told of each pass how many images it had.

        norm: how far images moved; after: the share of fresh draws that decide as it is right; success: whether that is no majority; fell:
        whether the other decision is the majority with confidence 1 - alpha.
        """
        subject, plain = self.subject, [False] * len(samples)
        images, others = (subject.images(samples[name], plain) for name in ("image", "target"))
        enrolled, each = subject.embedded(samples["target"], plain), len(self.embed.noise) * (1 + self.joint)
        points = torch.cat([images, others], 1) if self.joint else images
        targets = torch.eye(1, 2).to(points).expand(len(points), 2) if self.joint else MeanCosine.targets(enrolled)
        with full_precision(), evaluating(subject.network), torch.autocast(points.device.type, enabled=False):
            result = attack(self.embed, points, targets, OBJECTIVES[kind], _FAR if kind == "i" else -_FAR, seed=self.seed,
                            sample_ids=samples.index.tolist(), on_iterate=lambda points, index, margins: tick(each * len(index)))
            kept = np.array([self._kept(kind, number, point, vector.double())
                             for number, point, vector in zip(samples.index, result.adversarial, enrolled)])
        n = self.settings.n
        rows = pd.DataFrame({"norm": attacks.l2(result.adversarial.double() - points.double()).tolist(), "after": kept / n,
                             "success": 2 * kept <= n, "fell": smoothing.lower_probability(n - kept, n, self.settings.alpha) > 0.5},
                            index=samples.index)
        tick(n * len(samples) * (1 + self.joint))
        return Outcome(rows, each * result.forward_passes + n * len(samples) * (1 + self.joint), each * result.backward_passes)

    @torch.no_grad()
    def _kept(self, kind: str, number: int, point: Tensor, enrolled: Tensor) -> int:
        """How many of n fresh draws decide rightly: accept, or reject a false pair."""
        def cosines(images: Tensor) -> Tensor:
            left, right = images.chunk(2, 1) if self.joint else (images, None)
            embeddings = self.subject.network(left).double()
            return cosine(embeddings, enrolled if right is None else self.subject.network(right).double())
        draws = Draws((self.seed, FRESH + "udi".index(kind), int(number)), 0, self.settings.n)
        found = noisy_embeddings(cosines, point, self.settings.sigma, draws, self.subject.batch_size)
        accepted = sum(int((batch > self.subject.tau).sum()) for batch in found)
        return self.settings.n - accepted if kind == "i" else accepted
