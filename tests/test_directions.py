"""One rule for embeddings without direction, wherever a cosine, a norm or an angle is taken."""
import math

import numpy as np
import pytest
import torch

import attacks
from attacks import APGD, CW, DDN, FGSM, PGD
from eval import certification, folds, verification
from utils import directions

WITHOUT = {"zero": [0., 0., 0.], "nan": [1., math.nan, 0.], "inf": [math.inf, 1., 1.], "minus inf": [-math.inf, 0., 0.],
           "underflow": [1e-160, 0., 0.]}


@pytest.mark.parametrize("kind", WITHOUT)
def test_every_reader_of_embeddings_follows_the_rule(kind):
    bad, good = torch.tensor(WITHOUT[kind], dtype=torch.float64), torch.tensor([1., 2., 3.], dtype=torch.float64)
    for u, v in ((bad, good), (good, bad), (bad, bad)):
        assert directions.cosine(u, v).item() == attacks.cosine(u, v).item() == -math.inf
        assert verification.pair_cosines(torch.stack([u, v]), [0], [1]).tolist() == [-math.inf]
        assert directions.angle(u, v).item() == certification.angle(u, v).item() == math.pi
        norms = verification.norms(torch.stack([u, v]))
        for tau in (-0.9, 0.3):
            theta = certification.angle(u, v)
            for radius in (certification.pair_radius, certification.two_sided_radius, certification.joint_radius):
                assert radius(*norms, theta, tau).item() == 0
            assert certification.pair_radius(*norms, theta, tau, "paper").item() == 0
        assert folds.calculate_accuracy(1e9, folds._distances(u[None], v[None]), [True])[0] == 0
    assert verification.norms(torch.stack([bad, good])).tolist() == pytest.approx([0, math.sqrt(14)])
    assert certification.unit_templates(bad[None])[1].item() == 0


def test_directions_are_those_of_plain_numpy():
    rng = np.random.default_rng(0)
    u, v = rng.normal(size=(2, 50, 7)) * 10. ** rng.integers(-100, 100, (2, 50, 1))
    expected = [(a @ b) / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(u, v)]
    u, v = torch.from_numpy(u), torch.from_numpy(v)
    assert directions.cosine(u, v).tolist() == pytest.approx(expected, abs=1e-14)
    assert directions.angle(u, v).tolist() == pytest.approx(np.arccos(expected).tolist(), abs=1e-12)
    assert directions.norms(u.float()).tolist() == pytest.approx([np.linalg.norm(row) if np.isfinite(row).all() else 0
                                                                  for row in u.float().double().numpy()])
    half = directions.cosine(torch.tensor([[3e-3, 4e-3]]).half(), torch.tensor([[1., 0.]]).half())
    assert half.dtype == torch.float16 and half.item() == pytest.approx(0.6, abs=1e-3)


@pytest.mark.parametrize("tau", [-0.5, 0.0, 0.5])
@pytest.mark.parametrize("attack", [PGD(1.0), FGSM(1.0), APGD(1.0, steps=10, restarts=4), DDN(20), CW(10, 3)],
                         ids=lambda a: type(a).__name__)
def test_an_attack_that_reaches_the_origin_has_the_pair_rejected(attack, tau):
    """relu(sum of the pixels) along one direction: there is no way to a rejection but the origin, and nowhere a gradient of the cosine."""
    def embed(z):
        return torch.relu(z.sum((1, 2, 3)))[:, None] * torch.tensor([1., 2.], dtype=torch.float64)

    x = 0.02 + torch.rand(6, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 100
    targets = embed(x)
    dodged = attack(embed, x, targets, "dodging", tau)
    assert dodged.success.all() and (dodged.margin == -math.inf).all() and (embed(dodged.adversarial) == 0).all()
    assert (dodged.norm >= x.sum((1, 2, 3)) / 2 * (1 - 1e-9)).all()  # the distance to the plane where the sum is 0
    # and never accepted: neither when it starts without direction, nor when it ends there
    nothing = attack(lambda z: embed(z) * 0, x, targets, "impersonation", tau)
    assert not nothing.success.any() and torch.equal(nothing.adversarial, x) and (nothing.margin == math.inf).all()
    assert (nothing.norm == (math.inf if attack.minimum_norm else 0)).all()
    lost = attack(embed, x, targets * 0, "untargeted", tau)
    assert lost.success.all() and (lost.norm == 0).all() and (lost.margin == -math.inf).all()


def test_the_certificate_allows_for_the_origin_at_negative_thresholds():
    """Straight to the origin is the shortest way to a rejection past 90 degrees: the attack gets there at the radius, and not before."""
    x = attacks.unit(torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)) * 0.4
    embed = torch.nn.Flatten()
    tau, norms = -0.5, embed(x).norm(dim=1)
    radius = certification.one_sided_radius(norms, 0., tau)
    assert radius.tolist() == pytest.approx(norms.tolist())
    at_origin = attacks.margin(embed(x * 0), embed(x), tau, "dodging")
    assert attacks.succeeds(at_origin, "dodging").all()
    assert not DDN(60)(embed, x, embed(x), "dodging", tau).norm.lt(radius * (1 - 1e-9)).any()
