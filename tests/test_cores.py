"""Cores that may be used, and the threads and workers that are made of them."""
import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from utils import cores


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A function that sets what the system says: cores by affinity and, by file, control groups."""
    def set_to(affinity=8, groups="0::/\n", files=(), processes=1, load=0.0):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(affinity)))
        monkeypatch.setattr(os, "cpu_count", lambda: 64)
        monkeypatch.setattr(os, "getloadavg", lambda: (load, load, load))
        monkeypatch.setattr(cores, "_CGROUPS", tmp_path)
        for name, text in dict(files).items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        plain = cores._read
        monkeypatch.setattr(cores, "_read", lambda path: groups if str(path) == "/proc/self/cgroup" else plain(path))
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    return set_to


V1 = "4:cpuset:/\n3:cpu,cpuacct:/docker/abc\n1:name=systemd:/\n"


@pytest.mark.parametrize("groups, files, expected", [
    ("0::/\n", {}, 8), ("", {}, 8), ("0::/\n", {"cpu.max": "max 100000\n"}, 8), ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
    ("0::/a/b\n", {"a/cpu.max": "350000 100000\n", "a/b/cpu.max": "max 100000\n"}, 3), ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
    ("0::/a\n", {"cpu.max": "300000 100000", "a/cpu.max": "500000 100000"}, 3), ("0::/\n", {"cpu.max": "9900000 100000\n"}, 8),
    ("0::/\n", {"cpu.max": "nonsense"}, 8), ("0::/\n", {"cpu.max": "100 0"}, 8), (V1, {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
    (V1, {"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
    (V1, {"cpu/docker/abc/cpu.cfs_quota_us": "400000", "cpu/docker/abc/cpu.cfs_period_us": "100000"}, 4)])
def test_quotas_of_containers(machine, groups, files, expected):
    machine(groups=groups, files=files)
    assert cores.usable_cores() == expected


def test_workers_and_threads(machine):
    threads = torch.get_num_threads()
    try:
        for affinity, processes, expected in ((1, 1, 0), (2, 1, 1), (8, 1, 7), (64, 1, 8), (8, 2, 3), (8, 8, 0), (2, 4, 0)):
            machine(affinity, processes=processes)
            assert cores.workers(None) == expected and cores.workers(5) == 5
            torch.set_num_threads(6)
            cores.limit_threads()
            assert torch.get_num_threads() == min(6, max(1, affinity // processes))
        torch.set_num_threads(1)
        machine(8)
        cores.limit_threads()
        assert torch.get_num_threads() == 1, "never more"
        torch.set_num_threads(6)
        machine(2)
        os.environ["OMP_NUM_THREADS"] = "6"
        cores.limit_threads()
        assert torch.get_num_threads() == 6, "as asked for"
    finally:
        torch.set_num_threads(threads)


def test_what_is_too_much_is_said(machine, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    machine(8)
    assert cores.oversubscribed(4) is None and "8 workers each on 8 cores" in cores.oversubscribed(8)
    machine(8, processes=4)
    assert "4 processes with 4 threads and 0 workers each on 8 cores: OMP_NUM_THREADS=2 and num_workers=1" in cores.oversubscribed(0)
    machine(8, load=128.0)  # of 64 cores
    assert "load 16.0" in cores.oversubscribed(4)
    machine(8, load=8.0)
    assert cores.oversubscribed(4) is None


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="without affinity")
@pytest.mark.parametrize("module", ["train", "train_toy", "ablation", "eval.__main__"])
def test_a_process_of_one_core(module):
    """Affinity is what is counted, and what waits gives its core away: the library is told before it starts."""
    code = (f"import os; os.sched_setaffinity(0, {{min(os.sched_getaffinity(0))}}); import {module}; from utils.cores import *; import torch; limit_threads(); "
            "print(usable_cores(), workers(None), torch.get_num_threads(), os.environ['OMP_WAIT_POLICY'])")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["1", "0", "1", "PASSIVE"], done.stderr
