"""What the attacks share: the margin that they lower, ball and box, and the search that keeps what was found.

The pair (image, target) is accepted iff cos(f(x*), target) > tau. With the margin

    m(x*) = cos(f(x*), target) - tau    untargeted (target = f(x)), dodging (target = f(y)): success iff m <= 0
    m(x*) = tau - cos(f(x*), target)    impersonation (target = f(y)):                       success iff m < 0

every attack lowers m, sample by sample: gradients are those of the sum over the batch, random numbers depend on the seed and the sample's
own id only, and a sample that is done leaves the batch. So neither batch companions nor sharding change a result, beyond the rounding of
the embedding function itself. Where one of the two embeddings has no direction (`utils.directions`) the cosine is -inf: the pair is
rejected, a success of dodging whatever tau is, and never one of impersonation.
"""
import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor, nn

from utils import InputError
from utils.directions import cosine, norms
from utils.modes import evaluating

OBJECTIVES = ("untargeted", "dodging", "impersonation")
BISECTIONS = 8  # between a success and the clean image, at the end of an attack that looks for the smallest perturbation
Embed = Callable[[Tensor], Tensor]
Watcher = Callable[[Tensor, Tensor, Tensor], None]
Radius = Callable[[Tensor, Tensor], Tensor]
Box = tuple[float, float]
Budget: TypeAlias = float | Tensor
State = dict[str, Tensor]  # what an attack keeps for its active samples, one row each


def margin(embeddings: Tensor, targets: Tensor, tau: float, objective: str,
           dtype: torch.dtype = torch.float64) -> Tensor:
    """m [N] in float64 of the equations above: positive while the sample is robust. The cosine is taken in `dtype`."""
    cos = cosine(embeddings.to(dtype), targets.to(dtype)).double()
    return tau - cos if objective == "impersonation" else cos - tau


def succeeds(margins: Tensor, objective: str) -> Tensor:
    """Which margins mean success, [N] bool: the strict inequality of `accept iff cos > tau`, in both directions."""
    return margins < 0 if objective == "impersonation" else margins <= 0


def l2(v: Tensor) -> Tensor:
    """Norms over all but the first axis, [N] float64."""
    return torch.linalg.vector_norm(v.flatten(1), dim=1, dtype=torch.float64)


def unit(v: Tensor) -> Tensor:
    """v / ||v||, sample by sample, also where ||v||^2 would underflow; zero stays zero."""
    peak = v.abs().flatten(1).amax(1)
    v = v / each(torch.where(peak > 0, peak, 1.0), v)
    return v / each(l2(v).clamp_min(1.0), v)  # the largest entry is 1 now, or all are 0


def each(numbers: Tensor, like: Tensor) -> Tensor:
    """[N] -> [N, 1, ...]: one number a sample, to go with `like`; flags stay flags."""
    numbers = numbers if numbers.dtype == torch.bool else numbers.to(like.dtype)
    return numbers.view(-1, *(1,) * (like.dim() - 1))


def project(points: Tensor, images: Tensor, eps: Tensor, box: Box) -> Tensor:
    """Points moved into {||x* - x|| <= eps} and the box; exact, in float64, after rounding to the dtype of the points.

    Scaled into the ball, then clipped: as the clean image is in the box, clipping takes no pixel further from it.
    """
    images, delta = images.double(), points.double() - images.double()
    scale = (eps / l2(delta).clamp_min(torch.finfo(torch.float64).tiny)).clamp_max(1.0)
    shrink = torch.finfo(points.dtype).eps
    while True:
        inside = (images + delta * each(scale, delta)).to(points.dtype).clamp(*box)
        outside = l2(inside.double() - images) > eps
        if not outside.any():
            return inside
        scale = torch.where(outside, scale * (1 - shrink), scale)
        shrink = min(1.0, 4 * shrink)


def project_at_once(points: Tensor, images: Tensor, eps: Tensor, box: Box) -> Tensor:
    """As `project`, in the dtype of the points and without waiting for the device: for training, where that would cost more than it gains.

    The ball is smaller by as much as rounding can add: with u half of the dtype's eps, the sum is off by u (|x_i| + |delta_i|) at entry i,
    so by u (sqrt(n) max|box| + eps) in all, and delta, its norm and the scale by a few u each.
    """
    furthest = max(map(abs, box))
    delta, rounding = points - images, torch.finfo(points.dtype).eps * (furthest * math.sqrt(images[0].numel()) + 4 * eps)
    scale = ((eps - rounding).clamp_min(0) / l2(delta).clamp_min(torch.finfo(torch.float64).tiny)).clamp_max(1.0)
    return (images + delta * each(scale, delta)).clamp(*box)


@dataclass
class AttackResult:
    """adversarial [N, C, H, W], success [N] bool; norm, l2 of the perturbation returned, and margin [N] float64.

    A minimum-norm attack without success returns the clean image and an infinite norm. Passes are counted in images.
    """
    adversarial: Tensor
    success: Tensor
    norm: Tensor
    margin: Tensor
    forward_passes: int
    backward_passes: int


@contextlib.contextmanager
def inputs_only(embed: Any) -> Iterator[None]:
    """Where `embed` is a module, a bound method of one or a partial of either: eval mode and no parameter gradients.

    Batch statistics would tie the samples of a batch together and be changed. All is put back, also after an error.
    """
    while isinstance(embed, functools.partial):
        embed = embed.func
    module = getattr(embed, "__self__", embed)
    trainable = [p for p in module.parameters() if p.requires_grad] if isinstance(module, nn.Module) else []
    try:
        for p in trainable:
            p.requires_grad_(False)
        with evaluating(module):
            yield
    finally:
        for p in trainable:
            p.requires_grad_(True)


class _Look(NamedTuple):
    """What a pass over n points tells: margins [n], their gradients [n, C, H, W] if asked for, embeddings [n, D]."""
    margins: Tensor
    gradients: Tensor | None
    embeddings: Tensor


class Search:
    """One call of an attack: the problem, the passes it has cost, and the image to be returned for each sample."""

    def __init__(self, attack: "Attack", embed: Embed, images: Tensor, targets: Tensor, objective: str, tau: float,
                 seed: int, ids: Sequence[int], box: Box, radius: Radius | None, on_iterate: Watcher | None):
        self.attack, self.embed, self.images, self.targets = attack, embed, images.detach(), targets.detach()
        self.objective, self.tau, self.box, self.on_iterate = objective, tau, box, on_iterate
        self.seed, self.ids, self.radius = seed, ids, radius
        self.best = self.images.clone()
        nothing = math.inf if attack.minimum_norm else 0.0  # the norm of a sample for which no other point is recorded
        self.norm = torch.full((len(images),), nothing, dtype=torch.float64, device=images.device)
        self.margin = torch.full_like(self.norm, math.inf)
        self.hits = torch.zeros_like(self.norm, dtype=torch.long)  # successful iterates
        self.forward_passes = self.backward_passes = 0

    def succeeds(self, margins: Tensor) -> Tensor:
        """Which of the margins are successes of this search."""
        return succeeds(margins, self.objective)

    def open(self) -> Tensor:
        """The numbers of the samples without success so far."""
        return (~self.succeeds(self.margin)).nonzero().flatten()

    def evaluate(self, points: Tensor, index: Tensor, gradient: bool = False, record: bool = True,
                 embeddings: Tensor | None = None) -> _Look:
        """Look at the points [n, C, H, W] of the samples `index`. embeddings [n, D]: of the points, where known."""
        points = points.detach().requires_grad_(gradient)
        with torch.set_grad_enabled(gradient):
            if embeddings is None:
                embeddings = self.embed(points)
                self.forward_passes += len(index)
            dtype = embeddings.dtype if self.attack.published else torch.float64
            margins = margin(embeddings, self.targets[index], self.tau, self.objective, dtype)
        gradients = self._gradients(margins, points, index) if gradient else None
        points, margins = points.detach(), margins.detach()
        if record:
            self._record(points, index, margins)
        if self.on_iterate is not None:
            self.on_iterate(points, index, margins)
        return _Look(margins, gradients, embeddings.detach())

    def radii(self, look: _Look) -> Tensor:
        """The certified radius [n] of each point."""
        cos = self.tau - look.margins if self.objective == "impersonation" else self.tau + look.margins
        assert self.radius is not None
        return self.radius(norms(look.embeddings), cos.clamp(-1, 1).arccos())

    def _gradients(self, margins: Tensor, points: Tensor, index: Tensor) -> Tensor:
        """Of the sum of the margins; a random direction (published attacks: none) where there is none to follow."""
        gradients = torch.zeros_like(points)
        if margins.requires_grad:
            gradients, = torch.autograd.grad(margins, points, torch.ones_like(margins), materialize_grads=True)
        self.backward_passes += len(index)
        peak = gradients.abs().flatten(1).amax(1)
        lost = ~((peak > 0) & peak.isfinite())
        if lost.any():
            gradients = gradients.clone()  # it may be an expanded view
            gradients[lost] = 0.0 if self.attack.published else self.noise(index[lost])
        return gradients

    def _record(self, points: Tensor, index: Tensor, margins: Tensor) -> None:
        norms, wins = l2(points.double() - self.images[index].double()), self.succeeds(margins)
        self.hits[index] += wins
        if self.attack.published:  # the last iterate, whatever it is worth
            better = torch.ones_like(wins)
        elif self.attack.minimum_norm:
            better = wins & (norms < self.norm[index])
        else:
            better = margins < self.margin[index]
        chosen = index[better]
        self.best[chosen], self.norm[chosen], self.margin[chosen] = points[better], norms[better], margins[better]

    def noise(self, index: Tensor, restart: int = 0) -> Tensor:
        """Random directions of norm 1, [n, C, H, W]: a function of seed, sample id and restart on every device."""
        draw = [np.random.default_rng((self.seed, self.ids[i], restart)).standard_normal(self.images.shape[1:])
                for i in index.tolist()]
        return unit(torch.from_numpy(np.stack(draw)).to(self.images))


class Attack:
    """What the attacks share. A subclass says how a round of steps starts, how it steps, and when a sample is done.

    published: as the paper's own code: every sample takes every step, the last iterate counts, and the cosine is taken
    in the dtype of the embeddings (its rounding is what an untargeted attack from the image itself starts with).
    """
    minimum_norm: ClassVar[bool] = False
    published: ClassVar[bool] = False
    steps: int

    @property
    def most_passes(self) -> int:
        """How many times each image goes through the network at most: what an attack costs."""
        bisections = BISECTIONS if self.minimum_norm and not self.published else 0
        return getattr(self, "restarts", 1) * (getattr(self, "steps", 1) + 1) + bisections

    def __new__(cls, *arguments: Any, **settings: Any) -> Any:
        """A network as the first argument makes what scripts for the published repository expect: `attacks_published.Bound`."""
        if callable(arguments[0] if arguments else settings.get("backbone")):
            from attacks_published import Bound  # which stands on the attacks, as these do on this file
            return Bound(cls, *arguments, **settings)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for name in ("steps", "restarts", "binary_search_steps"):
            if getattr(self, name, 1) < 1:
                raise InputError(f"{type(self).__name__}: {name} is {getattr(self, name)}, expected at least 1")
        for name in ("eps", "step_size", "init_norm", "lr", "initial_c"):
            value = getattr(self, name, None)
            value = torch.as_tensor(1.0 if value is None else value)
            if not ((value > 0) & value.isfinite()).all():
                raise InputError(f"{type(self).__name__}: {name} is {value.tolist()}, expected positive and finite")

    def __call__(self, embed: Embed, images: Tensor, targets: Tensor, objective: str, tau: float, *, seed: int = 0,
                 sample_ids: Sequence[int] | Tensor | None = None, box: Box = (-0.5, 0.5),
                 clean: Tensor | None = None, radius: Radius | None = None,
                 on_iterate: Watcher | None = None) -> AttackResult:
        """Attack `embed`, a function of images [N, C, H, W] in the box -> embeddings [N, D].

        targets [N, D]: f(x) of the clean images (untargeted), or f(y) of the other image of the pair. sample_ids [N]:
        non-negative numbers that name the samples, so that random numbers do not depend on batching; default 0 ... N-1.
        clean [N, D]: f(images), where known, which saves a pass. radius(norms [n], angles [n]): the certified radius of
        points with such embeddings; where the rest of a sample's steps is shorter, it takes none of them.
        on_iterate(points [n, C, H, W], index [n] into the batch, margins [n]) sees every point that is evaluated.
        Samples that are successes when clean come back as they are, with norm 0 (published attacks run on them too). A
        module runs in eval mode and is left as found. Raises InputError for what cannot be used.
        """
        ids = list(range(len(images))) if sample_ids is None else [int(i) for i in sample_ids]
        _check(images, targets, objective, tau, ids, box)
        if clean is not None and clean.shape != targets.shape:
            raise InputError(f"clean embeddings {tuple(clean.shape)}, expected those of the targets, {tuple(targets.shape)}")
        search = Search(self, embed, images, targets, objective, float(tau), seed, ids, box, radius, on_iterate)
        index = torch.arange(len(images), device=images.device)
        with torch.no_grad(), inputs_only(embed):
            if len(index) and not self.published:
                search.margin = search.evaluate(search.images, index, embeddings=clean).margins
                index = search.open()
            if len(index):
                self._run(search, index)
            if len(images) and self.minimum_norm and not self.published:
                _tighten(search)
        success = search.succeeds(search.margin)
        norm = torch.where(success, search.norm, math.inf) if self.minimum_norm else search.norm
        return AttackResult(search.best, success, norm, search.margin, search.forward_passes, search.backward_passes)

    def _run(self, search: Search, index: Tensor) -> None:
        raise NotImplementedError

    def _iterate(self, search: Search, state: State) -> State:
        """One round of `steps` steps and a last look; samples that are done are dropped. Returns the others' state."""
        for step in range(self.steps):
            look = search.evaluate(state["points"], state["index"], True, record=not self.published)
            active = ~self._done(search, look, state, step)
            margins, gradients = look.margins, cast(Tensor, look.gradients)
            if not active.all():
                state = {name: rows[active] for name, rows in state.items()}
                margins, gradients = margins[active], gradients[active]
            if not len(margins):
                return state
            state["points"] = self._step(search, state, margins, gradients, step)
        search.evaluate(state["points"], state["index"])
        return state

    def _done(self, search: Search, look: _Look, state: State, step: int) -> Tensor:
        """[n] bool: successes, and samples whose certificate covers all that the remaining steps can reach."""
        if self.minimum_norm or self.published:
            return torch.zeros_like(look.margins, dtype=torch.bool)
        done = search.succeeds(look.margins)
        if search.radius is not None:  # the allowance is for rounding: of a float32 network, of its steps, of the angle
            done |= search.radii(look) > 1.001 * self._path(state, step) + 1e-4
        return done

    def _path(self, state: State, step: int) -> Budget:
        """How far, in l2, the points [n] can still move from `step` on; infinite where that is not known."""
        return math.inf

    def _step(self, search: Search, state: State, margins: Tensor, gradients: Tensor, step: int) -> Tensor:
        raise NotImplementedError


def _check(images: Tensor, targets: Tensor, objective: str, tau: float, ids: list[int], box: Box) -> None:
    if objective not in OBJECTIVES:
        raise InputError(f"objective {objective!r} is not known, expected one of {', '.join(OBJECTIVES)}")
    if not -1 < tau < 1:
        raise InputError(f"tau is {tau}, expected a number between -1 and 1")
    if not images.is_floating_point() or images.dim() < 2:
        raise InputError(f"images are {images.dtype} of shape {tuple(images.shape)}, expected floats [N, C, H, W]")
    if targets.dim() != 2 or not len(targets) == len(images) == len(ids):
        raise InputError(f"targets {tuple(targets.shape)} and {len(ids)} sample_ids, expected {len(images)} of each")
    if any(i < 0 for i in ids):
        raise InputError(f"sample_ids hold {min(ids)}, expected non-negative numbers")
    outside = ~((images >= box[0]) & (images <= box[1])).flatten(1).all(1)
    if outside.any():
        raise InputError(f"image {int(outside.nonzero()[0])} of the batch has pixels outside {list(box)} or not finite")


def _tighten(search: Search) -> None:
    """Look for a smaller success between each success and its clean image: the last steps of a search are coarse."""
    index = (search.succeeds(search.margin) & (search.norm > 0)).nonzero().flatten()
    if not len(index):
        return
    images, found = search.images[index], search.best[index]
    low, high = torch.zeros_like(search.norm[index]), torch.ones_like(search.norm[index])
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        points = (images + (found - images) * each(middle, images)).clamp(*search.box)
        wins = search.succeeds(search.evaluate(points, index).margins)
        low, high = torch.where(wins, low, middle), torch.where(wins, middle, high)
