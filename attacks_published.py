"""The attacks as the paper's code ran them, which protocol "paper" reproduces, and its way of calling attacks.

attack = attacks.PGD(backbone, device, EasyDict(eps=0.5, alpha=1.25, n_iter=20))    or FGSM, CW, and the others
adversarial = attack.attack_untargeted(images)
adversarial = attack.attack_targeted(images, features, mode="D")
"""
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from attacks import ATTACKS, CW, FGSM, PGD
from attacks_base import Attack, Embed, Search, State, each, inputs_only, l2, project, unit
from utils import InputError


@dataclass(frozen=True, eq=False)
class PublishedPGD(PGD):
    """PGD as in the paper's code: from the image itself, steps of 1.25 eps / steps (or step_size) along the gradient of the batch mean
    divided by its norm + 1e-6 (so the batch size matters), in the ball at every step, clipped after the last one only.
    """
    published: ClassVar[bool] = True
    random_start: float = 0.0

    def _length(self, state: State, step: int) -> Tensor:
        return state["step_size"] if "step_size" in state else 1.25 * state["eps"] / self.steps

    def _scale(self, search: Search, mean: Tensor) -> Tensor:
        """What the gradients are divided by, [n]."""
        return l2(mean) + 1e-6

    def _step(self, search: Search, state: State, margins: Tensor, gradients: Tensor, step: int) -> Tensor:
        mean = gradients / len(gradients)
        length = self._length(state, step) / self._scale(search, mean)
        box = search.box if step == self.steps - 1 else (-math.inf, math.inf)
        return project(state["points"] - mean * each(length, mean), state["images"], state["eps"], box)


@dataclass(frozen=True, eq=False)
class PublishedFGSM(PublishedPGD):
    """One step of length eps in the manner of PublishedPGD. Untargeted, it divides by the norm alone: the gradient of cos(f(x), f(x)) is
    rounding noise, and its direction is moved along by the whole of eps.
    """
    steps: int = 1

    def _length(self, state: State, step: int) -> Tensor:
        return state["eps"]

    def _scale(self, search: Search, mean: Tensor) -> Tensor:
        if search.objective != "untargeted":
            return super()._scale(search, mean)
        norm = l2(mean)
        return torch.where(norm > 0, norm, 1.0)


@dataclass(frozen=True, eq=False)
class PublishedCW(CW):
    """C&W as in the paper's code: ||x* - x|| + c relu(cos - kappa), or c relu(1 - cos - kappa) for impersonation, with one c, from the
    image itself, its pixels clamped to 1e-6 inside the box. The last iterate counts; its success is measured at tau.
    """
    published: ClassVar[bool] = True
    binary_search_steps: int = 1
    initial_c: float = 3.0
    kappa: float = 0.05
    random_start: float = 0.0
    refinements: int = 0

    def _variable(self, points: Tensor, search: Search) -> Tensor:
        low, high = search.box
        return torch.atanh((points.clamp(low + 1e-6, high - 1e-6) - (low + high) / 2) / ((high - low) / 2))

    def _image(self, w: Tensor, search: Search) -> Tensor:
        # the start is off the image by what this rounds, and the first step is along that: it has to be tanh(w) / 2, not rounded further
        low, high = search.box
        return ((low + high) / 2 + torch.tanh(w) * ((high - low) / 2)).to(search.images.dtype)

    def _rate(self, step: int) -> float:
        return self.lr

    def _loss_gradient(self, search: Search, state: State, margins: Tensor, gradients: Tensor) -> Tensor:
        at_tau = 1 - search.tau if search.objective == "impersonation" else search.tau  # 1 - cos or cos, where m = 0
        weight = torch.where(margins + at_tau - self.kappa > 0, state["c"], 0.0)
        return unit(state["points"] - state["images"]) + gradients * each(weight, gradients)


class Bound:
    """An attack bound to a network, called as the published repository's FGSM, PGD and CW are: `PGD(backbone, device, params)` makes one.

    params, an EasyDict or another mapping: eps (l2); n_iter, the steps; alpha, for PGD step = alpha * eps / n_iter, for CW Adam's rate; for
    CW also c, the first one of the search, and kappa1, the cosine that it aims at (1 - kappa1 for mode "I"), unless there is a `tau`.
    Attacks with a budget follow the cosine through all steps: they return the point where it was lowest ("I": highest); with a `tau`, the
    first one that crosses it.

    protocol "strict": the attack of that name; what params leave out is its default. CW and DDN return the smallest perturbation that
    reaches the aim, the clean image where none does. "paper": as the published code ran it; the last iterate, whatever it is worth. Images
    are in [-0.5, 0.5], and results are adversarial images on `device`, to which the network is moved. Raises InputError for what cannot be
    used.
    """

    def __init__(self, kind: type[Attack], backbone: Embed, device: torch.device | str, params: Mapping[str, Any], protocol: str = "strict",
                 seed: int = 0):
        registered = next((entry for entry in map(ATTACKS.find, ATTACKS.names()) if entry.build is kind), None)
        kind = registered.form(protocol) if registered else kind
        self.attack, self.params, self.seed = kind(**_settings(kind, params)), params, seed
        self.backbone, self.device = backbone.to(device) if isinstance(backbone, nn.Module) else backbone, device

    def attack_untargeted(self, img: Tensor) -> Tensor:
        """Images [N, 3, H, W] moved so that their embeddings leave those of the images as they were."""
        img = img.to(self.device)
        with torch.no_grad(), inputs_only(self.backbone):
            features = self.backbone(img)
        return self._run(img, features, "untargeted")

    def attack_targeted(self, img: Tensor, tg_feat: Tensor, mode: str = "D") -> Tensor:
        """Images [N, 3, H, W] moved so that their embeddings leave ("D", dodging) or meet ("I", impersonation) the features [N, D]."""
        if mode not in _MODES:
            raise InputError(f"mode is {mode!r}, expected D (dodging) or I (impersonation)")
        return self._run(img.to(self.device), tg_feat.to(self.device), _MODES[mode])

    def _run(self, images: Tensor, targets: Tensor, objective: str) -> Tensor:
        return self.attack(self.backbone, images, targets, objective, self._threshold(objective), seed=self.seed).adversarial

    def _threshold(self, objective: str) -> float:
        """The cosine to be crossed: that of the published loss where a norm is minimised, else one that nothing crosses."""
        if "tau" in self.params:
            return self.params["tau"]
        lowest = self.params.get("kappa1", PublishedCW.kappa) if self.attack.minimum_norm else _LOWEST
        highest = 1 - lowest if self.attack.minimum_norm else -_LOWEST
        return highest if objective == "impersonation" else lowest


_MODES = {"D": "dodging", "I": "impersonation"}
_PARAMS = ("eps", "alpha", "n_iter", "kappa1", "kappa2", "c", "tau")
_LOWEST = math.nextafter(-1, 0)  # of the thresholds that there are


def _settings(kind: type[Attack], params: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of an attack that published params mean; what is of other attacks is passed over, as scripts share one EasyDict."""
    if unknown := [key for key in params if key not in _PARAMS]:
        raise InputError(f"params hold {unknown[0]!r}, expected {', '.join(_PARAMS)}")
    if params.get("kappa2"):
        warnings.warn(f"params: kappa2 = {params['kappa2']} is not used: the paper's loss has one margin, kappa1", stacklevel=4)
    names = {} if kind.minimum_norm else {"eps": "eps"}
    if not issubclass(kind, (FGSM, PublishedFGSM)):
        names["n_iter"] = "steps"
    if issubclass(kind, CW):
        names |= {"alpha": "lr", "c": "initial_c"} | ({"kappa1": "kappa"} if kind.published else {})
    if "eps" in names and "eps" not in params:
        raise InputError(f"{kind.__name__}: params lack eps")
    settings = {ours: params[theirs] for theirs, ours in names.items() if theirs in params}
    if kind in (PGD, PublishedPGD) and "alpha" in params:
        settings["step_size"] = params["alpha"] * params["eps"] / settings.get("steps", kind.steps)
    return settings
