"""Margin headers: (embeddings [N, emb_size], labels [N]) -> logits [N, num_classes] for a cross entropy.

Every header holds one weight row per identity, drawn from N(0, 0.01^2) and normalised in use; all but NaiveHeader normalise the
embeddings too. A label of -1 means "none of the identities": its row of logits carries no margin. Logits are computed in float32 or better,
also under autocast. `step` is the number of the optimiser step: headers that draw random numbers key them by it (see ECosFace).

A header may be one of a few classes only, with the samples of all processes (sharding.py): `labels` that `logits` gets are then -1 for the
classes of others, and what it has to know of those is asked for by `at_targets`, `log_sum_exp`, `target_rows` and `of_all`.

A new header is a class with `@HEADERS.register("name")` above it, here or in a file of its own that `package.module:Name` names: a subclass
of Header, or any nn.Module of (num_classes, emb_size, ...) and (embeddings, labels) -> logits. Where its constructor takes `seed`, a
training gives it that of the run.
"""
import inspect
import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sharding
from headers_base import HEADERS, Header, HeaderEntry, norms_of, subtract_at_targets
from sharding import at_own_targets
from utils import InputError
from utils.registry import check_arguments

# what code that was written for this module imports from it
__all__ = ["HEADERS", "AdaCos", "ArcFace", "CosFace", "ECosFace", "EMMA", "Header", "HeaderEntry", "NaiveHeader", "get_header"]


@HEADERS.register("arcface")
class ArcFace(Header):
    """s cos(theta + m) at the target, s cos(theta) elsewhere (Deng et al., CVPR 2019).

    As in insightface, the margin acts on the value only: the gradient of the target logit is that of s cos(theta).
    """

    shardable = True

    def __init__(self, num_classes: int, emb_size: int, s: float = 64.0, m: float = 0.5):
        super().__init__(num_classes, emb_size)
        self.s, self.m = s, m

    def logits(self, products: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            target = at_own_targets(products, labels)
            margin = target - torch.cos(torch.acos(target) + self.m)
        return self.s * subtract_at_targets(products, labels, margin)


@HEADERS.register("cosface")
class CosFace(Header):
    """s (cos(theta) - m) at the target, s cos(theta) elsewhere (Wang et al., CVPR 2018)."""

    shardable = True

    def __init__(self, num_classes: int, emb_size: int, s: float = 64.0, m: float = 0.4):
        super().__init__(num_classes, emb_size)
        self.s, self.m = s, m

    def logits(self, products: Tensor, labels: Tensor) -> Tensor:
        return self.s * subtract_at_targets(products, labels, self.m)


@HEADERS.register("naive", "lln")
class NaiveHeader(Header):
    """s <w, e> with unit rows w and the embedding as it is, minus s m at the target: "last-layer normalisation" (LLN).

    max_length: longer embeddings are shortened to it, e min(1, max_length / ||e||), the nearest point of a ball: a 1-Lipschitz map. It is
    part of the header only, so that the embedding that is certified is the network's own.
    """

    normalises_embeddings = False
    shardable = True

    def __init__(self, num_classes: int, emb_size: int, s: float = 4.0, m: float = 8**0.5, max_length: float = math.inf):
        super().__init__(num_classes, emb_size)
        if not max_length > 0:
            raise ValueError(f"max_length is {max_length}, expected a positive number")
        self.s, self.m, self.max_length = s, m, max_length

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """As Header.forward, of embeddings no longer than max_length."""
        if self.max_length < math.inf:
            with torch.autocast(embeddings.device.type, enabled=False):
                embeddings = embeddings.to(self.weight.dtype)
                embeddings = embeddings * (self.max_length / norms_of(embeddings).clamp_min(self.max_length))
        return super().forward(embeddings, labels)

    def logits(self, products: Tensor, labels: Tensor) -> Tensor:
        return self.s * subtract_at_targets(products, labels, self.m)


@HEADERS.register("adacos")
class AdaCos(Header):
    """s cos(theta) with s adapted at every training step (Zhang et al., CVPR 2019).

    s starts at sqrt(2) log(num_classes - 1); then s = log(B) / cos(min(pi/4, median theta)), where B is the mean over the batch of the
    sum over the other classes of exp(s cos(theta)), and the median is that of the target angles, both over the batches of all ranks.
    `s` is a buffer and stays as it is in eval mode; a state dict without it, as the published header's is, loads and leaves it alone.
    Raises ValueError for fewer than three classes, where s would be 0.
    """

    shardable = True

    def __init__(self, num_classes: int, emb_size: int):
        super().__init__(num_classes, emb_size)
        if num_classes < 3:
            raise ValueError(f"AdaCos needs at least 3 classes, got {num_classes}")
        self.register_buffer("s", torch.tensor(math.sqrt(2) * math.log(num_classes - 1)))

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict({f"{prefix}s": self.s.clone(), **state_dict}, prefix, *rest)

    def logits(self, products: Tensor, labels: Tensor) -> Tensor:
        if self.training:
            self._adapt(products.detach(), labels)
        return self.s * products

    @torch.no_grad()
    def _adapt(self, products: Tensor, labels: Tensor) -> None:
        exponents = self.s * products
        # -inf, i.e. a term of 0, at the target
        others = self.of_all(self.log_sum_exp(subtract_at_targets(exponents, labels, math.inf)))
        angles = self.of_all(torch.acos(self.at_targets(products, labels)))
        median = angles.nanmedian().nan_to_num(math.pi / 4)  # no target in the whole batch: the largest angle that counts
        log_mean = others.logsumexp(0) - math.log(len(others))
        self.s.copy_(log_mean / torch.cos(median.clamp_max(math.pi / 4)))


@HEADERS.register("ecosface", "elasticface_cos")
class ECosFace(Header):
    """ElasticFace-Cos: CosFace with a margin ~ N(m, std) per sample (Boutros et al., CVPRW 2022).

    plus: the margins of the batch, sorted ascending, go to the samples sorted by target cosine descending, so that a hard sample gets a
    large margin. assign="rank" does that; assign="published" gives sample i the margin of rank order[i], order being that argsort,
    as the published code does.

    The margins of a step are drawn for the whole global batch from (seed, step), and sorted over the target cosines of all
    ranks: the result does not depend on the number of processes. In training mode every call counts `step` up; a training loop sets it.
    """

    shardable = True

    def __init__(self, num_classes: int, emb_size: int, s: float = 64.0, m: float = 0.35, std: float = 0.025, plus: bool = True,
                 assign: str = "rank", seed: int = 0):
        super().__init__(num_classes, emb_size)
        if assign not in ("rank", "published"):
            raise ValueError(f"assign is {assign!r}, expected 'rank' or 'published'")
        self.s, self.m, self.std, self.plus, self.assign, self.seed = s, m, std, plus, assign, seed

    def logits(self, products: Tensor, labels: Tensor) -> Tensor:
        # samples without a target come last and keep the largest margins, which they do not use
        margins = self._margins(self.of_all(self.at_targets(products, labels, absent=-2.0)))
        if self.training:
            self.step += 1
        return self.s * subtract_at_targets(products, labels, margins)

    @torch.no_grad()
    def _margins(self, cosines: Tensor) -> Tensor:
        """The margins of the samples of this call, from the target cosines of those of all processes."""
        # numpy's generator takes the pair as its seed; torch's would keep the low 32 bits of one number
        normal = np.random.default_rng([self.seed, self.step]).standard_normal(len(cosines))
        margins = torch.from_numpy(self.m + self.std * normal).to(device=cosines.device, dtype=cosines.dtype, non_blocking=True)
        if self.plus:
            order = torch.argsort(cosines, descending=True, stable=True)
            ascending = margins.sort().values
            margins = ascending[order] if self.assign == "published" else torch.empty_like(ascending).scatter_(0, order, ascending)
        return self.of_this(margins)


@HEADERS.register("emma")
class EMMA(Header):
    """s (cos(theta_j) - m [j = y] + (eps_j / ||e||) ||w_j - w_y||): cosines, the other classes with what a perturbation could add to them.

    EMMA (Hu et al., NeurIPS 2023) for cosines. To e' with ||e' - e|| <= eps_j the difference of the cosines of classes j and y changes by
    about (eps_j / ||e||) ||w_j - w_y|| at most, w being unit rows, and

        eps_j = ||e|| sin((theta_j - theta_y) / 2), brought to the range from eps / 100 to eps, and detached

    is how far e can move before the angle to w_j may be no larger than that to w_y: classes that are farther off than the budget `eps` get
    the whole budget, nearer ones only as much as would turn the decision, so that a sample is not pushed beyond what is still in reach. As
    ||e|| itself is not detached, longer embeddings lower the loss: they need no penalty on short ones.

    eps: budget, in the l2 of images; it grows linearly from 0 over the first `steps` steps and stays. In training mode every call counts
    `step` up; a training loop sets it. A row without a target is cosines alone.
    """

    shardable = True

    def __init__(self, num_classes: int, emb_size: int, s: float = 16.0, m: float = 0.0, eps: float = 0.25, steps: int = 0):
        super().__init__(num_classes, emb_size)
        if not 0 <= eps < math.inf or steps < 0:
            raise ValueError(f"eps is {eps} and steps {steps}, expected finite numbers that are not negative")
        self.s, self.m, self.eps, self.steps = s, m, eps, steps

    @property
    def budget(self) -> float:
        """eps as of this step."""
        return self.eps * min(1.0, self.step / self.steps) if self.steps else self.eps

    def _of_rows(self, embeddings: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        cosines = F.linear(F.normalize(embeddings), weight).clamp(-1, 1)
        angles = torch.acos(cosines.detach())
        of_targets = self.at_targets(angles, labels)
        added = self._turns(angles - of_targets.nan_to_num()[:, None], norms_of(embeddings)) * self._distances(weight, labels)
        others = of_targets.isfinite()[:, None] & (labels[:, None] != torch.arange(len(weight), device=labels.device))
        if self.training:
            self.step += 1
        return self.s * (subtract_at_targets(cosines, labels, self.m) + torch.where(others, added, 0.0))

    def _turns(self, angles: Tensor, norms: Tensor) -> Tensor:
        """eps_j / ||e||, [N, columns], of theta_j - theta_y [N, columns] and norms [N, 1]; 0 at a budget of 0."""
        budget = self.budget
        with torch.no_grad():
            reach = (norms * torch.sin(angles / 2)).clamp(budget / 100, budget)
        # where ||e|| is less than the least reach, every direction is in reach; and a zero embedding stays finite
        return reach / norms.clamp_min(max(budget / 100, 1e-12))

    def _distances(self, weight: Tensor, labels: Tensor) -> Tensor:
        """||w_j - w_y|| [N, columns] of unit rows w, y the label; without a gradient where they are equal."""
        return (2 - 2 * F.linear(self.target_rows(weight, labels), weight)).clamp_min(1e-12).sqrt()


def get_header(name: str, num_classes: int, emb_size: int, run_seed: int | None = None, shard: sharding.Shard | None = None,
               **kw: Any) -> nn.Module:
    """The header `name` of HEADERS, or `package.module:Name`; `kw` goes to its constructor.

    run_seed: the `seed` of headers that take one, unless `kw` has it. shard: the classes that it is to have of them all. Raises InputError
    for an unknown name, for an argument that the header does not take or that is of another type than its default, where its weights do
    not fit into memory, and for a shard of a header that cannot be sharded.
    """
    build = HEADERS.find(name).build
    try:
        if run_seed is not None and "seed" in inspect.signature(build).parameters:
            kw = {"seed": run_seed, **kw}
        check_arguments(build, kw)
        with sharding.building(shard):
            header = build(num_classes, emb_size, **kw)
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: of memory that cannot be had
        raise InputError(f"header {name}: {error}") from error
    if not isinstance(header, nn.Module):
        raise InputError(f"header {name}: makes a {type(header).__name__}, expected an nn.Module")
    if shard and not (isinstance(header, Header) and header.shardable):
        raise InputError(f"header {name}: cannot be sharded, expected a subclass of headers.Header with shardable = True")
    return header
