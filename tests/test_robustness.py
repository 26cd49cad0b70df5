"""`python -m eval attack`: its columns against attacks run pair by pair, its figures against its columns."""
import contextlib
import math
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from processes import command_as_ranks
from small_world import command, faces, summary_of, world, write_bin  # noqa: F401

import attacks
import backbones
import backbones.custom_layers as layers
import eval.__main__ as command_line
from backbones import get_backbone, load_network
from eval import records, robustness, verification
from eval.evaluation import Evaluation
from eval.store import journal
from utils import InputError
from utils.images import decode_image

BUDGETS = ("--eps-u", "1.45", "1.6", "--eps", "0.06", "0.3")


def read(folder):
    """pairs, images, summary and, where there are any, single attacks."""
    pairs, images = (pd.read_csv(folder / f"{name}.csv", float_precision="round_trip") for name in ("pairs", "images"))
    tries = folder / "attacks.csv"
    tries = pd.read_csv(tries, float_precision="round_trip", dtype={"settings": str}) if tries.exists() else None
    return pairs, images, summary_of(folder), tries


def tries_of(tries, name, row):
    """The single attacks on a row of pairs or images."""
    kind = {"untargeted": "u", "dodging": "d", "impersonation": "i"}[objective(row)]
    return tries[(tries.attack == name) & (tries.kind == kind) & (tries.row == row.Index)]


def robust(tries, name, table, eps):
    """Which rows are right and never fell at a budget up to eps."""
    fell = [bool((tries_of(tries, name, row).success & (tries_of(tries, name, row).eps <= eps)).any()) for row in table.itertuples()]
    return right(table) & ~pd.Series(fell, index=table.index, dtype=bool)


def smallest(tries, name, table):
    """The norm of the smallest success of each row, 0 where its decision is wrong."""
    found = []
    for row, fine in zip(table.itertuples(), right(table)):
        mine = tries_of(tries, name, row)
        found.append(mine.norm[mine.success].min() if fine and mine.success.any() else math.inf if fine else 0.0)
    return pd.Series(found, index=table.index, dtype=float)


def plain_images(world, flip=False):
    images = verification.read_bin(world / "faces.bin").images
    batch = (torch.stack([decode_image(data, "") for data in images]).float() - 127.5) / 255
    return batch.flip(-1) if flip else batch


def sides(row):
    """(attacked, compared with) of a row, by image number."""
    return [(row.left, row.right), (row.right, row.left)] if hasattr(row, "left") else [(row.image, row.image)]


def objective(row):
    return "untargeted" if not hasattr(row, "same") else "dodging" if row.same else "impersonation"


def right(table):
    return table.accepted == table.same if "same" in table else table.norm > 0


def lower(values):
    return sorted(values)[(len(values) - 1) // 2]


@pytest.mark.parametrize("name", ["pgd", "apgd", "fgsm"])
def test_robust_is_what_resists_attacks_on_either_image(world, name):
    network, images = load_network("tiny", world / "tiny.pt"), plain_images(world)
    assert command(world, "attack", "--attack", name, *BUDGETS) == 0
    pairs, photos, summary, tries = read(world / "out")
    for table, budgets in ((photos, (1.45, 1.6)), (pairs, (0.06, 0.3))):
        for row, fine in zip(table.itertuples(), right(table)):
            standing = fine
            for eps in budgets:
                for side, (x, y) in enumerate(sides(row)):
                    result = attacks.preset(name, eps)(network, images[[x]], network(images[[y]]), objective(row), 0.3,
                                                       sample_ids=[2 * row.Index + side])
                    standing &= not bool(result.success)
                assert robust(tries, name, table, eps)[row.Index] == standing
    found = robust(tries, name, pairs, 0.3)
    assert 0 < found.sum() < right(pairs).sum() and (name == "fgsm" or 0 < summary["era_u"][name][1.6] < 1)


@pytest.mark.parametrize("protocol", ["strict", "paper"])
def test_every_figure_follows_from_the_csv_files(world, protocol):
    for name in ("pgd", "cw", "ddn"):
        more = () if name == "pgd" else ("--steps", "8")
        assert command(world, "attack", "--attack", name, "--protocol", protocol, *BUDGETS, *more) == 0
    pairs, images, summary, tries = read(world / "out")
    assert len(pairs) == 12 * (1 + (protocol == "paper")) and list(summary["attacks"]) == ["pgd", "cw", "ddn"]
    for kind, table in (("u", images), ("d", pairs[pairs.same]), ("i", pairs[~pairs.same])):
        fine = right(table)
        norms = {name: smallest(tries, name, table) for name in ("cw", "ddn")}
        for eps in (1.45, 1.6) if kind == "u" else (0.06, 0.3):
            at = tries[(tries.eps == eps) if protocol == "paper" else (tries.eps <= eps)]
            assert summary[f"era_{kind}"]["pgd"][eps] == robust(at, "pgd", table, eps).mean()
            radius = table.radius_u if kind == "u" else table.radius
            for name in ("cw", "ddn"):
                assert summary[f"era_{kind}"][name][eps] == (fine & (norms[name] > eps)).mean()
            assert all(era[eps] >= (radius > eps).mean() for era in summary[f"era_{kind}"].values())
        for name in ("cw", "ddn"):
            mine = tries[(tries.attack == name) & (tries.kind == kind)]
            if (protocol, name) != ("paper", "cw"):
                counted, missing = norms[name][fine].tolist(), math.inf
                never = (fine & (norms[name] == math.inf)).mean()
                assert set(mine.row) <= set(table.index[fine])
            else:
                counted, missing = mine.norm[mine.success].tolist(), None
                asked = mine[mine.side == "left"] if kind == "d" else mine
                never = 1 - asked.row[asked.success].nunique() / len(table)
                assert len(mine) == len(table) * (1 if kind == "u" else 2)
            median = lower(counted) if counted else missing
            found = summary[f"med_attack_{kind}"][name]
            assert found == (None if median == math.inf else median)
            assert (found is None) == (f"med_attack_{kind}.{name}" in summary["reasons"])
            assert summary[f"never_{kind}"][name] == pytest.approx(never, abs=1e-12)
    assert any(summary[f"med_attack_{kind}"]["ddn"] for kind in "udi")
    expected = {"steps": 20, "restarts": 1, "seed": 0, "limit": None, "skip": True}
    assert summary["attacks"]["pgd"].items() >= expected.items()
    assert {name: set(tries.settings[tries.attack == name]) for name in summary["attacks"]} == {
        name: {entry["settings"]} for name, entry in summary["attacks"].items()}


def test_published_cw_counts_each_side_by_its_own_success(world):
    network, images = load_network("tiny", world / "tiny.pt"), plain_images(world)
    assert command(world, "attack", "--attack", "cw", "--protocol", "paper", "--steps", "8", *BUDGETS) == 0
    pairs, _, _, tries = read(world / "out")
    counted = set()
    for row in pairs[~pairs.flipped].itertuples():
        results = [attacks.preset("cw", protocol="paper", steps=8)(network, images[[x]], network(images[[y]]),
                                                                    objective(row), 0.3) for x, y in sides(row)]
        found = tries_of(tries, "cw", row).set_index("side")
        for result, (x, _), side in zip(results, sides(row), ("left", "right")):
            assert found.success[side] == bool(result.success)
            norm = float((result.adversarial - images[[x]]).norm()) if result.success else math.inf
            assert found.norm[side] == pytest.approx(norm, rel=1e-4, abs=1e-4)
            counted.add((row.same, side, bool(result.success)))
    assert {(True, "left", True), (True, "left", False), (True, "right", True)} <= counted


def test_the_published_median_of_dodging_is_over_the_successes_of_both_sides():
    """One pair, two successes on the right and one on the left among three pairs: norms 2.0 on the left, 1.0 and 3.0 on the right."""
    pairs = pd.DataFrame({"same": [True] * 3, "accepted": True, "norm_left": 1.0, "norm_right": 1.0, "flipped": False})
    single = [(0, "left", True, 2.0), (0, "right", False, 9.0), (1, "left", False, 9.0), (1, "right", True, 1.0), (2, "left", False, 9.0),
              (2, "right", True, 3.0)]
    tries = pd.DataFrame([{"kind": "d", "row": row, "side": side, "attack": "cw", "eps": math.nan, "success": done,
                           "norm": norm if done else math.inf, "seed": 0, "settings": "0" * 12} for row, side, done, norm in single])
    entry = {"eps": [0.5], "eps_u": [0.5], "minimum_norm": True, "published": True, "limit": None, "settings": "0" * 12}
    found = records.Records(pairs, pd.DataFrame({"norm": [1.0]}), {"attacks": {"cw": entry}}, tries)
    summary = robustness.summarise(found)
    assert summary["med_attack_d"]["cw"] == 2.0  # of 1, 2 and 3
    assert summary["never_d"]["cw"] == pytest.approx(2 / 3)  # the left image's success is asked twice


def test_certificates_stand_beside_the_published_cw_whatever_the_norms(world):
    draw, images = torch.Generator().manual_seed(1), []
    for _ in range(8):  # true pairs 50 degrees apart, whose norms differ: the attack on one side only finds anything
        u, v = torch.linalg.qr(torch.randn(768, 2, generator=draw))[0].T
        angle = torch.tensor(50.0).deg2rad()
        for x in (2 * u, 4 * (angle.cos() * u + angle.sin() * v)):
            images.append((x.view(3, 16, 16) * 255 + 127.5).round().clamp(0, 255).byte())
    write_bin(world / "faces.bin", torch.stack(images), 8)
    assert command(world, "attack", "--attack", "cw", "--protocol", "paper", backbone="tight", tau="0.231") == 0
    pairs, _, summary, tries = read(world / "out")
    for kind in "udi":
        assert all(summary[f"era_{kind}"]["cw"][eps] >= share for eps, share in summary[f"cra_{kind}"].items())
    true, tries = pairs[pairs.same], tries[tries.kind == "d"]
    assert (tries.success & (tries.side == "left")).any() and (smallest(tries, "cw", true) > true.radius).all()


def test_certifying_again_keeps_what_attacks_found(world, capsys):
    assert command(world, "attack", "--attack", "pgd", *BUDGETS) == 0
    pairs, images, before, tries = read(world / "out")
    assert command(world, "certify", *BUDGETS) == 0
    again = read(world / "out")
    pd.testing.assert_frame_equal(pairs, again[0])
    pd.testing.assert_frame_equal(images, again[1])
    pd.testing.assert_frame_equal(tries, again[3])
    assert again[2]["attacks"] == before["attacks"] and again[2]["era_d"] == before["era_d"]
    capsys.readouterr()
    for changes, key in (({"backbone": "tight"}, "backbone"), ({"tau": "0.4"}, "tau")):
        assert command(world, "certify", **changes) == 2
        message = capsys.readouterr().err
        assert "summary.json" in message and key in message
    assert read(world / "out")[2] == again[2]


def test_certifying_again_replaces_what_was_not_attacked(world, capsys):
    assert command(world, "certify") == 0 and command(world, "certify", tau="0.4") == 0
    assert read(world / "out")[2]["tau"] == 0.4
    assert command(world, "certify", backbone="tight") == 2 and "backbone" in capsys.readouterr().err


def test_skipping_what_is_certified_changes_costs_only(world):
    assert command(world, "attack", "--attack", "pgd", "--limit", "5", *BUDGETS, out="skip") == 0
    assert command(world, "attack", "--attack", "pgd", "--limit", "5", "--no-skip", *BUDGETS, out="all") == 0
    (pairs, images, summary, tries), (pairs_all, images_all, summary_all, tries_all) = read(world / "skip"), read(world / "all")
    pd.testing.assert_frame_equal(pairs, pairs_all)
    pd.testing.assert_frame_equal(images, images_all)
    some, every = summary["attacks"]["pgd"], summary_all["attacks"]["pgd"]
    assert some["forward_passes"] < every["forward_passes"] and some["backward_passes"] < every["backward_passes"]
    assert len(tries) < len(tries_all)
    # the first five of each kind were attacked, and these alone
    for kind, table in (("u", images), ("d", pairs[pairs.same]), ("i", pairs[~pairs.same])):
        assert set(tries_all.row[tries_all.kind == kind]) == set(table.index[:5][right(table)[:5]])
        for eps in (1.45, 1.6) if kind == "u" else (0.06, 0.3):
            assert robust(tries, "pgd", table[:5], eps).tolist() == robust(tries_all, "pgd", table[:5], eps).tolist()
            assert summary[f"era_{kind}"]["pgd"][eps] == robust(tries, "pgd", table[:5], eps).mean()
    chosen = pairs[pairs.same][:5]
    assert some["skipped"]["d"][0.3] == ((chosen.radius == 0) | (chosen.radius > 0.3)).mean()
    assert every["skipped"]["d"][0.3] == (chosen.radius == 0).mean()
    assert summary["cra_attacked_d"]["pgd"] == {eps: (chosen.radius > eps).mean() for eps in (0.06, 0.3)}


def plain_pgd(network, image, target, tau, eps, sign, generator):
    """20 steps of 1.25 eps / 20 along the normalised gradient of the cosine from a random point of the ball."""
    delta = torch.randn(image.shape, generator=generator)
    delta *= eps * torch.rand((), generator=generator) / delta.norm()
    for _ in range(20):
        delta.requires_grad_(True)
        cosine = torch.nn.functional.cosine_similarity(network(image + delta), target).sum()
        gradient, = torch.autograd.grad(cosine, delta)
        delta = delta.detach() - sign * 1.25 * eps / 20 * gradient / gradient.norm().clamp_min(1e-20)
        delta = delta * min(1.0, eps / float(delta.norm()))
        delta = (image + delta).clamp(-0.5, 0.5) - image
    with torch.no_grad():
        cosine = torch.nn.functional.cosine_similarity(network(image + delta), target)
    return bool(cosine <= tau) if sign > 0 else bool(cosine > tau)


@pytest.mark.parametrize("backbone", ["tiny", "loose"])
def test_an_independent_pgd_breaks_no_more(world, backbone):
    network, images = load_network(backbone, world / f"{backbone}.pt"), plain_images(world)
    assert command(world, "attack", "--attack", "pgd", *BUDGETS, backbone=backbone, tau="0.4") == 0
    pairs, photos, _, tries = read(world / "out")
    generator, beaten, fallen = torch.Generator().manual_seed(1), 0, 0
    for table, eps in ((photos, 1.45), (photos, 1.6), (pairs, 0.06), (pairs, 0.3)):
        for row in table[right(table)].itertuples():
            sign = -1 if objective(row) == "impersonation" else 1
            plain = not any(plain_pgd(network, images[[x]], network(images[[y]]).detach(), 0.4, eps, sign, generator)
                            for x, y in sides(row))
            ours = robust(tries, "pgd", table.loc[[row.Index]], eps)[row.Index]
            beaten += bool(ours and not plain)
            fallen += not ours
    assert beaten <= 1 and fallen > 5


def test_an_interrupted_run_goes_on_where_it_was(world, monkeypatch, capsys):
    arguments = ("attack", "--attack", "apgd", "--steps", "6", "--no-skip", *BUDGETS)
    assert command(world, *arguments, out="whole") == 0
    attack, calls = attacks.Attack.__call__, []

    def interrupted(self, *args, **options):
        calls.append(len(args[1]))
        if len(calls) == 7:
            raise KeyboardInterrupt
        return attack(self, *args, **options)

    monkeypatch.setattr(attacks.Attack, "__call__", interrupted)
    capsys.readouterr()
    assert command(world, *arguments) == 130
    message = capsys.readouterr().err
    assert "goes on" in message and len(message.splitlines()) == 2  # after what it was to cost
    part = world / "out" / ".attack_apgd.rank0.jsonl"
    before = part.read_text()
    part.write_text(before + '{"stage": "u/0/1.')  # as if the machine had stopped in the middle of a line
    assert len(before.splitlines()) == 7 and read(world / "out")[3] is None
    assert command(world, *arguments) == 0
    whole, resumed = read(world / "whole"), read(world / "out")
    for one, other in zip((*whole[:2], whole[3]), (*resumed[:2], resumed[3])):
        pd.testing.assert_frame_equal(one, other)
    assert whole[2] == resumed[2] and not part.exists()
    done = sum(calls)
    calls.clear()
    assert command(world, *arguments) == 0 and not calls and done  # all is there


def test_a_part_of_other_settings_is_not_taken_up(tmp_path):
    samples = pd.DataFrame({"row": [0, 1, 2]}, index=[0, 2, 4])

    def work(batch):
        return journal.Outcome(pd.DataFrame({"norm": batch["row"] * 1.0}, index=batch.index), 1, 1)

    first = journal.Journal(tmp_path, "x", {"seed": 0})
    assert first.run("u", samples[:2], work, 2, lambda rows: None)["norm"].tolist() == [0, 1]
    again = journal.Journal(tmp_path, "x", {"seed": 0})
    assert again.run("u", samples, work, 2, lambda rows: None)["norm"].tolist() == [0, 1, 2]
    assert again.passes == {"forward_passes": 2, "backward_passes": 2}
    other = journal.Journal(tmp_path, "x", {"seed": 1})
    assert other.passes == {"forward_passes": 0, "backward_passes": 0}
    other.remove()
    assert list(tmp_path.iterdir()) == []


def test_batches_are_the_same_on_any_number_of_processes_and_after_an_interruption(tmp_path, monkeypatch):
    samples = pd.DataFrame({"row": range(11)})

    def batches(folder, ranks, stop=99):
        made = []

        def work(batch):
            if len(made) == stop:
                raise KeyboardInterrupt
            made.append(batch.index.tolist())
            return journal.Outcome(pd.DataFrame({"norm": 1.0}, index=batch.index), 1, 1)

        folder.mkdir(exist_ok=True)
        monkeypatch.setattr(journal, "world_size", lambda: ranks)
        journals = []
        for number in range(ranks):  # all are open before one of them writes, as behind their barrier
            monkeypatch.setattr(journal, "rank", lambda: number)
            journals.append(journal.Journal(folder, "x", {}))
        for number, part in enumerate(journals):
            monkeypatch.setattr(journal, "rank", lambda: number)
            with contextlib.suppress(KeyboardInterrupt, KeyError):  # the rows of other ranks are missing, as they do not really run
                part.run("u", samples, work, 4, lambda rows: None)
        return sorted(made)

    whole = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    for ranks in (1, 2, 3, 5):
        assert batches(tmp_path / str(ranks), ranks) == whole
    assert batches(tmp_path / "stopped", 1, stop=2) + batches(tmp_path / "stopped", 1) == whole


def test_budgets_and_attacks_accumulate_and_other_settings_replace(world):
    for eps in ("0.3", "0.06"):
        assert command(world, "attack", "--attack", "pgd", "--eps-u", "1.6", "--eps", eps) == 0
    assert command(world, "attack", "--attack", "ddn", "--steps", "5", *BUDGETS) == 0
    pairs, images, summary, tries = read(world / "out")
    assert list(summary["era_d"]["pgd"]) == [0.06, 0.3] and list(summary["era_u"]["pgd"]) == [1.6]
    assert {(row.attack, row.kind, row.eps) for row in tries.fillna(0).itertuples()} == {
        ("pgd", "u", 1.6), *(("pgd", kind, eps) for kind in "di" for eps in (0.06, 0.3)), *(("ddn", kind, 0) for kind in "udi")}
    assert not tries.duplicated(["attack", "kind", "eps", "row", "side"]).any()
    assert (robust(tries, "pgd", pairs, 0.06) >= robust(tries, "pgd", pairs, 0.3)).all()
    assert command(world, "attack", "--attack", "pgd", "--eps-u", "1.6", "--eps", "0.1", "--seed", "3") == 0
    _, _, summary, tries = read(world / "out")
    mine = tries[(tries.attack == "pgd") & (tries.kind != "u")]
    assert set(mine.eps) == {0.1} and set(mine.seed) == {3} and "ddn" in set(tries.attack)
    assert summary["attacks"]["pgd"]["eps"] == [0.1]


def test_results_of_something_else_are_refused(world, capsys):
    assert command(world, "attack", "--attack", "fgsm") == 0
    before = (world / "out" / "summary.json").read_bytes()
    write_bin(world / "other.bin", faces(16, contrast=0.9))
    torch.save(get_backbone("tiny").state_dict(), world / "again.pt")
    capsys.readouterr()
    for changes, more, key in (({"bin": "other.bin"}, (), "bin_sha256"), ({"tau": "0.4"}, (), "tau"),
                               ({}, ("--weights", str(world / "again.pt")), "weights_sha256"),
                               ({}, ("--protocol", "paper"), "protocol"), ({"backbone": "tight"}, (), "backbone"),
                               ({"tau": None}, ("--far", "0.1"), "far_target")):
        for what in (("attack", "--attack", "pgd"), ("audit",)):
            assert command(world, *what, *more, **changes) == 2
            message = capsys.readouterr().err
            assert "summary.json" in message and key in message, message
    assert (world / "out" / "summary.json").read_bytes() == before
    assert command(world, "attack", "--attack", "pgd", *BUDGETS, tau=None) == 0  # the threshold is that of the records


def test_bad_settings_end_in_one_line(world, capsys):
    for more, expected in ((("--attack", "cw", "--restarts", "2"), "restarts"),
                           (("--attack", "fgsm", "--steps", "3"), "one step"),
                           (("--attack", "pgd", "--eps", "-1"), "--eps"),
                           (("--attack", "pgd", "--eps-u", "0"), "--eps-u"),
                           (("--attack", "pgd", "--limit", "0"), "--limit"), (("--attack", "bim"), "bim"),
                           (("--attack", "pgd", "--tau", "1"), "--tau")):
        try:
            status = command(world, "attack", *more)
        except SystemExit as error:
            status = error.code
        assert status == 2 and expected in capsys.readouterr().err.strip().splitlines()[-1]


def test_networks_without_certificates_have_empirical_figures_only(world, capsys):
    for what in ("certify", "audit"):
        assert command(world, what, backbone="loose") == 2
        assert "not 1-Lipschitz" in capsys.readouterr().err and not (world / "out").exists()
    assert command(world, "attack", "--attack", "pgd", *BUDGETS, backbone="loose") == 0
    assert command(world, "attack", "--attack", "ddn", *BUDGETS, "--steps", "20", backbone="loose") == 0
    pairs, images, summary, _ = read(world / "out")
    assert "radius" not in pairs and "radius_u" not in images and {"cosine", "norm_left", "accepted"} <= set(pairs)
    assert summary["med_u"] is None and summary["cra_d"] == {0.06: None, 0.3: None}
    assert "not 1-Lipschitz" in summary["reasons"]["cra_u"] and 0 <= summary["era_u"]["pgd"][1.6] < 1
    assert summary["med_attack_u"]["ddn"] > 0


@pytest.mark.parametrize("kind", ["d", "i"])
def test_one_kind_of_pairs_and_embeddings_without_direction(world, kind):
    images = faces(16)
    images[0], images[5] = 255, 0  # "invalid" embeds the first as zero and the second as nothing finite
    write_bin(world / "faces.bin", images)
    content = verification.read_bin(world / "faces.bin")
    keep = content.same == (kind == "d")
    encoded = [content.images[k] for pair in zip(content.left[keep], content.right[keep]) for k in pair]
    (world / "faces.bin").write_bytes(pickle.dumps((encoded, content.same[keep].tolist())))
    for name in ("pgd", "ddn"):
        assert command(world, "attack", "--attack", name, "--steps", "5", "--eps", "1e-6", "--eps-u", "1e-6",
                       "--no-skip", backbone="invalid", tau="0.9" if kind == "i" else "-0.9") == 0
    pairs, photos, summary, tries = read(world / "out")
    invalid = (pairs.norm_left == 0) | (pairs.norm_right == 0)
    assert summary["n_invalid_embeddings"] == 2 and 0 < invalid.sum() < len(pairs)
    missing, = {"d", "i"} - {kind}
    for name in ("pgd", "ddn"):
        assert summary[f"era_{missing}"][name] == {1e-06: None} and f"era_{missing}.{name}" in summary["reasons"]
        assert summary[f"era_{kind}"][name] == {1e-06: (~invalid).mean()}
        assert summary["era_u"][name] == {1e-06: (photos.norm > 0).mean()}
    assert robust(tries, "pgd", pairs, 1e-6)[~invalid].all() and not set(tries.row[tries.kind != "u"]) & set(pairs.index[invalid])


def test_certified_decisions_that_fall_are_pointed_out(world, monkeypatch, capsys):
    assert command(world, "certify") == 0
    rescaled = layers.rescaled
    for module in (backbones, records):
        monkeypatch.setattr(module, "lipschitz_bound", lambda *_: 1.0)  # which would not let it pass
    monkeypatch.setattr(layers, "rescaled", lambda w, *others: (3 * rescaled(w, *others)[0], rescaled(w, *others)[1]))
    assert command(world, "attack", "--attack", "pgd", "--no-skip", *BUDGETS) == 0
    assert "certified decisions fell" in capsys.readouterr().err


def test_the_number_of_processes_changes_nothing(tmp_path):
    write_bin(tmp_path / "faces.bin", faces(28))
    torch.manual_seed(0)
    torch.save(get_backbone("sllnet_mnist").state_dict(), tmp_path / "weights.pt")
    arguments = ["attack", "--bin", str(tmp_path / "faces.bin"), "--backbone", "sllnet_mnist",
                 "--weights", str(tmp_path / "weights.pt"), "--device", "cpu", "--num-workers", "0", "--far", "0.3",
                 "--attack", "pgd", "--eps-u", "0.1", "0.3", "--eps", "0.005", "0.02", "--no-skip", "--steps", "4",
                 "--batch-size", "5"]
    for ranks in (1, 2):
        printed = command_as_ranks(ranks, command_line.main, [*arguments, "--out", str(tmp_path / str(ranks))])
        assert printed.count("ERA") == 6
    one, two = read(tmp_path / "1"), read(tmp_path / "2")
    for table, other in zip((*one[:2], one[3]), (*two[:2], two[3])):
        pd.testing.assert_frame_equal(table, other, rtol=1e-5, atol=1e-6)
    assert one[2]["attacks"] == two[2]["attacks"] and one[2]["era_i"] == two[2]["era_i"]
    assert not list((tmp_path / "2").glob(".*"))


def test_attacks_refuse_budgets_that_are_none(world):
    with pytest.raises(InputError, match="eps"):
        robustness.build_attack("pgd", "strict", {}, np.float64(-1))
    pair_set, network = verification.read_bin(world / "faces.bin"), load_network("tiny", world / "tiny.pt")
    for wrong in ({"eps": [-1]}, {"eps_u": [0]}, {"eps": [0.1, math.nan]}, {"eps": [math.inf]}):
        with pytest.raises(InputError, match="eps"):
            records.certify(network, pair_set, Evaluation(tau=0.3, **wrong))
    for far in (0.0, -1.0, 1.0, math.nan):
        with pytest.raises(InputError, match="far"):
            records.certify(network, pair_set, Evaluation(far=far))
