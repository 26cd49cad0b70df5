"""Two torchrun agents as two machines, of which one is killed with all of its processes: what the other one does, and that no step is lost."""
import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tiny_training import SETTINGS, write_faces
from torch.distributed.run import get_args_parser

import train
from config import config
from utils.faults.launch import _HOW

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 300  # seconds, in which a machine whose cores others use starts a few processes
pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes of a node are found by /proc")


class Nodes:
    """Nodes by name, each an agent with its workers, which a word in the environment of all of them marks."""

    def __init__(self, folder: Path):
        self.folder, self.word, self.agents = folder, uuid.uuid4().hex, {}

    def start(self, name: str, *arguments: str, faults: str = "") -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "FAULTS": faults, "NODE_OF_A_TEST": self.word + name,
                       "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        with open(self.folder / f"{name}.txt", "ab") as file:
            self.agents[name] = subprocess.Popen([sys.executable, "-m", "torch.distributed.run", *arguments], cwd=ROOT, env=environment,
                                                 stdout=file, stderr=file)

    def processes(self, name: str = "") -> list[int]:
        found = []
        for process in filter(lambda path: path.name.isdigit(), Path("/proc").iterdir()):
            try:
                if f"NODE_OF_A_TEST={self.word}{name}".encode() in (process / "environ").read_bytes():
                    found.append(int(process.name))
            except OSError:  # it has ended
                pass
        return found

    def kill(self, name: str = "") -> None:
        """All processes of a node, or of all nodes, as a power cut would end them."""
        while found := self.processes(name):
            for number in found:
                with contextlib.suppress(OSError):
                    os.kill(number, signal.SIGKILL)
            for agent in self.agents.values():
                agent.poll()  # or what was killed stays in /proc

    def said(self, name: str) -> str:
        return (self.folder / f"{name}.txt").read_text(errors="replace")

    def wait_for(self, what) -> None:
        deadline = time.monotonic() + PATIENCE
        while not what():
            assert time.monotonic() < deadline, "\n".join(self.said(name)[-2000:] for name in self.agents)
            time.sleep(0.05)

    def ended(self, name: str) -> int:
        """Its exit status."""
        self.wait_for(lambda: self.agents[name].poll() is not None)
        return self.agents[name].returncode


@pytest.fixture
def nodes(tmp_path):
    nodes = Nodes(tmp_path)
    yield nodes
    nodes.kill()


@pytest.fixture
def faces(tmp_path):
    return write_faces(tmp_path)


def program(faces, output, *arguments) -> list[str]:
    return [str(ROOT / "tests" / "tiny_training.py"), f"rec={faces}", f"output={output}", "resume=auto", "timeout=60", *arguments]


def log(output) -> str:
    return (output / "training.log").read_text()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The weights that a run of one process ends with, nothing having happened to it."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert train.run(config, [*SETTINGS, f"rec={write_faces(folder)}", f"output={folder / 'run'}"]) == 0
    return folder / "run"


def same_end(output, uninterrupted) -> bool:
    one, other = (torch.load(folder / "model_final.pt", weights_only=True) for folder in (output, uninterrupted))
    return all((one[key] - other[key]).norm() <= 2e-3 * other[key].norm() for key in other)


def launch_lines() -> list[str]:
    """Every line for several nodes that is written down for users, each of one line."""
    files = ["train.py", "docs/training.md", "CertRobFR_train.ipynb"]
    text = "\n".join((ROOT / name).read_text().replace('\\\\\\n",\n    "', "") for name in files)
    return re.findall(r"torchrun (--nnodes=.*?train\.py)", text) + re.findall(r"torchrun (--nnodes=.*?) \.\.\.", _HOW.replace("$SLURM_NNODES", "2"))


def test_torchrun_takes_the_lines_for_several_nodes():
    lines = launch_lines()
    assert len(lines) >= 5 and "srun" in _HOW
    for line in lines:
        given = get_args_parser().parse_args([*shlex.split(line.replace("_node=N", "_node=8")), "" if "train.py" in line else "train.py"])
        assert given.rdzv_backend == "c10d" and given.rdzv_endpoint == "HOST:29500" and given.rdzv_id not in (None, "none"), line
        assert "node_rank" not in line, "c10d does not look at it"


@pytest.mark.skipif("SLOW_TESTS" not in os.environ, reason="half a minute of waiting for torchrun: make test SLOW_TESTS=1")
def test_a_killed_node_is_started_again_with_the_same_line(nodes, faces, uninterrupted, tmp_path):
    """The line of docs/training.md, on both. The node without the rendezvous is killed at step 3, while all wait for it."""
    line = next(line for line in launch_lines() if "--max-restarts" in line and "--nnodes=2 " in line)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        line = line.replace("HOST:29500", f"127.0.0.1:{free.getsockname()[1]}").replace("_node=8", "_node=1").removesuffix("train.py")
    command = [*shlex.split(line), "--rdzv_conf=keep_alive_interval=1"]
    first, second = ([*command, f"--local_addr=127.0.0.{number}", *program(faces, tmp_path / "run")] for number in (1, 2))
    nodes.start("first", *first)
    nodes.start("second", *second, faults="3:1:SIGSTOP")
    nodes.wait_for((tmp_path / "run" / "done_3_1").exists)
    nodes.kill("second")
    nodes.wait_for(lambda: "train: process 0: another process ended" in nodes.said("first"))
    nodes.start("second", *second)
    assert nodes.ended("first") == nodes.ended("second") == 0, nodes.said("first")[-2000:]
    assert "12 steps from step 2" in log(tmp_path / "run") and same_end(tmp_path / "run", uninterrupted)


def test_a_job_goes_on_with_one_node_fewer(nodes, faces, uninterrupted, tmp_path):
    """The node of process 0, which writes the states and has the folder, is killed; the rendezvous is on a third machine, this process."""
    store, run = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False), tmp_path / "run"

    def command(number, last_call):
        rendezvous = f"is_host=0,keep_alive_interval=1,keep_alive_max_attempt=2,last_call_timeout={last_call}"
        return ["--nnodes=1:2", "--nproc_per_node=1", "--max-restarts=1", "--rdzv_id=job", "--rdzv_backend=c10d",
                f"--rdzv_endpoint=127.0.0.1:{store.port}", f"--rdzv_conf={rendezvous}", f"--local_addr=127.0.0.{number}"]
    arguments = program(faces, run, "resume_changed=True")
    # agents are numbered by their addresses; the first to come waits for another one, for as long as that takes
    nodes.start("first", *command(1, 2 * PATIENCE), *arguments, faults="3:0:SIGSTOP")
    nodes.wait_for(lambda: store.check(["torch.rendezvous.job"]))
    nodes.start("second", *command(2, 1), *arguments)
    nodes.wait_for((run / "done_3_0").exists)
    nodes.kill("first")
    assert nodes.ended("second") == 0, nodes.said("second")[-2000:]
    assert "train: process 1: another process ended" in nodes.said("second")
    assert "12 steps from step 2" in log(run) and "resumed with another setting: world_size was 2 and is 1" in log(run)
    assert same_end(run, uninterrupted) and not (run / ".lock").exists()


@pytest.mark.parametrize("count, said", [("0", False), ("1", True)])
def test_beginning_afresh_in_the_middle_of_a_job_is_not_silent(faces, tmp_path, monkeypatch, count, said):
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", count)
    assert train.run(config, [*SETTINGS, f"rec={faces}", f"output={tmp_path / 'run'}", "resume=auto"]) == 0
    assert ("torchrun starts this job anew, and there is no state in" in log(tmp_path / "run")) == said
