"""The training log in the published format, and running means that stay on the device until they are read."""
import logging
import sys
from pathlib import Path
from typing import Optional

import torch
import torch.distributed as dist
from torch import Tensor

from utils.utils_distributed import rank, world_size


def init_logging(output: "str | Path") -> logging.Logger:
    """The logger of a run: rank 0 writes to the console and appends to `output`/training.log, other ranks only warn.

    Lines read `Training: 2024-02-02 12:33:23,502-message`.
    """
    logger = logging.getLogger("training")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.propagate = False
    logger.setLevel(logging.INFO if rank() == 0 else logging.WARNING)
    handlers: list[logging.Handler] = [_ConsoleHandler()]
    if rank() == 0:
        Path(output).mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(Path(output) / "training.log", encoding="utf-8"))
    for handler in handlers:
        handler.setFormatter(logging.Formatter("Training: %(asctime)s-%(message)s"))
        logger.addHandler(handler)
    return logger


class _ConsoleHandler(logging.StreamHandler):
    """Standard output, above a progress bar where there is one."""

    def __init__(self) -> None:
        super().__init__(sys.stdout)

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm
        tqdm.write(self.format(record), file=sys.stdout)
        self.flush()


class RunningMeans:
    """Means of a few scalar tensors over steps, kept on the device: adding never waits for it, reading does."""

    def __init__(self) -> None:
        self.sums: Optional[Tensor] = None
        self.steps = 0

    def add(self, *values: Tensor) -> None:
        """Count one step's values (0-d tensors, always the same number of them)."""
        row = torch.stack([value.detach().float() for value in values])
        self.sums = row if self.sums is None else self.sums + row
        self.steps += 1

    def read(self) -> list[float]:
        """The means since the last call over all ranks, each of which must call it; then start anew."""
        if self.sums is None:
            raise RuntimeError("no step was added since the last reading")
        means = self.sums / (self.steps * world_size())
        if world_size() > 1:
            dist.all_reduce(means)
        self.sums, self.steps = None, 0
        return means.tolist()


def speed_line(speed: float, loss: float, learning_rate: float, epoch: int, step: int, hours_left: float, feature_norm: float,
               reg_loss: float, grad_scale: Optional[float] = None) -> str:
    """A log line of the published runs: speed in images/s, mean feature norm, `grad_scale` under fp16 only."""
    scale = "" if grad_scale is None else f"Fp16 Grad Scale: {grad_scale:.0f}   "
    gap = "  " if grad_scale is None else " "
    return (f"Speed {speed:.2f} samples/sec   Loss {loss:.4f}   LearningRate {learning_rate:.6f}   Epoch: {epoch}   "
            f"Global Step: {step}   {scale}Required: {hours_left:.0f} hours{gap}Feat Norm {feature_norm:.4f}  Reg Loss {reg_loss:.4f}")
