"""Orthogonalised updates for the matrices of a network (Muon: Jordan and others, 2024), AdamW for all else."""
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
QUINTIC = (3.4445, -4.7750, 2.0315)  # Jordan's: what is between 0.01 and 1 comes to between 0.7 and 1.2 in five steps
STEPS = 5


def orthogonalised(matrices: Tensor) -> Tensor:
    """U V^T, nearly, for matrices U S V^T [..., n, m]: the same singular vectors, singular values of about 1 (by Newton-Schulz steps).

    A singular value below a hundredth of the root of the sum of all squared ones stays smaller; a matrix of zeros stays one.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
    a, b, c = QUINTIC
    gram = x @ x.mT  # all steps are polynomials of it times x: n x n products, where x may be much wider
    factor = identity = torch.eye(x.shape[-2], dtype=x.dtype, device=x.device)
    for _ in range(STEPS):
        step = a * identity + b * gram + c * gram @ gram
        factor, gram = step @ factor, step @ gram @ step
    return (factor @ x).mT if tall else factor @ x


class Muon(torch.optim.AdamW):
    """One optimiser for a backbone and a header: the kernels and matrices of the backbone take orthogonalised updates, the rest AdamW's.

    A kernel [o, i, h, w] is the matrix [o, i h w], n x m. Its update is U V^T of momentum (Nesterov's, 0.95), times muon_lr and
    sqrt(max(1, n / m)). A gradient that is not finite, as GradScaler finds it, changes nothing, and nobody waits for the device to say so.
    Further arguments: those of AdamW, weight_decay among them, which is decoupled in both.
    """

    def __init__(self, network: nn.Module, header: nn.Module, lr: float, muon_lr: float, **kw: Any):
        trained = [p for p in network.parameters() if p.requires_grad]
        matrices = [p for p in trained if p.dim() > 1]
        others = [p for p in trained if p.dim() <= 1] + [p for p in header.parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = [{"params": others}, {"params": matrices, "lr": muon_lr, "orthogonal": True}]
        super().__init__(groups, lr, **kw)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """As of any optimiser."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        groups = self.param_groups
        others, matrices = groups
        self._orthogonal_step(matrices)
        self.param_groups = [others]  # those of AdamW
        try:
            super().step()
        finally:
            self.param_groups = groups
        return loss

    def _orthogonal_step(self, group: dict[str, Any]) -> None:
        skip = getattr(self, "found_inf", None)  # of GradScaler, for a fused AdamW
        for matrices in _by_shape(p for p in group["params"] if p.grad is not None):
            gradient = torch.stack([p.grad.flatten(1) for p in matrices])
            for p in matrices:
                if not self.state[p]:
                    self.state[p].update(momentum=torch.zeros_like(p), step=torch.zeros(()))  # AdamW asks for a step when it loads a state
            before = torch.stack([self.state[p]["momentum"].flatten(1) for p in matrices])
            momentum = before.lerp(gradient, 1 - MOMENTUM)
            rows, columns = gradient.shape[1:]
            update = orthogonalised(gradient.lerp(momentum, MOMENTUM)) * (-group["lr"] * max(1.0, rows / columns) ** 0.5)
            change = update - group["lr"] * group["weight_decay"] * torch.stack([p.flatten(1) for p in matrices])
            if skip is not None:
                change, momentum = torch.where(skip > 0, 0.0, change), torch.where(skip > 0, before, momentum)
            for p, difference, kept in zip(matrices, change, momentum):
                p += difference.view_as(p)
                self.state[p]["momentum"].copy_(kept.view_as(p))


def _by_shape(parameters: Iterable[Tensor]) -> list[list[Tensor]]:
    """Those of one shape as a matrix are orthogonalised in one product."""
    found: dict[Any, list[Tensor]] = defaultdict(list)
    for p in parameters:
        found[p.flatten(1).shape].append(p)
    return list(found.values())
