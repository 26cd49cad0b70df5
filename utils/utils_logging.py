"""The training log in the published format, its reader, and means that stay on the device until they are read."""
import contextlib
import logging
import math
import re
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
import torch.distributed as dist
from torch import Tensor

from utils import InputError
from utils.console import lasting_console
from utils.distributed import rank, world_size
from utils.files import read_file

LOGGER = logging.getLogger("training")


def init_logging(rank: int, models_root: str | Path, name: str | None = None) -> logging.Logger:
    """Set up a logger: rank 0 writes to the console and appends to `models_root`/training.log, other ranks only warn.

    name: which one. None is the root logger, as scripts written for insightface expect (`logging.info` then goes to the file, and so
    does "training", the logger of this project); train.py sets up "training" alone and leaves those of its libraries as they are.
    Lines read `Training: 2024-02-02 12:33:23,502-message`.
    """
    logger, own = logging.getLogger(name), logging.getLogger("training")
    for handler in [handler for each in (logger, own) for handler in each.handlers if isinstance(handler, (_LogFile, _ConsoleHandler))]:
        for each in (logger, own):
            each.removeHandler(handler)
        with contextlib.suppress(OSError):  # of lines that a full disk did not take
            handler.close()
    own.propagate = name is None
    own.setLevel(logging.NOTSET)
    logger.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    handlers: list[logging.Handler] = [_ConsoleHandler()]
    if rank == 0:
        Path(models_root).mkdir(parents=True, exist_ok=True)
        handlers.append(_LogFile(Path(models_root) / "training.log", encoding="utf-8", errors="backslashreplace"))
    for handler in handlers:
        handler.setFormatter(logging.Formatter("Training: %(asctime)s-%(message)s"))
        logger.addHandler(handler)
    return logger


class _LogFile(logging.FileHandler):
    """Where lines cannot be written (a full disk), one line on standard error says so, instead of a traceback for each."""

    failed = False

    def handleError(self, record: logging.LogRecord) -> None:
        if not self.failed:
            print(f"{self.baseFilename}: lines of the log are lost: {sys.exc_info()[1]}", file=sys.stderr)
        self.failed = True


class _ConsoleHandler(logging.StreamHandler):
    """Standard output, above a progress bar where there is one."""

    def __init__(self) -> None:
        super().__init__(sys.stdout)

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm
        with lasting_console():
            tqdm.write(self.format(record), file=sys.stdout)
            sys.stdout.flush()


class AverageMeter:
    """The mean of a number over steps. A tensor stays on its device: updating never waits for it, reading does.

    Values that are not finite are not counted, as steps with them are skipped. val: the last value. sum, count, avg: of those since
    `reset` on this rank; `avg` is NaN where there are none.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start anew."""
        self.val: Tensor | float | None = None
        self.totals: Tensor | None = None  # [the weighted sum, the number of values]

    def update(self, val: Tensor | float, n: int = 1) -> None:
        """Count a value (a number or a 0-d tensor) n times."""
        self.val = val
        value = val.detach().float() if isinstance(val, Tensor) else torch.tensor(val, dtype=torch.float64)
        finite = value.isfinite()
        row = torch.stack([torch.where(finite, value, 0.0), finite.to(value.dtype)]) * n
        self.totals = row if self.totals is None else self.totals + row

    @property
    def sum(self) -> float:
        """The sum of the values."""
        return 0.0 if self.totals is None else self.totals[0].item()

    @property
    def count(self) -> int:
        """How many of them there were."""
        return 0 if self.totals is None else int(self.totals[1].item())

    @property
    def avg(self) -> float:
        """Their mean."""
        return self.sum / self.count if self.count else math.nan


def means_over_ranks(meters: Sequence[AverageMeter]) -> list[float]:
    """The means over the values of all ranks, each of which must call it, NaN for a meter without; then the meters start anew.

    Raises RuntimeError where a meter was never updated.
    """
    if any(meter.totals is None for meter in meters):
        raise RuntimeError("no step was added since the last reading")
    totals = torch.stack([meter.totals.to(meters[0].totals) for meter in meters])
    if world_size() > 1:
        totals = totals.cuda() if dist.get_backend() == "nccl" else totals  # which takes nothing else
        dist.all_reduce(totals)
    for meter in meters:
        meter.reset()
    return [total / count if count else math.nan for total, count in totals.tolist()]


def tensorboard(folder: str | Path) -> Any:
    """A TensorBoard writer on rank 0, None elsewhere and where its file cannot be written."""
    if rank() != 0:
        return None
    from torch.utils.tensorboard import SummaryWriter
    # its thread ends on a full disk, of which the next scalar tells: no need for a traceback as well
    threading.excepthook = lambda args: LOGGER.warning("TensorBoard: %s", args.exc_value)
    try:
        return SummaryWriter(str(folder))
    except (OSError, UnicodeError) as error:  # UnicodeError: a folder whose name is no text
        LOGGER.warning("TensorBoard gets no scalars: %s", error)
        return None


def close(writer: Any) -> None:
    """Write what a TensorBoard writer still holds, if there is one and its disk has room."""
    if writer is not None:
        with contextlib.suppress(OSError):
            writer.close()


def speed_line(speed: float, loss: float, learning_rate: float, epoch: int, step: int, hours_left: float,
               feature_norm: float | None = None, reg_loss: float | None = None, grad_scale: float | None = None) -> str:
    """A log line of the published runs: speed in images/s, mean feature norm, lambda times the regulariser, `grad_scale` under fp16 only.

    What is None has no field.
    """
    scale = "" if grad_scale is None else f"Fp16 Grad Scale: {grad_scale:.0f}   "
    line = (f"Speed {speed:.2f} samples/sec   Loss {loss:.4f}   LearningRate {learning_rate:.6f}   Epoch: {epoch}   "
            f"Global Step: {step}   {scale}Required: {hours_left:.0f} hours")
    if feature_norm is not None:
        line += f"{'  ' if grad_scale is None else ' '}Feat Norm {feature_norm:.4f}"
    return line if reg_loss is None else f"{line}  Reg Loss {reg_loss:.4f}"


def cpu_line(seconds: float, steps: int) -> str:
    """The log line of what a run has cost."""
    return f"{seconds:.2f} CPU seconds in {steps} steps, without loading processes, verification and saving"


def read_cpu_seconds(path: str | Path) -> float | None:
    """What the last `cpu_line` of a training log says; None without one. Raises InputError where the file cannot be read."""
    found = re.findall(rb"-(\d{1,18}\.\d{1,2}) CPU seconds in \d{1,18} steps,", _log(path))
    return float(found[-1]) if found else None


class TrainingLog(NamedTuple):
    """What a training log says.

    steps, a row a log line: step, epoch, loss, learning_rate (after the step), speed (images/s), feature_norm and reg_loss (lambda times
    the regulariser); loss, feature_norm and reg_loss are means over the steps since the line before. verification, a row a target and
    step: target, step, xnorm, accuracy, accuracy_std and highest, accuracies from 0 to 1; NaN is what the log does not say.
    """
    steps: pd.DataFrame
    verification: pd.DataFrame


MAX_LOG = 2**27  # bytes; the published logs have three million
MAX_ROWS = 2**19  # of all tables together, some hundred bytes each

# every part is of bounded length or ends at a character that it cannot hold, so that the time is that of the file's size
_NUMBER = r"(nan|-?inf|-?\d+(?:\.\d+)?)"
_LINE = re.compile((
    rf"-(?:Speed {_NUMBER} samples/sec +Loss {_NUMBER}(?: +LearningRate {_NUMBER})? +Epoch: (\d{{1,18}}) +Global Step: (\d{{1,18}}) "
    # all decimals, and the whole of what ends a line: a torn number is none
    r".{0,120}?(?:Feat Norm (nan|inf|\d+\.\d{4})(?: +Reg Loss (nan|-?inf|-?\d+\.\d{4})|(?=[ \t\r]*\n))"
    r"|Required: -?(?:nan|inf|[\d.]{1,20}) hours(?=[ \t\r]*\n))"
    r"|\[(?P<target>[^\[\]\r\n]{1,200})\]\[(?P<at>\d{1,18})\](?:XNorm: (?P<xnorm>nan|inf|\d+\.\d{6})"
    r"|Accuracy-Flip: (?P<accuracy>nan|\d\.\d{5})\+-(?P<accuracy_std>nan|\d\.\d{5})"
    r"|Accuracy-Highest: (?P<highest>nan|\d\.\d{5})))").encode())
_STEP_COLUMNS = ("speed", "loss", "learning_rate", "epoch", "step", "feature_norm", "reg_loss")  # in the order of the groups above
_MEASURED = ("xnorm", "accuracy", "accuracy_std", "highest")
_STEP_TYPES = {"step": int, "epoch": int, "loss": float, "learning_rate": float, "speed": float, "feature_norm": float, "reg_loss": float}
_VERIFICATION_TYPES = {"target": str, "step": int, "xnorm": float, "accuracy": float, "accuracy_std": float, "highest": float}


def read_training_log(path: str | Path) -> TrainingLog:
    """Read a log of train.py, of the published runs, with or without `Fp16 Grad Scale` and `Meet Loss`, or of arcface_torch, whose lines
    end after `Required: ... hours` and may lack `LearningRate`.

    Lines of other kinds, and lines that a crash cut short, are passed over. Where the steps of the losses, or those of the verifications,
    start anew from an earlier one, the run was resumed or begun again: what the log said from that step on is superseded. Raises
    InputError where the file cannot be read, has no line of a training log, or more than MAX_LOG bytes or MAX_ROWS rows.
    """
    text = _log(path)
    steps: dict[int, dict[str, Any]] = {}  # both in the order of steps, so that what is superseded is at the end
    verified: dict[tuple[int, str], dict[str, Any]] = {}
    last = {"loss": 0, "verification": 0}  # apart: a verification may be written after the loss of a later step
    for found in _LINE.finditer(text):
        step, kind = (int(found[5]), "loss") if found["at"] is None else (int(found["at"]), "verification")
        if step < last[kind]:
            _remove_from(steps, step, lambda at: at)
            _remove_from(verified, step, lambda key: key[0])
            last = {each: min(at, step) for each, at in last.items()}
        last[kind] = step
        if kind == "loss":
            row = {name: math.nan if value is None else float(value) for name, value in zip(_STEP_COLUMNS, found.groups())}
            steps[step] = {**row, "step": step, "epoch": int(found[4])}
        else:
            target = found["target"].decode("utf-8", "replace")
            row = verified.setdefault((step, target), {"target": target, "step": step})
            row.update({name: float(found[name]) for name in _MEASURED if found[name] is not None})
        if len(steps) + len(verified) > MAX_ROWS:
            raise InputError(f"{path}: more than {MAX_ROWS} lines of a training log")
    if not steps and not verified and not re.search(rb"^[ \t]*Training: ", text, re.MULTILINE):
        raise InputError(f"{path}: {text.count(10)} lines, none of a training log; expected 'Training: 2024-02-02 12:33:23,502-...'")
    return TrainingLog(_typed(steps.values(), _STEP_TYPES), _typed(verified.values(), _VERIFICATION_TYPES))


def _log(path: str | Path) -> bytes:
    try:
        return read_file(path, MAX_LOG)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def _remove_from(rows: dict, step: int, step_of: Callable[[Any], int]) -> None:
    """Remove the rows from `step` on, which are the last ones."""
    while rows and step_of(next(reversed(rows))) >= step:
        rows.popitem()


def _typed(rows: Iterable[dict], types: dict[str, type]) -> pd.DataFrame:
    return pd.DataFrame(list(rows), columns=list(types)).astype(types)
