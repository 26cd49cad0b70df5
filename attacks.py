"""l2 attacks on an embedding function: (images, target embeddings) -> adversarial images.

    fixed budget: FGSM, PGD, APGD (Croce & Hein 2020); in the eps-ball and the pixel range at each iterate
    minimum norm: CW (Carlini & Wagner 2017), DDN (Rony et al. 2019); the smallest successful perturbation, or infinity

    result = preset("pgd-20", eps=0.25)(network, images, network(others), "dodging", tau)

What they lower, and when they succeed, is said in attacks_base.py; attacks_published.py has them as the paper's code ran them, and its
way of calling them. Another attack is a subclass of `Attack`, known by a name once it is registered, or as `package.module:Name`.
"""
import functools
import math
import re
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from attacks_base import (
    OBJECTIVES,
    Attack,
    AttackResult,
    Box,
    Budget,
    Embed,
    Radius,
    Search,
    State,
    Watcher,
    each,
    l2,
    margin,
    project,
    succeeds,
    unit,
)
from utils import InputError
from utils.directions import cosine
from utils.registry import Registry

__all__ = ["APGD", "ATTACKS", "CW", "DDN", "FGSM", "OBJECTIVES", "PGD", "Attack", "AttackEntry", "AttackResult", "Box", "Budget", "Embed",
           "Radius", "Search", "State", "Watcher", "attack_names", "cosine", "each", "l2", "margin", "preset", "project", "register",
           "succeeds", "unit"]


@dataclass
class AttackEntry:
    """What commands need to know of an attack.

    label: how tables write it. paper: the name of the attack that runs in its place under protocol "paper", if another does.
    """
    name: str
    build: type[Attack]
    label: str = ""
    paper: str = ""
    minimum_norm: bool = field(init=False)

    def __post_init__(self) -> None:
        if not (isinstance(self.build, type) and issubclass(self.build, Attack)):
            raise InputError(f"attack {self.name}: is {self.build!r}, expected a subclass of attacks.Attack")
        self.label = self.label or self.build.__name__
        self.minimum_norm = self.build.minimum_norm

    def form(self, protocol: str) -> type[Attack]:
        """The class that a protocol runs. Raises InputError for another word than strict and paper."""
        if protocol not in ("strict", "paper"):
            raise InputError(f"attack {self.name}: protocol {protocol!r} is not known, expected strict or paper")
        return ATTACKS.find(self.paper).build if self.paper and protocol == "paper" else self.build


ATTACKS: Registry[AttackEntry] = Registry("attack", AttackEntry)
register = ATTACKS.register


def attack_names() -> list[str]:
    """The names of the registered attacks."""
    return ATTACKS.names()


def preset(name: str, eps: Budget | None = None, protocol: str = "strict", **settings: Any) -> Attack:
    """The attack `name`: a registered one or `package.module:Name`, if wanted with its number of steps ("pgd-20", "cw-100").

    protocol "paper": as the published code ran it (attacks that it has not are the same in both). settings go to the class. Raises
    InputError for an unknown name or protocol, for a fixed-budget attack without eps, and for a minimum-norm attack with one.
    """
    name, steps = re.findall(r"\A(.*?)(?:-(\d+))?\Z", name, re.DOTALL)[0]
    kind = ATTACKS.find(name).form(protocol)
    if kind.minimum_norm != (eps is None):
        expected = "none: it looks for the smallest" if kind.minimum_norm else "a budget"
        raise InputError(f"attack {name!r} has eps {eps}, expected {expected}")
    if steps:
        settings["steps"] = int(steps)
    return kind(**settings) if eps is None else kind(eps, **settings)


@register("pgd", label="PGD", paper="attacks_published:PublishedPGD")
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
    step_size: Budget | None = None
    restarts: int = 1
    random_start: float = 0.01
    momentum: float = 0.0

    def _run(self, search: Search, index: Tensor) -> None:
        for restart in range(self.restarts):
            self._iterate(search, self._start(search, index, restart))
            index = search.open()
            if not len(index):
                return

    def _per_sample(self, search: Search, value: Budget, index: Tensor) -> Tensor:
        count = len(search.norm)
        value = torch.as_tensor(value, dtype=torch.float64, device=search.norm.device).flatten()
        if value.numel() not in (1, count):
            raise InputError(f"{type(self).__name__}: {value.numel()} budgets or step sizes for {count} images")
        return value.expand(count)[index]

    def _start(self, search: Search, index: Tensor, restart: int) -> State:
        images, eps = search.images[index], self._per_sample(search, self.eps, index)
        state = {"index": index, "points": images, "images": images, "eps": eps, "velocity": torch.zeros_like(images)}
        if self.step_size is not None:
            state["step_size"] = self._per_sample(search, self.step_size, index)
        share = 1 - 0.5 ** restart if restart else self.random_start
        if share:
            noise = search.noise(index, restart)
            state["points"] = project(images + noise * each(share * eps, images), images, eps, search.box)
        return state

    def _length(self, state: State, step: int) -> Tensor:
        return state["step_size"] if "step_size" in state else 2 * state["eps"] * (1 - step / self.steps)

    def _path(self, state: State, step: int) -> Budget:
        # neither projection moves a point further than the step did: ball and box are convex
        return sum(self._length(state, later) for later in range(step, self.steps))

    def _step(self, search: Search, state: State, margins: Tensor, gradients: Tensor, step: int) -> Tensor:
        return project(self.ahead(state, gradients, step), state["images"], state["eps"], search.box)

    def ahead(self, state: State, gradients: Tensor, step: int) -> Tensor:
        """Where step number `step` leads from state["points"], before it is projected. Training takes the same steps (adversarial.py)."""
        state["velocity"] = self.momentum * state["velocity"] - unit(gradients)
        direction = unit(state["velocity"])
        return state["points"] + direction * each(self._length(state, step), direction)


@register("fgsm", label="FGSM", paper="attacks_published:PublishedFGSM")
@dataclass(frozen=True, eq=False)
class FGSM(PGD):
    """One step along the gradient from a small random start, both ways: of the two ends, on the surface of the eps-ball, the better one
    counts. Near the image the untargeted margin falls on both sides, and the gradient at the start says little about which falls further.
    """
    steps: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps != 1:
            raise InputError(f"FGSM: steps is {self.steps}, but it takes one")

    @property
    def most_passes(self) -> int:
        """The other end is looked at as well."""
        return super().most_passes + self.restarts

    def _step(self, search: Search, state: State, margins: Tensor, gradients: Tensor, step: int) -> Tensor:
        state["behind"] = super()._step(search, {**state}, margins, -gradients, step)
        return super()._step(search, state, margins, gradients, step)

    def _iterate(self, search: Search, state: State) -> State:
        state = super()._iterate(search, state)
        held = ~search.succeeds(search.margin[state["index"]])
        if held.any():
            search.evaluate(state["behind"][held], state["index"][held])
        return state


@register("apgd", label="APGD")
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

    def _start(self, search: Search, index: Tensor, restart: int) -> State:
        state = super()._start(search, index, restart)
        points, eps = state["points"], state["eps"]
        worst, none = torch.full_like(eps, math.inf), torch.zeros_like(eps)
        return {**state, "step_size": state.get("step_size", 2 * eps), "previous": points, "best": points,
                "best_gradient": torch.zeros_like(points), "lowest": worst, "last": worst, "before": worst,
                "lowered": none, "halved": none > 0}

    def _step(self, search: Search, state: State, margins: Tensor, gradients: Tensor, step: int) -> Tensor:
        s, points = state, state["points"]
        better = each(margins < s["lowest"], points)
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
            back = each(s["halved"], points)
            points, previous = torch.where(back, s["best"], points), torch.where(back, s["best"], previous)
            gradients = torch.where(back, s["best_gradient"], gradients)
            s["previous"] = points
        ahead = points - unit(gradients) * each(s["step_size"], points)
        ahead = project(ahead, s["images"], s["eps"], search.box)
        if step:
            ahead = points + (1 - self.momentum) * (ahead - points) + self.momentum * (points - previous)
        return project(ahead, s["images"], s["eps"], search.box)


@register("ddn", label="DDN")
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

    def _run(self, search: Search, index: Tensor) -> None:
        images = search.images[index]
        for restart in range(self.restarts):
            best = search.norm[index]
            radius = torch.where(best.isfinite(), best, self.init_norm * 10 ** min(restart, 3))  # float16 ends at 65504
            far = radius / 2 if restart else torch.full_like(radius, self.random_start)
            points = (images + search.noise(index, restart) * each(far, images)).clamp(*search.box)
            self._iterate(search, {"index": index, "points": points, "images": images, "radius": radius})

    def _step(self, search: Search, state: State, margins: Tensor, gradients: Tensor, step: int) -> Tensor:
        images, radius, delta = state["images"], state["radius"], state["points"] - state["images"]
        if step == 0:
            here = l2(delta)
            radius = torch.minimum(radius, torch.maximum(here + margins / l2(gradients), here / 2))
        share, gamma = 0.01 ** (step / self.steps), self.gamma * min(1.0, 0.01 ** (2 * step / self.steps - 1))
        delta = delta - share * unit(gradients) * each(radius, images)
        state["radius"] = radius * (1 + gamma * torch.where(search.succeeds(margins), -1.0, 1.0))
        return (images + unit(delta) * each(state["radius"], images)).clamp(*search.box)


@register("cw", label="C&W", paper="attacks_published:PublishedCW")
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

    @property
    def most_passes(self) -> int:
        """Of all rounds."""
        return super().most_passes + (self.binary_search_steps + self.refinements - 1) * (self.steps + 1)

    def _run(self, search: Search, index: Tensor) -> None:
        self._search_c(search, index)
        if self.refinements:
            DDN(self.steps, self.refinements)._run(search, index)

    def _search_c(self, search: Search, index: Tensor) -> None:
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
            points = torch.where(each(high.isfinite(), points), fresh, points)

    def _near(self, search: Search, index: Tensor, turn: int) -> Tensor:
        """Points at random_start from the images."""
        if not self.random_start:
            return search.images[index]
        return (search.images[index] + self.random_start * search.noise(index, turn)).clamp(*search.box)

    def _start(self, search: Search, index: Tensor, points: Tensor, c: Tensor) -> State:
        w = self._variable(points.to(torch.promote_types(points.dtype, torch.float32)), search)
        return {"index": index, "images": search.images[index], "points": self._image(w, search), "w": w, "c": c,
                "mean": torch.zeros_like(w), "square": torch.zeros_like(w)}

    def _variable(self, points: Tensor, search: Search) -> Tensor:
        """w of points, slightly drawn inwards: it is infinite at the ends of the box, where tanh would be flat for good."""
        low, high = search.box
        return torch.atanh(((points - low) / (high - low) * 2 - 1) * (1 - 1e-6))

    def _image(self, w: Tensor, search: Search) -> Tensor:
        low, high = search.box
        return (low + (high - low) * (torch.tanh(w) + 1) / 2).clamp(low, high).to(search.images.dtype)

    def _rate(self, step: int) -> float:
        return self.lr * min(1.0, 2 - 2 * step / self.steps)

    def _loss_gradient(self, search: Search, state: State, margins: Tensor, gradients: Tensor) -> Tensor:
        weight = torch.where(margins + self.kappa > 0, state["c"], 0.0)
        return 2 * (state["points"] - state["images"]) + gradients * each(weight, gradients)

    def _step(self, search: Search, state: State, margins: Tensor, gradients: Tensor, step: int) -> Tensor:
        s, half_width = state, (search.box[1] - search.box[0]) / 2
        gradient = self._loss_gradient(search, s, margins, gradients).to(s["w"].dtype)
        gradient = gradient * half_width * (1 - torch.tanh(s["w"]) ** 2)
        s["mean"], s["square"] = s["mean"].lerp(gradient, 0.1), s["square"].lerp(gradient ** 2, 0.001)
        mean, square = s["mean"] / (1 - 0.9 ** (step + 1)), s["square"] / (1 - 0.999 ** (step + 1))
        s["w"] = s["w"] - self._rate(step) * mean / (square.sqrt() + 1e-8)
        return self._image(s["w"], search)
