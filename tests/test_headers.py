"""Margin headers against the golden data and against their definitions, sample by sample."""
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import SHARED, needs_shared
from torch import nn

from headers import EMMA, HEADERS, AdaCos, ArcFace, CosFace, ECosFace, NaiveHeader, get_header
from utils import InputError

CLASSES, SIZE = 10, 16
LABELS = torch.tensor([0, 3, 9, 3, -1, 5])


def batch(seed=0, count=6):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, SIZE, generator=generator, dtype=torch.float64)


def cosines(header, embeddings):
    return F.normalize(embeddings) @ F.normalize(header.weight.detach()).T


@needs_shared
@pytest.mark.parametrize("name, make", [("ArcFace", ArcFace), ("NaiveHeader", NaiveHeader), ("ECosFace_std0", lambda c, e: ECosFace(c, e, std=0.))])
def test_golden_values_and_gradients(name, make):
    golden = np.load(SHARED / "golden" / "golden.npz")
    header = make(CLASSES, SIZE)
    with torch.no_grad():
        header.weight.copy_(torch.from_numpy(golden["header.weight"]))
    embeddings = torch.from_numpy(golden["header.embeddings"]).requires_grad_()
    labels = golden[f"{name}.labels"] if f"{name}.labels" in golden else golden["header.labels"]
    logits = header(embeddings, torch.from_numpy(labels))
    logits.square().sum().backward()
    found = {"logits": logits.detach(), "grad": embeddings.grad, "wgrad": header.weight.grad}
    for key in found:
        if f"{name}.{key}" in golden:
            expected = golden[f"{name}.{key}"]
            assert np.abs(found[key].numpy() - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("make, target", [
    (lambda: ArcFace(CLASSES, SIZE), lambda c: math.cos(math.acos(c) + 0.5)),
    (lambda: CosFace(CLASSES, SIZE, m=0.3), lambda c: c - 0.3),
    (lambda: ECosFace(CLASSES, SIZE, std=0.0), lambda c: c - 0.35)])
def test_margin_is_on_the_target_only(make, target):
    header, embeddings = make().double(), batch()
    expected = cosines(header, embeddings)
    for row, label in enumerate(LABELS.tolist()):
        if label >= 0:
            expected[row, label] = target(expected[row, label].item())
    assert torch.allclose(header(embeddings, LABELS), 64 * expected, rtol=1e-9)


def test_naive_header_uses_the_length_of_the_embedding():
    header, embeddings = NaiveHeader(CLASSES, SIZE).double(), batch()
    expected = embeddings @ F.normalize(header.weight).T
    for row, label in enumerate(LABELS.tolist()):
        if label >= 0:
            expected[row, label] -= 8**0.5
    assert torch.allclose(header(embeddings, LABELS), 4 * expected, rtol=1e-9)


def test_naive_header_takes_embeddings_to_a_ball():
    plain, clipped = NaiveHeader(CLASSES, SIZE).double(), NaiveHeader(CLASSES, SIZE, max_length=4.0).double()
    clipped.load_state_dict(plain.state_dict())
    embeddings = torch.cat([batch(), torch.zeros(1, SIZE, dtype=torch.float64)]).requires_grad_()
    labels = torch.cat([LABELS, torch.tensor([2])])
    lengths = embeddings.norm(dim=1).tolist()
    assert min(lengths[:-1]) < 4 < max(lengths)
    shortened = torch.stack([row * 4 / length if length > 4 else row for row, length in zip(embeddings, lengths)])
    found, expected = (header(rows, labels) for header, rows in ((clipped, embeddings), (plain, shortened)))
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)
    within = [length <= 4 for length in lengths]
    assert torch.equal(found[within], plain(embeddings, labels)[within]), "what is inside stays as it is, to the bit"
    jacobian = torch.autograd.functional.jacobian(lambda e: clipped(e[None], LABELS[:1])[0], embeddings[lengths.index(max(lengths))].detach())
    rows = F.normalize(plain.weight.detach())
    assert torch.linalg.matrix_norm(torch.linalg.pinv(rows) @ jacobian / 4, 2) <= 1 + 1e-9, "the map to the ball is 1-Lipschitz"
    gradient, = torch.autograd.grad(found.square().sum(), embeddings)
    assert torch.isfinite(gradient).all()


def emma_loop(header, embeddings, labels, budget):
    """[N, C], by the definition."""
    weight, logits = F.normalize(header.weight.detach().double()), torch.empty(len(labels), CLASSES, dtype=torch.float64)
    for i, (embedding, label) in enumerate(zip(embeddings.double(), labels.tolist())):
        norm = embedding.norm().item()
        angles = [math.acos((row @ embedding).item() / norm) for row in weight]
        for j in range(CLASSES):
            logits[i, j] = header.s * math.cos(angles[j])
            if j == label:
                logits[i, j] -= header.s * header.m
            elif label >= 0:
                reach = min(max(norm * math.sin((angles[j] - angles[label]) / 2), budget / 100), budget)
                logits[i, j] += header.s * reach / norm * (weight[j] - weight[label]).norm().item()
    return logits


@pytest.mark.parametrize("settings, step, budget", [({}, 0, 0.25), ({"eps": 2.0, "m": 0.1, "s": 10.0}, 3, 2.0), ({"eps": 2.0, "steps": 8}, 2, 0.5),
                                                    ({"eps": 2.0, "steps": 8}, 9, 2.0), ({"eps": 2.0, "steps": 8}, 0, 0.0)])
def test_emma_is_the_definition(settings, step, budget):
    embeddings = batch()
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        header = EMMA(CLASSES, SIZE, **settings).to(dtype)
        header.step = step
        logits = header(embeddings.to(dtype), LABELS)
        assert torch.allclose(logits.double(), emma_loop(header, embeddings, LABELS, budget), rtol=tolerance, atol=tolerance)
        assert header.step == step + 1
        header.eval()(embeddings.to(dtype), LABELS)
        assert header.step == step + 1


def test_emma_takes_what_is_in_reach_as_given_and_lengthens_embeddings():
    header, embeddings = EMMA(CLASSES, SIZE, eps=0.5).double(), batch().requires_grad_()
    logits = header(embeddings, LABELS)
    loss = F.cross_entropy(logits, LABELS, ignore_index=-1, reduction="sum")
    gradient, = torch.autograd.grad(loss, embeddings)
    along = (gradient * embeddings).sum(1)
    assert (along[LABELS >= 0] < 0).all() and abs(along[4]) < 1e-12
    # the gradient is that of the formula with the reach as a constant
    weight, labels = F.normalize(header.weight), LABELS.clamp_min(0)
    cosine = F.normalize(embeddings) @ weight.T
    angles = torch.acos(cosine).detach()
    reach = (embeddings.norm(dim=1, keepdim=True) * torch.sin((angles - angles.gather(1, labels[:, None])) / 2)).clamp(0.005, 0.5).detach()
    added = reach / embeddings.norm(dim=1, keepdim=True) * (weight[None] - weight[labels][:, None] + 1e-300).norm(dim=2)
    added = torch.where((LABELS[:, None] >= 0) & (torch.arange(CLASSES) != LABELS[:, None]), added, 0.0)
    for one in (embeddings, header.weight):
        plain, = torch.autograd.grad((cosine + added).square().sum() * 16, one, retain_graph=True)
        found, = torch.autograd.grad((header(embeddings, LABELS) / 16).square().sum() * 16, one)
        assert torch.allclose(found, plain, rtol=1e-6, atol=1e-9)


def test_emma_survives_what_training_may_bring():
    header = EMMA(CLASSES, SIZE, steps=5)
    with torch.no_grad():
        header.weight[1] = header.weight[0]  # two classes in one place
    embeddings = torch.cat([1e6 * header.weight.detach()[:3], torch.zeros(3, SIZE)]).requires_grad_()
    for step in (0, 5):
        header.step = step
        logits = header(embeddings, LABELS.clone().clamp_min(0))
        logits.sum().backward()
        assert torch.isfinite(logits).all() and torch.isfinite(embeddings.grad).all() and torch.isfinite(header.weight.grad).all()


def test_arcface_passes_the_gradient_of_the_plain_cosine():
    header, labels = ArcFace(CLASSES, SIZE).double(), LABELS.clamp_min(0)
    plain, margin = (batch().requires_grad_() for _ in range(2))
    (64 * cosines(header, plain)).sum().backward()
    header(margin, labels).sum().backward()
    assert torch.allclose(plain.grad, margin.grad, rtol=1e-9)


def test_arcface_survives_cosines_beyond_one():
    header = ArcFace(CLASSES, SIZE)
    embeddings = (1e6 * header.weight.detach()[:6]).requires_grad_()  # the normalised product of equal vectors may round to 1 + 1e-7
    logits = header(embeddings, torch.arange(6))
    logits.sum().backward()
    assert torch.isfinite(logits).all() and torch.isfinite(embeddings.grad).all()


@pytest.mark.parametrize("name", HEADERS.names())
def test_all_take_zero_embeddings_minus_one_and_autocast(name):
    header = get_header(name, CLASSES, SIZE)
    assert header.weight.std().item() == pytest.approx(0.01, rel=0.3)
    embeddings = torch.cat([torch.zeros(2, SIZE), batch().float()])
    with torch.autocast("cpu", torch.bfloat16):
        logits = header(embeddings.bfloat16(), torch.full((8,), -1))
    assert logits.shape == (8, CLASSES) and logits.dtype == torch.float32 and torch.isfinite(logits).all()


def test_elastic_margins_by_rank():
    """Sorted margins, ascending, to the samples by target cosine, descending."""
    header, embeddings, labels = ECosFace(CLASSES, SIZE, std=0.1).double(), batch(), LABELS.clamp_min(0)
    cosine = cosines(header, embeddings)
    target = cosine[torch.arange(6), labels]
    margins = target - header(embeddings, labels).detach()[torch.arange(6), labels] / 64
    hardest_last = sorted(range(6), key=lambda i: -target[i].item())
    assert [m.item() for m in margins[hardest_last]] == sorted(m.item() for m in margins) and margins.std() > 0.01


def test_elastic_margins_as_published():
    embeddings, labels = batch(), LABELS.clamp_min(0)
    header = ECosFace(CLASSES, SIZE, std=0.1, assign="published").double()
    target = cosines(header, embeddings)[torch.arange(6), labels]
    margins = target - header(embeddings, labels).detach()[torch.arange(6), labels] / 64
    ascending, order = margins.sort().values, torch.argsort(target, descending=True)
    assert torch.allclose(margins, ascending[order])


def test_elastic_margins_are_keyed_by_seed_and_step():
    weight = torch.randn(CLASSES, SIZE, dtype=torch.float64)

    def logits(seed, step, plus):
        header = ECosFace(CLASSES, SIZE, std=0.1, plus=plus, seed=seed).double()
        header.weight.data.copy_(weight)
        header.step = step
        return header(batch(), LABELS)

    for plus in (True, False):
        first = logits(1, 5, plus)
        assert torch.equal(first, logits(1, 5, plus))
        assert not torch.equal(first, logits(1, 6, plus)) and not torch.equal(first, logits(2, 5, plus))
    header = ECosFace(CLASSES, SIZE, std=0.1)
    before = torch.get_rng_state()
    assert not torch.equal(header(batch().float(), LABELS), header(batch().float(), LABELS))
    assert torch.equal(torch.get_rng_state(), before) and header.step == 2
    header.eval()(batch().float(), LABELS)
    assert header.step == 2


def test_elastic_margins_have_the_stated_distribution():
    header = ECosFace(CLASSES, SIZE, plus=False)
    margins = header._margins(torch.zeros(20000))
    assert margins.mean().item() == pytest.approx(0.35, abs=1e-3) and margins.std().item() == pytest.approx(0.025, rel=0.03)


def test_adacos_scale_is_the_definition():
    header, embeddings = AdaCos(CLASSES, SIZE).double(), batch()
    assert header.s.item() == pytest.approx(math.sqrt(2) * math.log(CLASSES - 1))
    for _ in range(3):
        s, cosine = header.s.item(), cosines(header, embeddings)
        others = [sum(math.exp(s * cosine[i, j]) for j in range(CLASSES) if j != LABELS[i]) for i in range(6)]
        angles = sorted(math.acos(cosine[i, LABELS[i]]) for i in range(6) if LABELS[i] >= 0)
        expected = math.log(sum(others) / 6) / math.cos(min(math.pi / 4, angles[2]))
        logits = header(embeddings, LABELS)
        assert header.s.item() == pytest.approx(expected, rel=1e-9)
        assert torch.allclose(logits, header.s * cosine, rtol=1e-9)
    kept = header.s.item()
    header.eval()(batch(1), LABELS)
    assert header.s.item() == kept and "s" in header.state_dict()


def test_names_and_aliases():
    assert set(HEADERS.names()) == {"arcface", "cosface", "adacos", "ecosface", "naive", "emma"}
    kinds = {"arcface": ArcFace, "cosface": CosFace, "adacos": AdaCos, "ecosface": ECosFace, "elasticface_cos": ECosFace,
             "naive": NaiveHeader, "lln": NaiveHeader, "emma": EMMA}
    for name, kind in kinds.items():
        assert type(get_header(name, 3, 4)) is kind


def test_the_seed_of_a_run_goes_to_headers_that_take_one():
    assert get_header("ecosface", 3, 4, run_seed=7).seed == 7 and get_header("ecosface", 3, 4, run_seed=7, seed=2).seed == 2
    assert not hasattr(get_header("arcface", 3, 4, run_seed=7), "seed") and get_header("ecosface", 3, 4).seed == 0


class Bare(nn.Module):
    """Somebody's header: no defaults that tell of types."""

    def __init__(self, num_classes, emb_size, scale=None, *, power):
        super().__init__()
        self.scale, self.power = scale, power


def test_headers_of_others_have_arguments_of_their_own():
    header = get_header("test_headers:Bare", 3, 4, scale="wide", power=-2)
    assert (header.scale, header.power) == ("wide", -2)
    with pytest.raises(InputError, match="test_headers:Bare: .*power"):
        get_header("test_headers:Bare", 3, 4)
    with pytest.raises(InputError, match="test_headers:drawn: makes a Tensor, expected an nn.Module"):
        get_header("test_headers:drawn", 3, 4)


def drawn(num_classes, emb_size):
    return torch.zeros(num_classes, emb_size)


@pytest.mark.parametrize("name, given, words", [
    ("arcface", {"margin": 1.0}, "margin"), ("arcface", {"s": "64"}, "s='64', expected float"), ("arcface", {"m": True}, "m=True, expected float"),
    ("ecosface", {"plus": 1}, "plus=1, expected bool"), ("ecosface", {"seed": -1}, "seed=-1, expected int >= 0"), ("adacos", {"s": 1.0}, "'s'"),
    ("ecosface", {"assign": "x"}, "expected 'rank' or 'published'"), ("naive", {"max_length": 0.0}, "max_length is 0.0"),
    ("emma", {"eps": -1.0}, "eps is -1.0"), ("emma", {"steps": -1}, "steps=-1, expected int >= 0")])
def test_arguments_that_do_not_fit_are_named(name, given, words):
    with pytest.raises(InputError, match=f"^header {name}: .*{words}"):
        get_header(name, 3, 4, **given)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="arcfac"):
        get_header("arcfac", 3, 4)
    with pytest.raises(ValueError, match="assign"):
        ECosFace(3, 4, assign="random")
    with pytest.raises(ValueError, match="at least 3"):
        AdaCos(2, 4)
