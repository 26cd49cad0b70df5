"""What a training loop calls now and then: log lines, verification, checkpoints."""
import logging
import time
from pathlib import Path
from typing import Any, Callable, Mapping, Optional

import torch
from torch import nn

from utils import InputError
from utils import utils_checkpoint as checkpoint
from utils.utils_distributed import gather_objects, rank
from utils.utils_logging import RunningMeans, speed_line

LOGGER = logging.getLogger("training")


class CallBackLogging:
    """A log line and TensorBoard scalars every `frequent` steps; in between nothing leaves the device.

    batch_size: images per step over all ranks. writer: a SummaryWriter, or None.
    """

    def __init__(self, frequent: int, total_steps: int, batch_size: int, start_step: int = 0, writer: Any = None):
        self.frequent, self.total_steps, self.batch_size, self.writer = frequent, total_steps, batch_size, writer
        self.means = RunningMeans()
        self.first = self.last = start_step
        self.began = self.since = time.perf_counter()

    def __call__(self, step: int, epoch: int, learning_rate: float, loss: torch.Tensor, reg_loss: torch.Tensor,
                 feature_norm: torch.Tensor, grad_scale: Callable[[], Optional[float]]) -> None:
        """Count optimiser step number `step` (from 1). All ranks call it; `grad_scale` is asked for only when a line is due."""
        self.means.add(loss, reg_loss, feature_norm)
        if step % self.frequent and step != self.total_steps:
            return
        loss_mean, reg_mean, norm_mean = self.means.read()
        now = time.perf_counter()
        speed = (step - self.last) * self.batch_size / max(now - self.since, 1e-9)
        hours_left = (now - self.began) / (step - self.first) * (self.total_steps - step) / 3600
        self.last, self.since = step, now
        LOGGER.info(speed_line(speed, loss_mean, learning_rate, epoch, step, hours_left, norm_mean, reg_mean, grad_scale()))
        scalars = {"loss": loss_mean, "reg_loss": reg_mean, "feature_norm": norm_mean, "learning_rate": learning_rate, "speed": speed}
        _write_scalars(self.writer, "train", scalars, step)


class CallBackVerification:
    """Verification on every target, with its log lines in the published format.

    verify: for each target's name a function network -> mapping with xnorm, accuracy, accuracy_std, unflipped, unflipped_std.
    """

    def __init__(self, verify: Mapping[str, Callable[[nn.Module], Mapping[str, float]]], writer: Any = None):
        self.verify, self.writer = verify, writer
        self.highest = {name: 0.0 for name in verify}
        self.done_at = -1

    def __call__(self, step: int, network: nn.Module) -> None:
        """Verify `network` as of optimiser step `step`, at most once a step. All ranks call it."""
        if step == self.done_at:
            return
        self.done_at = step
        for name, verify in self.verify.items():
            found = verify(network)
            self.highest[name] = max(self.highest[name], found["accuracy"])
            LOGGER.info("[%s][%d]XNorm: %.6f", name, step, found["xnorm"])
            LOGGER.info("[%s][%d]Accuracy-Flip: %.5f+-%.5f", name, step, found["accuracy"], found["accuracy_std"])
            LOGGER.info("[%s][%d]Accuracy-Unflipped: %.5f+-%.5f", name, step, found["unflipped"], found["unflipped_std"])
            LOGGER.info("[%s][%d]Accuracy-Highest: %.5f", name, step, self.highest[name])
            _write_scalars(self.writer, f"verification/{name}", found, step)


def _write_scalars(writer: Any, group: str, scalars: Mapping[str, float], step: int) -> None:
    if writer is not None:
        for name, value in scalars.items():
            writer.add_scalar(f"{group}/{name}", value, step)


class CallBackCheckpoint:
    """Plain weights for others, and the full state to go on from, each file either whole or not there.

    parts: the things with state_dict and load_state_dict that make up a run, by name; "model" and "header" are nn.Modules.
    settings: what a state must agree on with the run that resumes it.
    """

    STATE = "state_last.pt"

    def __init__(self, output: "str | Path", parts: Mapping[str, Any], settings: Mapping[str, Any]):
        self.output, self.parts, self.settings = Path(output), parts, dict(settings)

    @property
    def state_path(self) -> Path:
        return self.output / self.STATE

    def save_weights(self, name: str) -> None:
        """model_`name`.pt and header_`name`.pt: plain state dicts. Rank 0 writes."""
        if rank() == 0:
            for part in ("model", "header"):
                checkpoint.save(self.output / f"{part}_{name}.pt", self.parts[part].state_dict())

    def save_state(self, progress: Mapping[str, Any]) -> None:
        """The state of all parts, `progress` (numbers and dicts of them) and every rank's random state. All ranks call it."""
        random = gather_objects(_random_state())
        if rank() == 0:
            states = {name: part.state_dict() for name, part in self.parts.items()}
            header = {"format": 1, "settings": self.settings, "progress": dict(progress), "random": random}
            checkpoint.save(self.state_path, {**header, **states})

    def load_state(self, path: "str | Path") -> dict:
        """Put every part back as `path` has it and return the progress saved with it.

        Raises InputError where the file is no full state, or one of a run with other settings (all differences are named).
        """
        state = checkpoint.load(path)
        expected = {"format", "settings", "progress", "random", *self.parts}
        if not isinstance(state, dict) or set(state) != expected:
            raise InputError(f"{path}: not a full training state; expected {', '.join(sorted(expected))}")
        saved = state["settings"]
        different = [f"{key} was {saved.get(key)!r} and is {value!r}" for key, value in self.settings.items() if saved.get(key) != value]
        if different:
            raise InputError(f"{path}: the state is of a run with other settings: {'; '.join(different)}")
        try:
            for name, part in self.parts.items():
                part.load_state_dict(state[name])
            _set_random_state(state["random"][rank()])
        except (RuntimeError, KeyError, ValueError, TypeError) as error:
            raise InputError(f"{path}: does not fit this run: {str(error).splitlines()[0]}") from error
        return state["progress"]


def _random_state() -> dict:
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def _set_random_state(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
