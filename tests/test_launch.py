"""The environment that says how a process was started: checked as settings are, in one line that names the variable."""
import os
import socket

import pytest
from conftest import ROOT  # noqa: F401
from small_world import command, world  # noqa: F401
from tiny_training import SETTINGS, write_faces

import train
from config import config
from utils import InputError
from utils.faults.launch import Launch, alone_among_tasks, launch

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "SLURM_PROCID", "SLURM_NTASKS",
             "SLURM_NPROCS", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "PMI_RANK", "PMI_SIZE",
             "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "FLUX_TASK_RANK", "FLUX_JOB_SIZE")
MASTER = {"MASTER_ADDR": "localhost", "MASTER_PORT": "29511"}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """A function that sets variables, beside which there are none."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)

    def set_to(words, **more):
        for name, value in {**dict(word.split("=", 1) for word in words.split()), **more}.items():
            monkeypatch.setenv(name, value)
    return set_to


@pytest.mark.parametrize("words, expected", [
    ("", Launch()), ("LOCAL_RANK=1", Launch(local_rank=1)), ("MASTER_ADDR=localhost MASTER_PORT=x", Launch()),
    ("RANK=3 WORLD_SIZE=4 LOCAL_RANK=1 LOCAL_WORLD_SIZE=2 MASTER_ADDR=a MASTER_PORT=1", Launch(3, 4, 1, 2, True)),
    ("RANK=0 WORLD_SIZE=1 MASTER_ADDR=a MASTER_PORT=65535", Launch(grouped=True)),
    # a batch script of many tasks is one process itself, and so is a step of one task
    ("SLURM_PROCID=0 SLURM_NTASKS=8", Launch()), ("SLURM_NTASKS=8", Launch()), ("SLURM_PROCID=0 SLURM_NTASKS=8 SLURM_STEP_NUM_TASKS=1", Launch()),
    ("PMI_RANK=0 PMI_SIZE=1", Launch()), ("OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=x", Launch()),
    # torchrun inside of it
    ("SLURM_PROCID=1 SLURM_NTASKS=2 SLURM_STEP_NUM_TASKS=2 RANK=1 WORLD_SIZE=2 MASTER_ADDR=a MASTER_PORT=1", Launch(1, 2, grouped=True))])
def test_what_is_read(environment, words, expected):
    environment(words)
    assert launch() == expected


@pytest.mark.parametrize("words, named", [
    ("WORLD_SIZE=2", "WORLD_SIZE='2' without RANK"), ("WORLD_SIZE=1", "without RANK"), ("RANK=0", "RANK='0' without WORLD_SIZE"),
    ("LOCAL_RANK=", "LOCAL_RANK=''"), ("LOCAL_RANK=-1", "LOCAL_RANK='-1'"), ("LOCAL_WORLD_SIZE=0", "LOCAL_WORLD_SIZE='0'"),
    ("LOCAL_WORLD_SIZE=two", "LOCAL_WORLD_SIZE='two'"), ("LOCAL_RANK=2 LOCAL_WORLD_SIZE=2", "LOCAL_RANK=2, but LOCAL_WORLD_SIZE='2'"),
    ("LOCAL_RANK=1e3", "LOCAL_RANK='1e3'"), ("LOCAL_RANK=" + "9" * 5000, "LOCAL_RANK='999"), ("LOCAL_RANK=\u0661", "LOCAL_RANK="),
    ("RANK=0 WORLD_SIZE=x", "WORLD_SIZE='x'"), ("RANK=0 WORLD_SIZE=", "WORLD_SIZE=''"), ("RANK=0 WORLD_SIZE=0", "WORLD_SIZE='0'"),
    ("RANK= WORLD_SIZE=2", "RANK=''"), ("RANK=2 WORLD_SIZE=2", "RANK=2, but WORLD_SIZE='2'"), ("RANK=0.5 WORLD_SIZE=2", "RANK='0.5'"),
    ("RANK=0 WORLD_SIZE=2 LOCAL_WORLD_SIZE=3", "LOCAL_WORLD_SIZE=3, but WORLD_SIZE='2'"),
    ("RANK=0 WORLD_SIZE=1", "MASTER_ADDR=(not set)"), ("RANK=0 WORLD_SIZE=2 MASTER_ADDR=", "MASTER_ADDR=''"),
    ("RANK=0 WORLD_SIZE=2 MASTER_ADDR=a", "MASTER_PORT=(not set)"), ("RANK=0 WORLD_SIZE=2 MASTER_ADDR=a MASTER_PORT=http", "MASTER_PORT='http'"),
    ("RANK=0 WORLD_SIZE=2 MASTER_ADDR=a MASTER_PORT=65536", "MASTER_PORT='65536'"),
    ("SLURM_PROCID=1 SLURM_NTASKS=2", "srun started 2 of these (SLURM_NTASKS=2, SLURM_PROCID=1)"),
    ("SLURM_PROCID=0 SLURM_NTASKS=4 SLURM_STEP_NUM_TASKS=4", "srun started 4"), ("SLURM_PROCID=1 SLURM_NPROCS=2", "SLURM_NPROCS=2"),
    ("OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=2", "mpirun started 2"), ("PMI_RANK=1 PMI_SIZE=3", "mpiexec started 3"),
    ("MV2_COMM_WORLD_RANK=0 MV2_COMM_WORLD_SIZE=2", "MV2_COMM_WORLD_SIZE=2"), ("FLUX_TASK_RANK=0 FLUX_JOB_SIZE=2", "flux run started 2")])
def test_what_cannot_be_used_is_named(environment, words, named):
    environment(words)
    with pytest.raises(InputError) as error:
        launch()
    assert named in str(error.value) and len(str(error.value)) < 500 and "\n" not in str(error.value)
    assert "without" not in named and "started" not in named or "torchrun" in str(error.value), "how it is done"


def test_command_lines_say_so(environment, world, capsys):  # noqa: F811
    environment("SLURM_PROCID=1 SLURM_NTASKS=2")
    assert train.run(config, [*SETTINGS, f"rec={write_faces(world)}", f"output={world / 'run'}"]) == 2
    assert command(world, "certify") == command(world, "attack", "--attack", "fgsm") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == error.count("SLURM_PROCID=1") == 3 and not (world / "run").exists() and not (world / "out").exists()


def test_a_command_of_one_process_under_torchrun(environment, world, capsys):  # noqa: F811
    environment("RANK=0 WORLD_SIZE=2", **MASTER)
    assert command(world, "certify") == 2 and "WORLD_SIZE=2: this command is one process" in capsys.readouterr().err


def test_a_port_that_is_in_use_is_named(environment, tmp_path, capsys):
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        environment("RANK=0 WORLD_SIZE=2 MASTER_ADDR=localhost", MASTER_PORT=str(other.getsockname()[1]))
        assert train.run(config, [*SETTINGS, f"rec={write_faces(tmp_path)}", f"output={tmp_path / 'run'}", "timeout=5"]) == 2
        assert f"MASTER_PORT={os.environ['MASTER_PORT']}: another program uses this port" in capsys.readouterr().err


def test_one_process_of_a_batch_script_says_that_it_is_alone(environment, tmp_path):
    environment("SLURM_PROCID=0 SLURM_NTASKS=2")
    assert "SLURM_NTASKS=2" in alone_among_tasks()
    assert train.run(config, [*SETTINGS, f"rec={write_faces(tmp_path)}", f"output={tmp_path / 'run'}"]) == 0
    assert "SLURM_NTASKS=2, and this is one process" in (tmp_path / "run" / "training.log").read_text()
    environment("", SLURM_STEP_NUM_TASKS="1")
    assert alone_among_tasks() is None
