"""Orthogonalised updates, against singular value decompositions, AdamW, and PyTorch's own where it has one."""
import pytest
import torch
from torch import nn

from muon import MOMENTUM, Muon, orthogonalised


class Network(nn.Module):
    """A kernel, two matrices of one shape, a tall one, and vectors."""

    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(6, 4, 3, 3))
        self.first, self.second = nn.Parameter(torch.randn(5, 5)), nn.Parameter(torch.randn(5, 5))
        self.tall = nn.Parameter(torch.randn(20, 5))
        self.bias = nn.Parameter(torch.randn(5))
        self.frozen = nn.Parameter(torch.randn(3, 3), requires_grad=False)


MATRICES = ("kernel", "first", "second", "tall")


def parts(seed=0):
    torch.manual_seed(seed)
    return Network(), nn.Linear(5, 7)


def with_gradients(network, header, seed):
    generator = torch.Generator().manual_seed(seed)
    for p in (*network.parameters(), *header.parameters()):
        if p.requires_grad:
            p.grad = torch.randn(p.shape, generator=generator).to(p)


@pytest.mark.parametrize("shape", [(8, 8), (4, 200), (200, 4), (3, 16, 40), (1, 5)])
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_singular_vectors_stay_and_singular_values_become_about_one(shape, scale):
    matrices = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = orthogonalised(matrices * scale)
    u, s, vh = torch.linalg.svd(matrices, full_matrices=False)
    values = u.mT @ found @ vh.mT
    diagonal = values.diagonal(dim1=-2, dim2=-1)
    assert torch.allclose(values, torch.diag_embed(diagonal), atol=1e-9)
    large = s > 0.02 * s.norm(dim=-1, keepdim=True)
    assert diagonal[large].min() > 0.65 and diagonal.max() < 1.25


def test_zeros_stay_zeros_and_a_batch_is_its_matrices():
    assert not orthogonalised(torch.zeros(3, 4)).any()
    matrices = torch.randn(3, 6, 9)
    assert torch.allclose(orthogonalised(matrices), torch.stack([orthogonalised(m) for m in matrices]), atol=1e-5)


def test_it_is_adamw_for_all_but_the_matrices_of_the_network():
    (network, header), (other, other_header) = parts(), parts()
    muon = Muon(network, header, 1e-2, 0.05, weight_decay=0.1)
    adamw = torch.optim.AdamW([p for p in (*other.parameters(), *other_header.parameters()) if p.requires_grad], 1e-2, weight_decay=0.1)
    for step in range(4):
        with_gradients(network, header, step)
        with_gradients(other, other_header, step)
        muon.step()
        adamw.step()
    assert torch.equal(header.weight, other_header.weight) and torch.equal(network.bias, other.bias)
    assert torch.equal(network.frozen, other.frozen)
    assert all(not torch.allclose(getattr(network, name), getattr(other, name), atol=1e-3) for name in MATRICES)


def test_steps_are_those_of_the_definition():
    network, header = (part.double() for part in parts())
    expected = {name: getattr(network, name).detach().clone() for name in MATRICES}
    momentum = {name: torch.zeros_like(value) for name, value in expected.items()}
    muon = Muon(network, header, 1e-2, 0.05, weight_decay=0.1)
    for step in range(3):
        with_gradients(network, header, step)
        for name, value in expected.items():
            gradient = getattr(network, name).grad
            momentum[name] = MOMENTUM * momentum[name] + (1 - MOMENTUM) * gradient
            ahead = (MOMENTUM * momentum[name] + (1 - MOMENTUM) * gradient).reshape(len(gradient), -1)
            taller = max(1, ahead.shape[0] / ahead.shape[1])
            value -= 0.05 * (0.1 * value + taller**0.5 * orthogonalised(ahead).view_as(value))
        muon.step()
    for name, value in expected.items():
        assert torch.allclose(getattr(network, name), value, rtol=1e-9), name


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this PyTorch has no Muon")
def test_steps_are_those_of_pytorch():
    network, header = parts()
    theirs = [nn.Parameter(getattr(network, name).detach().clone()) for name in ("first", "second", "tall")]
    ours, other = Muon(network, header, 1e-2, 0.05), torch.optim.Muon(theirs, 0.05, weight_decay=0.0, momentum=MOMENTUM)
    for step in range(3):
        with_gradients(network, header, step)
        for name, p in zip(("first", "second", "tall"), theirs):
            p.grad = getattr(network, name).grad.clone()
        ours.step()
        other.step()
    for name, p in zip(("first", "second", "tall"), theirs):  # it orthogonalises in bfloat16
        assert torch.allclose(getattr(network, name), p, atol=0.02), name
        assert not torch.allclose(getattr(parts()[0], name), p, atol=0.02)


def test_a_gradient_that_is_not_finite_changes_nothing():
    """GradScaler hands what it found to a fused optimiser; others it does not call."""
    network, header = parts()
    muon = Muon(network, header, 1e-2, 0.05, weight_decay=0.1, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)

    def step(seed):
        with_gradients(network, header, seed)
        if seed == 1:
            network.first.grad[0, 0] = float("nan")
        scaler.scale(torch.ones(1))
        scaler.unscale_(muon)
        scaler.step(muon)
        scaler.update(1.0)
        return {key: value.clone() for key, value in network.state_dict().items()}, muon.state[network.first]["momentum"].clone()

    (before, momentum), (skipped, same), (after, other) = step(0), step(1), step(2)
    for key, value in before.items():
        assert torch.equal(value, skipped[key]) and (key == "frozen" or not torch.equal(value, after[key])), key
    assert torch.equal(momentum, same) and not torch.equal(momentum, other) and other.isfinite().all()


def test_it_goes_on_from_its_state(tmp_path):
    def steps(network, header, muon, seeds):
        for seed in seeds:
            with_gradients(network, header, seed)
            muon.step()

    network, header = parts()
    muon = Muon(network, header, 1e-2, 0.05)
    steps(network, header, muon, range(3))
    torch.save([network.state_dict(), header.state_dict(), muon.state_dict()], tmp_path / "s.pt")
    steps(network, header, muon, range(3, 6))
    again, again_header = parts(seed=5)
    later = Muon(again, again_header, 1e-2, 0.05)
    for part, state in zip((again, again_header, later), torch.load(tmp_path / "s.pt", weights_only=True)):
        part.load_state_dict(state)
    steps(again, again_header, later, range(3, 6))
    for key, value in network.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
