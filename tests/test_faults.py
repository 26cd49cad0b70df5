"""Training under faults that are injected: signals, full disks, damaged states, numbers that are not finite, bad records, dead workers."""
import logging
import math
import multiprocessing
import os
import pickle
import resource
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from processes import as_ranks
from tiny_training import SETTINGS, write_faces
from torch import nn

import train
from config import config
from datasets import RecordDataset, get_dataloader
from eval.verification import embed_images
from lr_scheduler import PolynomialLRWarmup
from utils import InputError, RunError, checkpoint, loader
from utils.faults.guard import StepGuard, poisoned
from utils.faults.lockstep import in_lockstep
from utils.faults.signals import REQUESTS, STOPPED, StopSignals
from utils.files import atomic_write
from utils.images import encode_image
from utils.settings import override
from utils.utils_callbacks import CallBackLogging

ROOT = Path(__file__).resolve().parents[1]
DRIVER = ROOT / "tests" / "tiny_training.py"


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    return write_faces(tmp_path_factory.mktemp("faces"))


@pytest.fixture(scope="module")
def uninterrupted(faces, tmp_path_factory):
    output = tmp_path_factory.mktemp("uninterrupted")
    assert run(faces, output) == 0
    return output


def run(faces, output, *arguments) -> int:
    given = {argument.partition("=")[0]: argument for argument in (*SETTINGS, f"rec={faces}", f"output={output}", *arguments)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of the schedule, where the very first step is skipped
        return train.run(config, list(given.values()))


def same_weights(one, other) -> bool:
    for name in ("model_final.pt", "header_final.pt"):
        first, second = (torch.load(Path(folder) / name, weights_only=True) for folder in (one, other))
        if not all(torch.equal(first[key], second[key]) for key in first):
            return False
    return True


def states(output) -> list[str]:
    return sorted(path.name for path in output.glob("state_*"))


def log(output) -> str:
    return (output / "training.log").read_text()


def at_step(monkeypatch, step, act):
    """Call act(step) once, when that step is counted."""
    plain, done = CallBackLogging.__call__, []

    def counted(self, number, *rest):
        if number == step and not done:
            done.append(number)
            act()
        return plain(self, number, *rest)
    monkeypatch.setattr(CallBackLogging, "__call__", counted)


# --- interruption

@pytest.mark.parametrize("number", REQUESTS, ids=lambda number: number.name)
def test_a_signal_ends_the_run_after_the_step_and_loses_nothing(faces, uninterrupted, tmp_path, monkeypatch, number):
    handler = signal.getsignal(number)
    with monkeypatch.context() as patch:
        at_step(patch, 3, lambda: [os.kill(os.getpid(), number) for _ in range(2)])
        assert run(faces, tmp_path) == STOPPED == 75
    assert signal.getsignal(number) is handler
    assert "state_00000003.pt" in states(tmp_path) and not (tmp_path / "model_final.pt").exists()
    assert f"stopped after step 3: {number.name}" in log(tmp_path)
    assert run(faces, tmp_path, "resume=auto") == 0 and same_weights(tmp_path, uninterrupted)


def test_the_newest_whole_state_is_taken(faces, uninterrupted, tmp_path, monkeypatch, caplog):
    with monkeypatch.context() as patch:
        at_step(patch, 8, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert run(faces, tmp_path, "keep_states=3") == STOPPED
    assert states(tmp_path) == ["state_00000004.pt", "state_00000006.pt", "state_00000008.pt"]
    torn, flipped = tmp_path / "state_00000008.pt", bytearray((tmp_path / "state_00000006.pt").read_bytes())
    torn.write_bytes(torn.read_bytes()[:-1000])
    flipped[len(flipped) // 2] ^= 1
    (tmp_path / "state_00000006.pt").write_bytes(flipped)
    (tmp_path / ".state_00000010.pt.abc.tmp").write_bytes(b"unfinished")
    assert run(faces, tmp_path, "resume=auto", "keep_states=3") == 0
    assert "from step 4" in log(tmp_path) and log(tmp_path).count("skipped, and renamed to .damaged") == 2
    assert "state_00000008.damaged" in states(tmp_path) and not list(tmp_path.glob(".*tmp"))
    assert same_weights(tmp_path, uninterrupted)


def transposed(state):
    moments = state["optimizer"]["state"][0]
    moments["exp_avg"] = moments["exp_avg"].transpose(0, -1)[:2].clone()


def holding_itself(state):
    state["settings"]["settings"] = state["settings"]


@pytest.mark.parametrize("change, words", [
    (transposed, "the moments of parameter 0"), (lambda state: state["optimizer"]["state"].update({99: {"step": torch.ones(2)}}), "does not fit"),
    (lambda state: state["optimizer"]["state"][0].update(exp_avg=3), "does not fit"),
    (lambda state: state["scheduler"].update(get_last_lr="x"), "no state of a Polynomial"),
    (lambda state: state["scheduler"].update(last_epoch=math.nan), "no state of a Polynomial"),
    (lambda state: state["scaler"].update(scale="x"), "no state of a GradScaler"),
    (lambda state: state["progress"].update(highest={"lfw": "x"}), "not a full training state"),
    (lambda state: state["settings"].update(xi=torch.zeros(3)), "not a full training state"), (holding_itself, "not a full training state"),
    (lambda state: state["settings"].update(xi="x\n" * 10**6), "xi was")])
def test_states_that_do_not_fit_are_refused_before_a_step(faces, uninterrupted, tmp_path, capsys, change, words):
    state = torch.load(uninterrupted / states(uninterrupted)[0], weights_only=True)
    change(state)
    torch.save(state, tmp_path / "state_00000004.pt")
    assert run(faces, tmp_path, "resume=auto") == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and len(error) < 1500


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("nowhere"), lambda path: path.symlink_to("/dev/zero")],
                         ids=["a folder", "a pipe", "a link to nowhere", "a device"])
def test_states_that_are_no_files_are_skipped(faces, uninterrupted, tmp_path, make):
    newest = states(uninterrupted)[-1]
    (tmp_path / newest).write_bytes((uninterrupted / newest).read_bytes())
    make(tmp_path / "state_99999999.pt")
    assert run(faces, tmp_path, "resume=auto") == 0
    assert "skipped, and renamed to .damaged" in log(tmp_path) and same_weights(tmp_path, uninterrupted)


def test_states_that_are_all_damaged_are_no_fresh_run(faces, tmp_path, capsys):
    (tmp_path / "state_00000002.pt").write_bytes(b"PK\3\4 and no more")
    assert run(faces, tmp_path, "resume=auto") == 2
    error = capsys.readouterr().err
    assert "none of the 1 states" in error and "state_00000002.pt" in error and error.count("\n") == 1


def test_going_on_with_other_settings_or_data_needs_to_be_told(faces, uninterrupted, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        at_step(patch, 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert run(faces, tmp_path) == STOPPED
    (tmp_path / "others").mkdir()
    others = write_faces(tmp_path / "others", people=13)
    assert run(others, tmp_path, "resume=auto", "lr=1e-4", "weight_decay=0.1") == 2
    error = capsys.readouterr().err
    for words in ("lr was 0.001 and is 0.0001", "num_classes was 12 and is 13", "data was", "weight_decay was 0.0 and is 0.1", "resume_changed"):
        assert words in error
    assert run(faces, tmp_path, "resume=auto", "lr=1e-4", "weight_decay=0.1", "resume_changed=True") == 0
    assert "resumed with another setting: lr was 0.001 and is 0.0001" in log(tmp_path) and "LearningRate 0.000058" in log(tmp_path)
    state = torch.load(tmp_path / "state_00000012.pt", weights_only=True)
    assert state["optimizer"]["param_groups"][0]["weight_decay"] == 0.1 and not same_weights(tmp_path, uninterrupted)


def test_an_earlier_state_is_not_gone_on_from_beside_later_ones(faces, uninterrupted, capsys):
    assert run(faces, uninterrupted, f"resume={uninterrupted / 'state_00000010.pt'}") == 2
    assert "later states" in capsys.readouterr().err


def test_going_on_and_fine_tuning_are_not_mixed_up(faces, uninterrupted, tmp_path, capsys):
    assert run(faces, tmp_path / "a", f"init_weights={uninterrupted / 'state_00000012.pt'}") == 2
    assert "expected a state dict" in capsys.readouterr().err
    assert run(faces, tmp_path / "a", f"resume={uninterrupted / 'model_final.pt'}") == 2
    assert "init_weights=" in capsys.readouterr().err
    assert run(faces, tmp_path / "a", f"init_weights={uninterrupted / 'model_final.pt'}", "num_epoch=1", "lr=0") == 0
    assert torch.equal(*(torch.load(folder / "model_final.pt", weights_only=True)["3.weight"] for folder in (uninterrupted, tmp_path / "a")))


def test_the_schedule_keeps_its_own_settings():
    def schedule(total):
        return PolynomialLRWarmup(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0), 0, total)
    short, long = schedule(4), schedule(8)
    short.optimizer.step()
    short.step()
    long.load_state_dict(short.state_dict())
    assert long.get_last_lr() == [7 / 8] and long.optimizer.param_groups[0]["lr"] == 7 / 8


def test_a_full_disk_leaves_the_former_state(faces, uninterrupted, tmp_path):
    """RLIMIT_FSIZE in a process of its own: every state is too large for it, and the weights are."""
    limit = (uninterrupted / "state_00000012.pt").stat().st_size - 1000
    assert run(faces, tmp_path, "num_epoch=1") == 0
    before = (tmp_path / "state_00000006.pt").read_bytes()
    done = subprocess.run([sys.executable, str(DRIVER), f"rec={faces}", f"output={tmp_path}", "resume=auto", "resume_changed=True"],
                          preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert "state_00000008.pt: cannot be written: File too large; the run goes on" in log(tmp_path)
    assert (tmp_path / "state_00000006.pt").read_bytes() == before and not list(tmp_path.glob(".*tmp"))


def test_a_save_that_fails_names_its_file(tmp_path, monkeypatch):
    checkpoint.save(tmp_path / "a.pt", {"a": torch.zeros(3)})
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match=r"a\.pt: cannot be written: No space left on device$"):
        checkpoint.save(tmp_path / "a.pt", {"a": torch.ones(3)})
    assert torch.load(tmp_path / "a.pt", weights_only=True)["a"].sum() == 0 and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(OSError), atomic_write(tmp_path / "a.pt") as file:
        file.write("x")


# --- numbers

OBJECTIVE = train.objective


def not_finite_at(*steps):
    """The objective, with embeddings that are NaN at these steps (from 1)."""
    def objective(classify, embeddings, labels, **settings):
        bad = classify.step + 1 in steps
        return OBJECTIVE(classify, embeddings * math.nan if bad else embeddings, labels, **settings)
    return objective


def learned(output, step) -> dict:
    state = torch.load(output / f"state_{step:08d}.pt", weights_only=True)
    moments = {f"{key} of {number}": value for number, entry in state["optimizer"]["state"].items() for key, value in entry.items()}
    return {**state["model"], **{f"header.{key}": value for key, value in state["header"].items()}, **moments}


@pytest.mark.parametrize("arguments", [(), ("header=adacos",), ("backbone=with_batch_norm", "header=arcface"), ("grad_accum_steps=2",)])
def test_a_step_that_is_not_finite_changes_nothing(faces, tmp_path, monkeypatch, arguments):
    monkeypatch.setattr(train, "objective", not_finite_at(2, 3, 6))
    assert run(faces, tmp_path, "num_epoch=1", "save_steps=1", "keep_states=9", *arguments) == 0
    for step, skipped in ((2, True), (3, True), (4, False), (5, False), (6, True)):
        before, after = learned(tmp_path, step - 1), learned(tmp_path, step)
        same = {key for key in before if torch.equal(before[key], after[key])}
        assert all(value.isfinite().all() for value in after.values())
        assert same >= before.keys() - {"1.num_batches_tracked"} if skipped else "header.weight" not in same
    assert "step 6: 1 steps skipped as their loss or gradient was not finite (3 in all)" in log(tmp_path)


def test_too_many_in_a_row_end_the_run_with_what_led_to_it(faces, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "objective", not_finite_at(2, 4, 5, 6, 7, 8))
    assert run(faces, tmp_path, "max_skipped_steps=3") == 1
    error = capsys.readouterr().err
    assert "the last 3 steps up to 6" in error and error.count("\n") == 1
    kept = torch.load(tmp_path / "skipped_00000006_rank0.pt", weights_only=True)
    assert kept["images"].shape == (8, 3, 16, 16) and kept["step"] == 6 and len(kept["labels"]) == 8
    assert all(value.isfinite().all() for value in learned(tmp_path, 6).values())


def test_means_in_the_log_leave_out_what_is_not_finite(faces, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "objective", not_finite_at(2))
    assert run(faces, tmp_path, "num_epoch=1", "frequent=6") == 0
    assert "nan" not in next(line for line in log(tmp_path).splitlines() if "Speed" in line)


def test_overflows_of_half_precision_are_counted_apart(caplog):
    network, header = nn.Linear(2, 2), nn.Linear(2, 2)
    for parameter in (*network.parameters(), *header.parameters()):
        parameter.grad = torch.zeros_like(parameter)
    guard = StepGuard((), 3, overflows=True)
    logging.getLogger("training").propagate = True
    with caplog.at_level("INFO", "training"):
        for norm in (1.0, math.inf, math.nan):
            guard.begin()
            guard.end(torch.tensor(norm), header)
        guard.check(3)
        assert "2 steps skipped as float16 gradients overflowed (2 in all)" in caplog.text and "not finite" not in caplog.text
        header.weight.grad.fill_(math.nan)
        guard.end(torch.tensor(math.nan), header)
        with pytest.raises(RunError, match="the last 3 steps up to 4"):
            guard.check(4)
        assert "1 steps skipped as their loss or gradient was not finite (1 in all)" in caplog.text


def test_counting_skipped_steps_never_waits_for_the_device(monkeypatch):
    network, header = nn.BatchNorm1d(2), nn.Linear(2, 2)
    header.weight.grad = torch.full_like(header.weight, math.nan)
    guard = StepGuard((network, header), 3, overflows=False)
    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, lambda *_: pytest.fail("a value was read"))
    for _ in range(2):
        guard.begin()
        guard.end(torch.tensor(1.0), header)
    monkeypatch.undo()
    assert guard.counts.tolist() == [2, 0, 2]


def test_a_loss_that_is_not_finite_has_no_finite_gradient():
    for factor, finite in ((1.0, True), (math.inf, False), (math.nan, False)):
        x = torch.ones(3, requires_grad=True)
        loss = poisoned((x * 2).sum() + factor)
        loss.backward()
        assert bool(x.grad.isfinite().any()) is finite and (not finite or torch.equal(x.grad, torch.full((3,), 2.0)))


@pytest.mark.parametrize("norm", [1e-30, 1e-20, 1e-13, 1e-7, 0.5])
def test_the_regulariser_is_finite_and_always_asks_for_a_larger_norm(norm):
    embeddings = nn.functional.normalize(torch.randn(4, 8, generator=torch.Generator().manual_seed(0))) * norm
    embeddings.requires_grad_()
    loss, regulariser, _ = train.objective(lambda e, y: e * 0, embeddings, torch.zeros(4, dtype=torch.int64), lambda_=10.0, xi=3.0)
    loss.backward()
    assert loss.isfinite() and embeddings.grad.isfinite().all()
    assert ((embeddings.grad * embeddings.detach().sign()).sum(1) < 0).all()


class Fixed(nn.Module):
    """A header of somebody else that has nothing to train."""

    def __init__(self, num_classes, emb_size):
        super().__init__()
        self.register_buffer("rows", torch.eye(num_classes, emb_size))

    def forward(self, embeddings, labels):
        return embeddings @ self.rows.T


def test_a_header_without_parameters_is_guarded_too(faces, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "objective", lambda classify, e, y, **kw: OBJECTIVE(classify, e * (math.nan if classify.step == 2 else 1), y, **kw))
    assert run(faces, tmp_path, "header=test_faults:Fixed", "num_epoch=1", "save_steps=1", "keep_states=9") == 0
    assert "step 3: 1 steps skipped" in log(tmp_path)
    before, after, later = (torch.load(tmp_path / f"state_{step:08d}.pt", weights_only=True)["model"] for step in (2, 3, 4))
    assert all(torch.equal(before[key], after[key]) for key in before) and not torch.equal(after["3.weight"], later["3.weight"])


# --- data

def test_a_bad_record_is_an_error_by_default_and_names_itself(tmp_path, capsys):
    faces = write_faces(tmp_path, bad=(1, 17))
    assert run(faces, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "train.rec: key" in error and "expected an image" in error and error.count("\n") == 1
    assert states(tmp_path / "out"), "what was learned before is saved"


def test_a_run_that_fails_before_its_first_step_leaves_nothing_to_go_on_from(tmp_path, capsys):
    every_key = tuple(range(1, 49))
    faces = write_faces(tmp_path, bad=every_key[16:])  # the size of the images is that of the first ones
    assert run(faces, tmp_path / "out") == 2 and not states(tmp_path / "out")
    assert "stopped after step 0" in log(tmp_path / "out") and "resume=auto" not in log(tmp_path / "out").split("stopped after")[1]
    assert run(write_faces(tmp_path), tmp_path / "out") == 0, "the same command, with the data mended"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_record_costs_itself_alone_when_it_is_to_be_skipped(tmp_path, workers):
    faces = write_faces(tmp_path, bad=(1, 17, 18, 48))
    assert run(faces, tmp_path / "out", "on_bad_record=skip", f"num_workers={workers}") == 0
    text = log(tmp_path / "out")
    found = text.split("4 records left out so far: ")[1].split("\n")[0]
    assert [f"key {key}" in found for key in (1, 17, 18, 48)] == [True] * 4 and text.count("-left out: ") == 4
    loader = get_dataloader(RecordDataset(faces), 48, flip=False, shuffle=False, skip_bad_records=True)
    (images, labels), = loader
    dataset = RecordDataset(faces)
    for place, key in ((0, 2), (15, 16), (16, 19), (17, 19), (18, 19), (47, 2)):
        assert torch.equal(images[place], dataset[key - 1][0]) and labels[place] == (key - 1) // 4


def test_too_many_bad_records_end_the_run(tmp_path, capsys):
    faces = write_faces(tmp_path, bad=tuple(range(20, 30)))
    assert run(faces, tmp_path / "out", "on_bad_record=skip", "max_bad_records=9") == 2
    assert "10 bad records, expected at most max_bad_records=9" in capsys.readouterr().err
    faces = write_faces(tmp_path, people=60, bad=tuple(range(2, 240)))
    assert run(faces, tmp_path / "other", "on_bad_record=skip") == 2
    assert "100 records in a row cannot be used" in capsys.readouterr().err


@pytest.mark.parametrize("fault, words", [("truncate", "the file shrank while in use"), ("remove", "cannot be read: No such file"),
                                          ("empty", "0 bytes")])
def test_a_file_that_shrinks_or_vanishes_ends_the_run_even_when_records_are_skipped(tmp_path, capsys, monkeypatch, fault, words):
    faces = write_faces(tmp_path)
    dataset = RecordDataset(faces)
    if fault == "remove":
        dataset = pickle.loads(pickle.dumps(dataset))  # as in a worker that is only starting
        (faces / "train.rec").unlink()
    else:
        os.truncate(faces / "train.rec", 100 if fault == "truncate" else 0)
    with pytest.raises(InputError, match=words) as error:
        list(get_dataloader(dataset, 8, skip_bad_records=True))
    assert "train.rec" in str(error.value)


class Deadly(torch.utils.data.Dataset):
    """Reading sample 13 ends the process that reads it, or takes for ever."""

    def __init__(self, how):
        self.how = how

    def __len__(self):
        return 64

    def __getitem__(self, index):
        if index == 13:
            signal.pause() if self.how == "hang" else os.kill(os.getpid(), getattr(signal, self.how))
        return torch.zeros(3, 4, 4, dtype=torch.uint8), index

    def name(self, index):
        return f"a.rec: key {index}"


@pytest.mark.parametrize("how", ["SIGKILL", "SIGBUS", "hang"])
def test_a_worker_that_dies_or_hangs_names_its_record(how):
    with pytest.raises(InputError, match="a.rec: key 13") as error:
        list(get_dataloader(Deadly(how), 4, num_workers=2, timeout=1 if how == "hang" else 600))  # the end of a worker is seen before
    assert "\n" not in str(error.value) and ("timed out" in str(error.value)) == (how == "hang")


class Late(Deadly):
    """Sample 13 is read when the loader has looked after its workers, all batches before it being there: then it comes, or its worker ends."""

    def __init__(self, how, looked):
        super().__init__(how)
        self.looked = looked

    def __getitem__(self, index):
        if index == 13:
            assert self.looked.wait(60)
        return super().__getitem__(index) if self.how else (torch.zeros(3, 4, 4, dtype=torch.uint8), index)


@pytest.mark.parametrize("how", ["", "SIGKILL"])
def test_a_slow_worker_is_waited_for_and_one_that_ends_then_is_seen(how, monkeypatch):
    looked, timed_out = multiprocessing.Event(), loader._timed_out
    monkeypatch.setattr(loader, "LOOKING", 0.3)
    monkeypatch.setattr(loader, "_timed_out", lambda error: (looked.set(), timed_out(error))[1])
    batches = get_dataloader(Late(how, looked), 4, num_workers=1, timeout=600)
    if how:
        with pytest.raises(InputError, match="a.rec: key 13"):
            list(batches)
    else:
        assert sorted(label for _, labels in batches for label in labels.tolist()) == list(range(64)) and looked.is_set()


# --- ranks

class Batches(list):
    """What `in_lockstep` asks of a Loader."""

    def __init__(self, batches, bad_records=None):
        super().__init__(batches)
        self.bad_records = bad_records or {}

    def __iter__(self):
        for batch in super().__iter__():
            if isinstance(batch, Exception):
                raise batch
            yield batch


class Sum(nn.Module):
    def forward(self, images):
        return images.flatten(1).sum(1, keepdim=True).repeat(1, 4)


def _in_group(arguments) -> dict:
    from utils.distributed import barrier, process_group
    found, number = {}, int(os.environ["RANK"])

    def note(name, task):
        try:
            found[name] = str(task())
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    try:
        with process_group("cpu", timeout=30) as device:
            settings = override(config, [*SETTINGS, *arguments])
            note("training", lambda: train.train(settings, device))
            bad = InputError("a.rec: key 7: damaged") if number else 2
            note("bad data", lambda: list(in_lockstep(Batches([1, bad]), StopSignals(), 0)))
            different = {name: f"{name}: damaged" for name in (("a", "b"), ("b", "c"))[number]}
            note("as many as allowed", lambda: list(in_lockstep(Batches([1, 2], different), StopSignals(), 3)))
            note("too many", lambda: list(in_lockstep(Batches([1, 2], different), StopSignals(), 2)))
            image = encode_image(torch.full((3, 4, 4), 200, dtype=torch.uint8), "png")
            note("one image", lambda: tuple(embed_images(Sum(), [image], distributed=True, device="cpu").shape))
            if number == 0:
                barrier()  # the other one is gone
    except Exception as error:
        found["gone"] = f"{type(error).__name__}: {error}"
    return found


@pytest.fixture(scope="module")
def two_ranks(faces, tmp_path_factory):
    """A folder with the run of two ranks, and what each of these said to the tasks above."""
    folder = tmp_path_factory.mktemp("two_ranks")
    return folder / "run", *as_ranks(2, _in_group, [f"rec={faces}", f"output={folder / 'run'}"])


def test_two_ranks_survive_a_kill_and_a_signal_by_themselves(faces, two_ranks, tmp_path):
    """One rank is killed at step 3, the other one told to stop at step 7: torchrun starts them again, and the end is the same."""
    assert two_ranks[1]["training"] == two_ranks[2]["training"] == "None"
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max-restarts=2", str(DRIVER),
                           f"rec={faces}", f"output={tmp_path}", "resume=auto"], capture_output=True, text=True, timeout=300,
                          env={**os.environ, "OMP_NUM_THREADS": "1", "FAULTS": "3:1:SIGKILL 7:0:SIGTERM"})
    assert done.returncode == 0, done.stderr[-2000:]
    assert {"done_3_1", "done_7_0"} <= {path.name for path in tmp_path.iterdir()}
    assert "from step 2" in log(tmp_path) and "stopped after step 7: SIGTERM" in log(tmp_path)
    assert "train: process 0: another process ended" in done.stderr
    assert same_weights(two_ranks[0], tmp_path)


def test_all_ranks_stop_when_one_does(two_ranks):
    _, one, other = two_ranks
    assert one["bad data"] == "DataError: process 0 stops with another one: a.rec: key 7: damaged"
    assert other["bad data"] == "DataError: a.rec: key 7: damaged"
    assert one["gone"].startswith("RunError: process 0: another process ended, or did not answer within 30 seconds")


def test_bad_records_are_counted_once_whoever_meets_them(two_ranks):
    for result in two_ranks[1:]:
        assert result["as many as allowed"] == "[1, 2]"
        assert result["too many"].startswith("DataError: 3 bad records, expected at most max_bad_records=2")


def test_more_ranks_than_images_count_none_twice(two_ranks):
    assert [result["one image"] for result in two_ranks[1:]] == ["(1, 1, 4)"] * 2


def test_more_ranks_than_samples_are_refused():
    for rank in range(5):
        with pytest.raises(InputError, match="5 ranks, but the dataset has 3 images|batch_size"):
            get_dataloader(torch.utils.data.TensorDataset(torch.zeros(3)), 1, num_replicas=5, rank=rank)
