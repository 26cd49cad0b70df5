"""Steps whose loss or gradient is not finite: left out, counted on the device, and the end of the run where there are too many."""
import logging
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from utils import RunError, checkpoint
from utils.distributed import largest_of_ranks, rank, sum_with_gradient

LOGGER = logging.getLogger("training")


class StepGuard:
    """What is to know about skipped steps, kept on the device until `check` reads it.

    The GradScaler leaves out a step whose gradient is not finite. The guard counts those steps and undoes what their forward pass
    left in the buffers (running means of BatchNorm, the scale of AdaCos), which nobody else does.

        guard.begin(images, labels)                 # before the forward pass
        guard.end(network_norm, header)             # once .grad holds the unscaled gradients of all ranks
        guard.check(step)                           # now and then

    modules: whose floating-point buffers are looked after. max_in_a_row: `check` raises at that many. overflows: whether gradients of
    float16 may overflow, which is routine as long as the scale still falls; they are counted apart. output: the folder that receives the
    batch at which `check` raised, or None.
    """

    def __init__(self, modules: Iterable[nn.Module], max_in_a_row: int, overflows: bool, output: str | Path | None = None) -> None:
        self.buffers = [b for module in modules for b in module.buffers() if b.is_floating_point()]
        self.max_in_a_row, self.overflows, self.output = max_in_a_row, overflows, output
        self.counts: Tensor | None = None  # not finite, overflows, in a row
        self.reported = [0, 0]

    def begin(self, *batch: Tensor) -> None:
        """Remember the buffers and the batch."""
        self._before, self._batch = [buffer.clone() for buffer in self.buffers], batch

    @torch.no_grad()
    def end(self, network_norm: Tensor, header: nn.Module) -> None:
        """Count this step. network_norm: of the network's gradient, 0-d; it is equal on all ranks, as the header's gradients are, but for
        those of a sharded header.

        The header computes in float32: where its gradient is not finite, the loss or the embeddings were not either, and where only
        the network's is not, it is float16 that overflowed on the way back.
        """
        header_norms = [p.grad.norm() for p in header.parameters() if p.grad is not None]
        header_norm = torch.stack(header_norms or [torch.zeros_like(network_norm)]).sum()
        bad_loss = ~(sum_with_gradient(header_norm) if getattr(header, "shard", None) else header_norm).isfinite()
        bad_gradient = ~network_norm.to(bad_loss.device).isfinite() & ~bad_loss
        skipped = bad_loss | bad_gradient
        for buffer, before in zip(self.buffers, self._before):
            buffer.copy_(torch.where(skipped, before, buffer))
        if self.counts is None:
            self.counts = torch.zeros(3, dtype=torch.int64, device=skipped.device)
        found = [bad_loss, bad_gradient] if self.overflows else [skipped, torch.zeros_like(skipped)]
        self.counts += torch.stack([*found, skipped])
        self.counts[2] *= skipped

    def check(self, step: int) -> None:
        """Log what was skipped since the last call. Raises RunError where the last `max_in_a_row` steps, or more, were skipped."""
        if self.counts is None:
            return
        *totals, in_a_row = self.counts.tolist()
        bad, overflows = (total - reported for total, reported in zip(totals, self.reported))
        self.reported = totals
        if bad:
            LOGGER.warning("step %d: %d steps skipped as their loss or gradient was not finite (%d in all)", step, bad, totals[0])
        if overflows:
            LOGGER.info("step %d: %d steps skipped as float16 gradients overflowed (%d in all), which lowers the scale", step, overflows,
                        totals[1])
        if in_a_row >= self.max_in_a_row:
            if self.output is not None:
                keep_batch(self.output, step, *self._batch)
            raise RunError(f"the last {in_a_row} steps up to {step} had a loss or gradient that is not finite, "
                           f"expected fewer than max_skipped_steps={self.max_in_a_row}")


def agree_on_skipping(scaler: torch.amp.GradScaler, optimizer: torch.optim.Optimizer) -> None:
    """Let all ranks skip the step if the unscaled gradient of one is not finite, for gradients that differ between them."""
    for found in scaler._found_inf_per_device(optimizer).values():
        found.copy_(largest_of_ranks(found))


def keep_batch(output: str | Path, step: int, images: Tensor, labels: Tensor) -> None:
    """Save what a rank's step was computed from, images [B, 3, H, W] as the network saw them, for whoever looks into it."""
    checkpoint.save(Path(output) / f"skipped_{step:08d}_rank{rank()}.pt", {"step": step, "images": images.cpu(), "labels": labels.cpu()})


def poisoned(loss: Tensor) -> Tensor:
    """The same loss, with a gradient that is NaN throughout where the loss is not finite.

    The average over the ranks is then NaN on all of them, so that all skip the step alike without asking each other.
    """
    return loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan).to(loss.dtype)
