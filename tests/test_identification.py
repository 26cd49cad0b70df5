"""1:N identification: its radii against searches over embeddings, and `python -m eval identify` as a user runs it."""
import math

import numpy as np
import pandas as pd
import pytest
import torch
from small_world import command, faces, summary_of, world  # noqa: F401

import eval.__main__ as command_line
from backbones import load_network
from datasets import get_dataset
from eval import certification as cert
from eval import identification
from utils.build_dataset import build_rec
from utils.images import encode_image


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
    short = gallery[:1] * 1e-162  # of which squares are the smallest numbers there are
    useless = np.concatenate([np.zeros((1, 3)), gallery, np.full((1, 3), np.nan), short])
    assert torch.equal(cert.identification_radius(probes, useless), radius)
    probes[0], probes[1, 0] = 0, np.nan
    assert cert.identification_radius(probes, gallery)[:2].tolist() == [0, 0]
    alone = cert.identification_radius(probes[2:], useless[:2]).numpy()  # at the origin nobody is found
    norms = np.linalg.norm(probes[2:], axis=1)
    assert (alone <= norms).all() and alone == pytest.approx(norms)
    length = np.linalg.norm(gallery[0])
    poisoned = cert.identification_radius(probes[2:], gallery[:1], 0.5).numpy()
    assert (poisoned <= np.minimum(norms, 2 * length)).all() and poisoned == pytest.approx(np.minimum(norms, 2 * length))
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


def test_a_template_without_direction_leaves_nothing_certified_once_it_is_poisoned():
    gallery, probes = gallery_and_probes(6)
    gallery[2] = 0
    assert (cert.identification_radius(probes, gallery) > 0).all() and (cert.identification_radius(probes, gallery, 0.5) == 0).all()


# --- the command line

PEOPLE, IMAGES = 12, 5


@pytest.fixture
def people(world):
    """A folder of image folders: 12 people, 5 noisy images of 16 pixels each, the last person with one only."""
    images = faces(16, people=PEOPLE)
    noise = torch.Generator().manual_seed(1)
    for person in range(PEOPLE):
        folder = world / "people" / f"p{person:02}"
        folder.mkdir(parents=True)
        for k in range(1 if person == PEOPLE - 1 else IMAGES):
            image = images[2 * person].float() + 30 * torch.randn(3, 16, 16, generator=noise)
            (folder / f"{k}.png").write_bytes(encode_image(image.clamp(0, 255).byte(), "png"))
    return world


def identify(world, *more, backbone="tiny", out="found", rec="people"):
    return command_line.main(["identify", "--rec", str(world / rec), "--backbone", backbone, "--weights", str(world / f"{backbone}.pt"),
                              "--out", str(world / out), "--device", "cpu", "--num-workers", "0", "--batch-size", "7", "--eps", "0.02",
                              "0.1", *more])


def read(folder):
    return pd.read_csv(folder / "probes.csv", float_precision="round_trip"), summary_of(folder)


def embeddings_of(world, flip=False, backbone="tiny"):
    dataset = get_dataset(world / "people")
    network = load_network(backbone, world / f"{backbone}.pt").double()
    batch = (torch.stack([dataset[k][0] for k in range(len(dataset))]).double() - 127.5) / 255
    found = network(batch)
    return dataset, ((found + network(batch.flip(-1))) / 2 if flip else found).numpy()


@pytest.mark.parametrize("more", [(), ("--poisoned", "1"), ("--flip", "average", "--tau", "0.8")])
def test_figures_are_those_of_the_definitions(people, capsys, more):
    assert identify(people, "--enrolled", "2", "--unknown", "0.25", "--fpir", "0.2", *more) == 0
    printed = capsys.readouterr().out
    probes, summary = read(people / "found")
    dataset, f = embeddings_of(people, "average" in more)
    labels, split = dataset.labels(), identification.split_identities(dataset.labels(), 2, 0.25, seed=0)
    assert labels.tolist() == [dataset[k][1] for k in range(len(dataset))]
    templates, share = f[split.enrolled].mean(1), (0.5 if "--poisoned" in more else 0)
    units = templates / np.linalg.norm(templates, axis=1, keepdims=True)
    tau, close = summary["tau"], {"rel": 1e-4, "abs": 1e-5}
    assert sorted(probes.probe.tolist() + split.enrolled.ravel().tolist()) == list(range(len(dataset)))
    for row in probes.itertuples():
        u = f[row.probe]
        scores = units @ u
        best, norm = scores.argmax(), np.linalg.norm(u)
        theta = np.arccos(scores / norm)
        assert (row.identity, row.found) == (labels[row.probe], split.identities[best]) and row.norm == pytest.approx(norm, **close)
        assert row.cosine == pytest.approx(scores[best] / norm, **close) and row.accepted == (row.cosine > tau)
        assert row.enrolled == (row.identity in split.identities)
        rank1 = cert.identification_radius(u, templates, share).item() if row.found == row.identity else 0.
        decide = (cert.two_sided_radius(norm, np.linalg.norm(templates, axis=1) / share, theta, tau) if share
                  else cert.one_sided_radius(norm, theta, tau)).numpy()
        if row.enrolled:
            assert row.radius_rank1 == pytest.approx(rank1, **close)
            assert row.radius == pytest.approx(min(rank1, decide[best]) if row.accepted else 0, **close)
        else:
            assert math.isnan(row.radius_rank1) and row.radius == pytest.approx(0 if row.accepted else decide.min(), **close)
    known, others = probes[probes.enrolled], probes[~probes.enrolled]
    right = known.found == known.identity
    assert summary["rank1"] == right.mean() > 0.5 and summary["tpir"] == (right & known.accepted).mean()
    assert summary["fpir"] == others.accepted.mean() and (summary["fpir_target"] is None or summary["fpir"] <= 0.2)
    for eps in (0.02, 0.1):
        assert summary["cra_rank1"][eps] == (known.radius_rank1 > eps).mean()
        assert summary["cra_tpir"][eps] == (known.radius > eps).mean()
        assert summary["worst_fpir"][eps] == pytest.approx(1 - (others.radius > eps).mean())
    assert summary["cra_rank1"][0.02] > 0 and f"rank-1 {summary['rank1']:.2%}, certified" in printed
    assert (summary["n_probes"], summary["n_unknown_probes"]) == (len(known), len(others))
    assert summary["faces"] == "people" and summary["poisoned"] == len(more) // 2 * ("--poisoned" in more) and summary["seed"] == 0


@pytest.mark.parametrize("poisoned", ["0", "1"])
def test_certified_tpir_at_certified_fpir(people, poisoned):
    """The threshold that is chosen under attack keeps FPIR under attack at the target, as --tau with it confirms."""
    options = ("--enrolled", "2", "--unknown", "0.4", "--fpir", "0.3", "--poisoned", poisoned)
    assert identify(people, *options) == 0
    chosen = read(people / "found")[1]["certified_fpir"]
    assert chosen[0.02]["tau"] is not None
    for eps, found in chosen.items():
        if found["tau"] is None:
            assert "FPIR is at least" in found["reason"]
            continue
        assert identify(people, *options, "--tau", repr(found["tau"]), out=str(eps)) == 0
        confirmed = read(people / str(eps))[1]
        assert confirmed["worst_fpir"][eps] == pytest.approx(found["fpir"]) and found["fpir"] <= 0.3
        assert confirmed["cra_tpir"][eps] == pytest.approx(found["tpir"])


def test_closed_set_and_recordio_give_what_they_can(people):
    build_rec(people / "people", people / "rec" / "train")
    for rec, out in (("people", "found"), ("rec", "again")):
        assert identify(people, "--unknown", "0", "--limit", "6", rec=rec, out=out) == 0
    probes, summary = read(people / "found")
    assert probes.enrolled.all() and summary["n_templates"] == 6 and "radius" not in probes and summary["tau"] is None
    assert summary["tpir"] is None and summary["cra_rank1"][0.02] is not None and summary["worst_fpir"] is None
    again = read(people / "again")[0]
    pd.testing.assert_frame_equal(again[["probe", "identity", "enrolled", "found"]], probes[["probe", "identity", "enrolled", "found"]])
    assert identify(people, "--unknown", "0", "--limit", "6", "--tau", "0.9") == 0
    assert read(people / "found")[1]["tpir"] is not None
    assert identify(people, "--unknown", "0", "--limit", "1", out="one") == 0  # nobody else is enrolled
    probes, summary = read(people / "one")
    assert summary["cra_rank1"][0.1] == 1 and summary["med_rank1"] == pytest.approx(sorted(probes.norm)[(len(probes) - 1) // 2])


def test_synthetic_faces_know_their_labels():
    dataset = get_dataset("synthetic", num_classes=3)
    assert dataset.labels().tolist() == [dataset[k][1] for k in range(len(dataset))]


def test_split_enrols_who_can_be_and_is_drawn_by_the_seed():
    labels = np.repeat(np.arange(20), [1, 2, 3, 4] * 5)
    split = identification.split_identities(labels, 2, 0.25, seed=3)
    assert (labels[split.enrolled] == split.identities[:, None]).all() and len(np.unique(split.enrolled)) == split.enrolled.size
    assert sorted([*split.enrolled.ravel(), *split.probes]) == list(range(len(labels)))
    single = {identity for identity in range(20) if (labels == identity).sum() < 2}
    assert not single & set(split.identities) and len(split.identities) >= 20 - 5 - len(single)
    same, other = (identification.split_identities(labels, 2, 0.25, seed=seed) for seed in (3, 4))
    assert all(np.array_equal(one, two) for one, two in zip(split, same)) and not np.array_equal(split.probes, other.probes)


def test_bad_input_ends_in_one_line_and_status_2(people, capsys):
    (people / "empty").mkdir()
    (people / "people" / "p03" / "2.png").write_bytes(b"\x89PNG nothing")
    for more, expected in (
            (("--enrolled", "1", "--poisoned", "2"), "--poisoned 2: expected at most --enrolled 1"), (("--enrolled", "9"), "nobody can be"),
            (("--enrolled", "5", "--unknown", "0"), "no image is left"), ((), "p03/2.png"), (("--device", "abacus"), "abacus")):
        assert identify(people, *more, out="bad") == 2
        captured = capsys.readouterr()
        assert expected in captured.err and captured.err.startswith("error: ") and captured.err.count("\n") == 1 and not captured.out
    assert identify(people, rec="empty", out="bad") == 2 and identify(people, rec="none", out="bad") == 2
    assert identify(people, backbone="loose", out="bad") == 2 and "not 1-Lipschitz" in capsys.readouterr().err
    assert not (people / "bad").exists()
    for more in (("--unknown", "1"), ("--unknown", "-0.1"), ("--fpir", "0"), ("--eps", "0"), ("--seed", "-1")):
        with pytest.raises(SystemExit) as error:
            identify(people, *more)
        assert error.value.code == 2


def test_results_of_something_else_are_kept(people, capsys):
    assert command(people, "certify") == 0 and identify(people, "--limit", "8") == 0
    before = {path: path.read_bytes() for path in (*(people / "out").iterdir(), *(people / "found").iterdir())}
    capsys.readouterr()
    assert identify(people, out="out") == 2 and "not results of identify" in capsys.readouterr().err
    assert identify(people, "--flip", "average") == 2 and "these results have flip none" in capsys.readouterr().err
    assert command(people, "certify", out="found") == 2 and "results of identify, expected" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in before}
