"""What the environment says of how this process was started, checked as settings are."""
import contextlib
import json
import os
import re
import time
from typing import NamedTuple

from utils import InputError

# of each launcher that starts several processes without telling torch: number and count of a process; SLURM's count of the job step
# comes first, as a batch script of many tasks is itself but one process
_OTHERS = (("srun", "SLURM_PROCID", ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS")),
           ("mpirun", "OMPI_COMM_WORLD_RANK", ("OMPI_COMM_WORLD_SIZE",)), ("mpiexec", "PMI_RANK", ("PMI_SIZE",)),
           ("mpirun", "MV2_COMM_WORLD_RANK", ("MV2_COMM_WORLD_SIZE",)), ("flux run", "FLUX_TASK_RANK", ("FLUX_JOB_SIZE",)))
_HOW = ("torchrun starts as many as are wanted: torchrun --standalone --nproc_per_node=N ..., or once on each node, "
        "srun --ntasks-per-node=1 torchrun --nnodes=$SLURM_NNODES --nproc_per_node=N --rdzv_id=$SLURM_JOB_ID --rdzv_backend=c10d "
        "--rdzv_endpoint=HOST:29500 ...")


class Launch(NamedTuple):
    """rank of world_size processes, local_rank of local_world_size on this machine; grouped: whether they are to find each other."""
    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    grouped: bool = False


def launch() -> Launch:
    """How torchrun, or whoever set its variables, started this process; one process where there are none.

    Raises InputError, naming the variable, for one that is missing beside others, is no number or is out of range, and for one of several
    processes of another launcher, each of which would do all of the work, in the same folder.
    """
    count, number = _number("WORLD_SIZE", 1), _number("RANK", 0)
    local_count, local = _number("LOCAL_WORLD_SIZE", 1), _number("LOCAL_RANK", 0)
    for name, value, other in (("RANK", number, "WORLD_SIZE"), ("WORLD_SIZE", count, "RANK")):
        if value is None and os.environ.get(other) is not None:
            raise InputError(f"environment: {other}={_shown(other)} without {name}: {_HOW}")
    if count is None:
        _refuse_other_launchers()
    grouped, count, number = count is not None, count or 1, number or 0
    for name, value, bound, of in (("RANK", number, count, "WORLD_SIZE"), ("LOCAL_RANK", local, local_count, "LOCAL_WORLD_SIZE"),
                                   ("LOCAL_WORLD_SIZE", local_count, count + 1, "WORLD_SIZE")):
        if value is not None and bound is not None and value >= bound and os.environ.get(of) is not None:
            raise InputError(f"environment: {name}={value}, but {of}={_shown(of)}")
    if grouped:
        if not os.environ.get("MASTER_ADDR", "").strip():
            raise InputError(f"environment: WORLD_SIZE={count}, but MASTER_ADDR={_shown('MASTER_ADDR')}: expected the name of the first "
                             "machine")
        port = _number("MASTER_PORT", 1)
        if port is None or port >= 2**16:
            raise InputError(f"environment: WORLD_SIZE={count}, but MASTER_PORT={_shown('MASTER_PORT')}: expected a port below 65536")
    return Launch(number, count, local or 0, local_count or 1, grouped)


def restarts() -> int:
    """How often torchrun has started the processes of this job anew after a failure; 0 in its first start and without torchrun."""
    return _or_none("TORCHELASTIC_RESTART_COUNT") or 0


def tell_launcher(line: str) -> None:
    """Leave the line that this process ends with where torchrun looks for it, as its `record` does: it is then what torchrun's report ends
    with, and not lost above that report.
    """
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        with contextlib.suppress(OSError), open(path, "w", encoding="utf-8") as file:
            json.dump({"message": {"message": line, "extraInfo": {"timestamp": str(int(time.time()))}}}, file)


def alone_among_tasks() -> str | None:
    """A remark where a batch script asked for several tasks and this process is the only one: it does not know of the others."""
    number, tasks = _or_none("SLURM_PROCID"), _or_none("SLURM_NTASKS")
    if "WORLD_SIZE" in os.environ or number != 0 or _or_none("SLURM_STEP_NUM_TASKS") == 1 or (tasks or 1) < 2:
        return None
    return f"SLURM_NTASKS={tasks}, and this is one process without the others: {_HOW}"


def _refuse_other_launchers() -> None:
    for launcher, number_name, count_names in _OTHERS:
        number, counts = _or_none(number_name), [_or_none(name) for name in count_names]
        stated = next(((name, count) for name, count in zip(count_names, counts) if count is not None), None)
        if number is None or stated is None or stated[1] < 2:
            continue
        if number or stated[0] not in ("SLURM_NTASKS", "SLURM_NPROCS"):  # of which a batch script is number 0
            raise InputError(f"environment: {launcher} started {stated[1]} of these ({stated[0]}={stated[1]}, {number_name}={number}), "
                             f"each of which would do all of the work; {_HOW}")


def _number(name: str, least: int) -> int | None:
    """A variable as a whole number; None where it is not set."""
    if name not in os.environ:
        return None
    number = _or_none(name)
    if number is None or number < least:
        raise InputError(f"environment: {name}={_shown(name)}: expected a whole number, at least {least}")
    return number


def _or_none(name: str) -> int | None:
    text = os.environ.get(name, "")
    return int(text) if re.fullmatch("[0-9]{1,9}", text, re.ASCII) else None


def _shown(name: str) -> str:
    return repr(os.environ[name][:60]) if name in os.environ else "(not set)"
