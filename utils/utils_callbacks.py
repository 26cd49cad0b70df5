"""What a training loop calls now and then: log lines, verification, checkpoints."""
import logging
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from utils import InputError, checkpoint, printable, sharded_states
from utils.distributed import from_first_rank, gather_objects, rank, undistributed, world_size
from utils.faults.folder import is_owned
from utils.faults.launch import restarts
from utils.faults.machines import file_of_first_rank, where
from utils.files import found_in, remove_unfinished
from utils.untrusted.torchfile import check
from utils.utils_logging import AverageMeter, means_over_ranks, speed_line

LOGGER = logging.getLogger("training")


class CallBackLogging:
    """A log line and TensorBoard scalars every `frequent` steps; in between nothing leaves the device.

    batch_size: images per step of this rank. writer: a SummaryWriter, or None.
    """

    def __init__(self, frequent: int, total_step: int, batch_size: int, start_step: int = 0, writer: Any = None) -> None:
        self.frequent, self.total_step, self.batch_size, self.writer = frequent, total_step, batch_size, writer
        self.first = self.last = start_step
        self.began = self.since = time.perf_counter()

    def __call__(self, global_step: int, loss: AverageMeter, epoch: int, fp16: bool, learning_rate: float,
                 grad_scaler: torch.amp.GradScaler | None, feature_norm: AverageMeter | None = None,
                 reg_loss: AverageMeter | None = None) -> bool:
        """Log optimiser step number `global_step` (from 1) if a line is due, and whether it is. All ranks call it.

        The meters are of this rank and start anew with a line, which has the means over all ranks; it has no fields for those that
        are None. learning_rate: the one after the step. grad_scaler: asked for its scale only under fp16.
        """
        if global_step <= self.last or global_step % self.frequent and global_step != self.total_step:
            return False
        meters = {"loss": loss, "feature_norm": feature_norm, "reg_loss": reg_loss}
        given = {name: meter for name, meter in meters.items() if meter is not None}
        means = dict(zip(given, means_over_ranks(list(given.values()))))
        now = time.perf_counter()
        speed = (global_step - self.last) * self.batch_size * world_size() / max(now - self.since, 1e-9)
        hours_left = (now - self.began) / (global_step - self.first) * (self.total_step - global_step) / 3600
        self.last, self.since = global_step, now
        LOGGER.info(speed_line(speed, learning_rate=learning_rate, epoch=epoch, step=global_step, hours_left=hours_left,
                               grad_scale=grad_scaler.get_scale() if fp16 and grad_scaler is not None else None, **means))
        _write_scalars(self.writer, "train", {**means, "learning_rate": learning_rate, "speed": speed}, global_step)
        return True


class CallBackVerification:
    """Verification on .bin files, with its log lines in the published format.

    val_targets: their names, None for all there are. rec_prefix: the folder that has them. image_size: (height, width) of their images.
    Raises InputError, now rather than after hours, for files that are missing or cannot be used (see eval/validation.py).
    """

    def __init__(self, val_targets: Sequence[str] | None, rec_prefix: str | Path, summary_writer: Any = None,
                 image_size: Sequence[int] = (112, 112)) -> None:
        from eval.validation import validations  # this package knows nothing of faces
        self.verify: dict[str, Any] = validations(val_targets, rec_prefix, image_size)
        self.writer = summary_writer
        self.highest = dict.fromkeys(self.verify, 0.0)
        self.done_at = -1

    def __call__(self, num_update: int, backbone: nn.Module) -> None:
        """Verify `backbone` (pixels in [-0.5, 0.5] -> embeddings) as of optimiser step `num_update`, at most once a step. All ranks
        call it; it is left in the mode it was in.
        """
        if num_update == self.done_at:
            return
        self.done_at = num_update
        for name, verify in self.verify.items():
            found = verify(undistributed(backbone))
            self.highest[name] = max(self.highest[name], found["accuracy"])
            LOGGER.info("[%s][%d]XNorm: %.6f", name, num_update, found["xnorm"])
            LOGGER.info("[%s][%d]Accuracy-Flip: %.5f+-%.5f", name, num_update, found["accuracy"], found["accuracy_std"])
            LOGGER.info("[%s][%d]Accuracy-Unflipped: %.5f+-%.5f", name, num_update, found["unflipped"], found["unflipped_std"])
            LOGGER.info("[%s][%d]Accuracy-Highest: %.5f", name, num_update, self.highest[name])
            _write_scalars(self.writer, f"verification/{name}", found, num_update)


def _write_scalars(writer: Any, group: str, scalars: Mapping[str, float], step: int) -> None:
    if writer is None or getattr(writer, "failed", False):
        return
    try:
        for name, value in scalars.items():
            writer.add_scalar(printable(f"{group}/{name}"), value, step)
    except OSError as error:  # of a full disk: plots are no reason to end a run
        writer.failed = True
        LOGGER.warning("TensorBoard gets no more scalars: %s", error)


class CallBackCheckpoint:
    """Plain weights for others, and full states to go on from, each file either whole or not there.

    parts: the things with state_dict and load_state_dict that make up a run, by name; "model" and "header" are nn.Modules.
    settings: what a state must agree on with the run that resumes it. keep: the number of states that are kept, the newest ones.
    save_header: whether header_*.pt is written; None: where the header is not sharded.
    """

    def __init__(self, output: str | Path, parts: Mapping[str, Any], settings: Mapping[str, Any], keep: int,
                 save_header: bool | None = None):
        self.output, self.parts, self.settings, self.keep = Path(output), parts, dict(settings), keep
        self.rows = sharded_states.Rows(parts["header"], parts["optimizer"]) if hasattr(parts.get("header"), "shard") else None
        self.sharded = self.rows is not None and self.rows.shard is not None
        self.save_header = not self.sharded if save_header is None else save_header
        self.remarks: list[str] = []  # on what was found when the run was taken up

    def states(self) -> list[Path]:
        """The full states in the output folder, newest first."""
        return sorted((path for path in found_in(self.output, "state_*.pt") if _step_of(path) >= 0), key=_step_of, reverse=True)

    def save_weights(self, name: str) -> None:
        """model_`name`.pt and header_`name`.pt: plain state dicts, which know the network that they are of (`built_as` of get_backbone).

        All ranks call it, rank 0 writes; raises OSError where it cannot.
        """
        header = sharded_states.whole(self.parts["header"]) if self.save_header and self.sharded else self.parts["header"].state_dict()
        if rank() == 0:
            checkpoint.save_weights(self.output / f"model_{name}.pt", self.parts["model"], *getattr(self.parts["model"], "built_as", ()))
            if self.save_header:
                checkpoint.save(self.output / f"header_{name}.pt", header)

    def save_state(self, progress: Mapping[str, Any]) -> None:
        """The state of all parts, `progress` (numbers, "step" among them, and dicts of them) and every rank's random state.

        All ranks call it, rank 0 writes; raises OSError where it cannot, and the states that were there are then still there.
        """
        random, path = gather_objects(_random_state()), self.output / f"state_{progress['step']:08d}.pt"
        states = {name: part.state_dict() for name, part in self.parts.items()} if rank() == 0 or self.sharded else {}
        if self.sharded:
            sharded_states.save(path, self.rows.take(states))
            states["header"][sharded_states.SHARDS] = world_size()
        if rank() == 0:
            header = {"format": 1, "settings": self.settings, "progress": dict(progress), "random": random}
            checkpoint.save(path, {**header, **states})
            for old in self.states()[self.keep:]:
                old.unlink(missing_ok=True)
            sharded_states.remove_orphans(self.output)

    def restore(self, wanted: str | None, changed: bool = False, lacking: Mapping[str, Any] = MappingProxyType({})) -> dict:
        """Put every part back as a state has it and return the progress saved with it; {} for a fresh run.

        wanted: None (a fresh run), "auto" (the newest whole state in the output folder, if there are any) or the path of a state. All
        ranks take the one that rank 0 chooses. changed: go on although settings differ; the run's own then hold. lacking: settings
        that older states do not name, with what they were then. Raises InputError for a fresh run where there are states, for files that
        are no full state, and for one of a run with other settings (all differences are named).
        """
        there = self.states()
        chosen = from_first_rank(lambda: self._choose(wanted))
        if wanted in (None, "auto"):
            _require_first_rank_to_have(there)
        if chosen is None:
            # all are asked: the agent of a machine that came in for another one has started nothing before
            if max(gather_objects(restarts())) and rank() == 0:
                self.remarks.append(f"torchrun starts this job anew, and there is no state in {where(self.output)}: training begins "
                                    "afresh. If a machine that is gone has one, give an output that all machines share")
            return {}
        with file_of_first_rank(chosen) as path:
            state = checkpoint.load(path, whole=wanted != "auto")  # a state that was chosen has been read already
        expected = {"format", "settings", "progress", "random", *self.parts}
        if not isinstance(state, dict) or set(state) != expected or not _is_in_order(state):
            raise InputError(f"{chosen}: not a full training state, but perhaps weights, which init_weights= takes; "
                             f"expected {', '.join(sorted(expected))}")
        saved = {**lacking, **state["settings"]}
        different = [f"{key} was {repr(saved.get(key))[:200]} and is {value!r}" for key, value in self.settings.items()
                     if saved.get(key) != value]
        if different and not changed:
            raise InputError(f"{chosen}: the state is of a run with other settings: {'; '.join(different)} "
                             "(resume_changed=True goes on all the same)")
        self.remarks += [f"resumed with another setting: {difference}" for difference in different]
        if self.rows:
            self.rows.of_state(state, Path(chosen), checked=wanted != "auto")
        try:
            for name, part in self.parts.items():
                _check_part(part, state[name])
                _restore(part, state[name])
            _set_random_state(state["random"][rank() % len(state["random"])])
        except (RuntimeError, KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
            raise InputError(f"{chosen}: does not fit this run: {' '.join(str(error).split())[:200]}") from error
        return state["progress"]

    def _choose(self, wanted: str | None) -> str | None:
        if is_owned(self.output):  # or they may be those of another run, which is writing them now
            remove_unfinished(self.output, "*.pt")
        states = self.states()
        if wanted is None:
            if states:
                raise InputError(f"{states[0]} is the state of an earlier run: give resume=auto to go on, or another output")
            return None
        if wanted != "auto":
            later = [path for path in states if _step_of(path) > _step_of(Path(wanted)) >= 0]
            if later and Path(wanted).parent.resolve() == self.output.resolve():
                raise InputError(f"{wanted}: there are later states ({later[0]}), which the run would meet: move them, or give another "
                                 "output")
            return wanted
        damaged = []
        for path in states:
            try:
                for file in (path, *sharded_states.files_of(path)):
                    check(file, whole=True)
            except (InputError, OSError) as error:  # OSError: a link to nowhere, a bad sector
                damaged.append((path, error))
                continue
            for other, error in damaged:
                self.remarks.append(f"skipped, and renamed to .damaged: {error}")
                other.replace(other.with_suffix(".damaged"))
            return str(path)
        if damaged:
            raise InputError(f"none of the {len(damaged)} states in {self.output} can be read: {damaged[0][1]}")
        return None


def _require_first_rank_to_have(states: Sequence[Path]) -> None:
    """Raise InputError where another rank has a later state than those of the first one: its machine wrote them at an earlier start."""
    newest = gather_objects((_step_of(states[0]), where(states[0])) if states else (-1, where("")))
    number = max(range(len(newest)), key=lambda number: newest[number][0])
    if newest[number][0] > newest[0][0]:
        raise InputError(f"process {number} has {newest[number][1]}, a state of an earlier start that process 0 lacks"
                         + (f", whose latest is {newest[0][1]}" if newest[0][0] >= 0 else "")
                         + ": copy it there, or give an output that all machines share")


def _is_in_order(state: Mapping[str, Any]) -> bool:
    """Whether what a state says of its run has the types it should have."""
    settings, progress, random = (state[key] for key in ("settings", "progress", "random"))
    return isinstance(settings, dict) and isinstance(progress, dict) and isinstance(random, list) and bool(random) \
        and type(progress.get("step")) is int and 0 <= progress["step"] < 2**63 and _is_plain(settings) and _is_plain(progress) \
        and _fits(0.0, progress.get("cpu_seconds", 0.0)) \
        and isinstance(progress.get("highest", {}), dict) and all(_fits(0.0, value) for value in progress.get("highest", {}).values())


def _is_plain(value: Any, depth: int = 0) -> bool:
    """Whether there are no tensors in it, which cannot be compared as settings are, and nothing that holds itself."""
    inside = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return not isinstance(value, torch.Tensor) and depth < 10 and all(_is_plain(item, depth + 1) for item in inside)


def _check_part(part: Any, state: Any) -> None:
    """What `load_state_dict` of modules does by itself: raises an error where a state has not the shapes and kinds of its part.

    Of the optimisers that is Adam and its kin, and muon.py.
    """
    if isinstance(part, torch.optim.Optimizer):
        expected = [(parameter.shape, ("momentum",) if group.get("orthogonal") else ("exp_avg", "exp_avg_sq"))
                    for group in part.param_groups for parameter in group["params"]]
        for number, moments in state["state"].items():
            shape, names = expected[number]
            if {key: value.shape for key, value in moments.items() if value.is_floating_point()} != {"step": torch.Size(),
                                                                                                     **dict.fromkeys(names, shape)}:
                raise ValueError(f"the moments of parameter {number} are not {' and '.join(names)} of shape {list(shape)}")
    elif not isinstance(part, nn.Module) and not _fits(part.state_dict(), state):
        raise ValueError(f"no state of a {type(part).__name__}")


def _fits(own: Any, found: Any) -> bool:
    """Whether plain data is of the kind that it is to replace: the same keys or fewer, as long, and numbers for numbers."""
    if isinstance(own, dict):
        return isinstance(found, dict) and found.keys() <= own.keys() and all(_fits(own[key], value) for key, value in found.items())
    if isinstance(own, (list, tuple)):
        return isinstance(found, (list, tuple)) and len(found) == len(own) and all(map(_fits, own, found))
    if isinstance(own, (bool, int, float)):
        return isinstance(found, (bool, int, float)) and math.isfinite(found)
    return own is None or type(found) is type(own)


def _step_of(path: Path) -> int:
    """The step in the name of a state, -1 for other names."""
    number = path.stem.removeprefix("state_")
    return int(number) if number.isdecimal() and len(number) < 19 else -1


def _restore(part: Any, state: Mapping[str, Any]) -> None:
    """Load a state, but leave the settings of an optimiser as they are: the schedule sets the learning rate, the run the others."""
    groups = [{key: value for key, value in group.items() if key != "params"} for group in getattr(part, "param_groups", ())]
    part.load_state_dict(state)
    for group, settings in zip(getattr(part, "param_groups", ()), groups):
        group.update(settings)


def _random_state() -> dict:
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def _set_random_state(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
