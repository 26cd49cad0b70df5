"""`python -m eval verify` as a user runs it: answers, radii and words against plain arithmetic, pictures, lists, galleries, unusable input."""
import json
import math
import subprocess
import sys
import types
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from small_world import faces, world  # noqa: F401  # a fixture

import eval.__main__ as command_line
from attacks import Attack
from backbones import load_network
from eval import answer
from eval.alignment import FIELD, Face
from eval.sizes import rounded_down, rounded_up, size_in_words
from utils.images import encode_image

TAU = 0.3


@pytest.fixture
def photos(world):  # noqa: F811
    """The world of small networks with images of 16 x 16: two of each of six people, p0.png to p11.png."""
    for number, image in enumerate(faces(16)):
        (world / f"p{number}.png").write_bytes(encode_image(image, "png"))
    return world


def run(folder, *arguments, tau=TAU, backbone="tiny"):
    """The exit status of the command with a small network."""
    return command_line.main(["verify", *map(str, arguments), "--backbone", backbone, "--weights", str(folder / f"{backbone}.pt"), "--tau",
                              str(tau), "--device", "cpu"])


def answered(folder, capsys, *arguments, **how):
    """(exit status, what --json printed)"""
    capsys.readouterr()
    status = run(folder, *arguments, "--json", **how)
    return status, json.loads(capsys.readouterr().out)


def embeddings(folder, *names, backbone="tiny"):
    """In float64, of the definitions."""
    images = np.stack([np.asarray(Image.open(folder / name).convert("RGB")) for name in names])
    network = load_network(backbone, folder / f"{backbone}.pt").double()
    return network(torch.from_numpy((images.transpose(0, 3, 1, 2).astype(np.float64) - 127.5) / 255)).numpy()


def plain_answer(u, v, tau):
    """cosine, radius of one image, of both, of both together, by the equations that define them."""
    a, b = np.linalg.norm(u), np.linalg.norm(v)
    cosine = u @ v / a / b
    delta = abs(math.acos(cosine) - math.acos(tau))
    low, high = 0.0, min(a, b)
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if math.asin(middle / a) + math.asin(middle / b) < delta else (low, middle)
    angles = np.linspace(0, delta, 20001)
    joint = np.sqrt((a * np.sin(angles)) ** 2 + (b * np.sin(delta - angles)) ** 2).min()
    return cosine, min(a, b) * math.sin(min(delta, math.pi / 2)), low, joint


@pytest.mark.parametrize("left, right", [(0, 1), (0, 3), (4, 5), (2, 9)])
def test_an_answer_is_by_the_definitions(photos, capsys, left, right):
    names = f"p{left}.png", f"p{right}.png"
    u, v = embeddings(photos, *names)
    tau = round(float(u @ v / np.linalg.norm(u) / np.linalg.norm(v)), 2) - 0.06 * (-1) ** left * (-1) ** right
    status, found = answered(photos, capsys, *(photos / name for name in names), tau=tau)
    cosine, one, both, joint = plain_answer(u, v, tau)
    assert found["accepted"] == bool(cosine > tau) and status == (0 if cosine > tau else 1)
    for key, value in (("cosine", cosine), ("radius", one), ("radius_both", both), ("radius_joint", joint)):
        assert found[key] == pytest.approx(value, rel=1e-4), key
    assert found["norm_left"] == pytest.approx(np.linalg.norm(u), rel=1e-5)
    assert found["tau"] == tau and found["tau_from"] == "given by --tau" and found["scope"] == answer.SCOPE


def test_the_words_are_those_of_the_numbers(photos, capsys):
    _, found = answered(photos, capsys, photos / "p0.png", photos / "p1.png")
    run(photos, photos / "p0.png", photos / "p1.png")
    shown = capsys.readouterr().out
    assert found["in_words"] in shown and answer.SCOPE in shown and f"Threshold: {TAU:g}, given by --tau." in shown
    assert ("ACCEPTED" if found["accepted"] else "REJECTED") in found["in_words"]
    assert f"below l2 {rounded_down(found['radius'])} turns" in found["in_words"]


@given(st.floats(1e-12, 1e6))
def test_rounding_keeps_what_is_said_true(value):
    down, up = float(rounded_down(value)), float(rounded_up(value))
    assert down <= value <= up
    assert up - down <= max(0.1 * value, 0) + 1e-300 if value < 0.1 else up - down < 0.0101


@given(st.floats(-1, 1), st.floats(-0.99, 0.99))
def test_numbers_that_are_shown_compare_as_they_do(cosine, tau):
    shown = answer.compared(cosine, tau)
    assert (float(shown[0]) > float(shown[1])) == (cosine > tau)


@given(st.floats(0.001, 30))
def test_sizes_in_words_are_no_larger(radius):
    size, numbers = rounded_down(radius), 3 * 112 * 112
    words = size_in_words(size, numbers)
    every = float(words.rpartition("by ")[2].split()[0])
    assert every / 255 * math.sqrt(numbers) <= radius and every / 255 * math.sqrt(numbers) > 0.9 * radius - 0.01
    if "from 0 to 255" in words:
        count = 1 if "one value" in words else int(words.split()[1])
        assert math.sqrt(count) <= radius < math.sqrt(count + 1) + 0.01
    else:
        assert float(words.split("by ")[1].split()[0]) / 255 <= radius < 1.01


def test_an_embedding_without_a_direction_is_rejected(photos, capsys):
    Image.new("RGB", (16, 16), "white").save(photos / "white.png")
    status, found = answered(photos, capsys, photos / "white.png", photos / "p0.png", backbone="invalid")
    assert status == 1 and found["cosine"] is None and found["radius"] == 0 and "without a direction" in found["in_words"]


@pytest.mark.parametrize("attack", ["ddn", "pgd", "cw"])
def test_an_attack_finds_what_the_certificate_allows(photos, capsys, attack):
    names = photos / "p0.png", photos / "p1.png"
    _, plain = answered(photos, capsys, *names)
    _, found = answered(photos, capsys, *names, "--attack", attack, "--steps", "15", tau=plain["cosine"] - 0.05)
    assert found["accepted"] and found["attack"]["success"] and found["attack"]["name"] == attack and found["attack"]["steps"] == 15
    assert found["radius"] <= found["attack"]["norm"] < 10 * found["radius"]
    best = answered(photos, capsys, *names, "--attack", "--steps", "20", tau=plain["cosine"] - 0.05)[1]["attack"]["norm"]
    assert found["attack"]["norm"] < 1.25 * best
    assert f"of l2 {rounded_up(found['attack']['norm'], 3)} turns it" in found["attack"]["in_words"]


def test_what_an_attack_returns_turns_the_decision(photos):
    from eval.alignment import as_it_is
    from eval.evaluation import Evaluation
    from eval.photos import read_photo
    network = load_network("tiny", photos / "tiny.pt")
    crops = [as_it_is(read_photo(photos / name), 16) for name in ("p0.png", "p3.png")]
    u, v = embeddings(photos, "p0.png", "p3.png")
    tau = float(u @ v / np.linalg.norm(u) / np.linalg.norm(v)) + 0.05
    found = answer.answer(network, answer.pair_set_of(crops, [0], [1], 16), Evaluation(tau=tau))
    success = answer.smallest_attack(found, "ddn", steps=40)
    clean = torch.from_numpy(np.asarray(Image.open(photos / ("p0.png" if success.side == "left" else "p3.png"))).transpose(2, 0, 1).copy())
    change = success.adversarial.double() - (clean.double() - 127.5) / 255
    attacked = network.double()(success.adversarial[None].double())[0].numpy()
    other = v if success.side == "left" else u
    assert change.norm().item() == pytest.approx(success.norm, rel=1e-5) and success.adversarial.abs().max() <= 0.5
    assert attacked @ other / np.linalg.norm(attacked) / np.linalg.norm(other) > tau - 1e-6


def test_a_picture_and_a_file_are_written(photos, capsys):
    assert run(photos, photos / "p0.png", photos / "p3.png", "--picture", photos / "new" / "a.png", "--out", photos / "a.json", "--steps",
               "10") == 1
    found = json.loads((photos / "a.json").read_text())
    assert found["attack"]["name"] == "ddn" and found["photos"][1]["size"] == [16, 16]
    image = np.asarray(Image.open(photos / "new" / "a.png").convert("RGB"))
    assert image.shape[0] > 700 and image.shape[1] > 900
    blue, orange = ((image == colour).all(-1).sum() for colour in ((0, 0x72, 0xB2), (0xD5, 0x5E, 0)))
    assert blue > 500 and orange > 500  # the bar
    assert capsys.readouterr().out.count("written: ") == 2


def test_a_picture_without_an_attack_that_succeeds(photos, monkeypatch, capsys):
    @dataclass(frozen=True, eq=False)
    class Nothing(Attack):
        minimum_norm = True
        steps: int = 1

        def _run(self, search, index):
            pass
    module = types.ModuleType("own_attacks")
    module.Nothing = Nothing
    monkeypatch.setitem(sys.modules, "own_attacks", module)
    status, found = answered(photos, capsys, photos / "p0.png", photos / "p3.png", "--attack", "own_attacks:Nothing", "--picture", photos / "a.png")
    assert status == 1 and not found["attack"]["success"] and found["attack"]["norm"] is None
    assert found["attack"]["in_words"] == "Attack own_attacks:Nothing: no change was found that turns it."
    assert (np.asarray(Image.open(photos / "a.png").convert("RGB")) == (0, 0x72, 0xB2)).all(-1).sum() > 500


def test_many_pairs(photos, capsys):
    rows = [(0, 1, 1), (2, 3, 1), (0, 5, 0), (0, 1, 1)]
    (photos / "list.csv").write_text("left,right,same\n" + "".join(f"p{a}.png,p{b}.png,{same}\n" for a, b, same in rows))
    assert run(photos, "--pairs", photos / "list.csv", "--out", photos / "out.csv") == 0
    table = pd.read_csv(photos / "out.csv", float_precision="round_trip")
    assert table["left"].tolist() == [f"p{a}.png" for a, _, _ in rows] and table["same"].tolist() == [True, True, False, True]
    for number, (a, b, _) in enumerate(rows):
        _, single = answered(photos, capsys, photos / f"p{a}.png", photos / f"p{b}.png")
        row = table.iloc[number]
        assert bool(row["accepted"]) == single["accepted"] and row["cosine"] == pytest.approx(single["cosine"], abs=1e-6)
        assert row["radius"] == pytest.approx(single["radius"], abs=1e-5) and row["tau"] == TAU
    assert "4 of 4 pairs" in run_output(photos, capsys, "--pairs", photos / "list.csv", "--out", photos / "out.csv")


def run_output(photos, capsys, *arguments):
    capsys.readouterr()
    assert run(photos, *arguments) == 0
    return capsys.readouterr().out


def test_photos_that_cannot_be_used_are_named_or_skipped(photos, capsys):
    (photos / "bad.png").write_bytes(b"no image")
    (photos / "list.csv").write_text("left,right\np0.png,p1.png\np0.png,bad.png\np0.png,missing.png\n")
    assert run(photos, "--pairs", photos / "list.csv", "--out", photos / "out.csv") == 2
    assert not (photos / "out.csv").exists() and "bad.png" in capsys.readouterr().err
    assert run(photos, "--pairs", photos / "list.csv", "--out", photos / "out.csv", "--skip-unusable") == 0
    table = pd.read_csv(photos / "out.csv", keep_default_na=False)
    assert [value != "" for value in table["cosine"]] == [True, False, False]
    assert "expected an image" in table["unusable"][1] and "No such file" in table["unusable"][2] and table["unusable"][0] == ""


@pytest.mark.parametrize("content, words", [
    ("", "list.csv"), ("a,b\n1,2\n", "expected left, right"), ("left,right\n", "no rows"), ("left,right,same\np0.png,p1.png,maybe\n", "line 2"),
    ("left,right\np0.png,\n", "line 2: right is empty"), ("left,right\nbad.png,p1.png\n", "bad.png"),
    ("left,right\np0\0.png,p1.png\n", "p0: No such file")])
def test_lists_that_are_none(photos, capsys, content, words):
    (photos / "list.csv").write_text(content)
    assert run(photos, "--pairs", photos / "list.csv", "--out", photos / "out.csv") == 2
    error = capsys.readouterr().err
    assert words in error and len(error.splitlines()) == 1 and not (photos / "out.csv").exists()


def test_people_of_a_gallery_are_found(photos, capsys):
    for person in range(4):
        (photos / "gallery" / f"person{person}").mkdir(parents=True)
        (photos / f"p{2 * person}.png").rename(photos / "gallery" / f"person{person}" / "one.png")
    (photos / "probes").mkdir()
    for number in (1, 3, 5, 7, 10):
        (photos / f"p{number}.png").rename(photos / "probes" / f"{number}.png")
    templates = embeddings(photos, *(f"gallery/person{person}/one.png" for person in range(4)))
    units = templates / np.linalg.norm(templates, axis=1, keepdims=True)
    probes = embeddings(photos, *(f"probes/{name}" for name in sorted(path.name for path in (photos / "probes").iterdir())))
    cosines = probes @ units.T / np.linalg.norm(probes, axis=1, keepdims=True)
    low, high = np.sort(cosines.max(1))[1:3]
    tau = float(low + high) / 2  # two probes find nobody
    assert run(photos, "--gallery", photos / "gallery", "--probes", photos / "probes", "--out", photos / "out.csv", tau=tau) == 0
    table = pd.read_csv(photos / "out.csv")
    assert table["accepted"].sum() == 3
    for u, near, (_, row) in zip(probes, cosines, table.iterrows(), strict=True):
        best = near.argmax()
        assert row["found"] == f"person{best}" and row["cosine"] == pytest.approx(near[best], abs=1e-5)
        assert row["accepted"] == (near[best] > tau)
        turn = np.linalg.norm(u) * math.sin(abs(math.acos(near[best]) - math.acos(tau)))
        others = [u @ (units[best] - unit) / np.linalg.norm(units[best] - unit) for number, unit in enumerate(units) if number != best]
        assert row["radius"] == pytest.approx(min([turn, *others]) if row["accepted"] else turn, rel=1e-3)
    assert "searched for among 4 people" in capsys.readouterr().out


def test_no_photos_in_a_folder(photos, capsys):
    (photos / "empty").mkdir()
    assert run(photos, "--gallery", photos / "empty", "--probes", photos, "--out", photos / "out.csv") == 2
    assert "empty: no photos in it" in capsys.readouterr().err


@pytest.fixture
def detectors(monkeypatch):
    """own_detectors:None_, One and Two, which find so many faces of the template's shape in every photo of 112 x 112."""
    points = np.array(FIELD)
    module = types.ModuleType("own_detectors")
    for name, sizes in (("None_", ()), ("One", (100,)), ("Two", (60, 100))):
        setattr(module, name, lambda sizes=sizes: lambda image: [Face((0, 0, size, size), points) for size in sizes])
    monkeypatch.setitem(sys.modules, "own_detectors", module)


def test_faces_that_a_detector_finds(photos, detectors, capsys):
    for name in ("a", "b"):
        Image.fromarray(np.random.default_rng(ord(name)).integers(0, 256, (112, 140, 3), dtype=np.uint8)).save(photos / f"{name}.png")
    names, auto = (photos / "a.png", photos / "b.png"), ("--align", "auto", "--detector")
    status, found = answered(photos, capsys, *names, *auto, "own_detectors:One", "--picture", photos / "c.png", "--steps", "2")
    assert status in (0, 1) and found["align"] == "auto" and found["photos"][0]["faces"] == [[0, 0, 100, 100]]
    for detector, more, words in (("None_", (), "a.png: no face found"), ("Two", (), "a.png: 2 faces found, expected one: --face 1"),
                                  ("Two", ("--face", "1,3"), "b.png: 2 faces found, expected at least 3")):
        assert run(photos, *names, *auto, f"own_detectors:{detector}", *more, "--out", photos / "x.json") == 2
        error = capsys.readouterr().err
        assert words in error and len(error.splitlines()) == 1 and not (photos / "x.json").exists()
    _, found = answered(photos, capsys, *names, *auto, "own_detectors:Two", "--face", "1,2")
    assert [photo["face"] for photo in found["photos"]] == [1, 2] and found["photos"][0]["faces"][0] == [0, 0, 100, 100]


def test_points_of_a_file_make_the_crop(photos, capsys):
    for name in ("a", "b"):
        Image.fromarray(np.random.default_rng(ord(name)).integers(0, 256, (112, 140, 3), dtype=np.uint8)).save(photos / f"{name}.png")
    (photos / "points.json").write_text(json.dumps({name: np.array(FIELD).tolist() for name in ("a.png", "b.png")}))
    _, found = answered(photos, capsys, photos / "a.png", photos / "b.png", "--landmarks", photos / "points.json")
    assert found["align"] == "landmarks" and np.allclose(found["photos"][0]["points"], FIELD)
    assert np.allclose(found["photos"][0]["crop"], [[-0.5, -0.5], [111.5, -0.5], [111.5, 111.5], [-0.5, 111.5]])


UNUSABLE = [
    ((), "takes two photos"), (("p0.png",), "takes two photos"), (("p0.png", "p1.png", "p2.png"), "takes two photos"),
    (("p0.png", "p1.png", "--pairs", "x.csv"), "takes two photos"), (("--gallery", "."), "takes two photos"),
    (("--pairs", "x.csv"), "--out: expected"), (("--pairs", "x.csv", "--json", "--out", "y"), "are for two photos"),
    (("p0.png", "missing.png"), "missing.png: No such file"), (("p0.png", "bad.png"), "bad.png: 8 bytes"), (("p0.png", "."), "a folder"),
    (("p0.png", "wide.png"), "wide.png: 30 x 16 pixels: an aligned crop is square"), (("p0.png", "p1.png", "--picture", "a.jpg"), "ends in .png"),
    (("p0.png", "p1.png", "--out", "p1.png"), "this file is read"), (("p0.png", "p1.png", "--picture", "p0.png"), "this file is read"),
    (("p0.png", "p1.png", "--out", "."), "a folder"), (("p0.png", "p1.png", "--out", "a.png", "--picture", "./a.png"), "expected another file"),
    (("--gallery", ".", "--probes", ".", "--out", "p3.png"), "this file is read"), (("p0.png", "p1.png", "--far", "0.1"), "--tau and --far"),
    (("p0.png", "p1.png", "--align", "landmarks"), "go together"), (("p0.png", "p1.png", "--landmarks", "x", "--align", "auto"), "go together"),
    (("p0.png", "p1.png", "--landmarks", "missing.csv"), "missing.csv"), (("p0.png", "p1.png", "--face", "1"), "--face is for"),
    (("p0.png", "p1.png", "--attack", "pdg"), "did you mean 'pgd'"), (("p0.png", "p1.png", "--model", "orthonet_faces"), "without --model"),
    (("p0.png", "p1.png", "--attack", "fgsm", "--steps", "3"), "fgsm takes one step"), (("p0.png", "p1.png", "--sound", "--tight"), "--tight"),
    (("p0.png", "p1.png", "--align", "auto", "--detector", "nobody:Nothing"), "nobody")]


@pytest.mark.parametrize("arguments, words", UNUSABLE)
def test_unusable_input_is_one_line_and_writes_nothing(photos, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(photos)
    (photos / "bad.png").write_bytes(b"no image")
    Image.new("RGB", (30, 16)).save(photos / "wide.png")
    before = {path: path.read_bytes() for path in photos.rglob("*") if path.is_file()}
    assert run(photos, *arguments) == 2
    shown = capsys.readouterr()
    assert words in shown.err and len(shown.err.splitlines()) == 1 and shown.out == ""
    assert {path: path.read_bytes() for path in photos.rglob("*") if path.is_file()} == before


def test_networks_without_certificate_or_threshold(photos, capsys):
    names = str(photos / "p0.png"), str(photos / "p1.png")
    assert run(photos, *names, backbone="loose") == 2
    assert command_line.main(["verify", *names, "--backbone", "tiny", "--weights", str(photos / "tiny.pt")]) == 2
    assert command_line.main(["verify", *names, "--backbone", "tiny"]) == 2
    assert command_line.main(["verify", *names, "--far", "0.2"]) == 2
    assert command_line.main(["verify", *names, "--flip", "none"]) == 2
    errors = capsys.readouterr().err.splitlines()
    for line, words in zip(errors, ("not 1-Lipschitz", "--tau: nothing says", "go together", "expected --far 0.01 or 0.001", "are for average"),
                           strict=True):
        assert words in line


def test_sound_answers(photos, capsys):
    names = photos / "p0.png", photos / "p1.png"
    _, plain = answered(photos, capsys, *names, tau=0.1)
    _, found = answered(photos, capsys, *names, "--sound", "--attack", "--steps", "20", tau=0.1)
    assert found["radius_sound"] <= found["attack"]["norm"] < 3 * found["radius_sound"]
    assert found["radius_sound"] == pytest.approx(plain["radius"], rel=0.2) and "in floating point" in found["in_words"]
    assert f"below l2 {rounded_down(found['radius_sound'])} turns" in found["in_words"]


def test_the_shipped_model_answers_as_a_newcomer_asks(tmp_path):
    """No option but two photos, in a folder of one's own: the model, its threshold and its picture."""
    from datasets import synthetic_pairs
    images, _ = synthetic_pairs(num_pairs=1, seed=1)
    for name, image in zip("ab", images):
        (tmp_path / f"{name}.jpg").write_bytes(image)
    command = [sys.executable, "-m", "eval", "verify", "a.jpg", "b.jpg", "--picture", "answer.png", "--steps", "3", "--out", "answer.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, env={"PYTHONPATH": str(ROOT), "PATH": ""})
    assert done.returncode in (0, 1), done.stderr
    found = json.loads((tmp_path / "answer.json").read_text())
    assert found["model"] == "orthonet_faces" and found["flip"] == "average" and found["tau_from"].startswith("for FAR 0.01 of orthonet_faces")
    assert done.returncode == (0 if found["accepted"] else 1) and found["in_words"] in done.stdout
    assert Image.open(tmp_path / "answer.png").size[0] > 900
