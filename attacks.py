"""l2 attacks on an embedding function: (images, target embeddings) -> adversarial images.

The pair (image, target) is accepted iff cos(f(x*), target) > tau. With the margin

    m(x*) = cos(f(x*), target) - tau    untargeted (target = f(x)), dodging (target = f(y)): success iff m <= 0
    m(x*) = tau - cos(f(x*), target)    impersonation (target = f(y)):                       success iff m < 0

every attack lowers m, sample by sample: gradients are those of the sum over the batch, random numbers depend on the
seed and the sample's own id only, and a sample that is done leaves the batch. So neither batch companions nor sharding
change a result, beyond the rounding of the embedding function itself.

    fixed budget: FGSM, PGD, APGD (Croce & Hein 2020); in the eps-ball and the pixel range at each iterate
    minimum norm: CW (Carlini & Wagner 2017), DDN (Rony et al. 2019); the smallest successful perturbation, or infinity

    result = preset("pgd-20", eps=0.25)(network, images, network(others), "dodging", tau)
"""
import contextlib
import functools
import math
import re
from dataclasses import dataclass
from typing import Any, Callable, ClassVar, Iterator, NamedTuple, Optional, Sequence, Union

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils import InputError

OBJECTIVES = ("untargeted", "dodging", "impersonation")
Embed = Callable[[Tensor], Tensor]
Watcher = Callable[[Tensor, Tensor, Tensor], None]
Radius = Callable[[Tensor, Tensor], Tensor]
Box = tuple[float, float]
Budget = Union[float, Tensor]
State = dict[str, Tensor]  # what an attack keeps for its active samples, one row each


def cosine(embeddings: Tensor, targets: Tensor) -> Tensor:
    """cos [N] of the angles between rows [N, D]: 0 where one is zero (no direction, so a right angle), and -1, which no
    threshold accepts, where one is not finite; both with zero gradient.
    """
    norms = torch.stack((embeddings.detach().norm(dim=-1), targets.detach().norm(dim=-1)))
    finite, defined = norms.isfinite().all(0), (norms.isfinite() & (norms > 0)).all(0)
    e, t = (torch.where(defined[:, None], v, torch.ones_like(v)) for v in (embeddings, targets))
    e, t = (F.normalize(v, dim=-1, eps=torch.finfo(v.dtype).tiny) for v in (e, t))
    return torch.where(defined, (e * t).sum(-1), torch.where(finite, 0.0, -1.0).to(e))


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
    v = v / _each(torch.where(peak > 0, peak, 1.0), v)
    return v / _each(l2(v).clamp_min(1.0), v)  # the largest entry is 1 now, or all are 0


def _each(numbers: Tensor, like: Tensor) -> Tensor:
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
        inside = (images + delta * _each(scale, delta)).to(points.dtype).clamp(*box)
        outside = l2(inside.double() - images) > eps
        if not outside.any():
            return inside
        scale = torch.where(outside, scale * (1 - shrink), scale)
        shrink = min(1.0, 4 * shrink)


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
def _inputs_only(embed: Any) -> Iterator[None]:
    """Where `embed` is a module, a bound method of one or a partial of either: eval mode and no parameter gradients.

    Batch statistics would tie the samples of a batch together and be changed. All is put back, also after an error.
    """
    while isinstance(embed, functools.partial):
        embed = embed.func
    module = getattr(embed, "__self__", embed)
    if not isinstance(module, nn.Module):
        module = nn.Module()
    modes = [(m, m.training) for m in module.modules()]
    trainable = [p for p in module.parameters() if p.requires_grad]
    try:
        if any(training for _, training in modes):
            module.eval()
        for p in trainable:
            p.requires_grad_(False)
        yield
    finally:
        for p in trainable:
            p.requires_grad_(True)
        for m, training in modes:
            m.training = training


class _Look(NamedTuple):
    """What a pass over n points tells: margins [n], their gradients [n, C, H, W] if asked for, embeddings [n, D]."""
    margins: Tensor
    gradients: Optional[Tensor]
    embeddings: Tensor


class _Search:
    """One call of an attack: the problem, the passes it has cost, and the image to be returned for each sample."""

    def __init__(self, attack: "Attack", embed: Embed, images: Tensor, targets: Tensor, objective: str, tau: float,
                 seed: int, ids: Sequence[int], box: Box, radius: Optional[Radius], on_iterate: Optional[Watcher]):
        self.attack, self.embed, self.images, self.targets = attack, embed, images.detach(), targets.detach()
        self.objective, self.tau, self.box, self.on_iterate = objective, tau, box, on_iterate
        self.seed, self.ids, self.radius = seed, ids, radius
        self.best = self.images.clone()
        self.norm = torch.full((len(images),), math.inf, dtype=torch.float64, device=images.device)
        self.margin = torch.full_like(self.norm, math.inf)
        self.hits = torch.zeros_like(self.norm, dtype=torch.long)  # successful iterates
        self.forward_passes = self.backward_passes = 0

    def succeeds(self, margins: Tensor) -> Tensor:
        return succeeds(margins, self.objective)

    def open(self) -> Tensor:
        """The numbers of the samples without success so far."""
        return (~self.succeeds(self.margin)).nonzero().flatten()

    def evaluate(self, points: Tensor, index: Tensor, gradient: bool = False, record: bool = True,
                 embeddings: Optional[Tensor] = None) -> _Look:
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
        return self.radius(look.embeddings.double().norm(dim=1), cos.clamp(-1, 1).arccos())

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

    def __post_init__(self):
        for name in ("steps", "restarts", "binary_search_steps"):
            if getattr(self, name, 1) < 1:
                raise InputError(f"{type(self).__name__}: {name} is {getattr(self, name)}, expected at least 1")
        for name in ("eps", "step_size", "init_norm", "lr", "initial_c"):
            value = getattr(self, name, None)
            value = torch.as_tensor(1.0 if value is None else value)
            if not ((value > 0) & value.isfinite()).all():
                raise InputError(f"{type(self).__name__}: {name} is {value.tolist()}, expected positive and finite")

    def __call__(self, embed: Embed, images: Tensor, targets: Tensor, objective: str, tau: float, *, seed: int = 0,
                 sample_ids: Union[Sequence[int], Tensor, None] = None, box: Box = (-0.5, 0.5),
                 clean: Optional[Tensor] = None, radius: Optional[Radius] = None,
                 on_iterate: Optional[Watcher] = None) -> AttackResult:
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
        search = _Search(self, embed, images, targets, objective, float(tau), seed, ids, box, radius, on_iterate)
        index = torch.arange(len(images), device=images.device)
        with torch.no_grad(), _inputs_only(embed):
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

    def _run(self, search: _Search, index: Tensor) -> None:
        raise NotImplementedError

    def _iterate(self, search: _Search, state: State) -> State:
        """One round of `steps` steps and a last look; samples that are done are dropped. Returns the others' state."""
        for step in range(self.steps):
            look = search.evaluate(state["points"], state["index"], True, record=not self.published)
            active = ~self._done(search, look, state, step)
            margins, gradients = look.margins, look.gradients
            if not active.all():
                state = {name: rows[active] for name, rows in state.items()}
                margins, gradients = margins[active], gradients[active]
            if not len(margins):
                return state
            state["points"] = self._step(search, state, margins, gradients, step)
        search.evaluate(state["points"], state["index"])
        return state

    def _done(self, search: _Search, look: _Look, state: State, step: int) -> Tensor:
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

    def _step(self, search: _Search, state: State, margins: Tensor, gradients: Tensor, step: int) -> Tensor:
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


def _tighten(search: _Search, bisections: int = 8) -> None:
    """Look for a smaller success between each success and its clean image: the last steps of a search are coarse."""
    index = (search.succeeds(search.margin) & (search.norm > 0)).nonzero().flatten()
    if not len(index):
        return
    images, found = search.images[index], search.best[index]
    low, high = torch.zeros_like(search.norm[index]), torch.ones_like(search.norm[index])
    for _ in range(bisections):
        middle = (low + high) / 2
        points = (images + (found - images) * _each(middle, images)).clamp(*search.box)
        wins = search.succeeds(search.evaluate(points, index).margins)
        low, high = torch.where(wins, low, middle), torch.where(wins, middle, high)


@dataclass(frozen=True, eq=False)
class PGD(Attack):
    """Projected steps along the normalised gradient of the margin, each sample until its first success.

    eps, step_size: l2, a number or one for each sample [N]. step_size None: steps that fall linearly from 2 eps, which
    reach further in few steps than constant ones, and end finer. The first start is a random point at random_start of
    eps from the image, as the untargeted margin is stationary at the image itself; a start far out costs dodging and
    impersonation steps to come back. Restarts start at 1/2, 3/4, 7/8 ... of eps. momentum: of the direction.
    """
    eps: Budget
    steps: int = 20
    step_size: Optional[Budget] = None
    restarts: int = 1
    random_start: float = 0.01
    momentum: float = 0.0

    def _run(self, search: _Search, index: Tensor) -> None:
        for restart in range(self.restarts):
            self._iterate(search, self._start(search, index, restart))
            index = search.open()
            if not len(index):
                return

    def _per_sample(self, search: _Search, value: Budget, index: Tensor) -> Tensor:
        count = len(search.norm)
        value = torch.as_tensor(value, dtype=torch.float64, device=search.norm.device).flatten()
        if value.numel() not in (1, count):
            raise InputError(f"{type(self).__name__}: {value.numel()} budgets or step sizes for {count} images")
        return value.expand(count)[index]

    def _start(self, search: _Search, index: Tensor, restart: int) -> State:
        images, eps = search.images[index], self._per_sample(search, self.eps, index)
        state = {"index": index, "points": images, "images": images, "eps": eps, "velocity": torch.zeros_like(images)}
        if self.step_size is not None:
            state["step_size"] = self._per_sample(search, self.step_size, index)
        share = 1 - 0.5 ** restart if restart else self.random_start
        if share:
            noise = search.noise(index, restart)
            state["points"] = project(images + noise * _each(share * eps, images), images, eps, search.box)
        return state

    def _length(self, state: State, step: int) -> Tensor:
        return state["step_size"] if "step_size" in state else 2 * state["eps"] * (1 - step / self.steps)

    def _path(self, state: State, step: int) -> Budget:
        # neither projection moves a point further than the step did: ball and box are convex
        return sum(self._length(state, later) for later in range(step, self.steps))

    def _step(self, search: _Search, state: State, margins: Tensor, gradients: Tensor, step: int) -> Tensor:
        state["velocity"] = self.momentum * state["velocity"] - unit(gradients)
        direction = unit(state["velocity"])
        points = state["points"] + direction * _each(self._length(state, step), direction)
        return project(points, state["images"], state["eps"], search.box)


@dataclass(frozen=True, eq=False)
class FGSM(PGD):
    """One step to the surface of the eps-ball along the gradient, from a small random start."""
    steps: int = 1


@dataclass(frozen=True, eq=False)
class APGD(PGD):
    """PGD without a schedule to choose: Croce & Hein, ICML 2020, algorithm 1.

    Steps of 2 eps (or step_size) with momentum, halved with a return to the best point at a checkpoint where fewer than
    0.75 of the steps since the last one lowered the margin, or neither step nor lowest margin has changed since.
    """
    steps: int = 100
    momentum: float = 0.25

    def _path(self, state: State, step: int) -> Budget:
        return math.inf  # a return to the best point can be longer than any step

    @functools.cached_property
    def _windows(self) -> dict[int, int]:
        """The checkpoints, with the number of steps since the one before."""
        windows, last, share, width = {}, 0, 0.22, 0.22
        while share <= 1:
            step = math.ceil(share * self.steps)
            if step > last:
                windows[step], last = step - last, step
            width = max(width - 0.03, 0.06)
            share += width
        return windows

    def _start(self, search: _Search, index: Tensor, restart: int) -> State:
        state = super()._start(search, index, restart)
        points, eps = state["points"], state["eps"]
        worst, none = torch.full_like(eps, math.inf), torch.zeros_like(eps)
        return {**state, "step_size": state.get("step_size", 2 * eps), "previous": points, "best": points,
                "best_gradient": torch.zeros_like(points), "lowest": worst, "last": worst, "before": worst,
                "lowered": none, "halved": none > 0}

    def _step(self, search: _Search, state: State, margins: Tensor, gradients: Tensor, step: int) -> Tensor:
        s, points = state, state["points"]
        better = _each(margins < s["lowest"], points)
        s["best"] = torch.where(better, points, s["best"])
        s["best_gradient"] = torch.where(better, gradients, s["best_gradient"])
        s["lowered"] = s["lowered"] + (margins < s["last"]) if step else s["lowered"]
        s["lowest"], s["last"] = torch.minimum(margins, s["lowest"]), margins
        s["before"] = s["before"] if step else margins
        previous, s["previous"] = s["previous"], points
        if step in self._windows:
            s["halved"] = (s["lowered"] < 0.75 * self._windows[step]) | (~s["halved"] & (s["lowest"] >= s["before"]))
            s["step_size"] = torch.where(s["halved"], s["step_size"] / 2, s["step_size"])
            s["before"], s["lowered"] = s["lowest"], torch.zeros_like(s["lowered"])
            back = _each(s["halved"], points)
            points, previous = torch.where(back, s["best"], points), torch.where(back, s["best"], previous)
            gradients = torch.where(back, s["best_gradient"], gradients)
            s["previous"] = points
        ahead = points - unit(gradients) * _each(s["step_size"], points)
        ahead = project(ahead, s["images"], s["eps"], search.box)
        if step:
            ahead = points + (1 - self.momentum) * (ahead - points) + self.momentum * (points - previous)
        return project(ahead, s["images"], s["eps"], search.box)


@dataclass(frozen=True, eq=False)
class DDN(Attack):
    """Decoupled direction and norm: Rony et al., CVPR 2019. The radius shrinks by 1 - gamma after a success and grows
    by 1 + gamma otherwise; the direction follows the normalised gradient. Steps (in parts of the radius, so that the
    scale of the images does not matter) fall from 1 to 0.01, and gamma likewise in the second half, for a fine end.

    init_norm: first radius, l2, unless a linear margin would be 0 nearer by. random_start: l2 of the first point.
    Restarts start half as far as the smallest success so far, as another path may find another minimum; without one,
    with a radius ten times larger, up to a thousand times.
    """
    minimum_norm: ClassVar[bool] = True
    steps: int = 100
    restarts: int = 6
    init_norm: float = 1.0
    gamma: float = 0.05
    random_start: float = 0.01

    def _run(self, search: _Search, index: Tensor) -> None:
        images = search.images[index]
        for restart in range(self.restarts):
            best = search.norm[index]
            radius = torch.where(best.isfinite(), best, self.init_norm * 10 ** min(restart, 3))  # float16 ends at 65504
            far = radius / 2 if restart else torch.full_like(radius, self.random_start)
            points = (images + search.noise(index, restart) * _each(far, images)).clamp(*search.box)
            self._iterate(search, {"index": index, "points": points, "images": images, "radius": radius})

    def _step(self, search: _Search, state: State, margins: Tensor, gradients: Tensor, step: int) -> Tensor:
        images, radius, delta = state["images"], state["radius"], state["points"] - state["images"]
        if step == 0:
            here = l2(delta)
            radius = torch.minimum(radius, torch.maximum(here + margins / l2(gradients), here / 2))
        share, gamma = 0.01 ** (step / self.steps), self.gamma * min(1.0, 0.01 ** (2 * step / self.steps - 1))
        delta = delta - share * unit(gradients) * _each(radius, images)
        state["radius"] = radius * (1 + gamma * torch.where(search.succeeds(margins), -1.0, 1.0))
        return (images + unit(delta) * _each(state["radius"], images)).clamp(*search.box)


@dataclass(frozen=True, eq=False)
class CW(Attack):
    """Carlini & Wagner, S&P 2017: Adam on w, x* = tanh(w) mapped to the box, for ||x* - x||^2 + c relu(m + kappa).

    c is searched for each sample: times ten until a round has a success, then halving the interval. Early rounds start in
    turn at the smallest success so far, to refine it, and near the image, as there may be a smaller one elsewhere; where
    there is none yet, where the last round ended. lr, in units of w, falls to 0 in the second half of a round, as Adam
    alone keeps circling the boundary. random_start: l2 of the first point. w is kept in float32 or better.

    Then `refinements` rounds of DDN look for something smaller than what the search came to: a penalty is slow where the
    boundary has a kink, and tanh is nearly flat for pixels at an end of the box, which DDN in pixels can move.
    """
    minimum_norm: ClassVar[bool] = True
    steps: int = 100
    binary_search_steps: int = 9
    lr: float = 0.01
    initial_c: float = 5.0
    kappa: float = 0.0
    random_start: float = 0.01
    refinements: int = 6

    def _run(self, search: _Search, index: Tensor) -> None:
        self._search_c(search, index)
        if self.refinements:
            DDN(self.steps, self.refinements)._run(search, index)

    def _search_c(self, search: _Search, index: Tensor) -> None:
        c = torch.full_like(search.norm[index], self.initial_c)
        low, high = torch.zeros_like(c), torch.full_like(c, math.inf)
        points = self._near(search, index, 0)
        for turn in range(1, self.binary_search_steps + 1):
            before = search.hits[index]
            points = self._iterate(search, self._start(search, index, points, c))["points"]
            found = search.hits[index] > before
            low, high = torch.where(found, low, c), torch.where(found, c, high)
            c = torch.where(high.isfinite(), (low + high) / 2, 10 * c)
            again = turn % 2 == 0 and turn <= self.binary_search_steps / 2
            fresh = self._near(search, index, turn) if again else search.best[index]
            points = torch.where(_each(high.isfinite(), points), fresh, points)

    def _near(self, search: _Search, index: Tensor, turn: int) -> Tensor:
        """Points at random_start from the images."""
        if not self.random_start:
            return search.images[index]
        return (search.images[index] + self.random_start * search.noise(index, turn)).clamp(*search.box)

    def _start(self, search: _Search, index: Tensor, points: Tensor, c: Tensor) -> State:
        low, high = search.box
        points = points.to(torch.promote_types(points.dtype, torch.float32))
        # the inverse is infinite at the ends of the box, where tanh would be flat for good
        w = torch.atanh(((points - low) / (high - low) * 2 - 1) * (1 - 1e-6))
        return {"index": index, "images": search.images[index], "points": self._image(w, search), "w": w, "c": c,
                "mean": torch.zeros_like(w), "square": torch.zeros_like(w)}

    @staticmethod
    def _image(w: Tensor, search: _Search) -> Tensor:
        low, high = search.box
        return (low + (high - low) * (torch.tanh(w) + 1) / 2).clamp(low, high).to(search.images.dtype)

    def _rate(self, step: int) -> float:
        return self.lr * min(1.0, 2 - 2 * step / self.steps)

    def _loss_gradient(self, search: _Search, state: State, margins: Tensor, gradients: Tensor) -> Tensor:
        weight = torch.where(margins + self.kappa > 0, state["c"], 0.0)
        return 2 * (state["points"] - state["images"]) + gradients * _each(weight, gradients)

    def _step(self, search: _Search, state: State, margins: Tensor, gradients: Tensor, step: int) -> Tensor:
        s, half_width = state, (search.box[1] - search.box[0]) / 2
        gradient = self._loss_gradient(search, s, margins, gradients).to(s["w"].dtype)
        gradient = gradient * half_width * (1 - torch.tanh(s["w"]) ** 2)
        s["mean"], s["square"] = s["mean"].lerp(gradient, 0.1), s["square"].lerp(gradient ** 2, 0.001)
        mean, square = s["mean"] / (1 - 0.9 ** (step + 1)), s["square"] / (1 - 0.999 ** (step + 1))
        s["w"] = s["w"] - self._rate(step) * mean / (square.sqrt() + 1e-8)
        return self._image(s["w"], search)


@dataclass(frozen=True, eq=False)
class PublishedPGD(PGD):
    """PGD as in the paper's code: from the image itself, steps of 1.25 eps / steps along the gradient of the batch mean
    divided by its norm + 1e-6 (so the batch size matters), in the ball at every step, clipped after the last one only.
    """
    published: ClassVar[bool] = True
    random_start: float = 0.0

    def _length(self, state: State, step: int) -> Tensor:
        return 1.25 * state["eps"] / self.steps

    def _step(self, search: _Search, state: State, margins: Tensor, gradients: Tensor, step: int) -> Tensor:
        mean = gradients / len(gradients)
        length = self._length(state, step) / (l2(mean) + 1e-6)
        box = search.box if step == self.steps - 1 else (-math.inf, math.inf)
        return project(state["points"] - mean * _each(length, mean), state["images"], state["eps"], box)


@dataclass(frozen=True, eq=False)
class PublishedFGSM(PublishedPGD):
    """One step of length eps in the manner of PublishedPGD."""
    steps: int = 1

    def _length(self, state: State, step: int) -> Tensor:
        return state["eps"]


@dataclass(frozen=True, eq=False)
class PublishedCW(CW):
    """C&W as in the paper's code: ||x* - x|| + c relu(cos - kappa), or c relu(1 - cos - kappa) for impersonation, with
    one c, from the image itself. The last iterate counts; its success is measured at tau.
    """
    published: ClassVar[bool] = True
    binary_search_steps: int = 1
    initial_c: float = 3.0
    kappa: float = 0.05
    random_start: float = 0.0
    refinements: int = 0

    def _rate(self, step: int) -> float:
        return self.lr

    def _loss_gradient(self, search: _Search, state: State, margins: Tensor, gradients: Tensor) -> Tensor:
        at_tau = 1 - search.tau if search.objective == "impersonation" else search.tau  # 1 - cos or cos, where m = 0
        weight = torch.where(margins + at_tau - self.kappa > 0, state["c"], 0.0)
        return unit(state["points"] - state["images"]) + gradients * _each(weight, gradients)


_STRICT = {"fgsm": FGSM, "pgd": PGD, "apgd": APGD, "cw": CW, "ddn": DDN}
_PAPER = {**_STRICT, "fgsm": PublishedFGSM, "pgd": PublishedPGD, "cw": PublishedCW}


def preset(name: str, eps: Optional[Budget] = None, protocol: str = "strict", **settings: Any) -> Attack:
    """The attack `name`: fgsm, pgd, apgd, cw or ddn, if wanted with its number of steps ("pgd-20", "cw-100").

    protocol "paper": as the published code ran it (apgd and ddn, which it has not, are the same in both). settings go
    to the class. Raises InputError for an unknown name or protocol, for a fixed-budget attack without eps, and for a
    minimum-norm attack with one.
    """
    match = re.fullmatch(r"([a-z]+)(?:-(\d+))?", name)
    kind = {"strict": _STRICT, "paper": _PAPER}.get(protocol, {}).get(match[1] if match else "")
    if kind is None:
        raise InputError(f"attack {name!r} under protocol {protocol!r} is not known, expected strict or paper and one "
                         f"of {', '.join(_STRICT)}, with steps as in 'pgd-20' if wanted")
    if kind.minimum_norm != (eps is None):
        expected = "none: it looks for the smallest" if kind.minimum_norm else "a budget"
        raise InputError(f"attack {name!r} has eps {eps}, expected {expected}")
    if match[2]:
        settings["steps"] = int(match[2])
    return kind(**settings) if eps is None else kind(eps, **settings)
