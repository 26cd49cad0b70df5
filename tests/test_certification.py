"""Radii against brute force: what a worst-case search over embeddings can and cannot reach."""
import math

import numpy as np
import pytest
import torch

from eval import certification as cert


def rotated(theta, norm=1.0):
    return norm * np.array([math.cos(theta), math.sin(theta)])


def margin(u, v, tau):
    """cos - tau of embeddings u [..., D] with v [D]: its sign is the decision."""
    return u @ v / np.linalg.norm(u, axis=-1) / np.linalg.norm(v) - tau


CASES = [(norm, theta, tau) for norm in (0.3, 3.2) for theta in (0.0, 0.01, 0.7, 1.5, 2.5, math.pi)
         for tau in (-0.9, -0.3, 0.0, 0.25, 0.8) if abs(theta - math.acos(tau)) > 1e-3]


@pytest.mark.parametrize("norm, theta, tau", CASES)
def test_one_sided_radius_is_sound_and_tight(norm, theta, tau):
    radius = cert.one_sided_radius(norm, theta, tau).item()
    v, u = rotated(0), rotated(theta, norm)
    side = np.sign(math.cos(theta) - tau)
    phi = np.linspace(0, 2 * math.pi, 20001)
    directions = np.stack([np.cos(phi), np.sin(phi)], axis=1)
    for share in (0.1, 0.5, 0.9, 1 - 1e-9):
        assert (side * margin(u + share * radius * directions, v, tau) > -1e-12).all()
    # outwards from the nearest point of the cone, which is the origin once it is more than 90 degrees away
    delta = abs(theta - math.acos(tau))
    nearest = rotated(math.acos(tau), norm * math.cos(delta)) if delta < math.pi / 2 else np.zeros(2)
    assert np.linalg.norm(nearest - u) == pytest.approx(radius)
    assert (side * margin(nearest + 1e-6 * radius * directions, v, tau) < 0).any()


def test_one_sided_radius_in_three_dimensions():
    rng = np.random.default_rng(0)
    for _ in range(40):
        u, v = rng.normal(size=(2, 3))
        tau = rng.uniform(-0.95, 0.95)
        theta = cert.angle(u, v)
        radius = cert.one_sided_radius(np.linalg.norm(u), theta, tau).item()
        side = np.sign(math.cos(theta) - tau)
        steps = rng.normal(size=(20000, 3))
        steps /= np.linalg.norm(steps, axis=1, keepdims=True)
        assert (side * margin(u + radius * (1 - 1e-9) * steps, v, tau) > -1e-12).all()
        worst = side * margin(u + 1.05 * radius * steps, v, tau)
        assert worst.min() < 0  # 20,000 directions come within a few degrees of the worst one


def test_attacks_by_gradient_on_an_isometry_stop_at_the_radius():
    tau, (u, v) = 0.3, torch.randn(2, 200, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    radius = cert.one_sided_radius(u.norm(dim=-1), cert.angle(u, v), tau)[:, None]
    cosine = torch.nn.functional.cosine_similarity
    side = torch.sign(cosine(u, v) - tau)
    for share, reached in ((1 - 1e-6, 0), (1.01, 190)):
        step = torch.zeros_like(u)
        for k in range(300):
            step.requires_grad_()
            gradient, = torch.autograd.grad((side * cosine(u + step, v)).sum(), step)
            step = step.detach() - 0.1 / (1 + k / 10) * radius * gradient / gradient.norm(dim=-1, keepdim=True)
            step = step * (share * radius / step.norm(dim=-1, keepdim=True)).clamp(max=1)
        crossed = (side * (cosine(u + step, v) - tau) < 0).sum().item()
        assert crossed <= reached if reached == 0 else crossed >= reached


def test_the_published_formula_and_where_it_differs():
    rng = np.random.default_rng(2)
    a, b, theta, tau = rng.uniform([[0], [0], [0], [-1]], [[5], [5], [math.pi], [1]], (4, 1000))
    published = np.minimum(a, b) * np.abs(np.sqrt(1 - tau**2) * np.cos(theta) - tau * np.sin(theta))
    assert cert.pair_radius(a, b, theta, tau, "paper").numpy() == pytest.approx(published, abs=1e-12)
    assert torch.equal(cert.theorem1_radius(a, b, theta, tau), cert.pair_radius(a, b, theta, tau, "paper"))
    strict = cert.pair_radius(a, b, theta, tau).numpy()
    near = np.abs(theta - np.arccos(tau)) <= math.pi / 2
    assert strict[near] == pytest.approx(published[near], abs=1e-12)
    assert strict[~near] == pytest.approx(np.minimum(a, b)[~near]) and (strict[~near] >= published[~near]).all()


def test_untargeted_radius():
    norm = np.array([0.0, 1.0, 3.2])
    for tau in (0.0, 0.3, 0.9):
        for protocol in ("strict", "paper"):
            assert cert.untargeted_radius(norm, tau, protocol).numpy() == pytest.approx(norm * math.sqrt(1 - tau**2))
    assert cert.untargeted_radius(norm, -0.6).numpy() == pytest.approx(norm)
    assert cert.untargeted_radius(norm, -0.6, "paper").numpy() == pytest.approx(norm * 0.8)


def test_theorem_2():
    assert cert.theorem2_upper_bound(2.0, 0.5, 0.2).item() == pytest.approx(
        2 / math.sqrt(1.6) * abs(math.sqrt(0.96) * math.cos(0.5) - 0.2 * math.sin(0.5)))


@pytest.mark.parametrize("theta", [0, 1e-12, 1e-6, 0.3, math.pi / 2, 3.0, math.pi - 1e-9, math.pi])
def test_angle_is_accurate_at_both_ends(theta):
    assert cert.angle(3 * rotated(0), 0.2 * rotated(theta)).item() == pytest.approx(theta, rel=1e-12, abs=1e-15)


def test_angle_broadcasts_takes_float32_and_vectors_without_direction():
    u, v = torch.randn(4, 1, 6), torch.randn(5, 6)
    found = cert.angle(u, v)
    assert found.shape == (4, 5) and found.dtype == torch.float64
    cosine = torch.nn.functional.cosine_similarity(u.double(), v.double(), dim=-1)
    torch.testing.assert_close(found.cos(), cosine)
    for without in (torch.zeros(6), torch.full((6,), math.nan), torch.full((6,), math.inf)):
        assert cert.angle(without, v).tolist() == cert.angle(v, without).tolist() == [math.pi] * 5


@pytest.mark.parametrize("tau", [-1, 1, 1.5, math.nan, [0.1, -2]])
def test_tau_outside_the_open_interval_is_refused(tau):
    for call in (lambda: cert.one_sided_radius(1, 0.5, tau), lambda: cert.theorem1_radius(1, 1, 0.5, tau),
                 lambda: cert.untargeted_radius(1, tau), lambda: cert.theorem2_upper_bound(1, 0.5, tau)):
        with pytest.raises(ValueError, match="tau is .*, expected inside"):
            call()


def test_an_unknown_protocol_is_not_taken_for_another():
    for call in (lambda: cert.pair_radius(1, 1, 0.5, 0.2, "papers"), lambda: cert.untargeted_radius(1, 0.2, "")):
        with pytest.raises(ValueError, match="strict, paper"):
            call()


def test_certified_accuracy_and_lower_median():
    assert cert.certified_accuracy([True, True, False, True], [0.5, 0.25, 9.0, 0.3], 0.25) == 0.5  # strictly above
    assert cert.lower_median([4.0, 1.0, 3.0, 2.0]) == 2 and cert.lower_median(np.array([5.0, 1.0, 2.0])) == 2
    for call in (lambda: cert.certified_accuracy([], [], 1.0), lambda: cert.lower_median([])):
        with pytest.raises(ValueError):
            call()


@pytest.mark.parametrize("protocol", ["strict", "paper"])
@pytest.mark.parametrize("tau", [-0.4, 0.2, 0.7, 0.99])
def test_upper_bound_holds_for_rejected_pairs_of_a_lipschitz_map(protocol, tau):
    noise = torch.Generator().manual_seed(0)
    x, y = (torch.randn(2000, 6, dtype=torch.float64, generator=noise) for _ in range(2))
    x, y = x * torch.rand(2000, 1, generator=noise), y - 0.5 * x
    isometry = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=noise)).Q
    u, v = x @ isometry, y @ isometry
    theta, rejected = cert.angle(u, v), torch.cosine_similarity(u, v) <= tau
    assert rejected.sum() > 100
    radius = cert.pair_radius(u.norm(dim=-1), v.norm(dim=-1), theta, tau, protocol)
    bound = cert.upper_bound((x - y).norm(dim=-1), theta, tau, protocol)
    assert (radius <= bound * (1 + 1e-9))[rejected].all() and (tau > 0.9 or (radius > 0.9 * bound)[rejected].any())  # nearly reached
    acute = theta - math.acos(tau) <= math.pi / 2
    torch.testing.assert_close(bound[acute], cert.theorem2_upper_bound((x - y).norm(dim=-1), theta, tau)[acute])


@pytest.mark.parametrize("eps", [0.0, 0.2, 0.8])
def test_certified_roc_is_that_of_every_threshold_by_brute_force(eps):
    rng = np.random.default_rng(0)
    same, norm = rng.random(60) < 0.5, rng.uniform(0.1, 2, 60)
    cosine = np.clip(rng.normal(0.5 * same, 0.4), -0.999, 0.999)
    cosine[3], norm[3] = -math.inf, 0.0  # an embedding without direction
    taus, far, tar = cert.certified_roc(cosine, norm, same, eps)
    assert len(taus) > 10 and (taus.diff() < 0).all() and (far.diff() >= 0).all() and (tar.diff() >= 0).all()
    theta = np.arccos(np.clip(cosine, -1, 1))
    for tau, worst, certified in zip(taus.tolist(), far.tolist(), tar.tolist()):
        radius = cert.one_sided_radius(norm, theta, tau).numpy()
        accepted = cosine > tau
        assert certified == (accepted & (radius > eps))[same].mean()
        assert worst == pytest.approx(1 - (~accepted & (radius > eps))[~same].mean())
    for tau in rng.uniform(-0.99, 0.99, 200):  # what holds at any threshold is on the curve
        radius = cert.one_sided_radius(norm, theta, tau).numpy()
        certified, worst = ((cosine > tau) & (radius > eps))[same].mean(), 1 - ((cosine <= tau) & (radius > eps))[~same].mean()
        assert (np.isclose(tar, certified) & np.isclose(far, worst)).any()
    for labels in (np.ones(60, bool), np.zeros(60, bool)):
        with pytest.raises(ValueError, match="both"):
            cert.certified_roc(cosine, norm, labels, eps)
