"""Centring by a running mean: a translation in evaluation, so that no Lipschitz constant changes."""
import math

import torch
from torch import Tensor

from backbones.kept import Observing
from backbones.proof import UNDERFLOW, UNIT, UP, Shape, State
from utils.distributed import all_gather_interleaved


class Centre(Observing):
    """z - m for z [N, channels, ...] with a running mean m [channels] of what came in, over samples and positions.

    In training mode each optimiser step moves m, after it was used, by 1 - momentum towards the mean of what came in with gradients
    enabled: the mean over all passes of the step (`RescaledOnce`) and all ranks, so that a batch in parts, or on several processes, moves
    it as a whole one does. A pass without gradients, as the first one of a batch in parts, leaves it alone; so do functions of torch.func,
    a step that ends in an error, and values that are not finite. No gradient goes through m. In eval mode m is a constant of the state
    dict. m starts at 0.
    """

    mean: Tensor
    total: Tensor
    count: Tensor

    def __init__(self, channels: int, momentum: float = 0.99):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("total", torch.zeros(channels), persistent=False)  # of this step: sums over what came in, and of how many
        self.register_buffer("count", torch.zeros(()), persistent=False)

    def forward(self, z: Tensor) -> Tensor:
        centred = z - self.mean.view(-1, *(1,) * (z.dim() - 2))
        # which transforms are active is asked only where no compiler has to follow
        if self.training and torch.is_grad_enabled() and (torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active()):
            self.total += z.detach().to(self.total.dtype).transpose(0, 1).flatten(1).sum(1)
            self.count += z.numel() // z.shape[1]
            if not self._gathering:
                self.settle()
        return centred

    @torch.no_grad()
    def settle(self) -> None:
        # of other ranks as well; a mean over this one alone would differ from theirs
        sums = all_gather_interleaved(torch.cat((self.total, self.count[None]))[None]).sum(0)
        moved = torch.lerp(self.mean, sums[:-1] / sums[-1], 1 - self.momentum)
        self.mean.copy_(torch.where(moved.isfinite().all(), moved, self.mean))  # 0 / 0, where nothing came in, is not
        self.forget()

    def forget(self) -> None:
        self.total.zero_()
        self.count.zero_()

    def proven_lipschitz(self, shape: Shape) -> float:
        return 1.0

    def proven_rounding(self, state: State, shape: Shape) -> State:
        """Of one difference an entry, off by u of itself."""
        size = state.size + math.sqrt(math.prod(shape[1:])) * self.mean.norm().item() * UP
        local = UNIT * size * UP + UNDERFLOW
        return State((size + local) * UP, (state.error + local) * UP)

    def extra_repr(self) -> str:
        return f"{len(self.mean)}, momentum={self.momentum}"
