"""Gaussian noise on images, and how decisions about pairs fare under it.

Each draw is a function of seed, image and number, whatever the batches and processes are: by the generators of numpy for a CPU, where they
take a third of the time of Philox, and on a GPU by Philox, where its numbers need not be sent there. The samples of an image serve all
decisions that it is presented for: a network is passed once for all of them.
"""
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from eval import smoothing
from eval.smoothing import Smoothing
from eval.store.journal import Journal, Outcome
from eval.store.subject import Subject
from eval.verification import CPU_BATCH, PairSet
from utils.directions import cosine, norms
from utils.distributed import per_rank
from utils.modes import evaluating
from utils.philox import normals
from utils.precision import full_precision

# Streams of noise that are independent of each other and of those of training (augmentation.py). FRESH has one for each kind of attack.
LEFT, RIGHT, SEARCH, FRESH = range(2, 6)
_FLAT = 1e-12  # what is left of 1 - |mean|^2 at least, whose root has a gradient then


class Draws(NamedTuple):
    """Numbers `first` to `last`, without it, of the noise of a key: (seed, stream, number of an image or a decision)."""
    key: tuple[int, int, int]
    first: int
    last: int


def gaussian(key: Sequence[int], draw: int, shape: Sequence[int]) -> np.ndarray:
    """Standard normal float32 numbers, the draw of that number."""
    # the last word tells them from other random numbers that are keyed by a seed, as numpy takes words that are missing for 0
    return np.random.default_rng((*key, draw, 1)).standard_normal(tuple(shape), dtype=np.float32)


def noisy(image: Tensor, sigma: float, draws: Draws, batch_size: int) -> Iterator[Tensor]:
    """Batches [n, C, H, W] of image + sigma * noise. Pixels leave their range: to cut them off would be a part of the network."""
    return (image + sigma * noise for noise in (on_device if image.is_cuda else _in_threads)(image, draws, batch_size))


def on_device(image: Tensor, draws: Draws, batch_size: int) -> Iterator[Tensor]:
    """Batches [n, C, H, W] of noise for an image, made where it is; the host waits for nothing."""
    seed, stream, number = draws.key
    for start in range(draws.first, draws.last, batch_size):
        rows = torch.arange(start, min(start + batch_size, draws.last), device=image.device)
        yield normals(rows, image.numel(), seed, number, stream).view(-1, *image.shape)


def _in_threads(image: Tensor, draws: Draws, batch_size: int) -> Iterator[Tensor]:
    """The same, by numpy: the noise of the next batch is drawn in threads, as many as torch may use, while this one is worked with."""
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        def begun(start: int) -> Iterator[np.ndarray]:
            numbers = range(start, min(start + batch_size, draws.last))
            return pool.map(lambda number: gaussian(draws.key, number, image.shape), numbers)
        waiting = begun(draws.first)
        for start in range(draws.first, draws.last, batch_size):
            found, waiting = waiting, begun(start + batch_size)
            yield torch.from_numpy(np.stack([*found])).to(image)


def noisy_embeddings(network: Callable[[Tensor], Tensor], image: Tensor, sigma: float, draws: Draws, batch_size: int) -> Iterator[Tensor]:
    """Batches [n, D] of embeddings of `noisy` images, which on a CPU are no larger than elsewhere (`verification.CPU_BATCH`)."""
    return map(network, noisy(image, sigma, draws, batch_size if image.is_cuda else min(batch_size, CPU_BATCH)))


def decisions_of(pair_set: PairSet, settings: Smoothing) -> pd.DataFrame:
    """All decisions that are smoothed, a row each, those of a `unit` of work one after the other.

    Columns: unit (the image with noise, or the pair where both have it), kind ("pair", or "image": one against itself), row (number of the
    pair or image), side (0: the left image has the noise, 1: the right one), image (with noise), other (compared with), same (is right).
    """
    number = np.arange(len(pair_set.same))
    chosen = np.sort(np.concatenate([number[pair_set.same][:settings.limit], number[~pair_set.same][:settings.limit]]))
    left, right, same = pair_set.left[chosen], pair_set.right[chosen], pair_set.same[chosen]
    sides = [pd.DataFrame({"unit": image, "kind": "pair", "row": chosen, "side": side, "image": image, "other": other, "same": same})
             for side, (image, other) in enumerate(((left, right), (right, left)))]
    if settings.threat == "joint":
        return sides[0].assign(unit=chosen)
    images = np.unique(np.concatenate([left, right]))
    alone = pd.DataFrame({"unit": images, "kind": "image", "row": images, "side": 0, "image": images, "other": images, "same": True})
    return pd.concat([*sides, alone]).sort_values("unit", kind="stable", ignore_index=True)


class Sampler:
    """Samples of the decisions about the pairs of a subject."""

    def __init__(self, subject: Subject, settings: Smoothing):
        self.subject, self.settings = subject, settings
        self.decisions = decisions_of(subject.pair_set, settings)

    def run(self, journal: Journal, stage: str, work: Callable[[pd.DataFrame], pd.DataFrame], draws: int) -> pd.DataFrame:
        """`work` on the decisions of each unit, which returns a row each, dealt out to the ranks and written down unit by unit."""
        parts = dict([*self.decisions.groupby("unit")])
        passes = draws * (2 if self.settings.threat == "joint" else 1)

        def one(units: pd.DataFrame) -> Outcome:
            found = work(parts[units.index[0]])
            told.tick(passes)
            return Outcome(pd.DataFrame({name: [found[name].tolist()] for name in found}, index=units.index), passes, 0)
        with self.subject.work(stage, len(parts), passes, of_attacks=False).stage("", per_rank(len(parts)), unit="unit") as told:
            rows = journal.run(stage, pd.DataFrame(index=[*parts]), one, 1, lambda rows: told.update(len(rows)))
        return pd.DataFrame({name: [*chain.from_iterable(rows[name])] for name in rows}, index=self.decisions.index)

    @torch.no_grad()
    def cosines(self, unit: pd.DataFrame, first: int, last: int) -> np.ndarray:
        """Float64 [decisions, draws] of noisy images and what they are compared with; -inf where one has no direction."""
        network, subject, other = self.subject.network, self.subject, unit["other"].tolist()
        with full_precision(), evaluating(network), torch.autocast(subject.device.type, enabled=False):
            left = self._embeddings(unit["image"].iloc[0], LEFT, first, last)
            if self.settings.threat == "joint":
                found = [cosine(u.double(), v.double())[None] for u, v in zip(left, self._embeddings(other[0], RIGHT, first, last))]
            else:
                targets = subject.embedded(other, [False] * len(other)).double()[:, None]
                found = [cosine(u.double(), targets) for u in left]
            return torch.cat(found, 1).cpu().numpy()

    def _embeddings(self, number: int, stream: int, first: int, last: int) -> Iterator[Tensor]:
        subject, settings = self.subject, self.settings
        draws = Draws((settings.seed, stream, int(number)), first, last)
        return noisy_embeddings(subject.network, subject.images([number], [False])[0], settings.sigma, draws, subject.batch_size)

    def select(self, unit: pd.DataFrame) -> pd.DataFrame:
        """The lower median of the cosines of n0 draws, which is above tau iff more than half of them are; mean and variance of `scores`."""
        found = self.cosines(unit, 0, self.settings.n0)
        middle, ours = (found.shape[1] - 1) // 2, scores(found)
        return pd.DataFrame({"median": np.sort(found, 1)[:, middle], "mean": ours.mean(1), "variance": ours.var(1)}, unit.index)

    def certify(self, unit: pd.DataFrame, tau: float) -> pd.DataFrame:
        """Of n further draws: how many accept at tau, and a lower bound of the mean of `scores`, or of 1 - scores where these are `low`.

        The unit has the columns low and bet, of which the first draws decided.
        """
        settings = self.settings
        found = self.cosines(unit, settings.n0, settings.n0 + settings.n)
        ours = np.where(unit["low"].to_numpy()[:, None], 1 - scores(found), scores(found))
        bound = [smoothing.lower_mean(each, bet, settings.alpha) for each, bet in zip(ours, unit["bet"])]
        return pd.DataFrame({"votes": (found > tau).sum(1), "bound": bound}, unit.index)


def scores(cosines: np.ndarray) -> np.ndarray:
    """(1 + cos) / 2, in [0, 1]; 0 where there is no direction."""
    return (1 + np.clip(cosines, -1, 1)) / 2


class MeanCosine(nn.Module):
    """What attacks through noise attack: an embedding whose cosine is the mean, over noise that stays, of the cosines of noisy images.

    One image: [N, C, H, W] -> unit vectors [N, D + 1], the mean m of the directions and sqrt(1 - |m|^2), for targets (v, 0), v of norm 1.
    Both images, one above the other, [N, 2 C, H, W] -> [N, 2], (s, sqrt(1 - s^2)) of the mean s of their cosines, for targets (1, 0).
    noise: [draws, C, H, W], or [draws, 2 C, H, W], times sigma; the same for all samples.
    """

    def __init__(self, network: Callable[[Tensor], Tensor], noise: Tensor, both: bool):
        super().__init__()
        self.network, self.noise, self.both = network, noise, both

    def forward(self, images: Tensor) -> Tensor:
        """As the class says, in float64."""
        points = (images[:, None] + self.noise).flatten(0, 1)
        if self.both:
            points = points.unflatten(1, (2, -1)).flatten(0, 1)
        embeddings = self.network(points).double()
        length = norms(embeddings.detach())[:, None]
        units = torch.where(length > 0, embeddings, 1.)  # before the division: its gradient would be nan
        units = torch.where(length > 0, units / units.norm(dim=1, keepdim=True), 0.)
        if self.both:
            left, right = units.unflatten(0, (-1, 2)).unbind(1)
            units = (left * right).sum(1, keepdim=True)
        mean = units.unflatten(0, (len(images), -1)).mean(1)
        return torch.cat([mean, (1 - mean.square().sum(1, keepdim=True)).clamp_min(_FLAT).sqrt()], 1)

    @staticmethod
    def targets(embeddings: Tensor) -> Tensor:
        """(v, 0) [N, D + 1] of the clean embeddings that one noisy image each is compared with."""
        return torch.nn.functional.pad(torch.nn.functional.normalize(embeddings.double(), eps=1e-300), (0, 1))
