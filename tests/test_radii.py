"""Radii for more than one attacked image, other norms and galleries: against wider arithmetic and against worst-case searches."""
import functools
import math

import mpmath
import numpy as np
import pytest
import torch

from eval import certification as cert

ABOVE, BELOW = 1e-9, 1e-8  # absolute: how far a radius may be from the true one
RADII = ("one", "two", "joint")


def found(name, a, b, theta, tau):
    """The radius of a threat as it is computed."""
    if name == "one":
        return cert.one_sided_radius(a, theta, tau).numpy()
    return (cert.two_sided_radius if name == "two" else cert.joint_radius)(a, b, theta, tau).numpy()


def defined(name, a, b, theta, tau, m=np):
    """The radius by its formula as printed, in numpy's or mpmath's arithmetic (m), for delta and norms above 0."""
    a, b = (a, b) if m is np else (min(a, b), max(a, b))
    if m is np:
        a, b = np.minimum(a, b), np.maximum(a, b)
    choose = np.where if m is np else (lambda condition, yes, no: yes if condition else no)
    acos = m.arctan2 if m is np else m.atan2
    delta = abs(theta - acos(m.sqrt((1 - tau) * (1 + tau)), tau))
    acute = delta <= m.pi / 2
    if name == "one":
        return choose(acute, m.sin(delta), 1)
    if name == "two":
        chord = m.sqrt((a - b) ** 2 + 4 * a * b * m.cos(delta / 2) ** 2)
        return choose(b * m.cos(delta) >= -a, 2 * a * b * m.sin(delta / 2) * m.cos(delta / 2) / chord, a)
    s = m.sin(delta)
    root = m.sqrt((b - a) ** 2 * (a + b) ** 2 + 4 * a ** 2 * b ** 2 * m.cos(delta) ** 2)  # (a^2 + b^2)^2 - 4 a^2 b^2 s^2
    return choose(acute, m.sqrt(2 * a ** 2 * b ** 2 * s ** 2 / (a ** 2 + b ** 2 + root)), a)


@functools.lru_cache(1)
def cases(count, seed=0):
    """(a, b, theta, tau) [count]: a half ordinary, a half at the edges of what there is, in every combination."""
    rng = np.random.default_rng(seed)
    a, b = 10 ** rng.uniform(-2, 1, (2, count))
    theta, tau = rng.uniform(0, math.pi, count), np.cos(rng.uniform(0, math.pi, count))
    edge = rng.random((4, count)) < 0.5
    a = np.where(edge[0], 10 ** rng.uniform(-12, 6, count), a)
    b = np.where(edge[1], rng.choice([1., 1 + 2.0 ** -52, 1 + 1e-9, 1.001, 1e-9, 1e9, 1e-200], count) * a, b)
    near = 10 ** rng.uniform(-17, -1, count)
    tau = np.where(edge[2], rng.choice([-1, 1], count) * (1 - near), tau)
    tau = np.clip(tau, -1 + 2.0 ** -53, 1 - 2.0 ** -53)
    limit = np.arccos(tau)
    near = 10 ** rng.uniform(-17, -1, count) * rng.choice([-1, 1], count)
    special = np.stack([limit, limit + near, limit + math.pi / 2 + near, limit - math.pi / 2 + near, abs(near), math.pi - abs(near)])
    theta = np.where(edge[3], special[rng.integers(0, len(special), count), np.arange(count)], theta)
    return a, b, np.clip(theta, 0, math.pi), tau


@pytest.mark.skipif(np.finfo(np.longdouble).eps > 1e-18, reason="numpy has no wider arithmetic here")
@pytest.mark.parametrize("name", RADII)
def test_a_million_radii_are_never_above_and_hardly_below(name):
    a, b, theta, tau = cases(1_000_000)
    radius = found(name, a, b, theta, tau)
    wide = [value.astype(np.longdouble) for value in (a, b, theta, tau)]
    exact = defined(name, *wide) * (wide[0] if name == "one" else 1)
    off = (radius - exact).astype(np.float64)
    assert np.isfinite(radius).all() and (radius >= 0).all()
    assert off.max() <= 1e-12 < ABOVE and off.min() >= -BELOW  # rounded down: above is the oracle's own rounding, if anything
    assert (off >= -6e-15 * (a if name == "one" else np.minimum(a, b))).all()


@pytest.mark.parametrize("name", RADII)
def test_radii_against_fifty_digits(name):
    with mpmath.workdps(50):
        for a, b, theta, tau in zip(*cases(150, seed=1)):
            exact = defined(name, *map(mpmath.mpf, (a, b, theta, tau)), m=mpmath) * (mpmath.mpf(a) if name == "one" else 1)
            radius = found(name, a, b, theta, tau).item()
            assert -BELOW <= radius - exact <= 0


def test_degenerate_arguments():
    for a, b, theta, tau, expected in (
            (0, 2, 1, 0.3, (0, 0, 0)), (0, 0, math.pi / 2, 0.3, (0, 0, 0)), (2, 3, math.acos(0.3), 0.3, (0, 0, 0)),
            (1, 1, 0, -1 + 1e-16, (1, 1, 1)), (1, 1, math.pi, 1 - 1e-16, (1, 1, 1)), (1e-300, 1e300, 2, 0.9, (1e-300,) * 3),
            (1e300, 1e300, 0, 0, (1e300, 1e300 * math.sqrt(0.5), 1e300))):
        for name, value in zip(RADII, expected):
            assert found(name, a, b, theta, tau).item() == pytest.approx(value, rel=1e-7, abs=1e-14), (name, a, b)
    for name in RADII:
        with pytest.raises(ValueError, match="tau is"):
            found(name, 1, 1, 1, 1.0)


def test_radii_are_symmetric_broadcast_and_keep_their_order():
    a, b, theta, tau = (torch.tensor(values) for values in cases(5000, seed=2))
    one = torch.minimum(cert.one_sided_radius(a, theta, tau), cert.one_sided_radius(b, theta, tau))
    two, joint = cert.two_sided_radius(a, b, theta, tau), cert.joint_radius(a, b, theta, tau)
    assert torch.equal(two, cert.two_sided_radius(b, a, theta, tau)) and torch.equal(joint, cert.joint_radius(b, a, theta, tau))
    loose = 1 + 1e-12
    assert (two <= joint * loose).all() and (joint <= one * loose).all() and (joint <= math.sqrt(2) * two * loose).all()
    grid = cert.two_sided_radius(a[:4, None], b[:5], 0.5, 0.2)
    assert grid.shape == (4, 5) and grid[2, 3] == cert.two_sided_radius(a[2], b[3], 0.5, 0.2)


def crossing(u, v, tau, du, dv):
    """Whether moving u and v [..., D] by these changes the decision, or takes away a direction."""
    def cosine(u, v):
        with np.errstate(invalid="ignore"):
            return (u * v).sum(-1) / np.linalg.norm(u, axis=-1) / np.linalg.norm(v, axis=-1)
    return ~((cosine(u + du, v + dv) > tau) == (cosine(u, v) > tau))


def budgets(name, radius):
    """Pairs (|du|, |dv|) that use a budget up."""
    if name == "two":
        return [radius], [radius]
    share = np.linspace(0, math.pi / 2, 15)
    return radius * np.cos(share), radius * np.sin(share)


def rotations(phi):
    return np.stack([np.cos(phi), np.sin(phi)], -1)


PLANE = [(a, b, theta, tau) for a, b in ((1, 1), (0.4, 2.5), (3, 1)) for theta in (0, 1.4, 2.9) for tau in (-0.8, 0.1, 0.9)]


@pytest.mark.parametrize("name", ["two", "joint"])
@pytest.mark.parametrize("a, b, theta, tau", PLANE)
def test_two_moved_vectors_in_the_plane(name, a, b, theta, tau):
    u, v = a * rotations(theta), b * rotations(0.)
    radius = found(name, a, b, theta, tau).item()
    fine, coarse = (rotations(np.linspace(0, 2 * math.pi, count)) for count in (181, 61))
    if a > b:
        fine, coarse = coarse, fine  # the shorter one may have to meet the origin
    for share, reached in ((1 - 1e-9, False), (1.02, True)):
        some = False
        for one, two in zip(*budgets(name, share * radius)):
            some |= crossing(u, v, tau, one * fine[:, None], two * coarse[None]).any()
        assert some == reached


@pytest.mark.parametrize("name", ["two", "joint"])
def test_two_moved_vectors_in_three_dimensions(name):
    """Gradient-free worst-case search: random steps, then ever smaller ones about the best so far."""
    rng = np.random.default_rng(3)
    for _ in range(25):
        u, v = rng.normal(size=(2, 3)) * rng.uniform(0.3, 3, (2, 1))
        tau, theta = rng.uniform(-0.95, 0.95), cert.angle(u, v).item()
        radius = found(name, np.linalg.norm(u), np.linalg.norm(v), theta, tau).item()
        side = 1 if math.cos(theta) > tau else -1
        lowest = {}
        for share in (1 - 1e-9, 1.03):
            best = np.zeros(6)
            for scale in 2.0 ** -np.arange(25):
                steps = best + scale * share * radius * rng.normal(size=(800, 6))
                steps = within(name, steps, share * radius)
                x, y = u + steps[:, :3], v + steps[:, 3:]
                margins = side * ((x * y).sum(-1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1) - tau)
                lowest[share] = min(margins.min(), lowest.get(share, math.inf))
                best = steps[margins.argmin()]
        assert lowest[1 - 1e-9] > -1e-12 and lowest[1.03] < 0


def within(name, steps, radius):
    """Steps [n, 6] of two vectors, scaled into the budget."""
    if name == "joint":
        return steps * np.minimum(1, radius / np.linalg.norm(steps, axis=1, keepdims=True))
    halves = steps.reshape(-1, 2, 3)
    return (halves * np.minimum(1, radius / np.linalg.norm(halves, axis=2, keepdims=True))).reshape(-1, 6)


@pytest.mark.parametrize("p", [1, 1.5, 2, 3, 10, math.inf])
def test_lp_radius_bounds_the_l2_norm_and_is_reached(p):
    rng, n = np.random.default_rng(4), 48
    radius = cert.lp_radius([0., 0.7], p, n).numpy()
    assert radius[0] == 0
    steps = rng.normal(size=(2000, n)) * rng.uniform(0, 1, (2000, n)) ** rng.uniform(0, 30, (2000, 1))
    worst = np.ones(n) if p > 2 else np.eye(n)[0]  # where the two norms are as far apart as they can be
    for step in (*steps, worst):
        step = step * radius[1] / np.linalg.norm(step, p)
        assert np.linalg.norm(step) <= 0.7 * (1 + 1e-12)
    assert np.linalg.norm(worst * radius[1] / np.linalg.norm(worst, p)) == pytest.approx(0.7, abs=1e-8)


def test_lp_radius_in_grey_levels_and_its_limits():
    assert 255 * cert.lp_radius(0.5, math.inf, 3 * 112 * 112).item() == pytest.approx(127.5 / math.sqrt(37632))
    assert cert.lp_radius(0.5, 1, 100).item() == cert.lp_radius(0.5, 2, 100).item() == 0.5
    for p, n in ((0.5, 3), (math.nan, 3), (-1, 3), (2, 0)):
        with pytest.raises(ValueError, match="expected at least 1"):
            cert.lp_radius(1., p, n)


def test_certified_threshold_is_the_loosest_that_keeps_far_below_target_under_attack():
    rng = np.random.default_rng(5)
    same, norm = rng.random(300) < 0.5, rng.uniform(0.5, 2, 300)
    cosine = np.clip(rng.normal(0.6 * same, 0.25), -0.999, 0.999)
    for eps in (0., 0.1, 0.3):
        tau, far, tar = cert.threshold_under_attack(cert.certified_roc(cosine, norm, same, eps), 0.05)
        radius = cert.one_sided_radius(norm, np.arccos(cosine), tau).numpy()
        assert far == pytest.approx(1 - ((cosine <= tau) & (radius > eps))[~same].mean()) and far <= 0.05
        assert tar == pytest.approx(((cosine > tau) & (radius > eps))[same].mean())
        for looser in np.linspace(tau - 1e-3, -0.99, 200):  # accepts more, and a false pair more than is allowed or none more
            radius = cert.one_sided_radius(norm, np.arccos(cosine), looser).numpy()
            worst = 1 - ((cosine <= looser) & (radius > eps))[~same].mean()
            assert worst > 0.05 or worst == pytest.approx(far)
    norm[~same] = 0.2
    with pytest.raises(ValueError, match="FAR is at least 1 at every threshold, above 0.05"):
        cert.threshold_under_attack(cert.certified_roc(cosine, norm, same, 0.3), 0.05)


def test_pairs_that_are_too_close_to_call_count_against_the_certified_threshold():
    """Cosines a few roundings apart, near 1 too: no tau fits between them, and FAR under attack stays below the target all the same."""
    rng, found = np.random.default_rng(6), 0
    for number in range(400):
        same = np.arange(20) % 2 == 0
        centre = rng.choice([*rng.uniform(-1, 1, 3), 1 - 1e-15], 20)
        cosine = np.clip(centre + rng.integers(-3, 4, 20) * 2.0 ** -53, -1, 1)
        norm, eps, target = rng.choice([0.5, 1, 2], 20), rng.choice([1e-12, 0.1, 0.3]), rng.choice([0.1, 0.3, 0.5])
        try:
            tau, far, tar = cert.threshold_under_attack(cert.certified_roc(cosine, norm, same, eps), target)
        except ValueError:
            continue
        found += 1
        radius = cert.one_sided_radius(norm, np.arccos(cosine), tau).numpy()
        rejected, accepted = ((cosine <= tau) & (radius > eps))[~same].mean(), ((cosine > tau) & (radius > eps))[same].mean()
        assert 1 - rejected <= far + 1e-12 and far <= target and tar <= accepted, number
    assert found > 200
