"""One run at a time writes to a folder, and what one machine has and another lacks."""
import os
import socket
import subprocess
import sys
import time

import pytest
from conftest import ROOT
from processes import FORKED, as_ranks
from small_world import command, world  # noqa: F401
from tiny_training import SETTINGS, write_faces

import train
from config import config
from utils import InputError
from utils.faults import folder as folders
from utils.faults.folder import is_owned, owned
from utils.utils_callbacks import CallBackCheckpoint


def _hold(path, told):
    with owned(path):
        told.send("held")
        time.sleep(600)


@pytest.fixture
def holder(tmp_path):
    """A function that starts a process which owns a folder."""
    started = []

    def hold(path):
        told, tells = FORKED.Pipe(duplex=False)
        process = FORKED.Process(target=_hold, args=(path, tells))
        process.start()
        started.append(process)
        assert told.recv() == "held"
        return process
    yield hold
    for process in started:
        process.kill()
        process.join()


def test_the_second_run_is_refused_and_touches_nothing(holder, tmp_path, capsys):
    out = tmp_path / "out"
    process = holder(out)
    (out / ".state_00000002.pt.abc.tmp").write_bytes(b"being written")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    arguments = [*SETTINGS, f"rec={write_faces(tmp_path)}", f"output={out}", "resume=auto"]
    assert train.run(config, arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"{out}: another run is writing there (process {process.pid} on {socket.gethostname()})" in error
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    process.kill()
    process.join()
    assert train.run(config, arguments) == 0, "a killed run leaves no lock"
    assert not list(out.glob(".*"))


def test_a_job_that_is_started_anew_waits_for_the_lock_of_a_machine_that_is_gone(holder, tmp_path, monkeypatch):
    process, waits = holder(tmp_path / "out"), []
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    monkeypatch.setattr(folders.time, "sleep", lambda seconds: (waits.append(seconds), process.kill(), process.join()))
    with owned(tmp_path / "out"):
        assert waits, "it was held at first"
    monkeypatch.setattr(folders, "LEASE", 0.0)
    holder(tmp_path / "out")
    with pytest.raises(InputError, match="another run is writing there"), owned(tmp_path / "out"):
        pass


@pytest.mark.parametrize("what, more", [("certify", ()), ("attack", ("--attack", "fgsm")), ("audit", ("--steps", "2"))])
def test_results_folders_too(world, holder, capsys, what, more):  # noqa: F811
    holder(world / "out")
    assert command(world, what, *more) == 2
    assert "out: another run is writing there" in capsys.readouterr().err and os.listdir(world / "out") == [".lock"]


def test_workers_that_outlive_a_killed_run_do_not_hold_its_folder(tmp_path):
    code = ("import os, sys, time; sys.path.insert(0, '.'); from utils.faults.folder import owned\n"
            "with owned(sys.argv[1]):\n    if os.fork() == 0: time.sleep(20); os._exit(0)\n    print('held', flush=True); time.sleep(600)")
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "a")], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    process.kill()
    process.wait()
    with owned(tmp_path / "a"):
        assert is_owned(tmp_path / "a")


def test_what_is_left_behind(tmp_path):
    with owned(tmp_path / "a" / "b"), owned(tmp_path / "a" / "b"):
        assert is_owned(tmp_path / "a" / "b") and not is_owned(tmp_path)
    assert not (tmp_path / "a").exists() and not is_owned(tmp_path / "a" / "b")
    with owned(tmp_path / "a"):
        (tmp_path / "a" / "file").touch()
    assert os.listdir(tmp_path / "a") == ["file"]
    with pytest.raises(InputError, match="file"), owned(tmp_path / "a" / "file" / "c"):
        pass


def test_unfinished_files_are_removed_by_the_owner_alone(tmp_path):
    (tmp_path / ".state_00000002.pt.abc.tmp").touch()
    checkpoints = CallBackCheckpoint(tmp_path, {}, {}, 1)
    assert checkpoints.restore("auto") == {} and (tmp_path / ".state_00000002.pt.abc.tmp").exists()
    with owned(tmp_path):
        assert checkpoints.restore("auto") == {} and not list(tmp_path.glob(".state*"))


def test_a_file_system_without_locks(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(folders.fcntl, "lockf", lambda *_: (_ for _ in ()).throw(OSError(38, "Function not implemented")))
    folders.LOGGER.propagate = True
    with caplog.at_level("WARNING", "training"), owned(tmp_path):
        assert not is_owned(tmp_path)
    assert "cannot be locked (Function not implemented)" in caplog.text and not list(tmp_path.iterdir())


# --- two machines, whose relative paths are folders of their own

def _tasks(device) -> dict:
    from utils.distributed import from_first_rank, rank
    from utils.faults.machines import all_or_none, file_of_first_rank, require_agreement
    found, me = {}, rank()
    folders.PATIENCE = 1.0

    def note(name, task):
        try:
            found[name] = task()
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"

    def body(fails):
        with all_or_none():
            if me == fails:
                raise InputError("rec=x: does not exist")

    def own(path, shared):
        with owned(path, shared=shared):
            return "owned"

    def first():
        raise InputError("no state")

    def sent():
        if me == 0:
            with open("big.pt", "wb") as file:
                file.write(bytes(range(256)) * 300000)  # more than one part
        with file_of_first_rank("big.pt") as path:
            return [path.name, path.read_bytes() == bytes(range(256)) * 300000, path.is_absolute()]

    note("all", lambda: body(-1))
    note("one", lambda: body(1))
    note("agree", lambda: require_agreement({"lr": 1}))
    note("differ", lambda: require_agreement({"lr": me, "xi": 2}))
    note("first", lambda: from_first_rank(lambda: me))
    note("first fails", lambda: from_first_rank(first))
    note("shared", lambda: own("../both", True))
    note("local", lambda: own("local", True))
    note("local output", lambda: own("local", False))
    note("sent", sent)

    def run(*arguments):
        given = {argument.partition("=")[0]: argument for argument in (*SETTINGS, "output=run", *arguments)}
        from utils.settings import override
        train.train(override(config, list(given.values())), device)
    note("training", lambda: run("rec=../data", "num_epoch=1"))
    note("going on", lambda: run("rec=../data", "resume=auto", "resume_changed=True"))
    note("other data", lambda: run(f"rec={'../data' if me == 0 else '../other'}", "output=third"))
    note("no data", lambda: run(f"rec={'../data' if me == 0 else '../nowhere'}", "output=third"))
    if me == 1:
        os.makedirs("run")
        open("run/state_00000099.pt", "wb").close()
    note("later elsewhere", lambda: run("rec=../data", "resume=auto"))
    return found


def _on_a_machine(folder) -> dict:
    from utils.distributed import process_group
    own = folder / f"machine{os.environ['RANK']}"
    os.environ.update(LOCAL_RANK="0", LOCAL_WORLD_SIZE="1")
    own.mkdir()
    os.chdir(own)
    with process_group("cpu", timeout=60) as device:
        return _tasks(device)


@pytest.fixture(scope="module")
def machines(tmp_path_factory):
    folder = tmp_path_factory.mktemp("machines")
    for name, people in (("data", 12), ("other", 13)):
        (folder / name).mkdir()
        write_faces(folder / name, people=people)
    return folder, *as_ranks(2, _on_a_machine, folder)


def test_errors_of_one_process_are_those_of_all(machines):
    _, one, other = machines
    assert one["all"] is other["all"] is None and one["agree"] is other["agree"] is None and one["first"] == other["first"] == 0
    assert one["one"] == "InputError: process 0 stops with process 1: rec=x: does not exist" and other["one"] == "InputError: rec=x: does not exist"
    assert one["first fails"] == "InputError: no state" and other["first fails"] == "InputError: process 1 stops with process 0: no state"
    for each in (one, other):
        assert each["differ"].startswith("InputError: lr of process 1 on ") and "lr is 1, not 0" in each["differ"]


def test_folders_that_must_be_shared_say_which_machine_lacks_them(machines):
    folder, *both = machines
    for each in both:
        assert each["shared"] == each["local output"] == "owned"
        assert "expected a folder that all processes share" in each["local"] and f"process 1 has {folder / 'machine1' / 'local'} on" in each["local"]
    assert [each["sent"] for each in both] == [["big.pt", True, False], ["big.pt", True, True]]


def test_training_needs_no_shared_output(machines):
    folder, *both = machines
    assert [each["training"] for each in both] == [each["going on"] for each in both] == [None, None]
    assert (folder / "machine0" / "run" / "model_final.pt").is_file()
    assert "from step 6" in (folder / "machine0" / "run" / "training.log").read_text()
    for each in both:
        assert "num_classes" in each["other data"] and "of process 1 on" in each["other data"]
        assert "nowhere" in each["no data"]
        assert "process 1 has" in each["later elsewhere"] and "state_00000099.pt" in each["later elsewhere"]


def test_two_starts_at_once(tmp_path):
    """Real processes: one does the work, the other one says that it is done."""
    line = [sys.executable, str(ROOT / "tests" / "tiny_training.py"), f"rec={write_faces(tmp_path)}", f"output={tmp_path / 'out'}", "num_epoch=30"]
    both = [subprocess.Popen(line, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [process.communicate(timeout=200)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 2], errors
    assert (tmp_path / "out" / "training.log").read_text().count("done: ") == 1
