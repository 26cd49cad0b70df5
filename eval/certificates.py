"""Certificates: what an attacker may move, and the radius up to which no such attack changes a decision.

Each one registers itself here, beside its definition; a certificate of somebody else's is given as `package.module:Name`. The formulas are
those of certification.py; nothing else in eval/ chooses between them.
"""
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from torch import Tensor

from eval import certification
from utils import InputError
from utils.registry import Registry


@dataclass(frozen=True)
class Entry:
    """name: what commands call it; build: the class."""
    name: str
    build: Callable[[], "Certificate"]


GEOMETRIES = ("one", "both", "joint")
CERTIFICATES: Registry[Entry] = Registry("certificate", Entry)


class Case(NamedTuple):
    """N pairs whose radius is asked for. norm_left, norm_right [N]: l2 norms of the embeddings; theta [N]: the angle between them, radians;
    tau: the threshold; protocol: "strict" or "paper"; dimension: how many numbers an image has.
    """
    norm_left: Any
    norm_right: Any
    theta: Any
    tau: float
    protocol: str = "strict"
    dimension: int = 0


class Certificate:
    """The radius of a decision about a pair against one kind of attacker.

    geometry says what the attacker may move: "one", either image of the pair, by less than the radius; "both", each image by less than it;
    "joint", both, with sqrt(|dx|^2 + |dy|^2) below it. label: the same in a few words. The network is 1-Lipschitz in l2.
    """
    geometry: ClassVar[str] = "one"
    label: str = "one image moves"
    name: str = ""

    @property
    def column(self) -> str:
        """Of the radii among the pairs: radius_{name}, of `package.module:Name` radius_{Name}."""
        return f"radius_{self.name.rpartition(':')[2]}"

    def radius(self, case: Case) -> Tensor:
        """Radii float64 [N] in l2 of images in [-0.5, 0.5], where the decision is right: what is wrong has radius 0, which is seen to
        elsewhere. Rounded down.
        """
        raise NotImplementedError

    def sides(self, case: Case) -> tuple[Tensor, Tensor]:
        """l2 radii [N] that an attack on the left and one on the right image are to stay below, for audits of a geometry "one"."""
        radius = self.radius(case)
        return radius, radius


@CERTIFICATES.register("one")
class OneImage(Certificate):
    """Theorem 1: either image may move, the other one stays."""

    @property
    def column(self) -> str:
        return "radius"

    def radius(self, case: Case) -> Tensor:
        return certification.pair_radius(case.norm_left, case.norm_right, case.theta, case.tau, case.protocol)

    def sides(self, case: Case) -> tuple[Tensor, Tensor]:
        return self.side(case.norm_left, case.theta, case.tau), self.side(case.norm_right, case.theta, case.tau)

    @staticmethod
    def side(norm: Any, theta: Any, tau: float) -> Tensor:
        """The radius of an attack on the image whose embedding has this norm."""
        return certification.one_sided_radius(norm, theta, tau)

    @staticmethod
    def untargeted(norm: Any, tau: float, protocol: str = "strict") -> Tensor:
        """The radius of an image that is compared with itself as it was."""
        return certification.untargeted_radius(norm, tau, protocol)


ONE = OneImage()


@CERTIFICATES.register("both")
class BothImages(Certificate):
    """Both images may move, each by less than the radius."""
    geometry = "both"
    label = "both images move, each by eps"

    def radius(self, case: Case) -> Tensor:
        return certification.two_sided_radius(case.norm_left, case.norm_right, case.theta, case.tau)


@CERTIFICATES.register("joint")
class JointBudget(Certificate):
    """Both images may move, with one budget for the two."""
    geometry = "joint"
    label = "both images move, eps for the two together"

    def radius(self, case: Case) -> Tensor:
        return certification.joint_radius(case.norm_left, case.norm_right, case.theta, case.tau)


class OneImageLp(OneImage):
    """Theorem 1 in the l_p norm, 1 <= p <= inf, as |d|_2 <= n^max(0, 1/2 - 1/p) |d|_p for n numbers.

    Its ball lies in the l2 ball of Theorem 1, inside which an audit attacks.
    """

    def __init__(self, p: float):
        self.p, self.name, self.label = p, f"l{p:g}", f"one image moves, l_{p:g} norm"

    @property
    def column(self) -> str:
        return f"radius_{self.name}"

    def radius(self, case: Case) -> Tensor:
        return self.from_l2(super().radius(case), case.dimension)

    def from_l2(self, radius: Any, dimension: int) -> Tensor:
        """The l_p radius that an l2 radius of an image of so many numbers guarantees."""
        return certification.lp_radius(radius, self.p, dimension)


CERTIFICATES.register("linf")(functools.partial(OneImageLp, math.inf))
CERTIFICATES.register("l1")(functools.partial(OneImageLp, 1.0))


def certificate(name: str) -> Certificate:
    """The certificate of a registered name, or of `package.module:Name`. Raises InputError where there is none."""
    entry = CERTIFICATES.find(name)
    found = entry.build()
    if not isinstance(found, Certificate) or found.geometry not in GEOMETRIES:
        raise InputError(f"certificate {name}: is a {type(found).__name__} of geometry {getattr(found, 'geometry', None)!r}, expected a "
                         f"Certificate of one of {', '.join(GEOMETRIES)}")
    found.name = entry.name
    return found


def checked(one: Certificate, radius: Any, count: int) -> np.ndarray:
    """Radii that a certificate gave for so many pairs, float64. Raises InputError unless each is a number from 0 up."""
    found = np.asarray(radius.cpu() if isinstance(radius, Tensor) else radius)
    if found.shape != (count,) or found.dtype.kind != "f" or not (np.isfinite(found) & (found >= 0)).all():
        raise InputError(f"certificate {one.name}: its radii are {found.dtype} {list(found.shape)}, expected {count} floats, finite and "
                         "from 0 up")
    return found.astype(np.float64)
