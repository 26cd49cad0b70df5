"""What a machine is short of: one line that says what helps, and a state; none of it a traceback or a wait without end."""
import errno
import os
import subprocess
import sys
import traceback

import pytest
import torch
from conftest import ROOT
from small_world import command, world  # noqa: F401
from tiny_training import SETTINGS, write_faces

import train
from config import config
from datasets import get_dataloader
from eval import verification
from utils import InputError, loader
from utils.faults.resources import KINDS, advice, shortage


@pytest.mark.parametrize("error, kind", [
    (RuntimeError("unable to allocate shared memory(shm) for file </torch_12_3>: No space left on device (28)"), "shared memory"),
    (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are out of shared memory."),
     "shared memory"),
    (RuntimeError("unable to open shared memory object </torch_1> in read-write mode: Too many open files (24)"), "shared memory"),
    (OSError(errno.EMFILE, "Too many open files"), "open files"), (RuntimeError("received 0 items of ancdata"), "open files"),
    (OSError(errno.EAGAIN, "Resource temporarily unavailable"), "processes"), (RuntimeError("can't start new thread"), "processes"),
    (OSError(errno.ENOMEM, "Cannot allocate memory"), "memory"), (MemoryError(), "memory"),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "memory"),
    (RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"), "memory"),
    (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), "memory"),
    (RuntimeError("size mismatch"), None), (OSError(errno.ENOENT, "No such file"), None), (OSError(errno.ENOSPC, "No space left on device"), None)])
def test_what_is_short_is_told_from_an_error(error, kind):
    assert shortage(error) == kind


def test_each_has_its_advice():
    texts = [advice(kind) for kind in KINDS]
    assert "--shm-size" in texts[0] and "ulimit -n" in texts[1] and "ulimit -u" in texts[2] and "batch_size" in texts[3]
    assert all("num_workers" in text and "\n" not in text for text in texts)


class Short(torch.utils.data.Dataset):
    """Reading sample 21 fails for lack of something, in a worker."""
    num_classes, image_size = 12, (16, 16)

    def __init__(self, error):
        self.error = error

    def __len__(self):
        return 48

    def __getitem__(self, index):
        if index == 21 and torch.utils.data.get_worker_info():
            raise self.error
        return torch.zeros(3, 16, 16, dtype=torch.uint8), index % 12

    def fingerprint(self):
        return "short"


@pytest.mark.parametrize("error, words", [(OSError(errno.EMFILE, "Too many open files"), "ulimit -n"), (MemoryError(), "memory is short"),
                                          (RuntimeError("unable to write to file </torch_1>: No space left on device (28)"), "--shm-size")])
def test_in_a_worker_it_ends_the_run_with_a_state(tmp_path, monkeypatch, capsys, error, words):
    monkeypatch.setattr(train, "training_set", lambda cfg: Short(error))
    given = [each for each in SETTINGS if not each.startswith(("num_workers", "save_steps"))]
    assert train.run(config, [*given, f"output={tmp_path}", "num_workers=1", "save_steps=1000", "seed=1"]) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1
    text = (tmp_path / "training.log").read_text()
    assert "Global Step: 1 " not in text or list(tmp_path.glob("state_*.pt"))


def test_another_error_of_a_worker_is_left_as_it_is():
    loader = get_dataloader(Short(RuntimeError("another matter")), 8, num_workers=1)
    with pytest.raises(RuntimeError, match="another matter") as error:
        list(loader)
    traceback.clear_frames(error.tb)  # which hold the worker, for which the garbage collector would wait five seconds
    del loader


class NoFileLeft:
    """What a worker puts in the place of a batch whose memory it may not open a file for: it fails in the thread that sends."""

    def __reduce__(self):
        raise OSError(errno.EMFILE, "Too many open files")


class Unsendable(torch.utils.data.Dataset):
    """From sample 8 on, what its workers read cannot be sent."""

    def __len__(self):
        return 32

    def __getitem__(self, index):
        if index == 8:
            loader.shared = lambda tensor: NoFileLeft()  # in this worker alone
        return torch.zeros(3, 4, 4, dtype=torch.uint8), index


def test_a_batch_that_cannot_be_sent_is_not_waited_for(capfd):
    with pytest.raises(InputError, match="too many open files") as error:
        list(get_dataloader(Unsendable(), 4, num_workers=1, flip=False, shuffle=False, timeout=5))
    assert "timed out" not in str(error.value) and "Traceback" not in capfd.readouterr().err


def test_commands_say_it_in_one_line(world, monkeypatch, capsys):  # noqa: F811
    def short(self, number):
        raise OSError(errno.EMFILE, "Too many open files")
    monkeypatch.setattr(verification._Decoded, "__getitem__", short)
    assert command(world, "certify", "--num-workers", "1") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "Too many open files" in error or "too many open files" in error
    monkeypatch.setattr(verification, "_embed", lambda *_: (_ for _ in ()).throw(RuntimeError("DefaultCPUAllocator: can't allocate memory")))
    monkeypatch.undo()


def test_no_memory_for_a_step_is_one_line(tmp_path, monkeypatch, capsys):
    def too_large(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    monkeypatch.setattr(train, "objective", too_large)
    assert train.run(config, [*SETTINGS, f"rec={write_faces(tmp_path)}", f"output={tmp_path / 'out'}"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "grad_accum_steps" in error


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0 or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode != 0,
                    reason="a small /dev/shm needs a mount namespace of one's own")
def test_a_small_shm(tmp_path):
    """128 KB in place of gigabytes: real processes, one line, no traceback."""
    line = (f"mount -t tmpfs -o size=128k tmpfs /dev/shm && exec {sys.executable} {ROOT / 'tests' / 'tiny_training.py'} "
            f"rec={write_faces(tmp_path)} output={tmp_path / 'out'} num_workers=2 batch_size=40 num_epoch=40")
    done = subprocess.run(["unshare", "-m", "bash", "-c", line], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert "Traceback" not in done.stdout + done.stderr
    assert done.returncode == 0 or done.returncode == 2 and "--shm-size" in done.stderr and done.stderr.count("\n") == 1
