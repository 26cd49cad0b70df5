"""Randomised smoothing: bounds and radii against closed forms, 50 digits and simulation, then `python -m eval smooth` and its audit."""
import json
import math
import re
import subprocess
import sys

import mpmath
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT
from scipy.special import ndtr
from scipy.stats import binomtest, norm
from small_world import SIZE, command, faces, summary_of, world, write_bin  # noqa: F401
from torch import Tensor, nn

import attacks
import eval.__main__ as command_line
from backbones import get_backbone, load_network, register
from eval import noise, smoothing
from eval.audit import smoothed as audit
from eval.noise import LEFT, RIGHT, Draws, MeanCosine, gaussian, noisy, on_device
from eval.smoothing import lower_mean, lower_probability, smoothed_radius, stake
from utils import InputError

ALPHA = 1e-3
QUICK = ("--sigma", "0.3", "--n0", "20", "--n", "60")


@register("halfplane", image_size=SIZE, lipschitz=False)
class HalfPlane(nn.Module):
    """[N, 3, 16, 16] -> [N, 2], (<w, x> + b, 1): beside an image of a large <w, y>, accepted is what lies in a half-space."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(math.prod(SIZE), 1)

    def forward(self, images: Tensor) -> Tensor:
        found = self.layer(images.flatten(1))
        return torch.cat([found, torch.ones_like(found)], 1)


def table(folder, name):
    return pd.read_csv(folder / f"{name}.csv", float_precision="round_trip")


@pytest.mark.parametrize("draws,alpha", [(1, 0.05), (20, 0.5), (100, 1e-3), (1000, 1e-3), (100_000, 1e-6)])
def test_probabilities_are_bounded_as_clopper_and_pearson_do(draws, alpha):
    votes = np.unique(np.linspace(0, draws, 40).astype(int))
    found = lower_probability(votes, draws, alpha)
    exact = [binomtest(int(k), draws, alternative="greater").proportion_ci(1 - alpha, "exact").low for k in votes]
    assert found[0] == 0 and (found <= np.array(exact) + 1e-16).all() and found == pytest.approx(exact, rel=1e-8)
    mpmath.mp.dps = 50
    for k, p in list(zip(votes, found))[1::6] if draws <= 1000 else ():  # so many votes or more have probability alpha, in 50 digits
        tail = mpmath.betainc(int(k), int(draws - k + 1), 0, mpmath.mpf(p), regularized=True)
        assert alpha * (1 - 1e-6 * draws) < tail <= alpha


def test_radii_are_those_of_neyman_and_pearson_and_never_above():
    rng = np.random.default_rng(0)
    p = np.concatenate([rng.uniform(0, 1, 200), 0.5 + 10 ** rng.uniform(-16, -1, 200), 1 - 10 ** rng.uniform(-15, -1, 200)])
    t = np.where(rng.random(len(p)) < 0.5, 0.5, rng.uniform(0.01, 0.99, len(p)))
    mpmath.mp.dps = 50

    def quantile(share):
        return mpmath.sqrt(2) * mpmath.erfinv(2 * mpmath.mpf(float(share)) - 1)
    for share, threshold, radius in zip(p, t, smoothed_radius(p, 0.7, t)):
        exact = 0.7 * (quantile(share) - quantile(threshold))
        assert radius == 0 if share <= threshold else exact - 1e-12 < radius <= mpmath.mpf(0.7) * (quantile(share) - quantile(threshold))
    assert smoothed_radius([0.2, 0.5], 1.0).tolist() == [0, 0] and smoothed_radius(1.0, 1.0) == smoothed_radius(np.nextafter(1, 0), 1.0) > 8
    assert smoothed_radius(ndtr(1.5), 2.0) == pytest.approx(3.0, rel=1e-12)  # a half-space 3 away, under noise of 2


def test_ten_thousand_decisions_are_covered():
    """Two stages, of votes that are drawn and not sampled with images: at most alpha of the radii are above the distance at which the true majority turns."""
    rng, count, sigma = np.random.default_rng(1), 10_000, 0.5
    for alpha, n in ((0.05, 200), (0.001, 1000)):
        distance = rng.uniform(-2 * sigma, 2 * sigma, count)  # to the half-space in which pairs are accepted; negative: rejected
        p = norm.cdf(distance / sigma)
        seems = rng.binomial(20, p) > 10
        votes = rng.binomial(n, p)
        radius = smoothed_radius(lower_probability(np.where(seems, votes, n - votes), n, alpha), sigma)
        wrong = (radius > 0) & (radius > np.where(seems, distance, -distance))
        assert wrong.mean() <= alpha and (radius > 0).mean() > 0.8
        sides = radius.reshape(-1, 2).min(1), np.where(seems, distance, -distance).reshape(-1, 2).min(1)
        assert ((sides[0] > 0) & (sides[0] > sides[1])).mean() <= alpha  # of two sides, the weaker one: not 2 alpha


def test_means_are_covered_and_closer_than_by_hoeffding():
    rng, n, alpha = np.random.default_rng(2), 300, 0.05
    for draw, mean in ((lambda: rng.beta(60, 30, n), 2 / 3), (lambda: (rng.random(n) < 0.9) * 1.0, 0.9), (lambda: rng.beta(0.5, 2, n), 0.2)):
        bounds = []
        for _ in range(400):
            first = draw()[:50]
            bounds.append(lower_mean(draw(), float(stake(first.var(), n, alpha)), alpha))
        assert np.mean(np.array(bounds) > mean) <= alpha
        assert np.mean(bounds) > mean - 0.8 * math.sqrt(math.log(1 / alpha) / (2 * n))
    assert lower_mean(np.zeros(50), 1.0, 0.1) == 0 and 0.9 < lower_mean(np.ones(50), 1.0, 0.1) < 1
    scores = rng.random(64)
    m = lower_mean(scores, 0.7, 0.01)
    assert np.prod(1 + 0.7 * (scores - m)) == pytest.approx(100, rel=1e-9)


def test_draws_are_functions_of_their_key_and_number():
    image = torch.rand(SIZE) - 0.5
    whole = torch.cat([*noisy(image, 0.5, Draws((3, LEFT, 7), 2, 13), 64)])
    for size in (1, 4, 11):
        assert torch.equal(torch.cat([*noisy(image, 0.5, Draws((3, LEFT, 7), 2, 13), size)]), whole)
    assert torch.equal(whole[4], image + 0.5 * torch.from_numpy(gaussian((3, LEFT, 7), 6, SIZE)))
    other = [gaussian(key, 6, SIZE) for key in ((3, LEFT, 7), (4, LEFT, 7), (3, RIGHT, 7), (3, LEFT, 8))]
    assert all(not np.array_equal(other[0], found) for found in other[1:])
    drawn = np.stack([gaussian((0, LEFT, 0), k, SIZE) for k in range(200)])
    assert abs(drawn.mean()) < 0.01 and abs(drawn.std() - 1) < 0.01 and drawn.dtype == np.float32


def test_so_are_those_of_a_gpu():
    def draw(*key, first=2, last=13, size=64):
        return torch.cat([*on_device(torch.rand(SIZE), Draws(key, first, last), size)])
    whole = draw(3, LEFT, 7)
    assert whole.shape == (11, *SIZE) and all(torch.equal(draw(3, LEFT, 7, size=size), whole) for size in (1, 4, 11))
    assert torch.equal(draw(3, LEFT, 7, first=6, last=8), whole[4:6])
    others = [whole[:1], *(draw(*key, last=3) for key in ((4, LEFT, 7), (3, RIGHT, 7), (3, LEFT, 8))), draw(3, LEFT, 7, first=3, last=4)]
    together = torch.corrcoef(torch.cat(others).flatten(1))
    assert (together - torch.eye(5)).abs().max() < 0.15, "of 768 numbers each: four deviations"
    drawn = draw(0, LEFT, 0, first=0, last=200)
    assert abs(drawn.mean()) < 0.01 and abs(drawn.std() - 1) < 0.01 and drawn.dtype == torch.float32


@pytest.fixture
def plane(tmp_path):
    """Grey images against a white one, a .bin and weights with which these are accepted beyond a plane."""
    levels = [150, 140, 135, 130, 129, 126, 125, 120, 115, 105]
    images = torch.stack([torch.full(SIZE, level, dtype=torch.uint8) for level in levels for level in (level, 255)])
    write_bin(tmp_path / "faces.bin", images, false_pairs=0)
    network = get_backbone("halfplane")
    with torch.no_grad():
        network.layer.weight.fill_(4.0)
        network.layer.bias.zero_()
    torch.save(network.state_dict(), tmp_path / "halfplane.pt")
    return tmp_path


def test_a_linear_function_of_the_image_has_its_distance_as_radius(plane):
    """cos of (s, 1) and (s_y, 1) is above tau iff s > cot(arccos tau + angle of y): a half-space, whatever sigma is."""
    n, sigma = 2000, 0.25
    assert command(plane, "smooth", "--sigma", str(sigma), "--n0", "50", "--n", str(n), backbone="halfplane", tau="0.1") == 0
    pairs = table(plane / "out", "pairs")
    network = load_network("halfplane", plane / "halfplane.pt")
    images = (faces_of(plane)[pairs["left"].tolist()].double() - 127.5) / 255
    length = network.layer.weight.double().norm().item()
    angle = math.atan2(1, network.double()(torch.full((1, *SIZE), 0.5, dtype=torch.float64))[0, 0].item())
    edge = 1 / math.tan(math.acos(0.1) + angle)
    distance = (images.flatten(1).sum(1) * 4 - edge).numpy() / length
    assert (distance > 0).any() and (distance < 0).any()
    for row, exact in zip(pairs.itertuples(), distance):
        low = binomtest(row.votes_left, n, alternative="greater").proportion_ci(1 - ALPHA, "exact").low
        expected = sigma * norm.ppf(low) if row.cosine_left > 0.1 and low > 0.5 else 0
        assert row.radius_left == pytest.approx(expected, rel=1e-7) and row.radius_left <= max(exact, 0)
        if 0.02 < exact < 2 * sigma:  # 2,000 samples bound the distance within a fifth of sigma there
            assert row.radius_left > exact - 0.2 * sigma
        assert abs(row.votes_left / n - norm.cdf(exact / sigma)) < 4 * 0.5 / math.sqrt(n)


def faces_of(folder):
    from eval.verification import read_bin
    pair_set = read_bin(folder / "faces.bin")
    return torch.stack([pair_set.decode(k) for k in range(len(pair_set.images))])


def test_records_are_those_of_the_definitions(world):
    """Votes, medians and radii by plain loops over images and draws."""
    assert command(world, "smooth", *QUICK, "--seed", "5", backbone="loose", tau="0.25") == 0
    pairs, images, summary = table(world / "out", "pairs"), table(world / "out", "images"), summary_of(world / "out")
    network, pixels = load_network("loose", world / "loose.pt"), (faces_of(world).float() - 127.5) / 255
    clean = nn.functional.normalize(network(pixels).double())

    def cosines(image, other):
        noisy = torch.stack([pixels[image] + 0.3 * torch.from_numpy(gaussian((5, LEFT, image), k, SIZE)) for k in range(80)])
        return (nn.functional.normalize(network(noisy).double()) @ clean[other]).numpy()

    def decision(image, other, same):
        found = cosines(image, other)
        accepts = (found[:20] > 0.25).sum() > 10
        votes = (found[20:] > 0.25).sum()
        low = binomtest(int(votes if accepts else 60 - votes), 60, alternative="greater").proportion_ci(0.999, "exact").low
        return sorted(found[:20])[9], votes, 0.3 * norm.ppf(low) if low > 0.5 and accepts == same else 0
    kinds = {True: [], False: []}
    for row in pairs.itertuples():
        sides = [decision(row.left, row.right, row.same), decision(row.right, row.left, row.same)]
        assert [row.cosine_left, row.cosine_right] == pytest.approx([sides[0][0], sides[1][0]], abs=1e-6)
        assert [row.votes_left, row.votes_right] == [sides[0][1], sides[1][1]]
        assert row.radius == pytest.approx(min(side[2] for side in sides), rel=1e-7)
        assert row.accepted == (row.same if row.radius > 0 else not row.same) and (row.samples, row.alpha) == (60, 0.001)
        kinds[row.same].append(row.radius)
    for row in images.itertuples():
        median, votes, radius = decision(row.image, row.image, True)
        assert row.votes == votes and row.radius_u == pytest.approx(radius, rel=1e-7) and row.cosine == pytest.approx(median, abs=1e-6)
    assert summary["tar"] == np.mean(np.array(kinds[True]) > 0) and summary["far"] == np.mean(np.array(kinds[False]) == 0)
    for kind, radii in (("d", kinds[True]), ("i", kinds[False])):
        assert summary[f"cra_{kind}"] == {eps: np.mean(np.array(radii) > eps) for eps in (0.25, 0.75)}
    assert summary["tar"] > 0 and summary["smoothing"]["forward_passes"] == 80 * len(images)
    assert "99.9 % confidence" in summary["certificate"]


def test_both_images_share_a_budget(world):
    assert command(world, "smooth", *QUICK, "--threat", "joint", backbone="loose", tau="0.4") == 0
    pairs, summary = table(world / "out", "pairs"), summary_of(world / "out")
    network, pixels = load_network("loose", world / "loose.pt"), (faces_of(world).float() - 127.5) / 255
    for row in pairs.itertuples():
        views = [torch.stack([pixels[image] + 0.3 * torch.from_numpy(gaussian((0, stream, image), k, SIZE)) for k in range(20, 80)])
                 for stream, image in ((noise.LEFT, row.left), (noise.RIGHT, row.right))]
        found = torch.cosine_similarity(*(network(view).double() for view in views))
        assert row.votes == (found > 0.4).sum() and row.radius == row.radius_joint
    assert summary["cra_u"] == {1.5: None, 3.0: None} and "radius_u" not in table(world / "out", "images")
    assert summary["certificates"]["joint"]["cra_d"] == summary["cra_d"]
    assert command(world, "audit", "--steps", "3", "--draws", "4", "--restarts", "1", backbone="loose", tau=None) == 0
    assert json.loads((world / "out/audit.json").read_text())["attacked"].keys() == {"d", "i"}


def test_thresholds_are_chosen_for_the_smoothed_decisions(world):
    assert command(world, "smooth", *QUICK, "--far", "0.34", backbone="loose", tau=None) == 0
    pairs, summary = table(world / "out", "pairs"), summary_of(world / "out")
    worse = pairs.loc[~pairs.same, ["cosine_left", "cosine_right"]].max(axis=1)
    assert (worse > summary["tau"]).mean() <= 0.34 < (worse >= summary["tau"]).mean()
    assert pairs.cosine.tolist() == np.where(pairs.same, pairs[["cosine_left", "cosine_right"]].min(axis=1),
                                             pairs[["cosine_left", "cosine_right"]].max(axis=1)).tolist()
    assert summary["far_target"] == 0.34 and summary["certificates"]["mean"]["tau"] != summary["tau"]


def contents(folder):
    return [table(folder, "pairs"), table(folder, "images")]


def same_tables(one, other):
    for left, right in zip(contents(one), contents(other)):
        pd.testing.assert_frame_equal(left, right)


def test_batches_processes_and_interruptions_change_nothing(world, monkeypatch, capsys):
    run = ("smooth", *QUICK)
    assert command(world, *run, backbone="loose") == 0
    assert command(world, *run, "--batch-size", "64", backbone="loose", out="large") == 0
    pd.testing.assert_frame_equal(table(world / "out", "pairs"), table(world / "large", "pairs"), rtol=1e-5, atol=1e-6)  # rounding of the network
    argv = ["--bin", world / "faces.bin", "--backbone", "small_world:Loose", "--weights", world / "loose.pt", "--device", "cpu",
            "--num-workers", "0", "--batch-size", "5", "--tau", "0.3", *QUICK[:-2], "--samples", QUICK[-1]]  # torchrun would not take --n
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run([*start, "-m", "eval", "smooth", *map(str, argv), "--out", str(world / "two")], cwd=ROOT, capture_output=True,
                          text=True, timeout=300, env=environment())
    assert done.returncode == 0, done.stderr
    same_tables(world / "out", world / "two")
    certify, calls, stop = noise.Sampler.certify, [], [True]

    def interrupted(self, unit, tau):
        calls.append(unit)
        if len(calls) == 5 and stop:
            raise KeyboardInterrupt
        return certify(self, unit, tau)
    monkeypatch.setattr(noise.Sampler, "certify", interrupted)
    capsys.readouterr()
    assert command(world, *run, backbone="loose", out="again") == 130
    assert len(capsys.readouterr().err.splitlines()) == 1 and not (world / "again/pairs.csv").exists()
    stop.clear()
    assert command(world, *run, backbone="loose", out="again") == 0
    same_tables(world / "out", world / "again")
    assert len(calls) == 12 + 1 and not list((world / "again").glob(".smooth*"))  # 12 images, one of them begun twice
    assert summary_of(world / "out") == summary_of(world / "again")
    calls.clear()
    assert command(world, *run, "--eps", "0.1", backbone="loose", out="again") == 0 and not calls  # other budgets need no samples
    assert list(summary_of(world / "again")["cra_d"]) == [0.1]
    assert command(world, *run, "--seed", "1", backbone="loose", out="again") == 0 and len(calls) == 12


def environment():
    import os
    return {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}


def test_a_limit_takes_the_first_pairs_and_their_images(world):
    assert command(world, "smooth", *QUICK, "--limit", "2", backbone="loose") == 0
    pairs, images = contents(world / "out")
    assert pairs["pair"].tolist() == [0, 1, 6, 7] and set(images["image"]) == {*pairs["left"], *pairs["right"]}
    assert command(world, "smooth", *QUICK, backbone="loose", out="all") == 0
    whole = table(world / "all", "pairs").set_index("pair").loc[pairs["pair"]].reset_index()
    pd.testing.assert_frame_equal(pairs, whole[pairs.columns])


def test_an_embedding_without_direction_is_rejected(world):
    write_bin(world / "bright.bin", torch.cat([faces(16)[:4], torch.full((2, *SIZE), 255, dtype=torch.uint8)]), false_pairs=2)
    assert command(world, "smooth", "--sigma", "0.01", "--n0", "5", "--n", "20", backbone="invalid", bin="bright.bin") == 0
    last = table(world / "out", "pairs").query("same").iloc[-1]
    assert last["votes_left"] == 0 and last["radius"] == 0 and not last["accepted"]


@pytest.mark.parametrize("more,expected", [
    (("--sigma", "0"), "--sigma"), (("--sigma", "nan"), "--sigma"), (("--sigma", "-1"), "--sigma"), (("--sigma", "1", "--n", "50"), "n0 is 100"),
    (("--sigma", "1", "--alpha", "0"), "--alpha"), (("--sigma", "1", "--alpha", "1"), "--alpha"), (("--sigma", "1", "--alpha", "nan"), "--alpha"),
    (("--sigma", "1", "--n0", "5", "--n", "9"), "at least 10"), (("--sigma", "1", "--n0", "0"), "--n0"), ((), "--sigma"),
    (("--sigma", "1", "--protocol", "paper"), "protocol"), (("--sigma", "1", "--tight"), "--tight"), (("--sigma", "1", "--limit", "0"), "--limit")])
def test_bad_input_ends_in_one_line(world, capsys, more, expected):
    try:
        status = command(world, "smooth", *more, backbone="loose")
    except SystemExit as error:
        status = error.code
    assert status == 2 and expected in capsys.readouterr().err.strip().splitlines()[-1] and not (world / "out/pairs.csv").exists()


def test_settings_are_checked_in_python_too():
    for wrong in ({"sigma": 0.0}, {"sigma": math.nan}, {"sigma": 1e300}, {"sigma": 1e-30}, {"alpha": 1.0}, {"alpha": math.nan}, {"n0": 2000}, {"threat": "both"}, {"limit": 0}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            smoothing.Smoothing(**{"sigma": 0.5, **wrong})


def test_results_of_the_two_certificates_are_kept_apart(world, capsys):
    assert command(world, "smooth", *QUICK) == 0
    assert command(world, "certify") == 2 and "randomised smoothing" in capsys.readouterr().err
    assert command(world, "certify", out="proven") == 0
    assert command(world, "attack", "--attack", "pgd", "--draws", "2", out="proven") == 2 and "--draws" in capsys.readouterr().err
    assert command(world, "smooth", *QUICK, out="proven") == 2 and "another folder" in capsys.readouterr().err
    assert command_line.main(["compare", str(world / "out"), str(world / "proven"), "--budget", "0.1"]) == 2
    capsys.readouterr()
    assert command_line.main(["table", str(world / "out"), str(world / "proven")]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "faces" in line]
    assert "plain" in lines[0] and "smoothing, sigma 0.3, 99.9 % confidence" in lines[1]
    assert command_line.main(["plot", str(world / "out"), str(world / "proven"), "--out", str(world / "plots")]) == 0
    assert {"smoothing.png", "out_roc.png", "proven_certified_accuracy.png"} <= {path.name for path in (world / "plots").iterdir()}


def test_columns_and_keys_are_explained(world):
    assert command(world, "smooth", *QUICK) == 0 and command(world, "audit", "--steps", "2", "--draws", "2", "--limit", "2") == 0
    said = set(re.findall(r"`(\w+)`", (ROOT / "docs/columns.md").read_text()))
    report, summary = (json.loads((world / "out" / name).read_text()) for name in ("audit.json", "summary.json"))
    assert not {*table(world / "out", "pairs"), *table(world / "out", "images"), *summary, *summary["smoothing"], *report,
                *report["settings"], *summary["certificates"]["mean"]} - said


def test_damaged_summaries_are_refused(world, capsys):
    assert command(world, "smooth", *QUICK) == 0
    path = world / "out/summary.json"
    whole = json.loads(path.read_text())
    for key, value in (("sigma", -1.0), ("n", "many"), ("alpha", 2.0), ("threat", "none"), ("tau_mean", None)):
        path.write_text(json.dumps({**whole, "smoothing": {**whole["smoothing"], key: value}}))
        assert command(world, "audit") == 2 and "smoothing" in capsys.readouterr().err
    path.write_text(json.dumps(whole))
    table(world / "out", "pairs").drop(columns="radius_left").to_csv(world / "out/pairs.csv", index=False)
    assert command(world, "audit") == 2 and "radius_left" in capsys.readouterr().err


def test_the_mean_cosine_is_what_attacks_through_noise_follow(world):
    network, pixels = load_network("loose", world / "loose.pt").double(), (faces_of(world).double() - 127.5) / 255
    draws = 0.3 * torch.randn(7, *SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    points, target = pixels[:2].clone().requires_grad_(), network(pixels[4:6])
    mean = torch.stack([torch.cosine_similarity(network(points + draw), target) for draw in draws]).mean(0)
    found = -attacks.margin(MeanCosine(network, draws, False)(points), MeanCosine.targets(target), 0.0, "impersonation")
    assert torch.allclose(found, mean, atol=1e-12)
    assert torch.allclose(*(torch.autograd.grad(each.sum(), points)[0] for each in (found, mean)), atol=1e-10)
    both, draws = torch.cat([pixels[:2], pixels[4:6]], 1).requires_grad_(), torch.cat([draws, draws.flip(0)], 1)
    mean = torch.stack([torch.cosine_similarity(*(network(half) for half in (both + draw).chunk(2, 1))) for draw in draws]).mean(0)
    found = -attacks.margin(MeanCosine(network, draws, True)(both), torch.eye(1, 2).expand(2, 2), 0.0, "impersonation")
    assert torch.allclose(found, mean, atol=1e-12)
    assert torch.allclose(*(torch.autograd.grad(each.sum(), both)[0] for each in (found, mean)), atol=1e-10)


def test_sound_decisions_pass_the_audit_and_its_attack_is_strong(plane, capsys):
    """On a half-space an attack of 0.999 of the radius leaves the share of votes that the distance says, and not more."""
    assert command(plane, "smooth", "--sigma", "0.25", "--n0", "50", "--n", "400", backbone="halfplane", tau="0.1") == 0
    capsys.readouterr()
    assert command(plane, "audit", "--steps", "10", "--draws", "8", "--restarts", "1", backbone="halfplane", tau=None) == 0
    said, report = capsys.readouterr().out, json.loads((plane / "out/audit.json").read_text())
    pairs = table(plane / "out", "pairs")
    assert "0 of" in said and "10 steps" in said and "8 draws" in said and report["violations"] == []
    assert report["attacked"]["d"] == (pairs[["radius_left", "radius_right"]] > 1e-4).to_numpy().sum()
    assert report["share"]["d"]["after"]["minimum"] < 0.62  # the radius is a little below the distance, at which it would be a half


def test_attacks_through_noise_turn_what_is_nearer_than_their_budget(plane, capsys):
    assert command(plane, "smooth", "--sigma", "0.25", "--n0", "50", "--n", "400", backbone="halfplane", tau="0.1") == 0
    quick = ("--steps", "8", "--draws", "4", "--eps", "0.1", "0.4", "--eps-u", "0.3")
    assert command(plane, "attack", "--attack", "pgd", *quick, backbone="halfplane", tau=None) == 0
    summary, pairs = summary_of(plane / "out"), table(plane / "out", "pairs")
    tries = pd.read_csv(plane / "out/attacks.csv").query("kind == 'd' and side == 'left'")
    expected = [(row.Index, eps) for row in pairs.itertuples() for eps in (0.1, 0.4) if row.accepted and row.radius_left <= eps]
    assert sorted(zip(tries.row, tries.eps)) == expected and len(tries) >= 2
    for one in tries.itertuples():  # the share of votes says how far the plane is: what is nearer falls, what is further does not
        distance = 0.25 * norm.ppf(min(pairs.votes_left[one.row], 399) / 400)
        assert abs(distance - one.eps) < 0.06 or one.success == (distance < one.eps)
    assert summary["era_d"]["pgd"][0.1] >= summary["cra_attacked_d"]["pgd"][0.1] and summary["attacks"]["pgd"]["draws"] == 4
    before = (plane / "out/attacks.csv").read_bytes()
    assert command(plane, "attack", "--attack", "pgd", *quick, backbone="halfplane", tau=None) == 0
    assert (plane / "out/attacks.csv").read_bytes() == before
    capsys.readouterr()
    for more, expected in ((("attack", "--attack", "cw"), "budget"), (("attack", "--attack", "pgd", "--tau", "0.2"), "tau"),
                           (("smooth", "--sigma", "0.3", "--tau", "0.1"), "another folder"), (("audit", "--threat", "joint"), "--threat")):
        assert command(plane, *more, backbone="halfplane", tau=None) == 2 and expected in capsys.readouterr().err


def test_an_attack_that_has_nothing_to_do_leaves_results_that_can_be_read(world):
    """All decisions are wrong, or certified at its budgets."""
    assert command(world, "smooth", *QUICK, backbone="loose") == 0
    for _ in range(2):
        assert command(world, "attack", "--attack", "pgd", "--eps", "1e-6", "--eps-u", "1e-6", backbone="loose", tau=None) == 0
    assert table(world / "out", "attacks").empty and summary_of(world / "out")["era_u"]["pgd"] == summary_of(world / "out")["cra_attacked_u"]["pgd"]


def test_radii_that_are_too_large_fail_the_audit(plane, monkeypatch, capsys):
    honest = smoothing.smoothed_radius
    monkeypatch.setattr(smoothing, "smoothed_radius", lambda *arguments: 2.5 * honest(*arguments))
    assert command(plane, "smooth", "--sigma", "0.25", "--n0", "50", "--n", "400", backbone="halfplane", tau="0.1") == 0
    assert command(plane, "audit", "--steps", "10", "--draws", "8", "--restarts", "1", backbone="halfplane", tau=None) == 1
    monkeypatch.undo()
    report = json.loads((plane / "out/audit.json").read_text())
    assert report["n_violations"] == report["n_fallen"] > 3 and report["chance"] < 1e-3 and report["violations"][0]["after"] < 0.5
    assert "wrong more often" in capsys.readouterr().out
    assert command(plane, "audit", backbone="halfplane", tau=None) == 2 and "not that of the votes" in capsys.readouterr().err


def test_falls_that_alpha_allows_are_no_violation():
    rows = pd.DataFrame({"fell": [True, False], "kind": "d", "row": [0, 1], "side": 0, "radius": 0.1, "norm": 0.1, "before": 1.0, "after": 0.1})
    assert audit.verdict(rows, 5000, 0.001)["violations"] == [] and audit.verdict(rows, 5000, 0.001)["n_fallen"] == 1
    assert audit.verdict(rows, 2, 1e-5)["n_violations"] == 1


@pytest.mark.parametrize("threat, name, column, value, says", [
    ("one", "pairs", "votes_left", 61, "radius_left"), ("one", "pairs", "radius_left", 77.0, "radius_left"),
    ("one", "pairs", "radius", 0.2, "radius is not the smaller"), ("one", "pairs", "samples", 10**6, "samples, expected 60"),
    ("one", "images", "alpha", 0.1, "alpha, expected 0.001"), ("one", "images", "radius_u", 3.0, "radius_u"),
    ("joint", "pairs", "votes", 61, "radius_joint"), ("joint", "pairs", "radius_joint", 0.3, "radius_joint")])
def test_records_that_do_not_follow_from_their_votes_are_refused(world, capsys, threat, name, column, value, says):
    assert command(world, "smooth", *QUICK, "--threat", threat, backbone="loose") == 0
    edited = table(world / "out", name)
    edited.loc[0, column] = value
    edited.to_csv(world / f"out/{name}.csv", index=False)
    for what in (("plot", world / "out"), ("report", world / "out", "--out", world / "page.html"), ("smooth", "--eps", "70")):
        capsys.readouterr()
        done = command(world, *what, *QUICK, "--threat", threat, backbone="loose") if what[0] == "smooth" \
            else command_line.main([*map(str, what)])
        error = capsys.readouterr().err
        assert done == 2 and f"{name}.csv: column {says}" in error and error.count("\n") == 1
