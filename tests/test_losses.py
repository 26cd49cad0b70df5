"""The contrastive term against its definition written as loops, and on two processes."""
import math

import pytest
import torch
import torch.nn.functional as F
from processes import in_processes
from torch import nn

import losses
from utils.distributed import distribute

ARGUMENTS = {"s": 6.0, "m": 0.2}
LABELS = torch.tensor([0, 1, 0, -1, 2, 1, 0, -1])  # 2 is alone, -1 is nobody: one has no positives, the other not even the other -1


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_loops(embeddings, labels, s, m):
    """The mean of loss_i over all i, one similarity at a time."""
    count, total = len(embeddings), 0.0
    for i in range(count):
        def similarity(j):
            cosine = embeddings[i] @ embeddings[j] / (embeddings[i] @ embeddings[i]).sqrt() / (embeddings[j] @ embeddings[j]).sqrt()
            return s * cosine - (s * m if labels[i] == labels[j] >= 0 else 0.0)

        positives = [j for j in range(count) if j != i and labels[j] == labels[i] and labels[i] != -1]
        everyone = sum(torch.exp(similarity(k)) for k in range(count) if k != i)
        total = total - sum(similarity(p) - torch.log(everyone) for p in positives) / max(len(positives), 1)
    return total / count


def test_the_contrastive_loss_and_its_gradient_are_the_definition():
    embeddings = numbers(8, 5).requires_grad_()
    found, expected = losses.contrastive(embeddings, LABELS, **ARGUMENTS), by_loops(embeddings, LABELS, **ARGUMENTS)
    assert found.item() == pytest.approx(expected.item(), rel=1e-12) and found > 0.5
    gradients = [torch.autograd.grad(loss, embeddings)[0] for loss in (found, expected)]
    assert torch.allclose(*gradients, rtol=1e-10, atol=1e-14) and gradients[0].abs().max() > 0.01
    lengths = torch.rand(8, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.1
    assert torch.allclose(losses.contrastive(embeddings * lengths, LABELS, **ARGUMENTS), found), "lengths do not count"


@pytest.mark.parametrize("labels", [[0], [0, 1, 2], [-1, -1, -1]])
def test_without_positives_there_is_nothing_to_lose(labels):
    embeddings = numbers(len(labels), 5).requires_grad_()
    loss = losses.contrastive(embeddings, torch.tensor(labels), **ARGUMENTS)
    loss.backward()
    assert loss == 0 and torch.equal(embeddings.grad, torch.zeros_like(embeddings))


def test_the_objective_adds_it_with_its_weight():
    embeddings, weight = numbers(8, 5), numbers(3, 5, seed=1)
    labels = LABELS.clamp_min(0)

    def value(**more):
        return losses.objective(lambda e, y: e @ weight.T, embeddings, labels, 10.0, 3.0, **more)
    (plain, regulariser, norm), with_it = value(), value(contrast=0.7, contrast_args=ARGUMENTS)
    assert torch.allclose(with_it[0], plain + 0.7 * by_loops(embeddings, labels, **ARGUMENTS), rtol=1e-12)
    assert torch.equal(with_it[1], regulariser) and torch.equal(with_it[2], norm)
    assert torch.equal(value(contrast=0.0, contrast_args=ARGUMENTS)[0], plain)


def test_it_is_computed_in_float32_under_autocast():
    wide = numbers(8, 64) + 20.0 * numbers(64, seed=1)  # cosines that differ in the fourth digit
    cosines = F.normalize(wide) @ F.normalize(wide).T
    assert cosines.min() > 0.99
    with torch.autocast("cpu", torch.bfloat16):
        loss, _, _ = losses.objective(lambda e, y: torch.zeros(8, 3), wide.float(), LABELS.clamp_min(0), 0.0, 0.0, 1.0, {"s": 200.0, "m": 0.0})
    expected = math.log(3) + by_loops(wide, LABELS.clamp_min(0), 200.0, 0.0).item()
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(expected, abs=1e-3)


def test_a_loss_that_is_not_finite_poisons_the_gradient():
    embeddings = torch.full((4, 5), math.inf, requires_grad=True)
    losses.objective(lambda e, y: torch.zeros(4, 3), embeddings, torch.zeros(4, dtype=torch.int64), 0.0, 0.0, 1.0, ARGUMENTS)[0].backward()
    assert embeddings.grad.isnan().all()


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 5)).double()


def _work(rank, folder):
    model = distribute(network())
    loss = losses.contrastive(model(numbers(8, 6)[rank::2]), LABELS[rank::2], **ARGUMENTS)
    loss.backward()
    torch.save([loss.detach(), *(p.grad for p in model.parameters())], f"{folder}/{rank}.pt")


def test_two_processes_have_the_loss_and_the_gradient_of_one(tmp_path):
    in_processes(_work, tmp_path, 2)
    alone = network()
    loss = by_loops(alone(numbers(8, 6)), LABELS, **ARGUMENTS)
    loss.backward()
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert torch.allclose((found[0][0] + found[1][0]) / 2, loss, rtol=1e-12) and not torch.allclose(found[0][0], loss, rtol=1e-3)
    for rank in range(2):
        for gradient, parameter in zip(found[rank][1:], alone.parameters(), strict=True):
            assert torch.allclose(gradient, parameter.grad, rtol=1e-10, atol=1e-14) and parameter.grad.abs().max() > 1e-3
