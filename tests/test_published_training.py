"""Training as scripts written against the published repository call it, and its loop against a few plain lines."""
import logging
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from easydict import EasyDict
from processes import python
from small_world import Tiny
from tiny_training import write_faces
from torch import nn
from torch.utils.data import DataLoader

import train
from config import config
from config_checks import checked
from datasets import MXFaceDataset, RecordDataset, get_dataloader, to_float
from headers import AdaCos, ArcFace, ECosFace, NaiveHeader
from lr_scheduler import PolynomialLRWarmup
from utils import InputError
from utils.build_dataset import write_bin
from utils.images import encode_image
from utils.utils_callbacks import CallBackLogging, CallBackVerification
from utils.utils_logging import AverageMeter, init_logging, read_training_log


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """train.rec of 12 people, 4 images of 16 pixels each, and pairs.bin."""
    folder = write_faces(tmp_path_factory.mktemp("faces"))
    noise = torch.Generator().manual_seed(1)
    images = [encode_image(torch.randint(256, (3, 16, 16), generator=noise, dtype=torch.uint8), "png") for _ in range(40)]
    write_bin(folder / "pairs.bin", images, [number % 2 == 0 for number in range(20)])
    return folder


@pytest.fixture
def loggers():
    """Puts the handlers and levels of the root logger and of that of a run back."""
    each = [logging.getLogger(), logging.getLogger("training")]
    before = [(logger.handlers[:], logger.level, logger.propagate) for logger in each]
    yield
    for logger, (handlers, level, propagate) in zip(each, before):
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)


# --- callbacks, data and headers

def test_a_published_training_script(faces, tmp_path, loggers):
    """The shape of the published train.py: its imports, its constructors, its calls."""
    init_logging(0, str(tmp_path))
    logging.info("a word of the script's own")
    loader = get_dataloader(str(faces), 0, 8, False, False, 2048, 0)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(768, 32, bias=False))
    header = ArcFace(num_classes=12, emb_size=32)
    optimizer = torch.optim.AdamW([*backbone.parameters(), *header.parameters()], lr=1e-3)
    scheduler = PolynomialLRWarmup(optimizer, 0, 2 * len(loader), power=1.0)
    verification = CallBackVerification(val_targets=["pairs"], rec_prefix=str(faces), summary_writer=None, image_size=(16, 16))
    log = CallBackLogging(frequent=3, total_step=2 * len(loader), batch_size=8, start_step=0, writer=None)
    scaler = torch.amp.GradScaler("cpu", growth_interval=100)
    loss_am, norm_am, reg_am = AverageMeter(), AverageMeter(), AverageMeter()
    step, losses, rates = 0, [], []
    for epoch in range(2):
        if isinstance(loader, DataLoader):
            loader.sampler.set_epoch(epoch)
        for img, label in loader:
            step += 1
            embeddings = backbone(img)
            loss = F.cross_entropy(header(embeddings, label), label)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            scheduler.step()
            loss_am.update(loss.item(), 1)
            norm_am.update(embeddings.norm(dim=1).mean(), 1)
            reg_am.update(0.5, 1)
            losses.append(loss.item())
            rates.append(scheduler.get_last_lr()[0])
            with torch.no_grad():
                log(step, loss_am, epoch, True, scheduler.get_last_lr()[0], scaler, norm_am, reg_am)
                if step % 6 == 0:
                    verification(step, backbone)
    assert step == 12 and rates[-1] == 0 and backbone.training
    text = (tmp_path / "training.log").read_text()
    assert "-a word of the script's own\n" in text and "Fp16 Grad Scale: 65536   " in text
    steps, verified = read_training_log(tmp_path / "training.log")
    assert steps["step"].tolist() == [3, 6, 9, 12] and steps["epoch"].tolist() == [0, 0, 1, 1] and set(steps["reg_loss"]) == {0.5}
    assert steps["loss"].tolist() == pytest.approx([np.mean(losses[k:k + 3]) for k in (0, 3, 6, 9)], abs=1e-4)
    assert steps["learning_rate"].tolist() == pytest.approx(rates[2::3], abs=1e-6), "the rate after the step"
    assert verified["step"].tolist() == [6, 12] and set(verified["target"]) == {"pairs"}
    assert verification.highest["pairs"] == pytest.approx(verified["highest"].iloc[-1], abs=1e-5)


def test_a_line_without_further_meters_is_insightfaces(tmp_path, loggers):
    init_logging(0, str(tmp_path))
    log, loss = CallBackLogging(20, 40, 128, 0, None), AverageMeter()
    for step in range(1, 41):
        loss.update(float(step))
        assert log(step, loss, 0, False, 0.1, None) is (step % 20 == 0)
    first, second = [line.split("   ", 1) for line in (tmp_path / "training.log").read_text().splitlines()]
    assert first[1] == "Loss 10.5000   LearningRate 0.100000   Epoch: 0   Global Step: 20   Required: 0 hours"
    assert second[1].startswith("Loss 30.5000") and loss.count == 0


def test_the_root_logger_and_that_of_a_run_do_not_meet(tmp_path, loggers):
    init_logging(0, str(tmp_path / "script"))
    logging.getLogger("training").info("through the root")
    init_logging(0, str(tmp_path / "run"), "training")
    logging.getLogger("training").info("by itself")
    logging.info("of the root")
    for name, messages in (("script", ["through the root", "of the root"]), ("run", ["by itself"])):
        assert [line.split("-", 3)[3] for line in (tmp_path / name / "training.log").read_text().splitlines()] == messages
    init_logging(1, str(tmp_path / "other"), "training")
    logging.getLogger("training").info("of another rank")
    assert not (tmp_path / "other").exists()


def test_average_meter():
    meter = AverageMeter()
    assert math.isnan(meter.avg) and meter.count == 0
    for value, n in ((1.0, 1), (torch.tensor(4.0, requires_grad=True), 2), (math.nan, 1), (torch.tensor(math.inf), 5)):
        meter.update(value, n)
    assert (meter.sum, meter.count, meter.avg) == (9.0, 3, 3.0) and meter.val == math.inf
    meter.reset()
    assert meter.count == 0 and meter.val is None


def test_a_meter_of_tensors_never_waits_for_the_device(monkeypatch):
    meter = AverageMeter()
    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, lambda *_: pytest.fail("a value was read"))
    for _ in range(2):
        meter.update(torch.tensor(2.0))
    monkeypatch.undo()
    assert meter.avg == 2.0


def test_verification_says_what_is_missing(faces):
    with pytest.raises(InputError, match=r"no lfw\.bin .*there are pairs\.bin"):
        CallBackVerification(("lfw", "pairs"), str(faces), None, (16, 16))
    with pytest.raises(InputError, match=r"\(height, width\) \(16, 16\), expected \(112, 112\)"):
        CallBackVerification(("pairs",), str(faces))


def test_mxface_dataset(faces):
    dataset, plain = MXFaceDataset(str(faces), 0), RecordDataset(faces)
    assert len(dataset) == len(plain) == 48
    seen = set()
    for _ in range(40):
        image, label = dataset[5]
        expected = (plain[5][0].float() - 127.5) / 255
        assert image.dtype == torch.float32 and label.dtype == torch.int64 and label.item() == plain[5][1] and image.abs().max() <= 0.5
        seen.add("as it is" if torch.allclose(image, expected) else "mirrored" if torch.allclose(image, expected.flip(-1)) else "other")
    assert seen == {"as it is", "mirrored"}
    batches = list(DataLoader(dataset, 12))
    assert len(batches) == 4 and batches[0][0].shape == (12, 3, 16, 16)
    assert torch.cat([labels for _, labels in batches]).tolist() == [k // 4 for k in range(48)]


@pytest.mark.parametrize("where", [str, Path])
def test_the_published_loader(faces, where):
    loader = get_dataloader(where(faces), 0, 8, num_workers=0)
    assert isinstance(loader, DataLoader) and len(loader) == 6
    loader.sampler.set_epoch(3)
    ours = get_dataloader(RecordDataset(faces), 8, seed=2048)
    ours.set_epoch(3)
    for (images, labels), (raw, same) in zip(loader, ours, strict=True):
        assert torch.equal(images, (raw.float() - 127.5) / 255) and torch.equal(labels, same)
    third = torch.cat([labels for _, labels in loader])
    loader.sampler.set_epoch(4)
    assert not torch.equal(third, torch.cat([labels for _, labels in loader]))
    with pytest.raises(InputError, match="dali"):
        get_dataloader(str(faces), 0, 8, True)


def test_schedule_by_its_defaults():
    scheduler = PolynomialLRWarmup(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0), 2)
    rates = []
    for _ in range(5):
        scheduler.optimizer.step()
        scheduler.step()
        rates.append(scheduler.get_last_lr()[0])
    assert rates == pytest.approx([1 / 2, 1, 2 / 3, 1 / 3, 0])


@pytest.mark.parametrize("header", [ArcFace, AdaCos, ECosFace, NaiveHeader])
def test_headers_by_name_of_their_arguments(header):
    assert header(num_classes=7, emb_size=5).weight.shape == (7, 5)


def test_a_published_adacos_state_loads(tmp_path):
    header, source = AdaCos(7, 5), torch.randn(7, 5)
    s = header.s.clone()
    torch.save({"weight": source}, tmp_path / "header.pt")
    header.load_state_dict(torch.load(tmp_path / "header.pt", weights_only=True), strict=True)
    assert torch.equal(header.weight, source) and torch.equal(header.s, s)
    header.load_state_dict({"weight": source, "s": torch.tensor(3.0)}, strict=True)
    assert header.s == 3
    nested = nn.ModuleDict({"head": header})
    nested.load_state_dict({"head.weight": source}, strict=True)
    assert header.s == 3
    with pytest.raises(RuntimeError, match="Missing key.*weight"):
        header.load_state_dict({"s": torch.tensor(3.0)})
    with pytest.raises(RuntimeError, match="Unexpected key.*q"):
        header.load_state_dict({"weight": source, "q": source})


# --- settings

def test_settings_of_the_published_configuration():
    published = EasyDict(lambd=5, fp16=False, emb_size=256, xi=1.0)
    cfg = checked(published)
    assert (cfg.lambda_, cfg.precision, cfg.emb_size, cfg.xi, cfg.batch_size) == (5.0, "fp32", 256, 1.0, 512)
    assert isinstance(cfg.lambda_, float) and "lambd" not in cfg and "fp16" not in cfg and published.lambd == 5
    assert checked(EasyDict(config, fp16=True)).precision == "fp16" and checked(EasyDict(config, lambd=0.0)).lambda_ == 0
    for wrong, words in ((dict(fp16="yes"), "fp16=yes: expected True or False"), (dict(lambd="x"), "lambda_=x: expected float"),
                         (dict(margin_list=(1, 0.5, 0)), "'margin_list' is not known"), (dict(emb_size=0), "emb_size=0")):
        with pytest.raises(InputError, match=words):
            checked(EasyDict(wrong))


def run_settings(faces, output, *arguments):
    return [f"rec={faces}", f"output={output}", "backbone=sized", "batch_size=8", "num_epoch=1", "frequent=1", "num_workers=0", "device=cpu",
            "xi=1", "val_targets=[]", *arguments]


class Sized(nn.Sequential):
    def __init__(self, emb_size: int = 32):
        super().__init__(nn.Flatten(), nn.Linear(768, emb_size, bias=False))


def test_published_settings_on_the_command_line(faces, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "get_backbone", lambda name, **kw: Sized(**kw))
    monkeypatch.setattr(train, "input_scale", lambda name: 1.0)
    assert train.run(config, run_settings(faces, tmp_path, "lambd=7", "fp16=False", "emb_size=24")) == 0
    text = (tmp_path / "training.log").read_text()
    assert "lambda_              7.0\n" in text and "precision            fp32\n" in text
    assert torch.load(tmp_path / "header_final.pt", weights_only=True)["weight"].shape == (12, 24)
    assert train.run(config, run_settings(faces, tmp_path / "a", "lambd=7", "lambda_=7")) == 2
    assert "'lambda_' is given twice" in capsys.readouterr().err
    assert train.run(EasyDict(lambd=3, fp16=False), run_settings(faces, tmp_path / "b", "lambda_=4")) == 0
    assert "lambda_              4.0\n" in (tmp_path / "b" / "training.log").read_text(), "the command line over the file"


@pytest.mark.parametrize("name, emb_size", [("sllnet_small", 64), ("iresnet18", 64), ("sllnet_small", None)])
def test_emb_size_is_the_argument_that_the_network_has(name, emb_size):
    network = train.sized_network(name, emb_size)
    assert network.eval()(torch.zeros(1, 3, 112, 112)).shape[1] == (emb_size or 128)


def test_networks_with_a_length_of_their_own_refuse_another(faces, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "get_backbone", lambda name: Sized())
    monkeypatch.setattr(train, "input_scale", lambda name: 1.0)
    assert train.run(config, run_settings(faces, tmp_path / "a", "emb_size=24")) == 2
    assert "emb_size=24: backbone=sized has embeddings of length 32" in capsys.readouterr().err
    assert train.run(config, run_settings(faces, tmp_path / "b", "emb_size=32")) == 0


# --- the log

def test_the_log_has_lambda_times_the_regulariser(faces, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "get_backbone", lambda name: Sized())
    monkeypatch.setattr(train, "input_scale", lambda name: 1.0)
    monkeypatch.setattr(train, "objective", lambda classify, embeddings, labels, **kw: (
        F.cross_entropy(classify(embeddings, labels), labels), torch.tensor(0.25), torch.tensor(2.0)))
    assert train.run(config, run_settings(faces, tmp_path, "lambda_=7")) == 0
    steps = read_training_log(tmp_path / "training.log").steps
    assert set(steps["reg_loss"]) == {1.75} and set(steps["feature_norm"]) == {2.0}
    assert steps["learning_rate"].tolist() == pytest.approx([1e-3 * (1 - k / 6) for k in range(1, 7)], abs=1e-6)


# --- thirty steps against a few plain lines

def plain_sll(x, weight, bias, q, conv):
    """x - 2 W^T T relu(W x + b), t_i = 1 / sum_j |W W^T|_ij exp(q_j - q_i); or T^(1/2) W x for the last layer, where q has no effect."""
    padding = weight.shape[-1] - 1
    correlations = F.conv2d(weight, weight, padding=padding).abs().sum((2, 3)) if conv else (weight @ weight.T).abs()
    t = 1 / (correlations * torch.exp(q[None, :] - q[:, None])).sum(1)
    if not conv:
        return torch.sqrt(t) * (x @ weight.T)
    inner = F.relu(F.conv2d(x, weight, padding=1) + bias) * t[:, None, None]
    return x - 2 * F.conv_transpose2d(inner, weight, padding=1)


def plain_network(p, x):
    x = plain_sll(F.pixel_unshuffle(x, 4), p["1.weight"], p["1.bias"], p["1.q"], conv=True)
    return plain_sll(x.flatten(1), p["3.weight"], None, torch.zeros(32), conv=False)


def plain_logits(e, w, y, lln, step):
    w, rows = w / w.norm(dim=1, keepdim=True), torch.arange(len(y))
    if lln:
        logits = e @ w.T
        return 4 * logits.index_put((rows, y), logits[rows, y] - 8**0.5)
    logits = e / e.norm(dim=1, keepdim=True) @ w.T
    # margins ~ N(0.35, 0.025), ascending, to the samples by target cosine, descending; the draws are those of the run's seed and step
    margins = sorted(0.35 + 0.025 * np.random.default_rng([0, step]).standard_normal(len(y)))
    of_sample = dict(zip(sorted(range(len(y)), key=lambda i: -logits[i, y[i]].item()), margins))
    return 64 * logits.index_put((rows, y), logits[rows, y] - torch.tensor([of_sample[i] for i in range(len(y))]))


def plain_training(p, w, batches, lambda_, xi, lln):
    """AdamW without decay, gradient norm of the backbone at most 5, linear decay to 0 over thirty steps. Returns losses and weights."""
    p = {name: value.clone().requires_grad_() for name, value in p.items() if name != "3.q"}
    w, losses, moments = w.clone().requires_grad_(), [], {}
    for k, (images, y) in enumerate(batches):
        e = plain_network(p, images)
        norms = e.norm(dim=1)
        loss = F.cross_entropy(plain_logits(e, w, y, lln, k), y)
        if xi:
            loss = loss + lambda_ * torch.clamp(-xi * torch.log(norms / xi), min=0).mean()
        gradients = dict(zip([*p, "w"], torch.autograd.grad(loss, [*p.values(), w])))
        length = torch.sqrt(sum(gradients[name].square().sum() for name in p))
        losses.append(loss.item())
        with torch.no_grad():
            for name, value in {**p, "w": w}.items():
                g = gradients[name] * (torch.clamp(5 / (length + 1e-6), max=1) if name != "w" else 1)
                m, v = moments.get(name, (torch.zeros_like(g), torch.zeros_like(g)))
                m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
                moments[name] = m, v
                value -= 1e-3 * (1 - k / 30) * (m / (1 - 0.9**(k + 1))) / (torch.sqrt(v / (1 - 0.999**(k + 1))) + 1e-8)
    return losses, p, w


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("xi, lln", [(0, False), (1, False), (3, False), (20, False), (0, True)])
def test_thirty_steps_are_those_of_a_few_plain_lines(faces, tmp_path, monkeypatch, double, xi, lln):
    draw = torch.Generator().manual_seed(5)
    start = {name: 0.2 * torch.randn(value.shape, generator=draw) for name, value in Tiny().state_dict().items()}
    torch.save(start, tmp_path / "start.pt")
    losses, regularisers, first = [], [], []
    plain_objective, plain_header = train.objective, train.build_header

    def objective(*arguments, **settings):
        found = plain_objective(*arguments, **settings)
        losses.append(found[0].item())
        regularisers.append(found[1].item())
        return found

    def build_header(*arguments):
        header = plain_header(*arguments)
        first.append(header.weight.detach().clone())
        return header

    monkeypatch.setattr(train, "get_backbone", lambda name: Tiny())
    monkeypatch.setattr(train, "input_scale", lambda name: 1.0)
    monkeypatch.setattr(train, "objective", objective)
    monkeypatch.setattr(train, "build_header", build_header)
    monkeypatch.setattr(train, "to_float", lambda images, device, **kw: to_float(images, device, torch.float64, **kw))
    lambda_ = 0.0 if lln else 10.0
    assert train.run(config, [f"rec={faces}", f"output={tmp_path / 'run'}", "backbone=tiny", "batch_size=8", "num_epoch=5", "num_workers=0",
                              "device=cpu", "val_targets=[]", f"xi={xi}", f"lambda_={lambda_}", f"init_weights={tmp_path / 'start.pt'}",
                              f"header={'lln' if lln else 'elasticface_cos'}"]) == 0
    assert (max(regularisers) > 0) is (xi > 0)
    loader, batches = get_dataloader(RecordDataset(faces), 8), []
    for epoch in range(5):
        loader.set_epoch(epoch)
        batches += [((images.double() - 127.5) / 255, labels) for images, labels in loader]
    expected, p, w = plain_training(start, first[0], batches, lambda_, xi, lln)
    assert len(losses) == 30 and max(abs(one - other) / max(1, abs(other)) for one, other in zip(losses, expected)) <= 1e-13
    found = torch.load(tmp_path / "run" / "model_final.pt", weights_only=True)
    for name, value in p.items():
        assert (found[name] - value).abs().max() <= 1e-13 and (value - start[name]).abs().max() > 1e-3, name
    assert (torch.load(tmp_path / "run" / "header_final.pt", weights_only=True)["weight"] - w).abs().max() <= 1e-13


# --- code of somebody else

HEAD = '''
import torch
from torch import nn

class Scaled(nn.Module):
    """Plain cosine logits; says which seed it was given."""

    def __init__(self, num_classes, emb_size, s=16.0, seed=None):
        super().__init__()
        self.weight, self.s = nn.Parameter(torch.randn(num_classes, emb_size)), s
        print("seed", seed, "s", s)

    def forward(self, embeddings, labels):
        return self.s * nn.functional.normalize(embeddings) @ nn.functional.normalize(self.weight).T
'''
NET = '''
from torch import nn

class Flat(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(768, 24, bias=False))
'''


def outside(folder, faces, *arguments):
    """train.py run in a folder outside the repository that has a package `mine`."""
    (folder / "mine").mkdir()
    (folder / "mine" / "heads.py").write_text(HEAD)
    (folder / "mine" / "nets.py").write_text(NET)
    (folder / "mine" / "broken.py").write_text("1 / 0\n")
    script = Path(train.__file__).resolve()
    given = {argument.partition("=")[0]: argument for argument in (*run_settings(faces, "out", "seed=3"), *arguments)}
    return python(script, *given.values(), cwd=folder)


def test_a_header_of_somebody_else(tmp_path):
    done = outside(tmp_path, "synthetic", "num_classes=4", "num_image=16", "backbone=sllnet_small", "header=mine.heads:Scaled",
                   "header_args={'s': 8}")
    assert done.returncode == 0, done.stderr
    assert "seed 3 s 8" in done.stdout and "header               mine.heads:Scaled" in done.stdout
    assert torch.load(tmp_path / "out" / "header_final.pt", weights_only=True)["weight"].shape == (4, 128)


@pytest.mark.skipif(not hasattr(sys.modules["backbones"], "BACKBONES"), reason="networks of other projects are not known yet")
def test_a_network_of_somebody_else(faces, tmp_path):
    done = outside(tmp_path, faces, "backbone=mine.nets:Flat", "header=arcface")
    assert done.returncode == 0, done.stderr
    assert torch.load(tmp_path / "out" / "model_final.pt", weights_only=True)["1.weight"].shape == (24, 768)


@pytest.mark.parametrize("name, words", [
    ("mine.heads:Missing", "no attribute 'Missing'"), ("mine.none:Scaled", "No module named 'mine.none'"),
    ("mine.broken:Scaled", "ZeroDivisionError: division by zero"), ("mine.heads:torch", "is a module")])
def test_a_header_that_cannot_be_imported_is_one_line(tmp_path, name, words):
    done = outside(tmp_path, "synthetic", f"header={name}")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and words in done.stderr and name in done.stderr, done.stderr
