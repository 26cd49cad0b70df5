"""The training script itself, run for real on small synthetic data: curves, ranks, resuming, accumulation, files, errors."""
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from processes import python, train_as_ranks

import train
from config import config
from eval.verification import read_bin
from utils.utils_callbacks import CallBackVerification

ROOT = Path(__file__).resolve().parents[1]
SMALL = ["rec=synthetic", "num_classes=6", "num_image=48", "backbone=sllnet_small", "batch_size=8", "num_epoch=1", "frequent=1", "num_workers=0",
         "device=cpu", "xi=1", "val_targets=[]"]
SPEED = re.compile(r"Training: \d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}-Speed \d+\.\d\d samples/sec   Loss (\d+\.\d{4})   LearningRate (\d\.\d{6})   "
                   r"Epoch: (\d+)   Global Step: (\d+)   Required: \d+ hours  Feat Norm (\d+\.\d{4})  Reg Loss (\d+\.\d{4})$")


def settings(output, *arguments) -> list[str]:
    return list({argument.partition("=")[0]: argument for argument in (*SMALL, f"output={output}", *arguments)}.values())


def run(output, *arguments) -> int:
    return train.run(config, settings(output, *arguments))


def curve(output) -> list[list[float]]:
    """[loss, learning rate, epoch, step, norm, regulariser] of every log line."""
    lines = (Path(output) / "training.log").read_text().splitlines()
    return [[float(value) for value in match.groups()] for match in map(SPEED.match, lines) if match]


def weights(output, name="model_final.pt"):
    return torch.load(Path(output) / name, weights_only=True)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As many as ranks have. At the orthogonal start many correlations of SLL are rounding noise around 0, whose signs, and with them the
    gradient, depend on how products are split over threads: that is not what ranks are compared for.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A run of six steps in one process."""
    output = tmp_path_factory.mktemp("reference")
    assert run(output, "val_targets=None", "header_args={'std': 0.1}") == 0
    return output


def test_a_run_leaves_its_log_weights_and_state(reference):
    lines = (reference / "training.log").read_text().splitlines()
    rows = curve(reference)
    assert [row[3] for row in rows] == [1, 2, 3, 4, 5, 6] and [row[1] for row in rows] == pytest.approx([1e-3 * (6 - k) / 6 for k in range(1, 7)], abs=1e-6)
    verification = [line.split("-", 3)[3] for line in lines if "[synthetic][6]" in line]
    for line, pattern in zip(verification, (r"XNorm: \d+\.\d{6}", r"Accuracy-Flip: 0\.\d{5}\+-0\.\d{5}",
                                            r"Accuracy-Unflipped: 0\.\d{5}\+-0\.\d{5}", r"Accuracy-Highest: 0\.\d{5}"), strict=True):
        assert re.fullmatch(r"\[synthetic\]\[6\]" + pattern, line)
    assert any("num_classes          6" in line for line in lines) and any("num_image            48" in line for line in lines)
    assert list(weights(reference)) == list(train.get_backbone("sllnet_small").state_dict())
    assert weights(reference, "header_final.pt")["weight"].shape == (6, 128)
    assert {"state_00000006.pt", "synthetic.bin", "tensorboard"} <= {path.name for path in reference.iterdir()}
    assert not list(reference.glob(".*tmp"))
    assert len(read_bin(reference / "synthetic.bin").same) == 48, "as many pairs as images"


def test_two_ranks_give_the_curve_of_one(reference, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "train.py",
               *settings(tmp_path, "header_args={'std': 0.1}")]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = torch.tensor(curve(reference)), torch.tensor(curve(tmp_path))
    assert torch.allclose(one, two, rtol=1e-4, atol=2e-4) and len(two) == 6
    for key, value in weights(reference).items():  # Adam makes whole steps of rounding noise where a gradient is all but 0
        assert (value - weights(tmp_path)[key]).norm() <= 2e-3 * value.norm(), key


def test_two_ranks_adapt_adacos_as_one(tmp_path):
    assert run(tmp_path / "one", "header=adacos") == 0
    train_as_ranks(2, settings(tmp_path / "two", "header=adacos", "grad_accum_steps=2"))
    assert torch.allclose(torch.tensor(curve(tmp_path / "one")), torch.tensor(curve(tmp_path / "two")), rtol=1e-4, atol=2e-4)
    one, two = weights(tmp_path / "one", "header_final.pt")["s"], weights(tmp_path / "two", "header_final.pt")["s"]
    assert torch.allclose(one, two, rtol=1e-5)


# at 1e-3 the loss goes up and down, and rounding with it: by 1e-5 at the third step and by 1e-3 at the sixth
FAST = ("backbone=orthonet", "header=arcface", "header_args={'s': 8.0, 'm': 0.1}", "lr=1e-4")
CONTRAST = (*FAST, "muon=1e-3", "contrast=2", "contrast_args={'s': 8, 'm': 0.2}", "partners=True", "jitter=2")


@pytest.fixture(scope="module")
def contrasted(tmp_path_factory):
    output = tmp_path_factory.mktemp("contrasted")
    assert run(output, *CONTRAST) == 0
    return output


def test_two_ranks_in_parts_contrast_the_whole_batch_as_one(contrasted, tmp_path):
    train_as_ranks(2, settings(tmp_path, *CONTRAST, "grad_accum_steps=2"))
    one, two = torch.tensor(curve(contrasted)), torch.tensor(curve(tmp_path))
    assert torch.allclose(one, two, rtol=1e-4, atol=2e-4) and len(two) == 6


def test_two_ranks_in_parts_end_with_the_weights_of_one(tmp_path):
    """Without jitter: with it a bias has so small a gradient that rounding chooses its sign, and AdamW steps by that."""
    assert run(tmp_path / "one", *CONTRAST, "jitter=0") == 0
    train_as_ranks(2, settings(tmp_path / "two", *CONTRAST, "jitter=0", "grad_accum_steps=2"))
    for key, value in weights(tmp_path / "one").items():
        assert (value - weights(tmp_path / "two")[key]).norm() <= 2e-3 * value.norm(), key


def test_the_log_shows_the_whole_loss(contrasted, tmp_path):
    assert run(tmp_path, *CONTRAST, "contrast=0") == 0
    first, without = curve(contrasted)[0], curve(tmp_path)[0]
    assert first[0] > without[0] + 2 and first[4:] == without[4:]


def test_states_from_before_a_setting_go_on_without_it(contrasted, tmp_path, capsys):
    assert run(tmp_path, *FAST, "save_steps=3") == 0
    state = torch.load(tmp_path / "state_00000003.pt", weights_only=True)
    for key in ("contrast", "contrast_args", "partners", "jitter", "muon"):
        del state["settings"][key]
    (tmp_path / "old").mkdir()
    torch.save(state, tmp_path / "old" / "state_00000003.pt")
    assert run(tmp_path / "old", "resume=auto", *CONTRAST) == 2
    assert "contrast was 0.0 and is 2.0" in capsys.readouterr().err
    assert run(tmp_path / "old", *FAST, "resume=auto") == 0
    for key, value in weights(tmp_path).items():
        assert torch.equal(value, weights(tmp_path / "old")[key]), key
    assert run(contrasted, *CONTRAST, "contrast=0", "resume=auto") == 2 and "contrast was 2.0 and is 0.0" in capsys.readouterr().err


class Interrupted(Exception):
    pass


def interrupt(self, step, network):
    raise Interrupted


def test_a_resumed_run_ends_bitwise_where_an_uninterrupted_one_does(reference, tmp_path, monkeypatch, capsys):
    same = ("header_args={'std': 0.1}", "save_steps=2")
    with monkeypatch.context() as patch:
        patch.setattr(CallBackVerification, "__call__", interrupt)
        with pytest.raises(Interrupted):
            run(tmp_path, *same, "verbose=3")
    assert not (tmp_path / "model_final.pt").exists()
    assert run(tmp_path, *same) == 2 and "resume=auto" in capsys.readouterr().err, "never over an earlier run by accident"
    assert run(tmp_path, *same, "resume=auto", "lr=1e-4") == 2 and "lr was 0.001 and is 0.0001" in capsys.readouterr().err
    assert run(tmp_path, *same, "resume=auto") == 0
    assert [row[3] for row in curve(tmp_path)] == [1, 2, 3, 3, 4, 5, 6]
    for name in ("model_final.pt", "header_final.pt"):
        for key, value in weights(reference, name).items():
            assert torch.equal(value, weights(tmp_path, name)[key]), key


def test_a_resumed_run_has_the_same_partners_and_jitter(contrasted, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(CallBackVerification, "__call__", interrupt)
        with pytest.raises(Interrupted):
            run(tmp_path, *CONTRAST, "save_steps=2", "verbose=3")
    assert run(tmp_path, *CONTRAST, "save_steps=2", "resume=auto") == 0
    for key, value in weights(contrasted).items():
        assert torch.equal(value, weights(tmp_path)[key]), key


def test_accumulation_does_not_change_the_gradient(reference, tmp_path):
    """Margins by rank over the whole batch included."""
    assert run(tmp_path, "grad_accum_steps=3", "header_args={'std': 0.1}") == 0 and not (tmp_path / "synthetic.bin").exists()
    assert torch.allclose(torch.tensor(curve(reference)), torch.tensor(curve(tmp_path)), rtol=1e-4, atol=2e-4)


def test_the_lln_run_is_the_same_loop(tmp_path):
    done = python(ROOT / "train_lln.py", *SMALL[:4], "batch_size=24", "num_epoch=1", "frequent=1", "device=cpu", f"output={tmp_path}",
                  "val_targets=[]", cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(curve(tmp_path)) == 2 and all(row[5] == 0 for row in curve(tmp_path))
    assert "header               naive" in (tmp_path / "training.log").read_text()


def test_the_loss_is_the_formula():
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(5, 7, generator=generator, dtype=torch.float64) * torch.tensor([[0.01], [0.5], [1.], [2.], [0.]], dtype=torch.float64)
    embeddings.requires_grad_()
    labels, weight = torch.arange(5) % 3, torch.randn(3, 7, generator=generator, dtype=torch.float64)
    loss, regulariser, norm = train.objective(lambda e, y: e @ weight.T, embeddings, labels, lambda_=10.0, xi=3.0)
    norms = embeddings.norm(dim=1)
    expected = torch.clamp(-3 * torch.log(norms[:4] / 3), min=0)
    assert torch.allclose(regulariser * 5 - expected.sum(), -3 * torch.log(torch.tensor(1e-12 / 3, dtype=torch.float64)), rtol=1e-6)
    assert torch.allclose(loss, F.cross_entropy(embeddings @ weight.T, labels) + 10 * regulariser) and torch.allclose(norm, norms.mean())
    loss.backward()
    assert torch.isfinite(embeddings.grad).all()
    without = train.objective(lambda e, y: e @ weight.T, embeddings, labels, lambda_=10.0, xi=0.0)
    assert without[1] == 0


def test_iresnets_are_fed_twice_the_pixels_and_ir_50_is_not():
    class Spy(torch.nn.Module):
        def forward(self, x):
            return x

    for name, factor in (("iresnet18", 2.0), ("ir_50", 1.0), ("sllnet", 1.0)):
        assert torch.equal(train.ScaledInput(Spy(), train.input_scale(name))(torch.ones(1)), factor * torch.ones(1))


@pytest.mark.parametrize("arguments, message", [
    (["batchsize=3"], "did you mean 'batch_size'"), (["batch_size=0"], "at least 1"), (["xi=-1"], "not negative"), (["backbone=sllnet_smal"], "sllnet_small"),
    (["header=arc"], "arcface"), (["rec=/nowhere"], "/nowhere"), (["batch_size=1000"], "1000"), (["precision=fp8"], "fp16"), (["device=tpu9"], "device"),
    (["init_weights=/nowhere.pt"], "/nowhere.pt"), (["resume=/nowhere.pt"], "/nowhere.pt"), (["val_targets=lfw"], "lfw.bin"),
    (["header_args={'margin': 1}"], "header_args"), (["header_args={'name': 1}"], "header_args={'name': 1}: "),
    (["header_args={'run_seed': 1}"], "run_seed"), (["header_args={'num_classes': 1}"], "num_classes"),
    (["header_args={'s': 'x'}"], "s='x', expected float"), (["header=AcrFace"], "did you mean 'arcface'"),
    (["jitter=-1"], "not negative"), (["muon=-1"], "not negative"), (["muon=nan"], "muon"), (["jitter=11"], "at most 10"), (["contrast=-1"], "not negative"), (["contrast_args={'s': 10.0}"], "contrast_args={'s': 10.0}: expected"),
    (["contrast_args={'s': 0, 'm': 0.1}"], "positive"), (["contrast_args={'s': 1, 'm': '1'}"], "finite"), (["contrast_args={'s': 1, 'm': 1, 't': 1}"], "finite"),
    (["partners=True", "batch_size=7"], "batch_size: 7 on all ranks together, expected an even number"), (["warmup_epoch=1"], "warmup_epoch"), (["backbone=sllnet_mnist"], "do not fit")])
def test_bad_settings_end_at_once_in_one_line(tmp_path, capsys, arguments, message):
    assert run(tmp_path / "out", *arguments) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error
    assert not list((tmp_path / "out").glob("*.pt"))


def test_help_lists_the_launch_lines(capsys):
    assert train.run(config, ["--help"]) == 0 and "torchrun" in capsys.readouterr().out
