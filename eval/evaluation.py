"""What is asked of an evaluation of pairs: the one home of its defaults."""
import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

from utils import InputError

PROTOCOLS = ("strict", "paper")  # by the definitions, or as the published figures were made
FLIPS = ("none", "average")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The settings that the figures of a result depend on, besides the network and the pairs.

    protocol: "strict", by the definitions, or "paper", as the published figures were made. far: the false-acceptance rate that the
    threshold is chosen for; tau: the threshold itself, a cosine, instead. eps_u: budgets of the untargeted radius, eps: of dodging and
    impersonation, in l2 of images in [-0.5, 0.5]. flip: "average" says that embeddings are means over an image and its mirror image.
    certificates: names of `eval.certificates` beside that of one moved image.

    Raises InputError, naming the setting, for a value out of range.
    """
    protocol: str = "strict"
    far: float = 1e-3
    tau: float | None = None
    eps_u: tuple[float, ...] = (1.5, 3.0)
    eps: tuple[float, ...] = (0.25, 0.75)
    flip: str = "none"
    certificates: tuple[str, ...] = ("both", "joint")

    def __post_init__(self) -> None:
        object.__setattr__(self, "eps_u", budgets(self.eps_u))
        object.__setattr__(self, "eps", budgets(self.eps))
        object.__setattr__(self, "certificates", tuple(self.certificates))
        for name, value, known in (("protocol", self.protocol, PROTOCOLS), ("flip", self.flip, FLIPS)):
            if value not in known:
                raise InputError(f"{name} is {value!r}, expected one of {', '.join(known)}")
        if not 0 < self.far < 1:
            raise InputError(f"far is {self.far}, expected a number between 0 and 1")
        if self.tau is not None and not -1 < self.tau < 1:
            raise InputError(f"tau is {self.tau}, expected a number between -1 and 1")
        if self.flip == "average" and self.protocol == "paper":
            raise InputError("flip average, protocol paper: this protocol counts mirrored copies as further pairs, which would be the same "
                             "pairs twice; expected protocol strict or flip none")

    @property
    def views(self) -> tuple[bool, ...]:
        """Which views of an image are evaluated: as it is and, under "paper", mirrored."""
        return (False, True) if self.protocol == "paper" else (False,)

    @property
    def far_target(self) -> float | None:
        """What the threshold is chosen for; None where it is given."""
        return self.far if self.tau is None else None

    @classmethod
    def of(cls, summary: Mapping[str, Any]) -> "Evaluation":
        """The settings that a result was made with, from its summary."""
        target = summary["far_target"]
        return cls(protocol=summary["protocol"], **({"tau": summary["tau"]} if target is None else {"far": target}),
                   eps_u=tuple(summary["cra_u"]), eps=tuple(summary["cra_d"]), flip=summary.get("flip", "none"),
                   certificates=tuple(summary.get("certificates", {})))


def budgets(values: Iterable[float]) -> tuple[float, ...]:
    """The same as floats. Raises InputError unless all are positive and finite."""
    values = tuple(float(eps) for eps in values)
    for eps in values:
        if not 0 < eps < math.inf:
            raise InputError(f"budget eps is {eps}, expected positive and finite")
    return values


DEFAULTS = Evaluation()
