"""Requests to stop: which there are, that ignored ones stay ignored, and commands that go on where they were."""
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch
from conftest import ROOT
from small_world import command, summary_of, world  # noqa: F401
from tiny_training import SETTINGS, write_faces

import train
import train_toy
from config import config
from datasets import get_dataloader
from eval import robustness
from eval.audit import driver
from eval.store.journal import Journal
from utils import build_dataset
from utils.faults.signals import REQUESTS, StopRequest, StopSignals, leave_to_the_parent, stops, unbroken
from utils.files import atomic_write

OTHERS = [number for number in REQUESTS if number != signal.SIGINT]


def name(number):
    return number.name


def test_what_is_a_request():
    assert {number.name for number in REQUESTS} == {"SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU"}


@pytest.mark.parametrize("number", REQUESTS, ids=name)
def test_what_is_ignored_stays_ignored(number):
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with stops(), StopSignals() as signals, unbroken():
            signal.raise_signal(number)
        assert signals.received is None and signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("number", REQUESTS, ids=name)
def test_a_request_is_raised_where_the_program_is_but_not_between_files_that_belong_together(tmp_path, number):
    before, written = signal.getsignal(number), []
    with pytest.raises(KeyboardInterrupt) as error, stops():
        with unbroken(), unbroken():
            signal.raise_signal(number)
            written.append(1)
        written.append(2)
    assert written == [1] and isinstance(error.value, StopRequest) == (number != signal.SIGINT)
    assert signal.getsignal(number) is before
    with pytest.raises(KeyboardInterrupt), stops(), atomic_write(tmp_path / "a") as file:
        file.write("half")
        signal.raise_signal(number)
    assert not list(tmp_path.iterdir())


def test_workers_leave_it_to_the_parent():
    before = {number: signal.getsignal(number) for number in REQUESTS}
    try:
        leave_to_the_parent()
        for number in OTHERS[1:]:
            signal.raise_signal(number)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Telling(torch.utils.data.Dataset):
    """Reading sample 5 sends the process that reads it the warning of a scheduler."""

    def __len__(self):
        return 16

    def __getitem__(self, index):
        if index == 5:
            os.kill(os.getpid(), signal.SIGUSR1)
        return torch.zeros(3, 4, 4, dtype=torch.uint8), index


def test_a_signal_that_reaches_a_worker_costs_no_batch():
    assert len(list(get_dataloader(Telling(), 4, num_workers=2, timeout=60))) == 4


@pytest.mark.parametrize("number", REQUESTS, ids=name)
def test_before_the_first_step_there_is_nothing_to_save(tmp_path, monkeypatch, capsys, number):
    monkeypatch.setattr(train, "training_set", lambda cfg: signal.raise_signal(number))
    assert train.run(config, [*SETTINGS, f"output={tmp_path / 'out'}"]) == 75
    error = capsys.readouterr().err
    assert error.startswith("stopped") and error.count("\n") == 1 and (number == signal.SIGINT or number.name in error)


# --- commands

@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGHUP, 75), (signal.SIGUSR1, 75)])
@pytest.mark.parametrize("what, more", [("attack", ("--attack", "pgd", "--steps", "3", "--no-skip")), ("audit", ("--steps", "3", "--restarts", "1"))])
def test_attacks_and_audits_go_on_where_they_were(world, monkeypatch, capsys, number, status, what, more):  # noqa: F811
    assert command(world, "certify", out="whole") == command(world, what, *more, out="whole") == command(world, "certify") == 0
    plain, made = Journal._write, []

    def stopping(self, line):
        plain(self, line)
        made.append((line.get("stage"), line.get("id")))
        if len(made) == 4:
            signal.raise_signal(number)
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "_write", stopping)
        assert command(world, what, *more) == status
    cost, error = capsys.readouterr().err.splitlines()
    assert "through the network" in cost and "goes on from it" in error and (status == 130 or number.name in error)
    (journal,) = (world / "out").glob(".*.jsonl")
    assert len(journal.read_text().splitlines()) == 4
    again = []
    monkeypatch.setattr(Journal, "_write", lambda self, line: (again.append((line["stage"], line["id"])), plain(self, line)))
    assert command(world, what, *more) == 0
    assert again and not [batch for batch in again if batch in made[1:]], "nothing is done twice"
    pd.testing.assert_frame_equal(*(pd.read_csv(world / folder / "attacks.csv") for folder in ("whole", "out")))
    if what == "attack":
        assert summary_of(world / "whole")["era_d"] == summary_of(world / "out")["era_d"]
    assert not list((world / "out").glob(".*"))


@pytest.mark.parametrize("module", [robustness, driver], ids=["attack", "audit"])
def test_the_files_of_a_result_are_written_all_or_none(world, monkeypatch, module):  # noqa: F811
    """A request that arrives after the first file of the last step waits for the others."""
    write, more = module.results.write_records, ("--attack", "fgsm") if module is robustness else ("--steps", "2", "--restarts", "1")
    assert command(world, "certify") == 0
    monkeypatch.setattr(module.results, "write_records", lambda *given: (signal.raise_signal(signal.SIGTERM), write(*given)))
    assert command(world, "attack" if module is robustness else "audit", *more) == 75
    assert not list((world / "out").glob(".*.jsonl")) and (world / "out" / "attacks.csv").is_file()
    assert module is robustness or (world / "out" / "audit.json").is_file()


def test_other_commands_end_in_one_line(tmp_path, monkeypatch, capsys):
    for number, status in ((signal.SIGTERM, 75), (signal.SIGINT, 130)):
        monkeypatch.setattr(build_dataset, "build_bin", lambda *_, **__: signal.raise_signal(number))
        assert build_dataset.main(["bin", "--pairs", "a", "--images", "b", "--out", str(tmp_path / "c.bin")]) == status
        monkeypatch.setattr(train_toy, "train_toy", lambda *_: signal.raise_signal(number))
        assert train_toy.run(["device=cpu"]) == 75
    assert capsys.readouterr().err.count("\n") == 4


@pytest.mark.parametrize("launch", [[], ["nohup"]], ids=["plain", "nohup"])
def test_a_lost_terminal(tmp_path, launch):
    """SIGHUP in a process of its own: the state is saved, or, under nohup, the run goes on to its end."""
    command_line = [*launch, sys.executable, str(ROOT / "tests" / "tiny_training.py"), f"rec={write_faces(tmp_path)}", f"output={tmp_path / 'out'}",
                    "num_epoch=30", "save_steps=100000"]
    process = subprocess.Popen(command_line, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
    log, deadline = tmp_path / "out" / "training.log", time.monotonic() + 100
    while not (log.is_file() and "Global Step: 3 " in log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGHUP)
    assert process.wait(100) == (0 if launch else 75)
    assert ("done: " if launch else "SIGHUP; the state is saved") in log.read_text()
