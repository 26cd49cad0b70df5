"""Settings, checkpoints, files, schedule: the small helpers."""
import copy
import hashlib
import subprocess

import pytest
import torch
from easydict import EasyDict
from torch import nn

from config import config
from config_lln import config as config_lln
from lr_scheduler import PolynomialLRWarmup
from utils import InputError, checkpoint
from utils.files import atomic_write, sha256
from utils.settings import override


def test_overrides_are_typed():
    given = override(config, ["xi=1", "lr=3e-4", "batch_size=64", "backbone=iresnet50", "num_classes=10", "deterministic=False",
                              "header_args={'m': 0.5}", "val_targets=lfw,cfp_fp", "resume=auto", "output=7"])
    assert (given.xi, given.lr, given.batch_size, given.backbone) == (1.0, 3e-4, 64, "iresnet50") and isinstance(given.xi, float)
    assert given.num_classes == 10 and given.deterministic is False and given.header_args.m == 0.5 and given.output == "7"
    assert given.val_targets == ["lfw", "cfp_fp"] and override(config, ["num_classes=None"]).num_classes is None
    assert config.xi == 3.0, "the published settings are left as they are"


@pytest.mark.parametrize("argument, message", [
    ("batchsize=3", "'batch_size'"), ("nonsense=1", "not known"), ("xi", "key=value"), ("batch_size=3.5", "expected int, found float"),
    ("batch_size=many", "expected int, found str"), ("lr=fast", "expected float"), ("compile=1", "expected bool"),
    ("batch_size=True", "expected int, found bool"), ("num_workers=x", "expected int"), ("header_args=3", "expected dict"),
    ("header_args={1: 2}", "expected names as keys"), ("lr=__import__('os').system('true')", "expected float"), ("xi=" + "(" * 10000, "expected float")])
def test_bad_overrides_are_named(argument, message):
    with pytest.raises(InputError, match=message):
        override(config, [argument])


def test_a_setting_given_twice_is_an_error():
    with pytest.raises(InputError, match="twice"):
        override(config, ["xi=1", "xi=3"])


def test_published_settings():
    assert (config.xi, config.lambda_, config.batch_size, config.num_epoch, config.lr, config.weight_decay) == (3.0, 10.0, 512, 20, 1e-3, 0.0)
    assert (config.header, config.precision, config.max_norm, config.frequent, config.verbose) == ("ecosface", "fp16", 5.0, 20, 2000)
    assert (config_lln.header, config_lln.xi, config_lln.lambda_) == ("naive", 0.0, 0.0)


class Linear(nn.Module):
    def __init__(self, size=3):
        super().__init__()
        self.fc = nn.Linear(size, 2)


def test_weights_load_with_and_without_the_ddp_prefix(tmp_path):
    source = Linear()
    for prefix in ("", "module."):
        checkpoint.save(tmp_path / "m.pt", {prefix + key: value for key, value in source.state_dict().items()})
        target = Linear()
        checkpoint.load_weights(target, tmp_path / "m.pt")
        assert torch.equal(target.fc.weight, source.fc.weight)


def test_other_networks_are_refused_and_nothing_changes(tmp_path):
    network = Linear()
    before = copy.deepcopy(network.state_dict())
    cases = [(Linear(4).state_dict(), r"1 of another shape \(fc.weight is \[2, 4\], expected \[2, 3\]\)"),
             ({"fc.weight": torch.zeros(2, 3)}, r"1 missing \(fc.bias\)"),
             ({**before, "conv.weight": torch.zeros(1)}, r"1 unexpected \(conv.weight\)"),
             ({"step": 3, **before}, "step"), ([1, 2], "a list"), ({}, "an empty dict")]
    for content, message in cases:
        checkpoint.save(tmp_path / "m.pt", content)
        with pytest.raises(InputError, match=message) as caught:
            checkpoint.load_weights(network, tmp_path / "m.pt")
        assert str(tmp_path / "m.pt") in str(caught.value) and "\n" not in str(caught.value)
        assert all(torch.equal(network.state_dict()[key], value) for key, value in before.items())


class Runs:
    def __reduce__(self):
        return subprocess.call, (["touch", "executed"],)


def test_files_that_are_no_checkpoints_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint.save(tmp_path / "whole.pt", Linear().state_dict())
    (tmp_path / "half.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:-300])
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "empty.pt").touch()
    torch.save({"a": Runs()}, tmp_path / "code.pt")
    torch.save(Runs(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name in ("half.pt", "text.pt", "empty.pt", "code.pt", "old.pt", "missing.pt"):
        with pytest.raises(InputError, match=name) as caught:
            checkpoint.load(tmp_path / name)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "executed").exists()


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    with atomic_write(path) as file:
        file.write("old")
    with pytest.raises(RuntimeError), atomic_write(path) as file:
        file.write("new")
        raise RuntimeError("power cut")
    assert path.read_text() == "old" and [entry.name for entry in path.parent.iterdir()] == ["file.txt"]
    assert sha256(path) == hashlib.sha256(b"old").hexdigest()


def schedule(total, **kw):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = PolynomialLRWarmup(optimizer, total_iters=total, **kw)
    rates = []
    for _ in range(total + 1):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


def test_schedule():
    assert schedule(4, warmup_iters=0) == pytest.approx([0.1, 0.075, 0.05, 0.025, 0.0])
    assert schedule(4, warmup_iters=0, power=2) == pytest.approx([0.1, 0.05625, 0.025, 0.00625, 0.0])
    assert schedule(6, warmup_iters=2) == pytest.approx([0.0, 0.05, 0.1, 0.075, 0.05, 0.025, 0.0])
    with pytest.raises(ValueError, match="warmup_iters"):
        schedule(3, warmup_iters=3)


def test_the_settings_file_is_plain():
    assert isinstance(config, EasyDict) and all(not callable(value) for value in config.values())
