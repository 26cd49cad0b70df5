"""The registry of attacks, and the published way of calling them: against loops written from the paper's protocol."""
import dataclasses
import sys
import warnings

import pytest
import torch
import torch.nn.functional as F
from easydict import EasyDict
from test_attacks import conv_net, literal_pgd, problem, sizes

import attacks
from attacks import ATTACKS, attack_names, cosine, preset
from attacks_published import PublishedCW, PublishedFGSM, PublishedPGD
from utils import InputError

OUTSIDE = '''
from dataclasses import dataclass
from attacks import Attack, register

@dataclass(frozen=True, eq=False)
class Line(Attack):
    """Straight along the first gradient, further and further, until the decision turns."""
    minimum_norm = True
    steps: int = 40

    def _run(self, search, index):
        points = search.images[index]
        gradients = search.evaluate(points, index, gradient=True).gradients
        for step in range(1, self.steps + 1):
            ahead = points - gradients / attacks_l2(gradients) * 0.05 * step
            search.evaluate(ahead.clamp(*search.box), index)

def attacks_l2(v):
    return v.flatten(1).norm(dim=1).view(-1, 1, 1, 1)

@register("noise", label="Noise")
@dataclass(frozen=True, eq=False)
class Noise(Attack):
    eps: float
    steps: int = 10

    def _run(self, search, index):
        for turn in range(self.steps):
            moved = search.images[index] + self.eps * search.noise(index, turn)
            search.evaluate(moved.clamp(*search.box), index)

def no_attack():
    pass
'''


# the registry

def test_entries_say_what_commands_need():
    assert attack_names() == ["pgd", "fgsm", "apgd", "ddn", "cw"]
    entries = {name: ATTACKS.find(name) for name in attack_names()}
    assert [entry.label for entry in entries.values()] == ["PGD", "FGSM", "APGD", "DDN", "C&W"]
    assert [name for name, entry in entries.items() if entry.minimum_norm] == ["ddn", "cw"]
    paper = {name: entry.form("paper") for name, entry in entries.items()}
    assert paper == {"pgd": PublishedPGD, "fgsm": PublishedFGSM, "apgd": attacks.APGD, "ddn": attacks.DDN, "cw": PublishedCW}
    assert all(entry.form("strict") is entry.build for entry in entries.values())
    with pytest.raises(InputError, match="did you mean 'apgd'"):
        preset("abgd", 1.0)


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """A module of somebody else, in the current folder, which is not that of the repository."""
    (tmp_path / "their_attacks.py").write_text(OUTSIDE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    known = dict(ATTACKS._entries)
    yield "their_attacks"
    sys.modules.pop("their_attacks", None)
    for name in set(ATTACKS._entries) - set(known):
        del ATTACKS._entries[name]


def test_an_attack_of_somebody_else_by_module_and_name(outside):
    net = conv_net().requires_grad_(False)
    x, t, tau = problem(net, "dodging")
    entry = ATTACKS.find(f"{outside}:Line")
    assert entry.minimum_norm and entry.label == "Line" and entry.form("paper") is entry.build
    attack = preset(f"{outside}:Line-30", protocol="paper")
    assert attack.steps == 30 and type(attack).__name__ == "Line"
    result = attack(net, x, t, "dodging", tau)
    assert result.success.any() and result.norm[result.success].max() <= 30 * 0.05 + 1e-6
    # registered there: its facts hold, and its name is known once the module is imported
    assert ATTACKS.find(f"{outside}:Noise").label == "Noise" and "noise" in attack_names()
    result = preset("noise-3", 2.0)(net, x, t, "dodging", tau)
    assert (sizes(x, result.adversarial) <= 2.0 + 1e-6).all() and result.forward_passes == len(x) + 3 * int((result.norm > 0).sum())
    for name, word in ((f"{outside}:no_attack", "subclass of attacks.Attack"), (f"{outside}:Missing", "cannot be imported"),
                       ("nowhere_at_all:Attack", "cannot be imported")):
        with pytest.raises(InputError, match=word):
            preset(name)
    with pytest.raises(InputError, match="smallest"):
        preset(f"{outside}:Line", 0.5)


# the single step

def test_fgsm_keeps_the_better_end_of_its_step():
    """Against the two ends computed here: one step from the random start along the gradient, and one against it."""
    net = conv_net().double().requires_grad_(False)
    x, t, _ = problem(net, "untargeted", 40, dtype=torch.float64)
    eps, seen = 1.5, []
    result = attacks.FGSM(eps)(net, x, t, "untargeted", -0.99, on_iterate=lambda p, i, m: seen.append((p, m)))
    start = seen[1][0].requires_grad_()
    gradient, = torch.autograd.grad(F.cosine_similarity(net(start), t).sum(), start)
    step = 2 * eps * F.normalize(gradient.flatten(1)).view_as(x)
    ends = []
    for sign in (-1, 1):
        delta = start.detach() + sign * step - x
        delta = delta * (eps / delta.flatten(1).norm(dim=1)).clamp_max(1).view(-1, 1, 1, 1)
        ends.append(F.cosine_similarity(net((x + delta).clamp(-0.5, 0.5)), t))
    best = torch.stack(ends).amin(0)
    assert torch.allclose(result.margin - 0.99, best, atol=1e-9)
    assert (ends[0] < ends[1]).any() and (ends[1] < ends[0]).any()  # neither end alone would do
    assert result.forward_passes == 4 * len(x) and result.backward_passes == len(x)
    with pytest.raises(InputError, match="takes one"):
        preset("fgsm-5", 1.0)


def test_published_fgsm_moves_along_rounding_noise_by_all_of_eps():
    net = conv_net().requires_grad_(False)
    x = problem(net, "untargeted", 12)[0] / 3  # far from the ends of the box
    for eps in (0.25, 1.5):
        moved = sizes(x, preset("fgsm", eps, "paper")(net, x, net(x), "untargeted", 0.3).adversarial)
        assert moved.tolist() == pytest.approx([eps] * 12, rel=1e-5)
    flat = preset("fgsm", 1.0, "paper")(lambda z: torch.ones(len(z), 3), x, torch.ones(12, 3), "untargeted", 0.3)
    assert torch.equal(flat.adversarial, x)
    x, t, tau = problem(net.double(), "dodging", 12, dtype=torch.float64)
    faint = preset("fgsm", 0.8, "paper")(lambda z: net(z) * 1e-3 + t * 20, x, t, "dodging", -0.9)  # gradients of about 1e-6
    points = x.clone().requires_grad_()
    gradient, = torch.autograd.grad(F.cosine_similarity(net(points) * 1e-3 + t * 20, t).mean(), points)
    length = gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    assert length.max() < 1e-5
    assert torch.allclose(faint.adversarial, (x - 0.8 * gradient / (length + 1e-6)).clamp(-0.5, 0.5), atol=1e-8)


# the published way of calling

def literal_cw(net, x, t, objective, steps, alpha=0.01, c=3.0, kappa=0.05):
    w = torch.atanh(2 * x.clamp(-0.5 + 1e-6, 0.5 - 1e-6)).requires_grad_()
    adam = torch.optim.Adam([w], lr=alpha)
    for _ in range(steps):
        delta = torch.tanh(w) / 2 - x
        cos = F.cosine_similarity(net(torch.tanh(w) / 2), t)
        hinge = torch.relu(1 - cos - kappa if objective == "impersonation" else cos - kappa)
        w.grad, = torch.autograd.grad((delta.flatten(1).norm(dim=1) + c * hinge).sum(), w)
        adam.step()
    return (torch.tanh(w) / 2).detach()


@pytest.mark.parametrize("mode, objective", [("D", "dodging"), ("I", "impersonation")])
def test_paper_forms_are_the_literal_loops(mode, objective):
    net = conv_net().double().requires_grad_(False)
    x, t, _ = problem(net, objective, dtype=torch.float64)
    x = x.clone()
    x[:, 0] = x[:, 0].sign() / 2  # pixels at the ends of the box
    fgsm = attacks.FGSM(net, "cpu", EasyDict(eps=0.8), protocol="paper")
    assert torch.allclose(fgsm.attack_targeted(x, t, mode=mode), literal_pgd(net, x, t, objective, 0.8, 1, factor=1), atol=1e-7)
    for alpha, n_iter in ((1.25, 20), (2.0, 7)):
        pgd = attacks.PGD(net, torch.device("cpu"), EasyDict(eps=0.8, alpha=alpha, n_iter=n_iter), protocol="paper")
        assert torch.allclose(pgd.attack_targeted(x, t, mode), literal_pgd(net, x, t, objective, 0.8, n_iter, alpha), atol=1e-7)
    for settings in (dict(alpha=0.01, c=3.0, kappa1=0.05), dict(alpha=0.03, c=7.0, kappa1=0.2)):
        cw = attacks.CW(net, "cpu", EasyDict(n_iter=30, kappa2=0.0, **settings), protocol="paper")
        expected = literal_cw(net, x, t, objective, 30, settings["alpha"], settings["c"], settings["kappa1"])
        assert torch.allclose(cw.attack_targeted(x, t, mode=mode), expected, atol=1e-6)
    settings = dict(alpha=0.01, c=3.0, kappa1=0.05, kappa2=0.0, n_iter=30)
    same = preset("cw-30", protocol="paper")(net, x, t, objective, 0.3).adversarial
    assert torch.allclose(same, literal_cw(net, x, t, objective, 30), atol=1e-6)
    untargeted = attacks.CW(net, "cpu", EasyDict(settings), protocol="paper").attack_untargeted(x)  # the clamped pixels lead the first step
    assert torch.allclose(untargeted, literal_cw(net, x, net(x), "untargeted", 30), atol=1e-6)


def test_strict_forms_are_at_least_as_strong_and_stay_within_budget_and_box():
    net = conv_net().requires_grad_(False)
    params = EasyDict(eps=0.8, alpha=1.25, n_iter=20, kappa1=0.05, kappa2=0.0, c=3.0)  # one for all, as scripts have it
    for mode, objective in ((None, "untargeted"), ("D", "dodging"), ("I", "impersonation")):
        x, t, _ = problem(net, objective, 24)
        def found(kind, **settings):
            bound = kind(net, "cpu", params, **settings)
            moved = bound.attack_targeted(x, t, mode=mode) if mode else bound.attack_untargeted(x)
            assert moved.shape == x.shape and moved.abs().max() <= 0.5 and not moved.requires_grad
            return moved, cosine(net(moved), t) * (1 if mode == "I" else -1)
        for kind in (attacks.FGSM, attacks.PGD, attacks.APGD):
            (strict, reached), (paper, before) = found(kind), found(kind, protocol="paper")
            assert (sizes(x, strict) <= 0.8).all() and (sizes(x, paper) <= 0.8 + 1e-6).all()
            assert reached.mean() >= before.mean() - 1e-3 and (kind is not attacks.PGD or mode or reached.mean() > before.mean())
        for kind in (attacks.CW, attacks.DDN):
            moved, reached = found(kind)
            aim = 0.95 if mode == "I" else -0.05
            won = sizes(x, moved) > 0
            assert won.float().mean() > 0.9 and (reached[won] >= aim - 1e-6).all()
            assert (reached[won] <= aim + 0.01).float().mean() > 0.9  # the smallest: no further than the aim


def test_a_bound_attack_is_told_apart_takes_tau_and_names_what_is_wrong():
    net = conv_net().requires_grad_(False)
    x, t, tau = problem(net, "dodging")
    assert isinstance(attacks.PGD(0.5), attacks.PGD) and isinstance(attacks.PGD(eps=torch.tensor(0.5)), attacks.PGD)
    assert dataclasses.replace(attacks.PGD(0.5), steps=3).steps == 3
    by_name = attacks.PGD(backbone=net, device="cpu", params={"eps": 0.5, "n_iter": 4})
    by_function = attacks.PGD(lambda z: net(z), "cpu", {"eps": 0.5, "n_iter": 4})
    assert torch.equal(by_name.attack_targeted(x, t), by_function.attack_targeted(x, t, "D"))
    assert by_name.attack.steps == 4 and by_name.attack.step_size is None
    at_tau = attacks.DDN(net, "cpu", {"n_iter": 20, "tau": tau}).attack_targeted(x, t)
    assert torch.equal(at_tau, attacks.DDN(20)(net, x, t, "dodging", tau).adversarial)
    wrong = {"lack eps": {}, "'steps'": {"eps": 0.5, "steps": 3}, "eps is": {"eps": -1.0}, "steps is 0": {"eps": 1.0, "n_iter": 0}}
    for word, params in wrong.items():
        with pytest.raises(InputError, match=word):
            attacks.PGD(net, "cpu", EasyDict(params))
    with pytest.raises(InputError, match="mode is 'U'"):
        by_name.attack_targeted(x, t, mode="U")
    with pytest.raises(InputError, match="lax"):
        attacks.PGD(net, "cpu", {"eps": 0.5}, protocol="lax")
    with pytest.warns(UserWarning, match="kappa2"):
        attacks.CW(net, "cpu", {"kappa2": 0.1})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attacks.CW(net, "cpu", {"kappa1": 0.1, "kappa2": 0})
    net.train()
    by_name.attack_untargeted(x)
    assert net.training and all(module.training for module in net.modules())
