"""The steps of a run from where its state left off to the last one; what is saved on the way and when it has to stop."""
import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from tqdm import tqdm

from utils import RunError
from utils.distributed import rank
from utils.faults.lockstep import DataError, Interrupted, in_lockstep
from utils.faults.signals import StopSignals
from utils.loader import Loader
from utils.utils_callbacks import CallBackCheckpoint

LOGGER = logging.getLogger("training")


class Run:
    """What the loop of a training script leaves to others: where to begin, when to stop, and that nothing is lost then.

        run = Run(cfg, parts, settings, loader)     # every part is put back as a state has it, where cfg.resume says so
        with run:
            for epoch, images, labels in run.batches():
                ...                                 # a step of the optimiser
                step = run.advance()
                ...
                run.save_state()

    cfg: num_epoch, output, keep_states, save_header, resume, resume_changed and max_bad_records are used (see config.py). parts, settings,
    lacking: as CallBackCheckpoint and its `restore` take them. progress: what a state keeps beside the parts, "step", "highest" (the best
    accuracies by target) and "cpu_seconds" (of this process, all its threads, from where a batch is asked for to `advance`: without loading
    processes, verification and saving).
    Where the loop raises Interrupted, DataError or RunError, which all ranks do at the same step, the state of that step is saved
    before the error goes on. Raises InputError for a state that cannot be used.
    """

    def __init__(self, cfg: Mapping[str, Any], parts: Mapping[str, Any], settings: Mapping[str, Any], loader: Loader,
                 lacking: Mapping[str, Any] = MappingProxyType({})) -> None:
        self.loader, self.epochs, self.max_bad_records = loader, cfg["num_epoch"], cfg["max_bad_records"]
        self.checkpoints = CallBackCheckpoint(cfg["output"], parts, settings, cfg["keep_states"], cfg["save_header"])
        restored = self.checkpoints.restore(cfg["resume"], cfg["resume_changed"], lacking)
        self.progress: dict[str, Any] = {"step": 0, "highest": {}, "cpu_seconds": 0.0, **restored}

    @property
    def cpu_seconds(self) -> float:
        """CPU seconds of the steps that were made, those of earlier starts included."""
        return self.progress["cpu_seconds"]

    @property
    def step(self) -> int:
        """The number of steps that were made, those of earlier starts included."""
        return self.progress["step"]

    def __enter__(self) -> "Run":
        with contextlib.ExitStack() as stack:
            self._signals = stack.enter_context(StopSignals())
            self._bar = stack.enter_context(tqdm(total=self.epochs * len(self.loader), initial=self.step, unit="step", dynamic_ncols=True,
                                                 disable=None if rank() == 0 else True))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        with self._stack:
            if isinstance(error, (Interrupted, DataError, RunError)):
                self._stop(error)

    def _stop(self, error: BaseException) -> None:
        if self.step:  # before the first one there is nothing to lose, and the same command is to start afresh
            self.checkpoints.save_state(self.progress)
        LOGGER.warning("stopped after step %d: %s%s", self.step, error,
                       "; the state is saved and resume=auto goes on from it" if self.step else "")

    def batches(self) -> Iterator[tuple]:
        """(epoch, *batch of the loader) from the step on that comes next, each once every rank has its own. Raises as `in_lockstep`."""
        size = len(self.loader)
        for epoch in range(self.step // size, self.epochs):
            self.loader.set_epoch(epoch, start_batch=self.step % size)
            self._since = time.process_time()
            for batch in in_lockstep(self.loader, self._signals, self.max_bad_records):
                yield (epoch, *batch)
                self._since = time.process_time()

    def advance(self) -> int:
        """Count a step that was made; returns its number, from 1."""
        self.progress["step"] += 1
        self.progress["cpu_seconds"] += time.process_time() - self._since
        self._bar.update()
        return self.step

    def save_state(self) -> None:
        """The full state as of now, or a log line that says why not."""
        _or_go_on(self.checkpoints.save_state, self.progress)

    def save_weights(self, name: str) -> None:
        """model_`name`.pt and header_`name`.pt, or a log line that says why not."""
        _or_go_on(self.checkpoints.save_weights, name)


def _or_go_on(save: Callable, what: object) -> None:
    """A disk that is full now costs no step, and what was saved before is still there."""
    try:
        save(what)
    except OSError as error:
        LOGGER.error("%s; the run goes on", error)
