"""A header dealt out to processes: losses, gradients, training and states are those of one that every process holds."""
import math
from pathlib import Path

import pytest
import tiny_training
import torch
import torch.nn.functional as F
from processes import in_processes, train_as_ranks

import losses
import sharding
import train
from config import config
from headers import HEADERS, get_header
from sharding import Shard, drawn_rows, shard_of
from utils import InputError, distributed, sharded_states
from utils.distributed import world_size
from utils.faults.guard import StepGuard, agree_on_skipping

CLASSES, SIZE, BATCH, STEPS = 11, 6, 8, 3
ALL = {"arcface": {"s": 8.0}, "cosface": {"s": 8.0}, "naive": {"max_length": 0.9}, "adacos": {}, "ecosface": {"s": 8.0, "std": 0.2},
       "ecosface published": {"s": 8.0, "std": 0.2, "assign": "published"}, "emma": {"s": 8.0, "m": 0.1}}
SETTINGS = [*tiny_training.SETTINGS, "num_epoch=1", "header_args={'std': 0.1}"]


def numbers(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def header_of(name, shard=None):
    header = get_header(name.split()[0], CLASSES, SIZE, run_seed=3, shard=shard, **ALL[name]).double()
    with torch.no_grad():
        rows = numbers(CLASSES, SIZE, seed=1)
        header.weight.copy_(rows[shard.first:shard.last] if shard else rows)
    return header


def steps_of(header, rank, world):
    """[loss, gradient of the embeddings, gradient of the rows, s] of three steps on this rank's samples."""
    found = []
    for step in range(STEPS):
        embeddings, labels = numbers(BATCH, SIZE, seed=10 + step), torch.randint(CLASSES, (BATCH,), generator=torch.Generator().manual_seed(step))
        own = embeddings[rank::world].clone().requires_grad_()
        header.step, header.weight.grad = step, None
        loss = losses.objective(header, own, labels[rank::world], 0.0, 0.0)[0]
        loss.backward()
        found.append([loss.detach(), own.grad / world, header.weight.grad.clone(), torch.as_tensor(header.s).clone()])
    return found


def unequal_gradients(rank, world):
    """Whether nothing changed, and what was counted, where the gradient of one process is not finite."""
    header = get_header("cosface", 4, 2, shard=shard_of(4, rank, world))
    optimizer, scaler = torch.optim.AdamW(header.parameters(), 1.0), torch.amp.GradScaler("cpu", init_scale=1.0)
    scaler.scale(torch.ones(1))
    header.weight.grad = torch.full_like(header.weight, math.inf if rank == 1 else 1.0)
    before, guard = header.weight.detach().clone(), StepGuard((header,), 5, overflows=False)
    guard.begin()
    scaler.unscale_(optimizer)
    agree_on_skipping(scaler, optimizer)
    guard.end(torch.tensor(1.0), header)
    scaler.step(optimizer)
    return [torch.equal(header.weight, before), guard.counts.tolist()]


def _work(rank, folder):
    world = world_size()
    found = {name: steps_of(header_of(name, shard_of(CLASSES, rank, world)), rank, world) for name in ALL}
    torch.save({**found, "unequal": unequal_gradients(rank, world)}, f"{folder}/{world}_{rank}.pt")


@pytest.fixture(scope="module", params=[1, 4])
def processes(request, tmp_path_factory):
    """What each process found."""
    folder, world = tmp_path_factory.mktemp("processes"), request.param
    if world == 1:
        return [{name: steps_of(header_of(name, shard_of(CLASSES, 0, 1)), 0, 1) for name in ALL}]
    in_processes(_work, folder, world)
    return [torch.load(folder / f"{world}_{rank}.pt") for rank in range(world)]


@pytest.mark.parametrize("name", ALL)
def test_losses_and_gradients_are_those_of_one_header(processes, name):
    world = len(processes)
    for step, (loss, of_embeddings, of_rows, scale) in enumerate(steps_of(header_of(name), 0, 1)):
        found = [process[name][step] for process in processes]
        assert sum(values[0] for values in found) / world == pytest.approx(loss.item(), rel=1e-12)
        for rank, values in enumerate(found):
            assert torch.allclose(values[1], of_embeddings[rank::world], rtol=1e-9, atol=1e-13)
            assert torch.allclose(values[3].double(), scale.double(), rtol=1e-12)
        assert torch.allclose(torch.cat([values[2] for values in found]), of_rows, rtol=1e-9, atol=1e-13) and of_rows.abs().max() > 1e-4


def test_every_header_of_the_project_can_be_sharded():
    assert {HEADERS.find(name.split()[0]).name for name in ALL} == {HEADERS.find(name).name for name in HEADERS.names()}
    with pytest.raises(InputError, match="cannot be sharded"):
        get_header("test_headers:Bare", 3, 4, shard=Shard(0, 2), scale="wide", power=1)
    with pytest.raises(InputError, match="3 classes for 4 processes"):
        shard_of(3, 0, 4)


@pytest.mark.parametrize("block", [1, 100, 2**20])
@pytest.mark.parametrize("shape", [(3, 5), (50, 7), (1000, 3), (40, 16)])
def test_rows_are_drawn_as_if_all_were(monkeypatch, shape, block):
    monkeypatch.setattr(sharding, "_BLOCK", block)
    torch.manual_seed(4)
    whole, after = drawn_rows(*shape, None), torch.rand(3)
    for world in (1, 2, 3):
        parts = []
        for rank in range(world):
            torch.manual_seed(4)
            parts.append(drawn_rows(*shape, shard_of(shape[0], rank, world)))
            assert torch.equal(torch.rand(3), after)
        assert torch.equal(torch.cat(parts), whole)


def test_a_sample_has_the_classes_of_the_batch_and_others_at_random():
    shard = Shard(100, 200, sample_rate=0.2, seed=1)
    labels = torch.tensor([150, 3, 199, -1, 150, 100, 230])
    own = shard.own(labels)
    assert own.tolist() == [50, -1, 99, -1, 50, 0, -1]
    index, columns = shard.sample(own, step=5)
    assert len(index) == 20 and torch.equal(index, index.unique()) and torch.equal(columns >= 0, own >= 0)
    assert torch.equal(index[columns[own >= 0]], own[own >= 0])
    assert torch.equal(shard.sample(own, 5)[0], index) and not torch.equal(shard.sample(own, 6)[0], index)
    seen = torch.cat([shard.sample(own, step)[0] for step in range(200)]).bincount(minlength=100)
    assert (seen[[0, 50, 99]] == 200).all() and seen.min() > 10 and seen[1:50].max() < 70
    few = Shard(0, 100, sample_rate=0.01).sample(torch.arange(30), 0)
    assert torch.equal(few[0], torch.arange(30))


def test_the_loss_of_a_sample_is_over_its_classes():
    header = header_of("cosface", Shard(0, CLASSES, sample_rate=0.5, seed=2))
    embeddings, labels = numbers(2, SIZE).requires_grad_(), torch.tensor([4, 9])
    header.step = 7
    loss = sharding.cross_entropy(header, embeddings, labels)
    index, columns = header.shard.sample(labels, 7)
    assert len(index) == 6 and torch.equal(index[columns], labels)
    cosines = F.normalize(embeddings) @ F.normalize(header.weight[index]).T
    expected = F.cross_entropy(8.0 * (cosines - 0.4 * F.one_hot(columns, 6).double()), columns)
    assert torch.allclose(loss, expected, rtol=1e-12)
    gradient, = torch.autograd.grad(loss, header.weight)
    assert (gradient.abs().sum(1) > 0).nonzero()[:, 0].tolist() == index.tolist()
    header.eval()
    assert header(embeddings, labels).shape == (2, CLASSES)


# the training script ---------------------------------------------------------------------------------------------------------------

def settings(faces, output, *arguments):
    return list({argument.partition("=")[0]: argument for argument in (*SETTINGS, f"rec={faces}", f"output={output}", *arguments)}.values())


def run(faces, output, *arguments):
    return train.run(config, settings(faces, output, *arguments))


def weights(output, name="model_final.pt"):
    return torch.load(Path(output) / name, weights_only=True)


def alike(one, other):
    return one.keys() == other.keys() and all(torch.allclose(one[key], other[key], rtol=1e-4, atol=1e-5) for key in one)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    tiny_training.write_faces(folder)
    assert run(folder, folder / "whole") == 0
    train_as_ranks(4, settings(folder, folder / "four", "header_shards=True", "save_header=True", "keep_states=9"))
    return folder


def test_four_processes_with_a_shard_each_train_what_one_does(world):
    assert alike(weights(world / "four"), weights(world / "whole"))
    assert alike(weights(world / "four", "header_final.pt"), weights(world / "whole", "header_final.pt"))
    assert {path.name for path in (world / "four").glob("state_00000006*")} == \
        {"state_00000006.pt", *(f"state_00000006.shard_{rank}_of_4.pt" for rank in range(4))}
    parts = [torch.load(world / f"four/state_00000006.shard_{rank}_of_4.pt", weights_only=True) for rank in range(4)]
    assert [(part["first"], *part["weight"].shape) for part in parts] == [(first, 3, 32) for first in (0, 3, 6, 9)]
    assert all(part["exp_avg"].shape == part["exp_avg_sq"].shape == (3, 32) for part in parts)
    state = torch.load(world / "four/state_00000006.pt", weights_only=True)
    assert state["header"] == {sharded_states.SHARDS: 4}
    assert sum(values.numel() for moments in state["optimizer"]["state"].values() for values in moments.values()) < 2.2 * sum(
        values.numel() for values in weights(world / "whole").values()), "no moments of the header"


def test_a_state_goes_on_with_another_number_of_processes(world, tmp_path, capsys):
    train_as_ranks(2, settings(world, tmp_path / "two", "header_shards=True", "save_header=True",
                               f"resume={world / 'four/state_00000002.pt'}", "resume_changed=True"))
    assert alike(weights(tmp_path / "two"), weights(world / "whole"))
    assert alike(weights(tmp_path / "two", "header_final.pt"), weights(world / "whole", "header_final.pt"))
    assert run(world, tmp_path / "one", f"resume={world / 'four/state_00000004.pt'}", "resume_changed=True") == 0
    assert alike(weights(tmp_path / "one"), weights(world / "whole"))
    assert alike(weights(tmp_path / "one", "header_final.pt"), weights(world / "whole", "header_final.pt"))


def test_a_state_of_a_whole_header_goes_on_in_shards(world, tmp_path):
    assert run(world, tmp_path / "first", "save_steps=2", "keep_states=9") == 0
    assert run(world, tmp_path / "run", f"resume={tmp_path / 'first/state_00000002.pt'}", "header_shards=True") == 0
    assert alike(weights(tmp_path / "run"), weights(world / "whole"))
    assert not (tmp_path / "run/header_final.pt").exists() and (tmp_path / "run/state_00000006.shard_0_of_1.pt").exists()
    assert len([*(tmp_path / "run").glob("state_*.shard_*")]) == len([*(tmp_path / "run").glob("state_????????.pt")]) == 2, "older ones are gone"


@pytest.mark.parametrize("harm", ["missing", "cut short", "changed in a byte", "of another header", "of another range"])
def test_harmed_shards_are_refused_and_older_states_taken(world, tmp_path, capsys, harm):
    assert run(world, tmp_path / "run", "header_shards=True", "keep_states=9") == 0
    shard = tmp_path / "run/state_00000006.shard_0_of_1.pt"
    content = torch.load(shard, weights_only=True)
    if harm == "missing":
        shard.unlink()
    elif harm == "cut short":
        shard.write_bytes(shard.read_bytes()[:-100])
    elif harm == "changed in a byte":
        data = bytearray(shard.read_bytes())
        place = data.find(content["weight"].numpy().tobytes())
        data[place] ^= 1
        shard.write_bytes(data)
    else:
        content["weight"] = content["weight"][:, :5] if harm == "of another header" else content["weight"]
        torch.save({**content, "first": 3} if harm == "of another range" else content, shard)
    capsys.readouterr()
    found = run(world, tmp_path / "other", f"resume={tmp_path / 'run/state_00000006.pt'}", "header_shards=True")
    said = capsys.readouterr().err.strip().splitlines()
    assert found == 2 and len(said) == 1 and "shard_0_of_1.pt" in said[0]
    if harm == "cut short":
        for name in ("model_final.pt", "training.log"):
            (tmp_path / "run" / name).unlink()
        assert run(world, tmp_path / "run", "header_shards=True", "keep_states=9", "resume=auto") == 0
        assert "skipped, and renamed to .damaged" in (tmp_path / "run/training.log").read_text()
        assert alike(weights(tmp_path / "run"), weights(world / "whole"))


def test_settings_of_shards_are_checked(tmp_path, world, capsys):
    for arguments, words in ((["sample_rate=0"], "sample_rate=0.0"), (["sample_rate=0.5", "header_shards=False"], "sample_rate=0.5"),
                             (["header_shards=maybe"], "header_shards=maybe"), (["sample_rate=nan"], "sample_rate")):
        assert run(world, tmp_path / "run", *arguments) == 2
        assert words in capsys.readouterr().err
    assert run(world, tmp_path / "run", "sample_rate=0.5") == 0
    assert not (tmp_path / "run/header_final.pt").exists() and not alike(weights(tmp_path / "run"), weights(world / "whole"))


def test_a_header_is_sharded_by_itself_where_it_is_large():
    cfg = train.complete({})
    assert not train.is_sharded(cfg, sharding.MANY) and train.is_sharded(cfg, sharding.MANY + 1)
    assert not train.is_sharded(train.complete({"header_shards": False}), 10**6) and train.is_sharded(train.complete({"sample_rate": 0.5}), 10)
    assert not train.is_sharded(train.complete({"header": "test_headers:Bare"}), 10**6)


def test_no_process_makes_a_step_that_another_leaves_out(processes):
    if len(processes) > 1:
        assert [process["unequal"] for process in processes] == [[True, [1, 0, 1]]] * len(processes)


def test_sums_over_no_other_ranks_are_the_values():
    values = torch.tensor([1.0, 2.0], requires_grad=True)
    assert torch.equal(distributed.sum_with_gradient(values), values) and torch.equal(distributed.averaged_gradient(values), values)
    assert torch.equal(distributed.largest_of_ranks(values), values.detach())
