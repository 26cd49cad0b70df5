"""Training on noisy and on attacked images: the noise, the attack of a step, the TRADES loss, and what it does for people not trained on."""
import json
import math
from functools import partial

import numpy as np
import pytest
import small_world
import tiny_training
import torch
import torch.nn.functional as F
from processes import in_processes, train_as_ranks
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import ablation
import augmentation
import losses
import train
from adversarial import BOX, RANDOM_START, Adversary, of_other_images
from attacks import PGD, preset, project
from attacks_base import project_at_once
from augmentation import noisy, normals_like
from backbones import get_backbone
from config import config
from utils.distributed import rank
from utils.images import encode_image
from utils.philox import normals, philox
from utils.recordio import RecordWriter, pack
from utils.utils_callbacks import CallBackVerification

LOW = 0xFFFFFFFF
# seven persons of a batch, -1 being nobody; 3 is alone
LABELS = torch.tensor([0, 1, 0, -1, 3, 1, 0, -1])


def images(count=8, size=(3, 16, 16), seed=0, dtype=torch.float32):
    return torch.rand(count, *size, generator=torch.Generator().manual_seed(seed), dtype=dtype) - 0.5


# ---- random numbers

def by_whole_numbers(counter, key):
    """Philox4x32-10 with Python's integers, as the paper has it."""
    a, b, c, d = counter
    left, right = key
    for _ in range(10):
        high, low = divmod(0xD2511F53 * a, 2**32)
        other_high, other_low = divmod(0xCD9E8D57 * c, 2**32)
        a, b, c, d = other_high ^ b ^ left, other_low, high ^ d ^ right, low
        left, right = (left + 0x9E3779B9) % 2**32, (right + 0xBB67AE85) % 2**32
    return [a, b, c, d]


# the known answers that the authors publish with their code (Random123, philox4x32 with 10 rounds)
@pytest.mark.parametrize("counter, key, expected", [
    ([0] * 4, (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([LOW] * 4, (LOW, LOW), [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    ([0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], (0xA4093822, 0x299F31D0), [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1])])
def test_philox_gives_the_published_words(counter, key, expected):
    assert [int(word) for word in philox([torch.tensor(word) for word in counter], key)] == expected == by_whole_numbers(counter, key)


def test_a_normal_number_is_a_function_of_its_place_alone():
    seed, step, stream, rows = 2**40 + 7, 11, 1, torch.tensor([3, 2**31, 5])
    found = normals(rows, 10, seed, step, stream)
    assert found.shape == (3, 10) and found.dtype == torch.float32
    for i, row in enumerate(rows.tolist()):
        for j in range(10):
            words = by_whole_numbers([j // 4, row, step, stream], (seed & LOW, seed >> 32))[j % 4 // 2 * 2:][:2]
            first, second = ((word + 0.5) / 2**32 for word in words)
            turn = (math.cos, math.sin)[j % 2]
            assert found[i, j].item() == pytest.approx(math.sqrt(-2 * math.log(first)) * turn(2 * math.pi * second), abs=3e-6)
    assert torch.equal(normals(rows[1:2], 7, seed, step, stream), found[1:2, :7])
    others = [normals(rows, 10, *key) for key in ((seed + 1, 11, 1), (seed + 2**32, 11, 1), (seed, 12, 1), (seed, 11, 0))]
    assert all((found != other).all() for other in others)


def test_the_numbers_are_normal_and_independent():
    z = normals(torch.arange(300), 1000, 0, 0, 0).double()
    assert abs(z.mean()) < 0.01 and abs(z.square().mean() - 1) < 0.015 and abs(z.pow(3).mean()) < 0.03 and abs(z.pow(4).mean() - 3) < 0.06
    below = torch.distributions.Normal(0.0, 1.0).cdf(z).flatten().sort().values
    assert (below - torch.linspace(0, 1, below.numel())).abs().max() < 0.004, "Kolmogorov and Smirnov at 300,000 numbers, 1e-4"
    for rows in (z[:, :200].T, z[:, :200]):
        correlations = torch.corrcoef(rows) - torch.eye(len(rows))
        assert correlations.abs().max() < 6 / math.sqrt(rows.shape[1])


# ---- noise

def test_noise_has_its_sigma_and_is_not_clipped():
    batch = images(4, (3, 40, 40)).contiguous(memory_format=torch.channels_last)
    before = batch.clone()
    found = noisy(batch, 0.25, seed=3, step=8)
    assert torch.equal(batch, before) and found.is_contiguous(memory_format=torch.channels_last) and found.abs().max() > 1
    assert (found - batch).std().item() == pytest.approx(0.25, rel=0.02)
    assert torch.allclose(noisy(batch, 0.5, 3, 8) - batch, 2 * (found - batch), atol=1e-6), "the same noise, twice as strong"
    assert torch.equal(noisy(batch.contiguous(), 0.25, 3, 8), found), "whatever the layout of the batch"
    assert noisy(batch, 0.0, 3, 8) is batch
    assert not torch.equal(noisy(batch, 0.25, 3, 9), found) and not torch.equal(noisy(batch, 0.25, 4, 8), found)


def test_ranks_add_the_noise_of_one_process(monkeypatch):
    batch = images(6)
    whole, starts = noisy(batch, 0.5, 0, 5), normals_like(batch, 0, 5, 1)
    monkeypatch.setattr(augmentation, "world_size", lambda: 3)
    for number in range(3):
        monkeypatch.setattr(augmentation, "rank", lambda number=number: number)
        assert torch.equal(noisy(batch[number::3], 0.5, 0, 5), whole[number::3])
        assert torch.equal(normals_like(batch[number::3], 0, 5, 1), starts[number::3])


# ---- the attack of a step

class Loose(nn.Sequential):
    """[N, 3, 16, 16] -> [N, 8] with batch normalisation and dropout, in training mode; both change what comes out there."""

    def __init__(self, seed=0):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            super().__init__(nn.Conv2d(3, 8, 4, 2), nn.BatchNorm2d(8), nn.Tanh(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(392, 8))
            with torch.no_grad():
                self[1].running_mean += 0.1 * torch.randn(8)
                self[1].running_var *= 1.5


def adversary(kind="pgd", eps=0.5, steps=10, step_size=None, network=None, parts=1, seed=0):
    network = network or Loose()
    return Adversary(kind, PGD(eps, steps, step_size), network, network, parts, seed)


def cosines(network, points, targets):
    return F.cosine_similarity(network(points).double(), targets.double())


@pytest.mark.parametrize("size", [(3, 16, 16), (1, 4, 4), (3, 112, 112)])
@pytest.mark.parametrize("eps", [1e-3, 0.25, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_projection_at_once_is_inside_and_next_to_the_exact_one(size, eps, dtype):
    batch, far = images(6, size, dtype=dtype), images(6, size, seed=1, dtype=dtype)
    batch[0] = 0.5
    budget = torch.full((6,), eps, dtype=torch.float64)
    for points in (batch, batch + far, batch + 1e-4 * far, batch + 1e4 * far):
        found = project_at_once(points, batch, budget, BOX)
        assert (found.double() - batch.double()).flatten(1).norm(dim=1).max() <= eps and found.abs().max() <= 0.5
        assert torch.allclose(found, project(points, batch, budget, BOX), atol=3e-5 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("kind", ["pgd", "trades"])
@pytest.mark.parametrize("eps, step_size", [(0.25, None), (1.5, None), (0.5, 0.2)])
def test_adversarial_images_keep_to_the_budget_and_beat_brute_force(kind, eps, step_size):
    batch, network = images(), Loose()
    batch[0, :, :8] = 0.5
    found = adversary(kind, eps, 10, step_size, network)(batch, LABELS, step=4)
    if kind == "trades":
        assert torch.equal(found[:8], batch)
        found = found[8:]
    assert found.shape == batch.shape and found.abs().max() <= 0.5
    assert (found.double() - batch.double()).flatten(1).norm(dim=1).max() <= eps
    network.eval().requires_grad_(False)
    # the targets by hand: of pgd the next image of the person
    clean = network(batch)
    targets = clean if kind == "trades" else clean[[2, 5, 6, 3, 4, 1, 0, 7]]
    reached, generator = cosines(network, found, targets), torch.Generator().manual_seed(1)
    at_random = torch.stack([cosines(network, project(batch + 10 * torch.randn(batch.shape, generator=generator), batch,
                                                      torch.full((8,), eps, dtype=torch.float64), BOX), targets) for _ in range(300)])
    assert (reached < at_random.amin(0)).all() and (reached < cosines(network, batch, targets) - 0.01).all()
    strong = preset("pgd-100", eps=eps, restarts=3)(network, batch, targets, "dodging", -0.999)
    best = strong.margin - 0.999
    assert ((reached - best) / (1 - best)).median() < 0.25, "most of what a hundred steps, from three starts, reach"


def test_the_least_cosine_of_a_linear_map_is_reached():
    """For z -> z + c in two dimensions it has a closed form: the angle at the origin of the tangent to the disc of what is reached."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(2, 2))
    with torch.no_grad():
        network[1].weight.copy_(torch.eye(2))
        network[1].bias.copy_(torch.tensor([1.0, 0.5]))
    batch = images(5, (2, 1, 1)) * 0.4
    found = adversary("trades", 0.2, 40, network=network)(batch, torch.zeros(5, dtype=torch.long), 0)[5:]
    clean = network(batch).detach()
    assert torch.allclose(cosines(network, found, clean), torch.cos(torch.asin(0.2 / clean.double().norm(dim=1))), atol=1e-4)


def test_the_network_is_left_as_it_was_and_seen_as_it_is_deployed():
    network, batch = Loose(), images()
    network[3].eval()
    network[0].bias.requires_grad_(False)
    state = {key: value.clone() for key, value in network.state_dict().items()}
    modes, asking = [module.training for module in network.modules()], [p.requires_grad for p in network.parameters()]
    drawn = torch.get_rng_state()
    whole = adversary(network=network)(batch, LABELS, 0)
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert modes == [module.training for module in network.modules()] and asking == [p.requires_grad for p in network.parameters()]
    assert all(p.grad is None for p in network.parameters()) and torch.equal(drawn, torch.get_rng_state())
    assert not whole.requires_grad
    network[1].running_mean += 1
    assert not torch.allclose(adversary(network=network)(batch, LABELS, 0), whole, atol=1e-3), "through the running means"


@pytest.mark.parametrize("kind", ["pgd", "trades"])
def test_parts_do_not_change_the_images(kind):
    batch = images()
    whole, parts = (adversary(kind, parts=parts)(batch, LABELS, 0) for parts in (1, 3))
    assert torch.allclose(whole, parts, atol=1e-4)
    assert not torch.allclose(adversary(kind)(batch, LABELS, 1), whole, atol=1e-4), "another step starts elsewhere"
    assert not torch.allclose(adversary(kind, seed=1)(batch, LABELS, 0), whole, atol=1e-4)


def test_of_other_images_by_loops():
    embeddings = torch.arange(8.0)[:, None]
    expected = []
    for i in range(8):
        order = [(i + k) % 8 for k in range(1, 8)]
        expected.append(next((j for j in order if LABELS[j] == LABELS[i] >= 0), i))
    assert of_other_images(embeddings, LABELS).flatten().tolist() == expected == [2, 5, 6, 3, 4, 1, 0, 7]


class Waits(TorchDispatchMode):
    """Notes what makes the host wait for a device: a number read, or a shape that depends on values."""
    found = ()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        masks = name.startswith(("index", "_index")) and any(each is not None and each.dtype == torch.bool for each in args[1])
        if masks or name in ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "unique", "_to_cpu"):
            self.found = (*self.found, name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["pgd", "trades"])
def test_the_host_waits_for_no_device(kind):
    attack = adversary(kind)
    with Waits() as waits:
        noisy(attack(images(), LABELS, 0), 0.1, 0, 0)
    assert waits.found == ()
    with Waits() as waits:
        project(images(), images(), torch.ones(8).double(), BOX)
    assert "_local_scalar_dense" in waits.found or "is_nonzero" in waits.found, "the check sees the wait of the exact projection"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_it_works_in_half_precision(dtype):
    batch, network = images(), Loose()

    def embed(points):
        with torch.autocast("cpu", dtype):
            return network(points)
    found = Adversary("trades", PGD(1.0, 10), network, embed, 1, 0)(batch, LABELS, 0)[8:]
    assert found.dtype == torch.float32 and (found.double() - batch.double()).flatten(1).norm(dim=1).max() <= 1.0
    exact = adversary("trades", 1.0, network=network)(batch, LABELS, 0)[8:]
    network.eval()
    clean = network(batch)
    half, full = (1 - cosines(network, points, clean).detach() for points in (found, exact))
    assert (half > 0.8 * full).all() and half.min() > 0.01


def test_a_gradient_that_is_not_finite_moves_nothing():
    class Broken(Loose):
        def forward(self, points):
            factor = torch.where(points.flatten(1)[:, :1].abs() < 2, 1.0, 0.0)
            return super().forward(points) * (points[:, 0, 0, :1] * 0).sqrt() + super().forward(points) * factor  # d sqrt(0): inf * 0
    batch = images()
    found = adversary("trades", network=Broken())(batch, LABELS, 0)[8:]
    assert found.isfinite().all() and ((found - batch).flatten(1).norm(dim=1) < 1.01 * RANDOM_START * 0.5).all()


def _of_a_rank(number, folder):
    """Rank `number`'s part of the batch, its running means being wrong on all but the first."""
    network = Loose()
    if rank():
        network[1].running_mean += 3
    found = adversary(network=network)(images()[number::2], LABELS[number::2], 0)
    torch.save((found, network[1].running_mean), f"{folder}/{number}.pt")


def test_ranks_attack_as_one_process_does(tmp_path):
    """Other images of a person are found on other ranks, and rank 0's running means hold, which are those that a state has."""
    network = Loose()
    whole = adversary(network=network)(images(), LABELS, 0)
    in_processes(_of_a_rank, tmp_path, 2)
    for number in range(2):
        found, mean = torch.load(tmp_path / f"{number}.pt")
        assert torch.allclose(found, whole[number::2], atol=1e-4) and torch.equal(mean, network[1].running_mean)


# ---- the loss

def test_the_trades_loss_and_its_gradient_are_the_definition():
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(10, 7, generator=generator, dtype=torch.float64)
    weight, labels = torch.randn(3, 7, generator=generator, dtype=torch.float64), torch.arange(5) % 3

    def by_loops(numbers):
        total = 0.0
        for i in range(5):
            e, moved = numbers[i], numbers[5 + i]
            logits = np.array([row @ e for row in weight.numpy()])
            total += np.log(np.exp(logits - logits[labels[i]]).sum()) / 5
            total += 10 * max(0.0, -3 * math.log(math.sqrt(e @ e) / 3)) / 5
            total += 6 * 2 * (1 - e @ moved / math.sqrt((e @ e) * (moved @ moved))) / 5
        return total

    leaf = embeddings.clone().requires_grad_()
    loss, regulariser, norm = losses.trades(lambda e, y: e @ weight.T, leaf, labels, beta=6.0, lambda_=10.0, xi=3.0)
    loss.backward()
    numbers = embeddings.numpy()
    assert loss.item() == pytest.approx(by_loops(numbers), rel=1e-12)
    assert norm.item() == pytest.approx(np.linalg.norm(numbers[:5], axis=1).mean()) and regulariser > 0
    for i, j in np.ndindex(10, 7):
        high, low = numbers.copy(), numbers.copy()
        high[i, j] += 1e-6
        low[i, j] -= 1e-6
        assert leaf.grad[i, j].item() == pytest.approx((by_loops(high) - by_loops(low)) / 2e-6, abs=1e-7)


def test_an_adversarial_embedding_that_is_not_finite_skips_the_step():
    embeddings = torch.ones(4, 3)
    embeddings[3] = torch.inf
    embeddings.requires_grad_()
    loss, *_ = losses.trades(lambda e, y: e, embeddings, torch.zeros(2, dtype=torch.long), beta=1.0, lambda_=0.0, xi=0.0)
    loss.backward()
    assert not loss.isfinite() and embeddings.grad[:2].isnan().all()


# ---- training

def write_faces(folder, people, count, seed):
    """train.rec with `count` images of each of `people`: a coarse pattern that an attack does not reach, a fine one that it does, noise.
    Returns the images [people, count, 3, 16, 16] in [-0.5, 0.5].
    """
    generator = torch.Generator().manual_seed(seed)
    coarse = F.interpolate(0.1 * torch.randn(people, 3, 2, 2, generator=generator), size=(16, 16))
    fine = 0.03 * torch.randn(people, 3, 16, 16, generator=generator)
    faces = (coarse + fine)[:, None] + 0.02 * torch.randn(people, count, 3, 16, 16, generator=generator)
    pixels = ((faces.clamp(-0.5, 0.5) + 0.5) * 255).round().byte()
    folder.mkdir()
    with RecordWriter(folder / "train") as writer:
        writer.write(0, pack([people * count + 1, people * count + 1 + people]))
        for number, image in enumerate(pixels.flatten(0, 1)):
            writer.write(number + 1, pack(number // count, number + 1, encode_image(image, "png")))
    return pixels / 255 - 0.5


SETTINGS = [*tiny_training.SETTINGS, "backbone=loose", "xi=0", "lambda_=0", "header=cosface", "header_args={'s': 16.0, 'm': 0.1}", "lr=3e-3",
            "batch_size=16", "partners=True", "adversarial_eps=1.6"]
KINDS = {"noise": ["noise_sigma=0.1"], "pgd": ["adversarial=pgd", "adversarial_steps=3"], "trades": ["adversarial=trades", "adversarial_steps=3"]}


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "faces"
    write_faces(folder, 40, 6, seed=0)
    return folder


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def settings(faces, output, *more):
    given = {setting.partition("=")[0]: setting for setting in (*SETTINGS, f"rec={faces}", f"output={output}", *more)}
    return list(given.values())


def weights(output):
    return torch.load(output / "model_final.pt", weights_only=True)


def era(network, faces, eps):
    """TAR and ERA in percent of true pairs [people, 2, 3, 16, 16], one image each attacked, at a threshold for a FAR of 5 %."""
    left, right = network(faces[:, 0]), network(faces[:, 1])
    similar = F.normalize(left) @ F.normalize(right).T
    tau = similar[~torch.eye(len(faces), dtype=torch.bool)].quantile(0.95).item()
    result = preset("pgd-20", eps=eps)(network, faces[:, 0], right, "dodging", tau)
    return [100 * share.double().mean().item() for share in (similar.diag() > tau, ~result.success)]


def test_it_resists_attacks_on_people_not_trained_on(faces, tmp_path):
    others = write_faces(tmp_path / "others", 40, 2, seed=1)
    found = {}
    for name, more in {"plain": [], "pgd": ["adversarial=pgd"], "trades": ["adversarial=trades"]}.items():
        assert train.run(config, settings(faces, tmp_path / name, "num_epoch=12", "batch_size=32", *more)) == 0
        network = get_backbone("loose")
        network.load_state_dict(weights(tmp_path / name))
        found[name] = era(network.eval().requires_grad_(False), others, 1.6)
    assert all(tar > 95 for tar, _ in found.values()), found
    assert found["plain"][1] < 20 and found["pgd"][1] > 30 and found["trades"][1] > 60, found


class Interrupted(Exception):
    pass


def interrupt(*_):
    raise Interrupted


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backbone", ["loose", "with_batch_norm", "tiny"])
def test_a_resumed_run_ends_bitwise_where_an_uninterrupted_one_does(faces, tmp_path, monkeypatch, kind, backbone):
    same = (*KINDS[kind], f"backbone={backbone}", "num_epoch=1", "save_steps=4", "verbose=1000")
    assert train.run(config, settings(faces, tmp_path / "whole", *same)) == 0
    with monkeypatch.context() as patch:
        patch.setattr(CallBackVerification, "__call__", interrupt)
        with pytest.raises(Interrupted):
            train.run(config, settings(faces, tmp_path / "resumed", *same, "verbose=6"))
    assert train.run(config, settings(faces, tmp_path / "resumed", *same, "resume=auto")) == 0
    for key, value in weights(tmp_path / "whole").items():
        assert torch.equal(value, weights(tmp_path / "resumed")[key]), key


@pytest.mark.parametrize("kind, parts", [("noise", 2), ("pgd", 1), ("trades", 2)])
def test_two_processes_end_with_the_weights_of_one(faces, tmp_path, kind, parts):
    """`tiny` has weights that are computed once a step, for the attack and for the training."""
    same = (*KINDS[kind], "backbone=tiny", "header=arcface", "num_epoch=1", "lr=1e-3")
    assert train.run(config, settings(faces, tmp_path / "one", *same)) == 0
    train_as_ranks(2, settings(faces, tmp_path / "two", *same, f"grad_accum_steps={parts}"))
    other = weights(tmp_path / "two")
    for key, value in weights(tmp_path / "one").items():
        assert (value - other[key]).norm() <= 2e-3 * value.norm(), key
    assert train.run(config, settings(faces, tmp_path / "plain", *same, *(setting.split("=")[0] + "=" + off for setting, off in
                     zip(KINDS[kind], ("0" if kind == "noise" else "none", "3"))))) == 0
    assert any((value - weights(tmp_path / "plain")[key]).norm() > 1e-2 * value.norm() for key, value in other.items())


def test_weights_that_are_computed_from_others_are_computed_once_a_step(monkeypatch):
    network, counts = small_world.Tiny(), []
    kind = type(network[1])
    compute = kind.compute
    monkeypatch.setattr(kind, "compute", lambda self, *sources: counts.append(0) or compute(self, *sources))
    header = train.get_header("arcface", 3, 32)
    loss_of = partial(losses.objective, header, lambda_=0.0, xi=0.0)
    labels = torch.arange(8) % 3
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    train.backward(network, network, loss_of, images(), labels, 1, scaler)
    once = len(counts)
    train.backward(network, network, loss_of, images(), labels, 1, scaler, partial(adversary(network=network), step=0))
    assert len(counts) == 2 * once > 0


@pytest.mark.parametrize("more, message", [
    (["adversarial=fgsm"], "adversarial=fgsm: expected one of none, pgd, trades"), (["adversarial_eps=0"], "adversarial_eps=0.0: expected a positive"),
    (["adversarial_eps=inf"], "adversarial_eps"), (["adversarial_steps=0"], "at least 1"), (["adversarial_step_size=-1"], "adversarial_step_size=-1.0"),
    (["noise_sigma=-0.1"], "noise_sigma=-0.1: expected a finite number"), (["noise_sigma=nan"], "noise_sigma"), (["trades_beta=-1"], "trades_beta"),
    (["noise_sigma=0.1", "adversarial=pgd"], "noise_sigma=0.1: expected 0 with adversarial=pgd"), (["noise=0.1"], "noise_sigma")])
def test_bad_settings_end_in_one_line(faces, tmp_path, capsys, more, message):
    assert train.run(config, settings(faces, tmp_path / "out", *more)) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error


def test_states_from_before_go_on_without_and_a_changed_budget_is_refused(faces, tmp_path, capsys):
    assert train.run(config, settings(faces, tmp_path, "num_epoch=1")) == 0
    path = max(tmp_path.glob("state_*.pt"))
    state = torch.load(path, weights_only=True)
    for key in [key for key in state["settings"] if key.startswith(("adversarial", "noise", "trades"))]:
        del state["settings"][key]
    torch.save(state, path)
    assert train.run(config, settings(faces, tmp_path, "num_epoch=1", "adversarial_eps=0.75", "resume=auto")) == 0
    assert train.run(config, settings(faces, tmp_path, "num_epoch=1", "adversarial=pgd", "resume=auto")) == 2
    assert "adversarial was 'none' and is 'pgd'" in capsys.readouterr().err


def test_the_ablation_has_such_networks_on_request(faces, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small_world.write_bin(tmp_path / "some.bin", small_world.faces(16))
    for name in ("train.rec", "train.idx"):
        (tmp_path / name).write_bytes((faces / name).read_bytes())
    added = {"smooth25": {"noise_sigma": 0.25}, "smooth50": {"noise_sigma": 0.5}, "pgd": {"adversarial": "pgd"}, "trades": {"adversarial": "trades"}}
    plain = ablation.RUNS["net"].settings
    for name, settings_of_it in added.items():
        run = ablation.RUNS[name]
        assert {**plain, **settings_of_it}.items() <= run.settings.items() and not run.constrained and name not in ablation.config.runs
    assert ablation.run(["runs=['pgd', 'smooth50']", "data=.", "unconstrained=loose", "num_epoch=1", "batch_size=16", "fars=[0.5]", "limit=2",
                         "cw_limit=1", "device=cpu", "output=out"]) == 0
    stamps = [json.loads((tmp_path / f"out/{name}/train/complete.json").read_text()) for name in ("pgd", "smooth50")]
    assert [(stamp.get("noise_sigma"), stamp.get("adversarial")) for stamp in stamps] == [(None, "pgd"), (0.5, None)]
    table = (tmp_path / "out/tables.md").read_text().split("### Under PGD", 1)[1]
    assert all(f"| unconstrained, {name} " in table for name in ("noise 0.5", "PGD training"))
