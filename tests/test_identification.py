"""1:N identification: its radii against searches over embeddings, and `python -m eval identify` as a user runs it."""
import math

import numpy as np
import pytest
import torch

from eval import certification as cert


def gallery_and_probes(seed, templates=6, probes=40, dimension=3):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(templates, dimension)) * rng.uniform(0.2, 3, (templates, 1)), 2 * rng.normal(size=(probes, dimension))


def winners(probes, gallery):
    return (probes @ (gallery / np.linalg.norm(gallery, axis=-1, keepdims=True)).swapaxes(-1, -2)).argmax(-1)


def directions(count, dimension, rng):
    steps = rng.normal(size=(count, dimension))
    return steps / np.linalg.norm(steps, axis=1, keepdims=True)


@pytest.mark.parametrize("dimension", [2, 3])
def test_identification_radius_is_the_distance_to_where_another_template_wins(dimension):
    rng = np.random.default_rng(0)
    gallery, probes = gallery_and_probes(1, dimension=dimension)
    radius = cert.identification_radius(probes, gallery)
    assert radius.shape == (40,) and radius.dtype == torch.float64 and (radius > 0).all()
    steps = directions(20_000, dimension, rng)
    for probe, winner, r in zip(probes, winners(probes, gallery), radius.tolist()):
        assert (winners(probe + r * (1 - 1e-9) * steps, gallery) == winner).all()
        assert (winners(probe + 1.02 * r * steps, gallery) != winner).any()
        # straight to the nearest half-space, just as far and no further
        units = gallery / np.linalg.norm(gallery, axis=1, keepdims=True)
        planes = [units[winner] - other for number, other in enumerate(units) if number != winner]
        nearest = min(planes, key=lambda plane: probe @ plane / np.linalg.norm(plane))
        nearest = nearest / np.linalg.norm(nearest)
        assert winners(probe - (r + 1e-9) * nearest, gallery) != winner and winners(probe - (r - 1e-9) * nearest, gallery) == winner


def test_identification_radius_broadcasts_and_sees_directions_of_templates_only():
    gallery, probes = gallery_and_probes(2, probes=12, dimension=5)
    radius = cert.identification_radius(probes, gallery)
    assert torch.equal(cert.identification_radius(probes.reshape(3, 4, 5), gallery), radius.reshape(3, 4))
    assert cert.identification_radius(probes[0], gallery).shape == ()
    longer = gallery * np.random.default_rng(0).uniform(0.5, 9, (6, 1))
    torch.testing.assert_close(cert.identification_radius(probes, longer), radius)
    torch.testing.assert_close(cert.identification_radius(3 * probes, gallery), 3 * radius)


def test_identification_radius_of_what_has_no_direction_no_rival_or_a_twin():
    gallery, probes = gallery_and_probes(3)
    radius = cert.identification_radius(probes, gallery)
    useless = np.concatenate([np.zeros((1, 3)), gallery, np.full((1, 3), np.nan)])
    assert torch.equal(cert.identification_radius(probes, useless), radius)
    probes[0], probes[1, 0] = 0, np.nan
    assert cert.identification_radius(probes, gallery)[:2].tolist() == [0, 0]
    assert cert.identification_radius(probes[2:], gallery[:1]).tolist() == [math.inf] * 38
    twins = np.concatenate([gallery, 2 * gallery])
    assert (cert.identification_radius(probes, twins) == 0).all()
    nearly = np.stack([gallery[0], gallery[0] + 1e-9])  # unit templates 1e-9 apart: their own rounding must not count as a radius
    sharp = cert.identification_radius(probes[2:], nearly).numpy()
    with_digits = np.abs(probes[2:].astype(np.longdouble) @ difference_of_units(*nearly.astype(np.longdouble)))
    assert (sharp <= with_digits + 1e-15).all() and (sharp > with_digits - 1e-3).all()
    for bad in (lambda: cert.identification_radius(probes, gallery[:, :2]), lambda: cert.identification_radius(probes, gallery, 1.1),
                lambda: cert.identification_radius(probes, 0 * gallery), lambda: cert.identification_radius(probes, gallery[0])):
        with pytest.raises(ValueError):
            bad()


def difference_of_units(one, two):
    difference = one / np.sqrt((one * one).sum()) - two / np.sqrt((two * two).sum())
    return difference / np.sqrt((difference * difference).sum())


@pytest.mark.parametrize("share", [1 / 3, 1.0])
def test_poisoned_radius_holds_when_probe_and_templates_move(share):
    """Random and greedy moves of everything at once: below the radius none of them changes who is found."""
    rng = np.random.default_rng(4)
    gallery, probes = gallery_and_probes(5, templates=4, probes=30)
    clean, radius = cert.identification_radius(probes, gallery), cert.identification_radius(probes, gallery, share)
    assert (radius < clean).all() and (radius > 0).any()
    torch.testing.assert_close(cert.identification_radius(probes, gallery, 1e-12), clean, rtol=1e-9, atol=1e-9)
    fell = 0
    for probe, winner, r in zip(probes, winners(probes, gallery), radius.tolist()):
        for factor, sound in ((1 - 1e-9, True), (1.6, False)):
            eps = factor * r
            moved = gallery + share * eps * directions(4 * 3000, 3, rng).reshape(3000, 4, 3)
            ahead = gallery + share * eps * toward(gallery, probe, winner)
            for templates in (moved, ahead[None]):
                units = templates / np.linalg.norm(templates, axis=-1, keepdims=True)
                planes = units[:, [winner]] - units
                length = np.linalg.norm(planes, axis=-1)
                reach = np.where(length > 0, (planes @ probe) / np.maximum(length, 1e-300), np.inf).min(-1)
                if sound:
                    assert (reach > eps * (1 - 1e-9)).all()  # the probe's own exact radius against these templates
                else:
                    fell += (reach <= eps).any()
    assert fell > 40  # of 60: it is a lower bound, but no idle one


def toward(gallery, probe, winner):
    """Directions [M, D] in which templates turn fastest: the winner's away from the probe, the others' towards it."""
    units = gallery / np.linalg.norm(gallery, axis=1, keepdims=True)
    across = probe - (units @ probe)[:, None] * units
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    across[winner] *= -1
    return across
