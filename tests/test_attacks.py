"""The attacks against analytic optima, plain loops and their own invariants."""
import functools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import attacks
from attacks import APGD, CW, DDN, FGSM, PGD, cosine, margin, preset, succeeds
from attacks_published import PublishedCW, PublishedFGSM, PublishedPGD
from backbones.custom_layers import Downsize, PaddingChannels, SLLLinear, SLLStage
from eval import certification
from utils import InputError

SHAPE = (3, 8, 8)
DIM = 192


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(n, seed=0, amplitude=0.3, dtype=torch.float32):
    return ((torch.rand(n, *SHAPE, generator=generator(seed), dtype=torch.float64) * 2 - 1) * amplitude).to(dtype)


def isometry(dtype=torch.float32):
    q, _ = torch.linalg.qr(torch.randn(DIM, DIM, generator=generator(7), dtype=torch.float64))
    net = nn.Sequential(nn.Flatten(), nn.Linear(DIM, DIM, bias=False))
    net[1].weight.data = q
    return net.to(dtype).eval()


def seeded(build):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return build().eval()


def sll_net():
    return seeded(lambda: nn.Sequential(PaddingChannels(8), SLLStage(8, 1), Downsize(8, 16), SLLStage(16, 1),
                                        nn.Flatten(), SLLLinear(256, 32)))


def conv_net():
    return seeded(lambda: nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1),
                                        nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(), nn.Linear(512, 24, bias=False)))


NETWORKS = {"isometry": isometry, "sll": sll_net, "conv": conv_net}


def problem(net, objective, n=12, seed=0, dtype=torch.float32):
    """Images, targets and a tau at which most samples are robust when clean."""
    x = images(n, seed, dtype=dtype)
    with torch.no_grad():
        fx = net(x)
        if objective == "untargeted":
            return x, fx, 0.5
        near = 0.6 * x + 0.4 * images(n, seed + 1, dtype=dtype)
        fy = net(near if objective == "dodging" else images(n, seed + 2, dtype=dtype))
    cos = cosine(fx.double(), fy.double())
    quantile = cos.quantile(0.1 if objective == "dodging" else 0.9).item()
    return x, fy, quantile + (-0.05 if objective == "dodging" else 0.05 * (1 - quantile))


def sizes(images_, adversarial):
    return (adversarial.double() - images_.double()).flatten(1).norm(dim=1)


FIXED = [FGSM, functools.partial(PGD, steps=8), functools.partial(PGD, steps=8, restarts=3, momentum=0.5),
         functools.partial(APGD, steps=12, restarts=2), functools.partial(PGD, steps=5, step_size=0.1)]
MINIMUM = [DDN(30), CW(30, binary_search_steps=5)]


# margins

def test_strict_inequality_in_both_directions():
    e, t = torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 4.0]])
    tau = cosine(e.double(), t.double()).item()
    for objective, at_threshold in (("untargeted", True), ("dodging", True), ("impersonation", False)):
        assert succeeds(margin(e, t, tau, objective), objective).item() is at_threshold  # not accepted at tau itself
    assert succeeds(margin(e, t, tau - 1e-9, "impersonation"), "impersonation").item()
    assert not succeeds(margin(e, t, tau - 1e-9, "dodging"), "dodging").item()


def test_cosine_of_rows_without_direction_is_below_every_threshold_and_has_zero_gradient():
    e = torch.tensor([[0.0, 0.0], [math.nan, 1.0], [math.inf, 1.0], [1e-100, 1e-100], [1.0, 0.0]], dtype=torch.float64,
                     requires_grad=True)
    cos = cosine(e, torch.ones(5, 2, dtype=torch.float64))
    assert cos[:3].tolist() == [-math.inf] * 3
    assert cos[3:].tolist() == pytest.approx([1.0, math.sqrt(0.5)], abs=1e-12)
    gradient, = torch.autograd.grad(cos[[0, 1, 2, 4]].sum(), e)
    assert gradient[:3].eq(0).all() and gradient[4].isfinite().all() and gradient[4].norm() > 0.5
    for tau in (-0.999, 0.0, 0.999):
        rejected = [succeeds(margin(e[:3], torch.ones(3, 2), tau, objective), objective) for objective in attacks.OBJECTIVES]
        assert rejected[0].all() and rejected[1].all() and not rejected[2].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_projection_is_exact_after_rounding(dtype):
    x = images(40, 0, 0.5).to(dtype)
    points = (x.double() + images(40, 1, 0.8).double()).to(dtype)
    for eps in (1e-9, 1e-3, 0.3, 2.0, 50.0):
        budget = torch.full((40,), eps, dtype=torch.float64)
        inside = attacks.project(points, x, budget, (-0.5, 0.5))
        assert inside.dtype == dtype and inside.abs().max() <= 0.5
        assert (sizes(x, inside) <= eps).all()
    assert torch.equal(inside, points.clamp(-0.5, 0.5))  # the ball is wide: only clipped


# invariants of every attack

@pytest.mark.parametrize("objective", attacks.OBJECTIVES)
@pytest.mark.parametrize("network", NETWORKS)
def test_fixed_budget_attacks_stay_in_ball_and_box_at_every_iterate(network, objective):
    net = NETWORKS[network]()
    x, t, tau = problem(net, objective)
    x = x.clone()
    x[0] = x[0].sign() / 2  # at the edge of the box
    eps = torch.linspace(0.01, 1.5, len(x), dtype=torch.float64)
    for build in FIXED:
        seen = []

        def watch(points, index, margins):
            assert (sizes(x[index], points) <= eps[index]).all()
            assert points.abs().max() <= 0.5 and not points.requires_grad
            assert torch.allclose(margins, margin(net(points), t[index], tau, objective), atol=1e-5)
            seen.append(len(index))

        result = build(eps)(net, x, t, objective, tau, on_iterate=watch)
        assert sum(seen) == result.forward_passes
        with torch.no_grad():
            m = margin(net(result.adversarial), t, tau, objective)
        assert torch.allclose(m, result.margin, atol=1e-5)
        assert torch.equal(result.success, succeeds(result.margin, objective))
        assert torch.equal(result.norm, sizes(x, result.adversarial))


@pytest.mark.parametrize("objective", attacks.OBJECTIVES)
@pytest.mark.parametrize("network", NETWORKS)
def test_minimum_norm_attacks_return_the_smallest_success_of_all_iterates(network, objective):
    net = NETWORKS[network]()
    x, t, tau = problem(net, objective)
    for attack in MINIMUM:
        smallest = torch.full((len(x),), math.inf, dtype=torch.float64)

        def watch(points, index, margins):
            assert points.abs().max() <= 0.5
            norms = torch.where(succeeds(margins, objective), sizes(x[index], points), math.inf)
            smallest[index] = torch.minimum(smallest[index], norms)

        result = attack(net, x, t, objective, tau, on_iterate=watch)
        assert torch.equal(result.norm, smallest)
        assert torch.equal(result.success, result.norm.isfinite())
        assert result.success.float().mean() > 0.9
        precise = margin(net.double()(result.adversarial.double()), t, tau, objective)
        net.float()
        assert (precise[result.success] <= 1e-6).all()
        assert torch.equal(result.norm[result.success], sizes(x, result.adversarial)[result.success])


def test_failure_of_a_minimum_norm_attack_is_infinite_and_returns_the_clean_image():
    target = torch.tensor([[1.0, 0.0]])
    x = images(3)
    for attack in MINIMUM:
        result = attack(lambda z: target + 0 * z.flatten(1)[:, :2], x, target.expand(3, 2), "dodging", 0.5)
        assert not result.success.any() and result.norm.isinf().all() and torch.equal(result.adversarial, x)
        assert torch.allclose(result.margin, torch.full((3,), 0.5, dtype=torch.float64))


@pytest.mark.parametrize("attack", [PGD(0.4, restarts=2), APGD(0.4, steps=15), DDN(20), CW(10, 3)],
                         ids=lambda a: type(a).__name__)
def test_a_sample_does_not_depend_on_its_batch(attack):
    net = conv_net().double()
    x, t, tau = problem(net, "untargeted", 7, dtype=torch.float64)
    ids = torch.tensor([11, 5, 3, 100, 42, 8, 9])
    whole = attack(net, x, t, "untargeted", tau, sample_ids=ids, seed=4)
    order = torch.tensor([6, 2, 0, 4, 1, 3, 5])
    parts = [attack(net, x[part], t[part], "untargeted", tau, sample_ids=ids[part], seed=4) for part in order.split(3)]
    assert torch.allclose(torch.cat([p.adversarial for p in parts]), whole.adversarial[order], atol=1e-9)
    assert sum(p.forward_passes for p in parts) == whole.forward_passes
    again = attack(net, x, t, "untargeted", tau, sample_ids=ids, seed=4)
    assert torch.equal(again.adversarial, whole.adversarial)
    other = attack(net, x, t, "untargeted", tau, sample_ids=ids, seed=5)
    assert not torch.equal(other.adversarial, whole.adversarial)


def test_budgets_of_samples_are_their_own():
    net, eps = isometry(torch.float64), torch.tensor([0.05, 0.4, 1.0, 3.0])
    x, t, tau = problem(net, "dodging", 4, dtype=torch.float64)
    whole = PGD(eps, steps=10)(net, x, t, "dodging", tau)
    for i, budget in enumerate(eps.tolist()):
        alone = PGD(budget, steps=10)(net, x[i:i + 1], t[i:i + 1], "dodging", tau, sample_ids=[i])
        assert torch.allclose(alone.adversarial, whole.adversarial[i:i + 1], atol=1e-9)


# strength

def hypersphere_pairs(n, norm, dtype=torch.float64, angles=(0.1, 1.3)):
    """Images of equal norm inside the box, with targets at known angles under the isometry."""
    net = isometry(dtype)
    x = torch.randn(n, *SHAPE, generator=generator(1), dtype=torch.float64)
    side = torch.randn(n, *SHAPE, generator=generator(2), dtype=torch.float64)
    x = attacks.unit(x)
    side = attacks.unit(side - x * (side * x).sum((1, 2, 3), keepdim=True))
    theta = torch.linspace(*angles, n, dtype=torch.float64)
    y = x * theta.cos().view(-1, 1, 1, 1) + side * theta.sin().view(-1, 1, 1, 1)
    return net, (norm * x).to(dtype), net(y.to(dtype)).detach(), theta


@pytest.mark.parametrize("objective", ["dodging", "impersonation"])
@pytest.mark.parametrize("attack", [DDN(), CW()], ids=["ddn", "cw"])
def test_minimum_norm_on_an_isometry_is_the_distance_to_the_cone(attack, objective):
    net, x, t, theta = hypersphere_pairs(12, 1.2, angles=(0.1, 1.3) if objective == "dodging" else (0.5, 1.7))
    boundary = 1.4 if objective == "dodging" else 0.4
    optimum = 1.2 * (theta - boundary).abs().sin()
    norm = attack(net, x, t, objective, math.cos(boundary)).norm
    assert (norm >= optimum * (1 - 1e-9)).all()
    assert (norm / optimum).median() < 1.01 and (norm / optimum).max() < 1.02


@pytest.mark.parametrize("attack", [DDN(), CW()], ids=["ddn", "cw"])
def test_untargeted_minimum_norm_on_an_isometry(attack):
    net, x, _, _ = hypersphere_pairs(8, 1.2)
    norm = attack(net, x, net(x).detach(), "untargeted", 0.3).norm
    optimum = 1.2 * math.sqrt(1 - 0.3 ** 2)
    assert (norm >= optimum * (1 - 1e-9)).all() and norm.max() < 1.02 * optimum


def test_cw_succeeds_on_an_isometry_with_the_embedding_norm_of_the_paper():
    net, x, t, _ = hypersphere_pairs(60, 3.24, torch.float32)
    inside = x.clamp(-0.5, 0.5)
    result = CW(100, binary_search_steps=5)(net, inside, t, "dodging", 0.23)
    assert result.success.float().mean() >= 0.99


def test_fixed_budget_attacks_succeed_just_above_the_optimum_and_never_below():
    net, x, t, theta = hypersphere_pairs(12, 1.2)
    tau = math.cos(1.4)
    optimum = 1.2 * (theta - 1.4).abs().sin()
    for build in (PGD, functools.partial(APGD, steps=20)):
        assert build(1.01 * optimum)(net, x, t, "dodging", tau).success.all()
        assert not build(0.999 * optimum)(net, x, t, "dodging", tau).success.any()


def reference_pgd(net, x, t, objective, tau, eps, steps, step, seed):
    """A plain textbook PGD: random start in the ball, constant steps along the normalised gradient, last iterate."""
    noise = torch.randn(x.shape, generator=generator(seed))
    length = eps * torch.rand(len(x), generator=generator(seed + 1)) / noise.flatten(1).norm(dim=1)
    points = (x + noise * length.view(-1, 1, 1, 1)).clamp(-0.5, 0.5)
    sign = 1 if objective == "impersonation" else -1
    for _ in range(steps):
        points = points.detach().requires_grad_()
        gradient, = torch.autograd.grad(sign * F.cosine_similarity(net(points), t).sum(), points)
        delta = points.detach() + step * F.normalize(gradient.flatten(1)).view_as(x) - x
        delta = delta * (eps / delta.flatten(1).norm(dim=1).clamp_min(1e-12)).clamp_max(1).view(-1, 1, 1, 1)
        points = (x + delta).clamp(-0.5, 0.5)
    return succeeds(margin(net(points).detach(), t, tau, objective), objective)


@pytest.mark.parametrize("objective", attacks.OBJECTIVES)
@pytest.mark.parametrize("network", ["sll", "conv"])
def test_pgd_reaches_a_plain_pgd_and_apgd_both(network, objective):
    net = NETWORKS[network]().requires_grad_(False)
    x, t, tau = problem(net, objective, 48)
    eps = DDN(60)(net, x, t, objective, tau).norm.median().item() * 1.02
    ours = PGD(eps)(net, x, t, objective, tau).success.sum()
    for factor in (1.25, 2.5):
        theirs = reference_pgd(net, x, t, objective, tau, eps, 20, factor * eps / 20, 5)
        assert ours >= theirs.sum()
        adaptive = APGD(eps, steps=20)(net, x, t, objective, tau)
        assert adaptive.success.sum() >= theirs.sum()
        plain = PGD(eps, step_size=factor * eps / 20)(net, x, t, objective, tau)
        assert adaptive.success.sum() >= plain.success.sum()


def reference_cw(net, x, t, objective, tau, steps, searches, lr=0.01):
    """A plain C&W: squared norm, torch's Adam, binary search over c from 1, restarted at the image for each c."""
    best = torch.full((len(x),), math.inf, dtype=torch.float64)
    c, low, high = torch.ones(len(x)), torch.zeros(len(x)), torch.full((len(x),), math.inf)
    for _ in range(searches):
        w = (torch.atanh(2 * x * 0.999999) + 1e-4 * torch.randn(x.shape, generator=generator(1))).requires_grad_()
        adam, found = torch.optim.Adam([w], lr=lr), torch.zeros(len(x), dtype=torch.bool)
        for _ in range(steps):
            points = torch.tanh(w) / 2
            m = margin(net(points), t, tau, objective)
            loss = ((points - x) ** 2).sum((1, 2, 3)) + c * m.clamp_min(0)
            wins = succeeds(m.detach(), objective)
            best = torch.where(wins, torch.minimum(best, sizes(x, points.detach())), best)
            found |= wins
            w.grad, = torch.autograd.grad(loss.sum(), w)
            adam.step()
        low, high = torch.where(found, low, c), torch.where(found, c, high)
        c = torch.where(high.isfinite(), (low + high) / 2, 10 * c)
    return best


@pytest.mark.parametrize("objective", attacks.OBJECTIVES)
@pytest.mark.parametrize("build, steps, searches", [(sll_net, 50, 5), (conv_net, 100, 9)])
def test_medians_are_no_larger_than_those_of_a_plain_cw(objective, build, steps, searches):
    net = build().requires_grad_(False)
    x, t, tau = problem(net, objective, 12)
    theirs = reference_cw(net, x, t, objective, tau, steps, searches).median()
    for attack in (CW(steps, searches), DDN()):
        assert attack(net, x, t, objective, tau).norm.median() <= 1.0005 * theirs


def test_restarts_only_improve():
    net = conv_net().requires_grad_(False)
    x, t, tau = problem(net, "untargeted", 24)
    for build in (functools.partial(PGD, 0.9, steps=6), functools.partial(APGD, 0.9, steps=6)):
        one, four = (build(restarts=r)(net, x, t, "untargeted", tau) for r in (1, 4))
        assert (four.margin <= one.margin + 1e-6).all() and (four.margin < one.margin - 1e-6).any()


# cost

def test_known_embeddings_and_certificates_save_passes_and_change_no_outcome():
    net = isometry().requires_grad_(False)
    x, t, tau = problem(net, "dodging", 40)
    radius = functools.partial(certification.one_sided_radius, tau=tau)
    distance = (net(x).norm(dim=1).double() * (math.acos(tau) - torch.arccos((F.normalize(net(x)) * F.normalize(t)).sum(1).double())).sin())
    for share in (0.5, 0.9, 0.999, 1.1):  # of the way to the threshold
        attack = PGD(share * distance, steps=20)
        plain = attack(net, x, t, "dodging", tau)
        spared = attack(net, x, t, "dodging", tau, clean=net(x), radius=radius)
        assert torch.equal(plain.success, spared.success) and plain.success.all() == (share > 1)
        assert spared.forward_passes <= plain.forward_passes - len(x)
        assert share != 0.5 or spared.backward_passes < plain.backward_passes
    far_away = PGD(1e-3, steps=20)(net, x, t, "dodging", tau, clean=net(x), radius=radius)
    assert far_away.forward_passes <= len(x)
    lying = PGD(2 * distance, steps=20)(net, x, t, "dodging", tau, radius=lambda norms, angles: torch.full_like(norms, 1e9))
    assert not lying.success.any() and lying.forward_passes == 2 * len(x)
    with pytest.raises(InputError, match="clean"):
        PGD(1.0)(net, x, t, "dodging", tau, clean=t[:3])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_cw_in_half_precision(dtype):
    weight = torch.randn(16, 48, generator=torch.Generator().manual_seed(0))
    x = torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(1)) - 0.5
    norms = []
    for kind in (torch.float32, dtype):
        seen = []
        result = CW(60, 4)(lambda z: z.flatten(1) @ weight.T.to(z.dtype), x.to(kind), (x.flatten(1) @ weight.T).to(kind), "untargeted", 0.5,
                           on_iterate=lambda points, index, margins: seen.append(points))
        assert result.success.all() and all(((p >= -0.5) & (p <= 0.5)).all() for p in seen)
        norms.append(result.norm)
    assert (norms[1] <= 1.1 * norms[0]).all()


def test_samples_that_are_done_cost_nothing_more():
    net = isometry().requires_grad_(False)
    x, t, tau = problem(net, "dodging", 10)
    clean_wrong = t.clone()
    clean_wrong[:4] = -net(x[:4])
    batches = []

    def embed(z):
        batches.append(len(z))
        return net(z)

    result = PGD(5.0, steps=20)(embed, x, clean_wrong, "dodging", tau)
    assert result.success.all() and (result.norm[:4] == 0).all() and torch.equal(result.adversarial[:4], x[:4])
    assert batches == sorted(batches, reverse=True) and batches[:2] == [10, sum(result.norm > 0)]
    assert result.forward_passes == sum(batches) < 10 * 21 / 2
    assert result.backward_passes == sum(batches) - 10
    hopeless = PGD(1e-4, steps=20)(net, x, t, "dodging", min(tau, -0.5))
    assert (hopeless.forward_passes, hopeless.backward_passes) == (10 * 22, 10 * 20)
    for attack in (*MINIMUM, APGD(1.0, steps=5)):
        untouched = attack(net, x[:4], clean_wrong[:4], "dodging", tau)
        assert untouched.forward_passes == 4 and untouched.backward_passes == 0 and (untouched.norm == 0).all()


# degenerate networks

@pytest.mark.parametrize("attack", [PGD(0.5), APGD(0.5, steps=8), DDN(20), CW(15, 3), PublishedPGD(0.5),
                                    PublishedCW(5)], ids=lambda a: type(a).__name__)
def test_zero_constant_and_not_finite_embeddings(attack):
    x = images(4)
    target = torch.eye(4)[:, :3].contiguous()
    target[3] = target[0]

    def embed(z):
        e = z.flatten(1)[:, :3]
        scale = torch.tensor([0.0, 1.0, math.nan, math.inf])[:len(z), None]
        return e * scale if len(z) == 4 else e * 0

    for objective in attacks.OBJECTIVES:
        result = attack(embed, x, target, objective, 0.9)
        assert result.adversarial.isfinite().all() and result.adversarial.abs().max() <= 0.5
        assert not result.margin.isnan().any() and not result.norm.isnan().any()
    constant = attack(lambda z: target, x, target, "dodging", 0.5)
    assert not constant.success.any() and constant.adversarial.isfinite().all()


def test_a_dead_region_is_left_by_a_random_direction():
    """relu that is dead at the clean image: no gradient, yet the target is near."""
    def embed(z):
        return torch.relu(z.flatten(1)[:, :2])

    x = torch.zeros(6, *SHAPE)
    x[:, 0, 0, :2] = -1e-3
    target = torch.tensor([[1.0, 1.0]]).expand(6, 2)
    for attack in (PGD(0.5, steps=40), DDN()):
        assert attack(embed, x, target, "impersonation", 0.6).success.any()

    def pooled(z):  # its gradient is an expanded view of one number a channel
        return torch.relu(z.sum((2, 3)))

    assert PGD(0.5)(pooled, x[:2] - 1e-3, torch.ones(2, 3), "impersonation", 0.6).adversarial.isfinite().all()


# state of the caller

@pytest.mark.parametrize("attack", [PGD(0.3, steps=3), DDN(3), CW(3, 2), PublishedPGD(0.3, steps=2)],
                         ids=lambda a: type(a).__name__)
@pytest.mark.parametrize("wrap", [lambda net: net, lambda net: net.forward, lambda net: functools.partial(net.forward)],
                         ids=["module", "method", "partial"])
def test_everything_is_left_as_found(attack, wrap):
    net = conv_net()
    net[3].train()
    net[0].weight.requires_grad_(False)
    net[6].weight.grad = torch.full_like(net[6].weight, 2.0)
    x, t, tau = problem(net.eval(), "dodging")
    net[3].train()
    x.requires_grad_()
    state = {name: v.clone() for name, v in net.state_dict().items()}
    flags, modes = [p.requires_grad for p in net.parameters()], [m.training for m in net.modules()]
    before, random_state = x.detach().clone(), torch.get_rng_state()

    def check():
        assert [p.requires_grad for p in net.parameters()] == flags and [m.training for m in net.modules()] == modes
        assert all(torch.equal(v, state[name]) for name, v in net.state_dict().items())
        assert x.grad is None and torch.equal(x, before) and (net[6].weight.grad == 2).all()
        assert all(p.grad is None for p in net.parameters() if p is not net[6].weight)
        assert torch.equal(torch.get_rng_state(), random_state) and torch.is_grad_enabled()

    result = attack(wrap(net), x, t, "dodging", tau)
    assert not result.adversarial.requires_grad and result.adversarial.data_ptr() != x.data_ptr()
    check()

    def interrupt(points, index, margins):
        assert not any(p.requires_grad for p in net.parameters()) and not any(m.training for m in net.modules())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attack(wrap(net), x, t, "dodging", tau, on_iterate=interrupt)
    check()
    with torch.no_grad():
        assert torch.equal(attack(wrap(net), x, t, "dodging", tau).adversarial, result.adversarial)


def test_float64_and_other_shapes_and_boxes():
    net = isometry(torch.float64)
    x, t, tau = problem(net, "dodging", dtype=torch.float64)
    assert DDN(10)(net, x, t, "dodging", tau).adversarial.dtype == torch.float64
    shifted = CW(10, 2)(lambda z: net(z - 0.5), x + 0.5, t, "dodging", tau, box=(0.0, 1.0))
    assert shifted.adversarial.min() >= 0 and shifted.success.any()
    flat = PGD(1.0)(net[1], x.flatten(1), t, "dodging", tau)
    assert torch.allclose(flat.margin, PGD(1.0)(net, x, t, "dodging", tau).margin) or flat.success.all()
    for attack in (PGD(1.0), DDN(), CW(), PublishedPGD(1.0), PublishedCW()):
        empty = attack(net, x[:0], t[:0], "dodging", tau)
        assert empty.adversarial.shape == (0, *SHAPE) and empty.forward_passes == 0 and len(empty.norm) == 0


# the published protocol

def literal_pgd(net, x, t, objective, eps, steps, factor=1.25):
    points = x.clone()
    sign = 1 if objective == "impersonation" else -1
    for _ in range(steps):
        points.requires_grad_()
        gradient, = torch.autograd.grad(F.cosine_similarity(net(points), t).mean(), points)
        gradient = gradient / (gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1) + 1e-6)
        delta = points.detach() + sign * factor * eps / steps * gradient - x
        points = x + delta * (eps / delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1).clamp_min(1e-12)).clamp_max(1)
    return points.clamp(-0.5, 0.5)


@pytest.mark.parametrize("objective", ["dodging", "impersonation"])
def test_published_pgd_is_the_literal_loop(objective):
    net = conv_net().double().requires_grad_(False)
    x, t, tau = problem(net, objective, dtype=torch.float64)
    x = x.clone()
    x[:, 0] = 0.499  # so that clipping in between would differ
    left_box = []
    result = preset("pgd-20", 0.8, "paper")(net, x, t, objective, tau,
                                            on_iterate=lambda p, i, m: left_box.append((p.abs().max() > 0.5).item()))
    expected = literal_pgd(net, x, t, objective, 0.8, 20)
    assert torch.allclose(result.adversarial, expected, atol=1e-7)
    assert torch.equal(result.success, succeeds(margin(net(expected), t, tau, objective), objective))
    assert any(left_box) and not left_box[-1]
    assert result.forward_passes == 21 * len(x) and result.backward_passes == 20 * len(x)
    one_step = preset("fgsm", 0.8, "paper")(net, x, t, objective, tau)
    assert torch.allclose(one_step.adversarial, literal_pgd(net, x, t, objective, 0.8, 1, factor=1), atol=1e-7)


@pytest.mark.parametrize("objective", attacks.OBJECTIVES)
def test_published_cw_is_the_literal_loop(objective):
    net = conv_net().double().requires_grad_(False)
    x, t, tau = problem(net, objective, dtype=torch.float64)
    w = torch.atanh(2 * x.clamp(-0.5 + 1e-6, 0.5 - 1e-6)).requires_grad_()
    adam = torch.optim.Adam([w], lr=0.01)
    for _ in range(30):
        delta = torch.tanh(w) / 2 - x
        cos = F.cosine_similarity(net(torch.tanh(w) / 2), t)
        hinge = torch.relu(1 - cos - 0.05 if objective == "impersonation" else cos - 0.05)
        w.grad, = torch.autograd.grad((delta.flatten(1).norm(dim=1) + 3 * hinge).sum(), w)
        adam.step()
    result = preset("cw-30", protocol="paper")(net, x, t, objective, tau)
    expected = (torch.tanh(w) / 2).detach()
    if objective != "untargeted":  # there the first step is along rounding noise
        assert torch.allclose(result.adversarial, expected, atol=1e-6)
        assert torch.equal(result.success, succeeds(margin(net(expected), t, tau, objective), objective))
    assert torch.equal(result.norm.isfinite(), result.success)
    assert result.forward_passes == 31 * len(x)


# presets and bad input

def test_presets():
    assert isinstance(preset("pgd-20", 0.5), PGD) and preset("pgd-20", 0.5).steps == 20
    assert isinstance(preset("cw-100"), CW) and preset("cw-100").steps == 100
    assert type(preset("cw-100", protocol="paper")) is PublishedCW
    assert type(preset("pgd", 0.5, "paper")) is PublishedPGD and type(preset("fgsm", 0.5, "paper")) is PublishedFGSM
    assert type(preset("apgd", 0.5, "paper")) is APGD and preset("apgd-50", 0.5, restarts=3).restarts == 3
    assert preset("ddn-7").steps == 7 and type(preset("fgsm", 0.5)) is FGSM and preset("fgsm", 0.5).steps == 1


@pytest.mark.parametrize("call, word", [
    (lambda: preset("bim", 0.5), "bim"), (lambda: preset("pgd-", 0.5), "pgd-"),
    (lambda: preset("pgd", 0.5, "lax"), "lax"), (lambda: preset("pgd"), "budget"),
    (lambda: preset("cw", 0.5), "smallest"), (lambda: PGD(0.0), "eps"), (lambda: PGD(math.inf), "eps"),
    (lambda: PGD(torch.tensor([1.0, -1.0])), "eps"), (lambda: PGD(1.0, steps=0), "steps"),
    (lambda: PGD(1.0, restarts=0), "restarts"), (lambda: CW(binary_search_steps=0), "binary_search_steps"),
    (lambda: CW(lr=0.0), "lr"), (lambda: DDN(init_norm=math.nan), "init_norm")])
def test_settings_that_cannot_be_used(call, word):
    with pytest.raises(InputError, match=word):
        call()


@pytest.mark.parametrize("change, word", [
    ({"objective": "evasion"}, "evasion"), ({"tau": 1.0}, "tau"), ({"tau": math.nan}, "tau"),
    ({"images": images(3, amplitude=0.9)}, "outside"), ({"images": images(3) * math.nan}, "not finite"),
    ({"images": torch.zeros(3, *SHAPE, dtype=torch.uint8)}, "uint8"), ({"targets": torch.ones(2, DIM)}, "3"),
    ({"sample_ids": [0, 1]}, "2 sample_ids"), ({"sample_ids": [0, 1, -4]}, "-4"),
    ({"eps": torch.ones(2)}, "2 budgets")])
def test_calls_that_cannot_be_answered(change, word):
    given = {"images": images(3), "targets": torch.ones(3, DIM), "objective": "impersonation", "tau": 0.99, **change}
    attack = PGD(given.pop("eps", 0.5))
    with pytest.raises(InputError, match=word):
        attack(isometry(), **given)
