"""Certificates as entries: those that are here, one of somebody else's, and networks whose constant is the caller's word."""
import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from small_world import command, faces, summary_of, world  # noqa: F401
from torch import nn

from backbones import averaged, load_network
from eval import records
from eval.certificates import CERTIFICATES, Case, certificate
from eval.evaluation import Evaluation
from eval.identification import identify, split_identities
from eval.verification import read_bin
from utils import InputError

MINE = '''
from eval.certificates import Certificate, OneImage


class Cautious(OneImage):
    """Half of what Theorem 1 allows."""
    label = "half of it"

    @property
    def column(self):
        return "radius_cautious"

    def radius(self, case):
        return super().radius(case) / 2

    def sides(self, case):
        return tuple(radius / 2 for radius in super().sides(case))


class Wrong(Certificate):
    """One and a half times what Theorem 1 allows, against one image."""

    def radius(self, case):
        return 1.5 * OneImage().radius(case)


class RightOnly(OneImage):
    """The right image moves, by three times what Theorem 1 allows it."""

    @property
    def column(self):
        return "radius_right"

    def radius(self, case):
        return 3 * OneImage.side(case.norm_right, case.theta, case.tau)

    def sides(self, case):
        return 0 * self.radius(case), self.radius(case)


class OneForAll(OneImage):
    """No radius a pair."""

    @property
    def column(self):
        return "radius_all"

    def radius(self, case):
        return 1.0


class NotFinite(OneForAll):
    def radius(self, case):
        return super(OneForAll, self).radius(case) * float("nan")


class Elsewhere(Certificate):
    geometry = "bothh"


class WrongForBoth(Certificate):
    """The same radius for each of two images that move."""
    geometry = "both"

    def radius(self, case):
        return 1.5 * OneImage().radius(case)
'''


@pytest.fixture
def outside(tmp_path_factory, monkeypatch):
    """A module of somebody else's, in the folder that commands are typed in."""
    folder = tmp_path_factory.mktemp("outside")
    (folder / "my_certificates.py").write_text(MINE)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)


def test_each_radius_keeps_the_decision_at_the_worst_point_of_its_geometry():
    """In a plane: embeddings u and v, moved as the geometry allows, straight towards or away from each other."""
    rng = np.random.default_rng(0)
    norms, theta, tau = rng.uniform(0.5, 3, (200, 2)), rng.uniform(0, math.pi, 200), 0.3
    delta = np.abs(theta - math.acos(tau))
    for name, sets in (("one", [(1, 0), (0, 1)]), ("both", [(1, 1)]), ("joint", [(a, b) for a, b in zip(*(
            f(np.linspace(0, math.pi / 2, 91)) for f in (np.cos, np.sin)))])):
        radius = certificate(name).radius(Case(*norms.T, theta, tau)).numpy()
        for factor, holds in ((0.999, True), (1.001, False)):
            turned = np.zeros(200)
            for shares in sets:
                # the largest angle that a vector of length n can turn by a step of length r is arcsin(r / n)
                steps = factor * radius[:, None] * np.array(shares) / norms
                turned = np.maximum(turned, np.where(steps < 1, np.arcsin(steps.clip(max=1)), math.inf).sum(1))
            reached = turned >= delta
            if holds:
                assert not reached.any(), name
            else:
                assert reached[delta < math.pi / 2].mean() > 0.99, name  # of "joint" at the best of 91 directions


def test_lp_certificates_are_the_l2_ones_at_the_corner_and_on_the_axis_of_their_ball():
    case = Case([1.0, 2.0], [2.0, 1.0], [0.3, 2.0], 0.3, dimension=768)
    plain = certificate("one").radius(case)
    assert torch.allclose(certificate("linf").radius(case) * math.sqrt(768), plain) and torch.equal(certificate("l1").radius(case), plain)
    assert certificate("linf").column == "radius_linf" and {"one", "both", "joint", "linf", "l1"} <= set(CERTIFICATES.names())


def test_a_certificate_of_somebody_else_is_certified_and_audited(world, outside, capsys):  # noqa: F811
    mine = "my_certificates:Cautious"
    assert command(world, "certify", "--certificate", "both", mine, "--eps", "0.05", "0.2") == 0
    pairs, summary = pd.read_csv(world / "out" / "pairs.csv"), summary_of(world / "out")
    assert np.allclose(pairs.radius_cautious, pairs.radius / 2) and set(summary["certificates"]) == {"both", mine}
    assert summary["certificates"][mine]["cra_d"] == {eps: (pairs.radius_cautious[pairs.same] > eps).mean() for eps in (0.05, 0.2)}
    assert command(world, "audit", "--threat", mine, "--steps", "3") == 0
    report = json.loads((world / "out" / "audit_Cautious.json").read_text())
    assert report["attacked"] == {kind: int((pairs.radius_cautious[pairs.same == (kind == "d")] > 1e-4).sum()) for kind in "di"}
    assert "half of it: 0 violations" in capsys.readouterr().out
    assert not (world / "out" / "attacks.csv").exists()  # which has the audit of Theorem 1 alone
    assert command(world, "audit", "--steps", "3", "--threat", "one") == 0
    plain = json.loads((world / "out" / "audit.json").read_text())["tightness"]["d"]["minimum"]
    assert report["tightness"]["d"]["minimum"] == pytest.approx(2 * plain, rel=0.05)  # the smallest successes are nearly the same
    assert command(world, "certify", "--certificate", "linf", out="lp") == 0
    assert command(world, "audit", "--threat", "linf", "--steps", "3", out="lp") == 0
    report = json.loads((world / "lp" / "audit_linf.json").read_text())
    assert sum(report["attacked"].values()) == (pairs.radius > 1e-4).sum() and report["n_violations"] == 0
    assert command(world, "audit", "--threat", "joint", "--steps", "3") == 2  # which was not certified
    assert "column radius_joint missing" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["Wrong", "WrongForBoth", "RightOnly"])
def test_a_certificate_that_says_too_much_is_found_out(world, outside, capsys, name):  # noqa: F811
    wrong = f"my_certificates:{name}"
    assert command(world, "certify", "--certificate", wrong, backbone="tight", tau="0.655") == 0
    assert command(world, "audit", "--threat", wrong, "--steps", "12", backbone="tight", tau="0.655") == 1
    report = json.loads((world / "out" / f"audit_{name}.json").read_text())
    assert report["n_violations"] > 0 and {check for one in report["violations"] for check in one["checks"]} == {"decision"}
    assert "violated: decision" in capsys.readouterr().out


def test_unknown_certificates_end_in_one_line(world, outside, capsys):  # noqa: F811
    for what, name, words in (("certify", "bth", "did you mean 'both'"), ("certify", "my_certificates:None", "cannot be imported"), ("certify", "one", "column radius already"),
                              ("certify", "my_certificates:OneForAll", "its radii are"), ("certify", "json:JSONDecoder", "expected a Certificate"),
                              ("certify", "my_certificates:NotFinite", "its radii are"), ("certify", "my_certificates:Elsewhere", "'bothh'"),
                              ("audit", "nobody:Here", "cannot be imported")):
        option = "--certificate" if what == "certify" else "--threat"
        assert command(world, what, option, name) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1


def test_a_foreign_network_needs_the_callers_constant(world):  # noqa: F811
    torch.manual_seed(0)
    pair_set = read_bin(world / "faces.bin")
    foreign = nn.Sequential(nn.Flatten(), nn.Linear(768, 8, bias=False)).eval()
    for network, words in ((foreign, "no known Lipschitz constant"), (lambda images: images.flatten(1), "a function has no layers"),
                           (nn.Sequential(load_network("tiny", world / "tiny.pt"), nn.Linear(32, 8)), "no known Lipschitz constant")):
        with pytest.raises(InputError, match=words) as error:
            records.certify(network, pair_set, Evaluation(tau=0.3))
        assert "lipschitz=" in str(error.value)
    norm = torch.linalg.matrix_norm(foreign[1].weight.detach(), 2).item()
    found = records.certify(foreign, pair_set, Evaluation(tau=0.3), lipschitz=norm)
    assert found.summary["lipschitz"] == norm and found.summary["lipschitz_assumed"] is True
    plain = records.certify(foreign, pair_set, Evaluation(tau=0.3), lipschitz=1.0)
    assert np.allclose(found.pairs.radius, plain.pairs.radius / norm, rtol=1e-5)
    proven = records.certify(load_network("tiny", world / "tiny.pt"), pair_set, Evaluation(tau=0.3)).summary
    assert (proven["lipschitz"], proven["lipschitz_assumed"]) == (1.0, False)
    for wrong in (0, -1, math.inf, math.nan, "1"):
        with pytest.raises(InputError, match="lipschitz is"):
            records.certify(foreign, pair_set, Evaluation(tau=0.3), lipschitz=wrong)


def test_an_evaluation_with_flips_averages_and_a_network_that_does_is_said_to(world):  # noqa: F811
    network, pair_set = load_network("tiny", world / "tiny.pt"), read_bin(world / "faces.bin")
    plain = records.certify(network, pair_set, Evaluation(tau=0.3))
    asked = records.certify(network, pair_set, Evaluation(tau=0.3, flip="average"))
    inside = records.certify(averaged(network, "average"), pair_set, Evaluation(tau=0.3))
    assert [found.summary["flip"] for found in (plain, asked, inside)] == ["none", "average", "average"]
    pd.testing.assert_frame_equal(asked.pairs, inside.pairs)
    assert not np.allclose(asked.pairs.cosine, plain.pairs.cosine, atol=1e-3)


def test_identification_of_a_foreign_network_needs_it_too():
    class People:
        """Noisy images of six people."""
        images = faces(16)

        def __len__(self):
            return len(self.images)

        def __getitem__(self, number):
            return self.images[number], number // 2

    split = split_identities(np.arange(12) // 2, 1, 0.3)
    with pytest.raises(InputError, match="no known Lipschitz constant"):
        identify(nn.Sequential(nn.Flatten(), nn.Linear(768, 8)), People(), split, tau=0.3)
    _, summary = identify(nn.Flatten(), People(), split, tau=0.3)  # an isometry of PyTorch's, whose constant is known
    assert summary["lipschitz_assumed"] is False
    _, summary = identify(lambda images: 2 * images.flatten(1), People(), split, tau=0.3, lipschitz=2)
    assert (summary["lipschitz"], summary["lipschitz_assumed"]) == (2.0, True)
