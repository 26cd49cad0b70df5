"""The paired bootstrap over people against resampled tables, pair by pair."""
import json
import math

import numpy as np
import pandas as pd
import pytest
from small_world import command, faces, world, write_bin  # noqa: F401

import eval.__main__ as command_line
from eval import bootstrap, certification, rates
from utils import InputError

EPS = (0.3, 0.8)


def pairs_of(seed, left, right, same, ties=False):
    """Records as of a network that tells most true pairs from false ones."""
    numbers = np.random.default_rng(seed)
    cosine = np.clip(numbers.normal(0.5 * same, 0.3), -0.99, 0.99)
    cosine = cosine.round(1) if ties else cosine
    norms = numbers.uniform(0.5, 3, (2, len(same)))
    return pd.DataFrame({"left": left, "right": right, "same": same, "cosine": cosine, "theta": np.arccos(cosine), "norm_left": norms[0],
                         "norm_right": norms[1]})


def some_pairs(people=8, images=3):
    """All true pairs, and false ones at random: (left, right, same, person by image)."""
    numbers = np.random.default_rng(0)
    true = [(images * p + i, images * p + j) for p in range(people) for i in range(images) for j in range(i)]
    false = [tuple(images * numbers.choice(people, 2, replace=False) + numbers.integers(images, size=2)) for _ in range(60)]
    left, right = np.array([*true, *false]).T
    return left, right, np.arange(len(left)) < len(true), np.arange(people * images) // images


def figures_by_hand(pairs, weights, far):
    """TAR and CRA_D of a table in which each pair stands as often as its weight says."""
    copies = pairs.loc[pairs.index.repeat(weights.astype(int))]
    tau = rates.threshold_at_far(copies["cosine"], copies["same"], far)
    kept = {0.0: 0} | dict.fromkeys(EPS, 0)
    true = copies[copies["same"]]
    for pair in true.itertuples():
        if pair.cosine > tau:
            radius = certification.pair_radius(pair.norm_left, pair.norm_right, pair.theta, tau).item()
            for eps in kept:
                kept[eps] += eps == 0 or radius > eps
    return [count / len(true) for count in kept.values()]


@pytest.mark.filterwarnings("ignore:.*too few")
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("far", [0.02, 0.1, 0.5])
def test_figures_of_weighted_pairs_are_those_of_a_table_with_copies(far, ties):
    left, right, same, _ = some_pairs()
    pairs = pairs_of(1, left, right, same, ties)
    result = bootstrap.Result(pairs, EPS)
    numbers = np.random.default_rng(2)
    for weights in [np.ones(len(same)), *(numbers.integers(0, 4, len(same)).astype(float) for _ in range(20))]:
        assert result.figures(weights, far) == pytest.approx(figures_by_hand(pairs, weights, far), abs=1e-12)


def test_people_are_what_true_pairs_connect():
    #              a chain of three and a loop      two      false pairs: within a person, between two, of unknown images
    left = np.array([10, 11, 12, 40, 30, 10, 10, 77])
    right = np.array([11, 12, 10, 30, 40, 12, 30, 78])
    same = np.array([True] * 5 + [False] * 3)
    of_left, of_right = bootstrap.people_of(left, right, same)
    person = dict(zip([*left, *right], [*of_left, *of_right]))
    assert person[10] == person[11] == person[12] != person[30] == person[40]
    assert sorted(set(person.values())) == [0, 1, 2, 3]


@pytest.mark.parametrize("seed", range(5))
def test_people_of_long_chains_in_any_order(seed):
    numbers = np.random.default_rng(seed)
    truth = numbers.integers(0, 20, 300)
    chains = [(i, j) for p in range(20) for i, j in zip(*(lambda m: (m[:-1], m[1:]))(numbers.permutation(np.flatnonzero(truth == p))))]
    left, right = numbers.permutation(np.array(chains)).T
    people = dict(zip([*left, *right], np.concatenate(bootstrap.people_of(left, right, np.ones(len(left), dtype=bool)))))
    assert all((people[i] == people[j]) == (truth[i] == truth[j]) for i in people for j in list(people)[:40])


def test_a_pair_counts_as_often_as_its_people_are_drawn():
    left, right, same, person = some_pairs()
    drawn = list(bootstrap.draws(person[left], person[right], same, 50, seed=4))
    numbers = np.random.default_rng(4)
    for weights in drawn:
        lots = numbers.integers(8, size=8).tolist()
        expected = [lots.count(person[i]) * (lots.count(person[j]) if person[i] != person[j] else 1) for i, j in zip(left, right)]
        assert weights.tolist() == expected
    assert np.array_equal(drawn, list(bootstrap.draws(person[left], person[right], same, 50, seed=4)))


def test_samples_without_one_kind_are_drawn_again():
    left, right, same = np.array([0, 1, 0]), np.array([0, 1, 1]), np.array([True, True, False])
    assert all(weights[2] > 0 for weights in bootstrap.draws(left, right, same, 30, seed=0))


@pytest.mark.filterwarnings("ignore:.*too few")
def test_differences_are_paired_and_averaged_over_seeds():
    left, right, same, person = some_pairs()
    first, second = ([pairs_of(seed, left, right, same) for seed in seeds] for seeds in ((1, 2), (3, 4, 5)))
    found, people, far = bootstrap.compare(first, second, 0.1, EPS, samples=40, seed=7)
    draws = [np.ones(len(same)), *bootstrap.draws(person[left], person[right], same, 40, seed=7)]
    sides = np.array([[np.mean([figures_by_hand(pairs, weights, 0.1) for pairs in side], axis=0) for side in (first, second)]
                      for weights in draws])
    differences = sides[1:, 0] - sides[1:, 1]
    assert people == 8 and far == 0.1 and len(found) == 1 + len(EPS)
    for number, figure in enumerate(found):
        assert (figure.first, figure.second) == pytest.approx(tuple(sides[0, :, number]))
        assert figure.difference == pytest.approx(figure.first - figure.second)
        column = np.sort(differences[:, number])
        assert column[0] <= figure.low <= column[1] + 1e-12 and column[-2] - 1e-12 <= figure.high <= column[-1]  # 40 samples: the outer 2.5 %
        assert figure.above == pytest.approx(np.mean(differences[:, number] > 1e-15), abs=0.03)


@pytest.mark.filterwarnings("ignore:.*too few")
def test_a_smoothed_result_keeps_its_threshold_and_lends_its_far():
    left, right, same, person = some_pairs()
    ours, numbers = pairs_of(1, left, right, same), np.random.default_rng(6)
    radii = [np.where(numbers.random(len(same)) < np.where(same, 0.7, 0.9), numbers.uniform(0.1, 1, len(same)), 0) for _ in range(2)]
    theirs = [ours[["left", "right", "same"]].assign(radius=radius, samples=100) for radius in radii]
    (tar, *certified), _, far = bootstrap.compare([ours], theirs, 0.4, EPS, samples=30, seed=3)

    def by_hand(weights):
        copies = [np.repeat(radius, weights.astype(int)) for radius in radii]
        true = np.repeat(same, weights.astype(int))
        reached = np.mean([np.mean(radius[~true] == 0) for radius in copies])
        return reached, (figures_by_hand(ours, weights, reached + 1e-9),
                         [np.mean([np.mean(radius[true] > eps) for radius in copies]) for eps in (0, *EPS)])
    reached, (first, second) = by_hand(np.ones(len(same)))
    assert far == pytest.approx(reached) and [figure.first for figure in (tar, *certified)] == pytest.approx(first)
    assert [figure.second for figure in (tar, *certified)] == pytest.approx(second)
    differences = [np.subtract(*by_hand(weights)[1]) for weights in bootstrap.draws(person[left], person[right], same, 30, seed=3)]
    for figure, column in zip((tar, *certified), np.sort(differences, axis=0).T):
        assert column[0] - 1e-9 <= figure.low <= column[1] + 1e-9 and column[-2] - 1e-9 <= figure.high <= column[-1] + 1e-9


def test_a_result_is_not_better_than_itself():
    left, right, same, _ = some_pairs()
    pairs = pairs_of(1, left, right, same)
    for figure in bootstrap.compare([pairs], [pairs], 0.1, EPS, samples=20)[0]:
        assert figure[2:] == (0, 0, 0, 0)


def test_the_spread_is_that_of_independent_people():
    """Each true pair a person of its own, and a threshold that hardly moves: TAR is binomial."""
    count = 400
    left, same = np.arange(0, 4 * count, 2), np.arange(2 * count) < count
    one, none = pairs_of(0, left, left + 1, same), pairs_of(0, left, left + 1, same)
    one["cosine"], none["cosine"] = np.where(same, np.where(left % 5 == 0, 0.9, 0.1), 0.5), np.where(same, 0.1, 0.5)
    figure = bootstrap.compare([one], [none], 0.1, (), samples=1000)[0][0]
    share = figure.first
    assert figure.second == 0 and (figure.high - figure.low) / (2 * 1.96) == pytest.approx(math.sqrt(share * (1 - share) / count), rel=0.15)


def test_other_pairs_and_one_kind_are_refused():
    left, right, same, _ = some_pairs()
    pairs = pairs_of(1, left, right, same)
    with pytest.raises(InputError, match="not of the same pairs"):
        bootstrap.compare([pairs], [pairs_of(1, right, left, same)], 0.1, EPS)
    with pytest.raises(InputError, match="0 false pairs"):
        bootstrap.compare([pairs[same]], [pairs[same]], 0.1, EPS)


@pytest.mark.filterwarnings("ignore:.*too few")
def test_the_command_prints_and_writes_the_figures_of_the_summaries(world, capsys):
    for name in ("tiny", "tight"):
        assert command(world, "certify", "--far", "0.4", "--eps", "0.01", backbone=name, out=f"runs/{name}", tau=None) == 0
    capsys.readouterr()
    argv = ["compare", str(world / "runs/tiny"), str(world / "runs/tight"), "--budget", "0.01", "--samples", "30", "--out", str(world / "c.json")]
    assert command_line.main(argv) == 0
    printed, written = capsys.readouterr().out, json.loads((world / "c.json").read_text())
    for place, name in (("first", "tiny"), ("second", "tight")):
        summary = json.loads((world / "runs" / name / "summary.json").read_text())
        tar, cra = (figure[place] for figure in written["figures"])
        assert tar == pytest.approx(summary["tar"]) and cra == pytest.approx(summary["cra_d"][0]["value"])
        assert f"{100 * tar:.2f}" in printed and written[place] == [summary["weights_sha256"]]
    assert "12 pairs of 6 people, FAR 0.4, 30 samples" in printed
    # several results a side: by name, and as a folder of folders
    both = f"{world / 'runs/tiny'},{world / 'runs/tight'}"
    assert command_line.main(["compare", both, str(world / "runs"), "--samples", "5", "--out", str(world / "d.json")]) == 0
    again = json.loads((world / "d.json").read_text())
    assert all(figure["difference"] == 0 for figure in again["figures"]) and len(again["first"]) == 2


@pytest.mark.filterwarnings("ignore:.*too few")
def test_the_command_takes_smoothed_results(world, capsys):
    assert command(world, "certify", "--far", "0.4", out="proven", tau=None) == 0
    assert command(world, "smooth", "--far", "0.4", "--sigma", "0.3", "--n0", "20", "--n", "60", out="smoothed", tau=None) == 0
    summary = json.loads((world / "smoothed/summary.json").read_text())
    for argv, place in ((("proven", "smoothed"), "second"), (("smoothed", "proven"), "first"), (("smoothed", "smoothed"), "first")):
        capsys.readouterr()
        done = command_line.main(["compare", *(str(world / name) for name in argv), "--samples", "5", "--out", str(world / "c.json")])
        written = json.loads((world / "c.json").read_text())
        assert done == 0 and f"FAR {summary['far']:.4g}, 5 samples" in capsys.readouterr().out
        assert [figure[place] for figure in written["figures"]] == pytest.approx([summary["tar"], summary["cra_d"][0]["value"]])


@pytest.mark.filterwarnings("ignore:.*too few")
def test_results_that_cannot_be_compared(world, capsys):
    write_bin(world / "other.bin", faces(16, people=4))
    for out, more in (("a", {}), ("b", {"bin": "other.bin"}), ("c", {"tau": "0.3"})):
        options = {"tau": None, **more}
        assert command(world, "certify", *([] if options["tau"] else ["--far", "0.4"]), out=out, **options) == 0
    for first, second, message in (("a", "b", "bin_sha256"), ("a", "c", "far_target"), ("c", "c", "a threshold that --far chose"),
                                   ("a", "none", "no summary.json")):
        assert command_line.main(["compare", str(world / first), str(world / second)]) == 2
        assert message in capsys.readouterr().err
