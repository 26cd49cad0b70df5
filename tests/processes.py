"""New processes: several that work as the ranks of a group, and one that runs a command.

They are forked from a process of `multiprocessing` that has loaded the libraries and nothing else: importing these anew takes each process
seconds, which is more than what it does in most tests.
"""
import contextlib
import gc
import io
import multiprocessing
import os
import pickle
import runpy
import site
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from utils.distributed import leave_group

FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["torch", "torch._dynamo", "torch.utils.tensorboard", "pandas", "scipy.stats", "pytest"])


def in_processes(work, folder, world):
    """Call work(rank, folder), a function of a module, in `world` new processes; what they find they leave in the folder."""
    torch.multiprocessing.start_processes(_member, (work, folder, world), nprocs=world, start_method="forkserver")


def _member(rank, work, folder, world):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store{world}", rank=rank, world_size=world)
    work(rank, folder)
    leave_group()
    assert not any(isinstance(each, DistributedDataParallel) for each in gc.get_objects()), "a module that keeps the group's threads alive"


def as_ranks(world, work, *arguments) -> list:
    """What work(*arguments), a function of a module, returns in each of `world` new processes that torchrun might have started, by their
    environment.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # as torchrun has one for all its processes
    given = {**os.environ, "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1",
             "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True", "OMP_NUM_THREADS": "1"}
    with TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(_rank, (given, folder, work, arguments), nprocs=world, start_method="forkserver")
        return [pickle.loads((Path(folder) / str(number)).read_bytes()) for number in range(world)]


def _rank(number, environment, folder, work, arguments):
    os.environ.clear()
    os.environ.update(environment, RANK=str(number), LOCAL_RANK=str(number))
    torch.set_num_threads(1)
    (Path(folder) / str(number)).write_bytes(pickle.dumps(work(*arguments)))


def command_as_ranks(world, main, arguments) -> str:
    """What the ranks of main(arguments) print, which must end well in each of them."""
    return "".join(as_ranks(world, _command, main, arguments))


def _command(main, arguments) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.redirect_stderr(io.StringIO()) as said:
        status = main(arguments)
    assert status == 0, said.getvalue()
    return printed.getvalue()


def train_as_ranks(world, arguments) -> None:
    """train.py with these settings on `world` ranks."""
    command_as_ranks(world, _train, arguments)


def _train(arguments) -> int:
    import tiny_training  # its networks

    return tiny_training.train.run(tiny_training.config, arguments)


def python(*arguments, cwd=None, **environment) -> subprocess.CompletedProcess:
    """What `python -m MODULE ...` or `python SCRIPT ...` returns, prints and says, in a process of its own with these variables as well.

    It differs from one in that libraries are there already; what is about the start of the interpreter or its end needs a real one.
    """
    arguments, environment = [*map(str, arguments)], {**os.environ, **environment}
    with TemporaryDirectory() as folder:
        process = FORKED.Process(target=_python, args=(arguments, str(cwd or os.getcwd()), environment, folder))
        process.start()
        process.join(300)
        process.kill()
        process.join()
        told = [(Path(folder) / name).read_text() for name in ("stdout", "stderr")]
    return subprocess.CompletedProcess(arguments, process.exitcode, *told)


def _python(arguments, cwd, environment, folder) -> None:
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT), number)
        setattr(sys, name, open(number, "w", closefd=False))  # noqa: SIM115
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    installed = [path for path in sys.path if path.startswith((sys.prefix, sys.base_prefix, site.getuserbase()))]
    is_module = arguments[0] == "-m"
    sys.argv[:] = arguments[is_module:]
    given = filter(None, environment.get("PYTHONPATH", "").split(":"))
    sys.path[:] = [cwd if is_module else os.path.dirname(arguments[0]), *given, *installed]
    if is_module:
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(arguments[0], run_name="__main__")
