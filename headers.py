"""Margin headers: (embeddings [N, emb_size], labels [N]) -> logits [N, num_classes] for a cross entropy.

Every header holds one weight row per identity, drawn from N(0, 0.01^2) and normalised in use; all but NaiveHeader normalise the
embeddings too. A label of -1 means "none of the identities": its row of logits carries no margin. Logits are computed in float32 or better,
also under autocast. `step` is the number of the optimiser step: headers that draw random numbers key them by it (see ECosFace).

A new header is a class with `@HEADERS.register("name")` above it, here or in a file of its own that `package.module:Name` names: a subclass
of Header, or any nn.Module of (num_classes, emb_size, ...) and (embeddings, labels) -> logits. Where its constructor takes `seed`, a
training gives it that of the run.
"""
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils import InputError
from utils.distributed import all_gather_interleaved, rank, world_size
from utils.registry import Registry, check_arguments


@dataclass(frozen=True)
class HeaderEntry:
    """A header by its name. build: (num_classes, emb_size, further arguments by name) -> nn.Module."""

    name: str
    build: Callable[..., nn.Module]


HEADERS: Registry[HeaderEntry] = Registry("header", HeaderEntry)


class Header(nn.Module):
    """The weight and what all headers share; a header implements `logits(products, labels)`."""

    normalises_embeddings = True

    def __init__(self, num_classes: int, emb_size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.normal(0.0, 0.01, (num_classes, emb_size)))
        self.step = 0

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """embeddings [N, emb_size], labels int64 [N] in [-1, num_classes) -> logits [N, num_classes]."""
        with torch.autocast(embeddings.device.type, enabled=False):
            weight = F.normalize(self.weight)
            embeddings = embeddings.to(weight.dtype)
            if self.normalises_embeddings:
                embeddings = F.normalize(embeddings)
                return self.logits(F.linear(embeddings, weight).clamp(-1, 1), labels)
            return self.logits(F.linear(embeddings, weight), labels)

    def logits(self, products: Tensor, labels: Tensor) -> Tensor:
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, {self.weight.shape[1]}"


def _at_targets(values: Tensor, labels: Tensor) -> Tensor:
    """The entry of each row at its label, [N]; that of column 0 where the label is -1."""
    return values.gather(1, labels.clamp_min(0).view(-1, 1)).squeeze(1)


def _subtract_at_targets(values: Tensor, labels: Tensor, margin: Tensor | float) -> Tensor:
    """values with `margin` (one, or one per row) subtracted at each row's label; nothing where the label is -1."""
    margin = torch.as_tensor(margin, dtype=values.dtype, device=values.device).expand(len(values))
    margin = torch.where(labels >= 0, margin, torch.zeros_like(margin))
    return values.scatter_add(1, labels.clamp_min(0).view(-1, 1), -margin.view(-1, 1))


def _norms(embeddings: Tensor) -> Tensor:
    """[N, 1] of embeddings [N, D]."""
    return torch.linalg.vector_norm(embeddings, dim=1, keepdim=True)


@HEADERS.register("arcface")
class ArcFace(Header):
    """s cos(theta + m) at the target, s cos(theta) elsewhere (Deng et al., CVPR 2019).

    As in insightface, the margin acts on the value only: the gradient of the target logit is that of s cos(theta).
    """

    def __init__(self, num_classes: int, emb_size: int, s: float = 64.0, m: float = 0.5):
        super().__init__(num_classes, emb_size)
        self.s, self.m = s, m

    def logits(self, products: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            target = _at_targets(products, labels)
            margin = target - torch.cos(torch.acos(target) + self.m)
        return self.s * _subtract_at_targets(products, labels, margin)


@HEADERS.register("cosface")
class CosFace(Header):
    """s (cos(theta) - m) at the target, s cos(theta) elsewhere (Wang et al., CVPR 2018)."""

    def __init__(self, num_classes: int, emb_size: int, s: float = 64.0, m: float = 0.4):
        super().__init__(num_classes, emb_size)
        self.s, self.m = s, m

    def logits(self, products: Tensor, labels: Tensor) -> Tensor:
        return self.s * _subtract_at_targets(products, labels, self.m)


@HEADERS.register("naive", "lln")
class NaiveHeader(Header):
    """s <w, e> with unit rows w and the embedding as it is, minus s m at the target: "last-layer normalisation" (LLN).

    max_length: longer embeddings are shortened to it, e min(1, max_length / ||e||), the nearest point of a ball: a 1-Lipschitz map. It is
    part of the header only, so that the embedding that is certified is the network's own.
    """

    normalises_embeddings = False

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
                embeddings = embeddings * (self.max_length / _norms(embeddings).clamp_min(self.max_length))
        return super().forward(embeddings, labels)

    def logits(self, products: Tensor, labels: Tensor) -> Tensor:
        return self.s * _subtract_at_targets(products, labels, self.m)


@HEADERS.register("adacos")
class AdaCos(Header):
    """s cos(theta) with s adapted at every training step (Zhang et al., CVPR 2019).

    s starts at sqrt(2) log(num_classes - 1); then s = log(B) / cos(min(pi/4, median theta)), where B is the mean over the batch of the
    sum over the other classes of exp(s cos(theta)), and the median is that of the target angles, both over the batches of all ranks.
    `s` is a buffer and stays as it is in eval mode; a state dict without it, as the published header's is, loads and leaves it alone.
    Raises ValueError for fewer than three classes, where s would be 0.
    """

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
        others = all_gather_interleaved(_subtract_at_targets(exponents, labels, math.inf).logsumexp(1))
        angles = torch.acos(_at_targets(products, labels))
        angles = all_gather_interleaved(torch.where(labels >= 0, angles, torch.full_like(angles, math.nan)))
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

    def __init__(self, num_classes: int, emb_size: int, s: float = 64.0, m: float = 0.35, std: float = 0.025, plus: bool = True,
                 assign: str = "rank", seed: int = 0):
        super().__init__(num_classes, emb_size)
        if assign not in ("rank", "published"):
            raise ValueError(f"assign is {assign!r}, expected 'rank' or 'published'")
        self.s, self.m, self.std, self.plus, self.assign, self.seed = s, m, std, plus, assign, seed

    def logits(self, products: Tensor, labels: Tensor) -> Tensor:
        margins = self._margins(_at_targets(products.detach(), labels), labels)
        if self.training:
            self.step += 1
        return self.s * _subtract_at_targets(products, labels, margins)

    @torch.no_grad()
    def _margins(self, cosines: Tensor, labels: Tensor) -> Tensor:
        """[N] margins of this rank's samples from their target cosines [N]."""
        # numpy's generator takes the pair as its seed; torch's would keep the low 32 bits of one number
        normal = np.random.default_rng([self.seed, self.step]).standard_normal(world_size() * len(cosines))
        margins = torch.from_numpy(self.m + self.std * normal).to(device=cosines.device, dtype=cosines.dtype, non_blocking=True)
        if self.plus:
            # samples without a target come last and keep the largest margins, which they do not use
            gathered = all_gather_interleaved(torch.where(labels >= 0, cosines, torch.full_like(cosines, -2.0)))
            order = torch.argsort(gathered, descending=True, stable=True)
            ascending = margins.sort().values
            margins = ascending[order] if self.assign == "published" else torch.empty_like(ascending).scatter_(0, order, ascending)
        return margins[rank()::world_size()]


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

    def __init__(self, num_classes: int, emb_size: int, s: float = 16.0, m: float = 0.0, eps: float = 0.25, steps: int = 0):
        super().__init__(num_classes, emb_size)
        if not 0 <= eps < math.inf or steps < 0:
            raise ValueError(f"eps is {eps} and steps {steps}, expected finite numbers that are not negative")
        self.s, self.m, self.eps, self.steps = s, m, eps, steps

    @property
    def budget(self) -> float:
        """eps as of this step."""
        return self.eps * min(1.0, self.step / self.steps) if self.steps else self.eps

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """embeddings [N, emb_size], labels int64 [N] in [-1, num_classes) -> logits [N, num_classes]."""
        with torch.autocast(embeddings.device.type, enabled=False):
            weight = F.normalize(self.weight)
            embeddings = embeddings.to(weight.dtype)
            cosines = F.linear(F.normalize(embeddings), weight).clamp(-1, 1)
            added = self._turns(cosines, _norms(embeddings), labels) * _distances(weight, labels)
            others = labels[:, None] >= 0
            others = others & (labels[:, None] != torch.arange(len(weight), device=labels.device))
            logits = self.s * (_subtract_at_targets(cosines, labels, self.m) + torch.where(others, added, 0.0))
        if self.training:
            self.step += 1
        return logits

    def _turns(self, cosines: Tensor, norms: Tensor, labels: Tensor) -> Tensor:
        """eps_j / ||e||, [N, num_classes], of cosines [N, num_classes] and norms [N, 1]; 0 at a budget of 0."""
        budget = self.budget
        with torch.no_grad():
            angles = torch.acos(cosines)
            reach = norms * torch.sin((angles - _at_targets(angles, labels)[:, None]) / 2)
            reach = reach.clamp(budget / 100, budget)
        # where ||e|| is less than the least reach, every direction is in reach; and a zero embedding stays finite
        return reach / norms.clamp_min(max(budget / 100, 1e-12))


def _distances(weight: Tensor, labels: Tensor) -> Tensor:
    """||w_j - w_y|| [N, num_classes] of unit rows w, y the label; without a gradient where they are equal."""
    cosines = F.linear(weight[labels.clamp_min(0)], weight)
    return (2 - 2 * cosines).clamp_min(1e-12).sqrt()


def get_header(name: str, num_classes: int, emb_size: int, run_seed: int | None = None, **kw: Any) -> nn.Module:
    """The header `name` of HEADERS, or `package.module:Name`; `kw` goes to its constructor.

    run_seed: the `seed` of headers that take one, unless `kw` has it. Raises InputError for an unknown name, for an argument that the
    header does not take or that is of another type than its default, and where its weights do not fit into memory.
    """
    build = HEADERS.find(name).build
    try:
        if run_seed is not None and "seed" in inspect.signature(build).parameters:
            kw = {"seed": run_seed, **kw}
        check_arguments(build, kw)
        header = build(num_classes, emb_size, **kw)
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: of memory that cannot be had
        raise InputError(f"header {name}: {error}") from error
    if not isinstance(header, nn.Module):
        raise InputError(f"header {name}: makes a {type(header).__name__}, expected an nn.Module")
    return header
