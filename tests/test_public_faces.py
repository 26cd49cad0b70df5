"""Faces that anybody can get, laid out as they are published, with generated images: what scikit-learn reads is what is written."""
import hashlib
import io
import itertools
import json
import shutil
import subprocess
import tarfile
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from PIL import Image
from sklearn.datasets import _lfw, fetch_lfw_pairs, fetch_lfw_people

from datasets import RecordDataset
from eval.verification import read_bin
from synthetic_faces import SyntheticFaces
from utils import InputError, build_dataset
from utils.images import decode_image, encode_image
from utils.public_faces.agedb import Apart, Portrait, agedb_pairs, true_pairs
from utils.public_faces.cfp import cfp_pairs
from utils.public_faces.crops import Crop
from utils.public_faces.lfw import Built, build_lfw

# people of folds 1, 2 and 3, and others, by how many images they have
COUNTS = {"Ann_A": 3, "Bob": 2, "Cid_C": 1, "Dan": 2, "Eve": 2, "Fay": 1, "Gus": 4, "Hal": 2, "Ida": 1, "Joe": 3, "Kim": 2, "Lee": 1}
PAIRS = """3\t2
Ann_A\t1\t3
Bob\t2\t1
Ann_A\t2\tCid_C\t1
Bob\t1\tCid_C\t1
Dan\t1\t2
Eve\t1\t2
Dan\t1\tEve\t2
Eve\t1\tFay\t1
Gus\t4\t1
Hal\t1\t2
Gus\t2\tHal\t1
Gus\t3\tIda\t1
"""
OTHERS = {"Joe", "Kim", "Lee"}
BY_FOLD = {1: {"Ann_A", "Bob", "Cid_C"}, 2: {"Dan", "Eve", "Fay"}, 3: {"Gus", "Hal", "Ida"}}


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """A home of scikit-learn with LFW as its fetcher leaves it, the images generated; nobody writes to it."""
    home = tmp_path_factory.mktemp("home")
    place = home / "lfw_home"
    images = SyntheticFaces(len(COUNTS), max(COUNTS.values()), size=250)
    for label, (name, count) in enumerate(COUNTS.items()):
        folder = place / "lfw_funneled" / name
        folder.mkdir(parents=True)
        for k in range(count):
            (folder / f"{name}_{k + 1:04d}.jpg").write_bytes(encode_image(images[label * images.images_per_class + k][0], "jpeg"))
    (place / "lfw_funneled" / "pairs_01.txt").write_text("as in the archive: files beside the people\n")
    for name in ("pairsDevTrain.txt", "pairsDevTest.txt"):
        (place / name).write_text("2\nAnn_A\t1\t3\nBob\t2\t1\nAnn_A\t2\tCid_C\t1\nBob\t1\tCid_C\t1\n")
    (place / "pairs.txt").write_text(PAIRS)
    return home


@pytest.fixture
def home(faces, tmp_path):
    """One of its own, to be spoilt."""
    return shutil.copytree(faces, tmp_path / "home")


def image_of(home, name, number):
    return home / "lfw_home" / "lfw_funneled" / name / f"{name}_{number:04d}.jpg"


def listed():
    """The pairs of PAIRS: [((name, number), (name, number)), ...]."""
    rows = [line.split("\t") for line in PAIRS.splitlines()[1:]]
    return [((row[0], int(row[1])), (row[0] if len(row) == 3 else row[2], int(row[-1]))) for row in rows]


def lfw(home, out, *more):
    return build_dataset.main(["lfw", "--home", str(home), "--out", str(out), *more])


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def refused(capsys):
    """The one line of a command that has failed."""
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    return error


# what scikit-learn reads

def test_pairs_are_those_of_the_fetcher(faces, tmp_path):
    """Order, labels and pixels, of the square of LFWcrop at its own size."""
    left, upper, right, lower = 83, 92, 167, 176
    theirs = fetch_lfw_pairs(subset="10_folds", data_home=faces, color=True, slice_=(slice(upper, lower), slice(left, right)), resize=None,
                             download_if_missing=False)
    assert lfw(faces, tmp_path, "--folds", "all", "--crop", "region", "--size", "84", "--quality", "100") == 0
    ours = read_bin(tmp_path / "lfw.bin")
    pixels = np.rint(theirs.pairs * 255).astype(np.uint8)  # [12, 2, 84, 84, 3]
    assert ours.same.tolist() == [bool(value) for value in theirs.target] and pixels.shape == (12, 2, 84, 84, 3)
    for pair, (left, right) in enumerate(zip(ours.left, ours.right)):
        for side, index in enumerate((left, right)):
            assert ours.images[index] == encode_image(torch.from_numpy(pixels[pair, side]).permute(2, 0, 1), "jpeg", 100)


def test_people_are_those_of_the_fetcher(faces, tmp_path):
    theirs = fetch_lfw_people(data_home=faces, slice_=(slice(0, 1), slice(0, 1)), resize=None, download_if_missing=False)
    counts = Counter(theirs.target_names[label].replace(" ", "_") for label in theirs.target)
    made = build_lfw(tmp_path, faces, folds=[3], at_least=1)
    summary = json.loads((tmp_path / "lfw.json").read_text())
    assert counts == COUNTS and summary["found"] == {"images": sum(counts.values()), "people": len(counts)}
    assert {name: int((RecordDataset(tmp_path).labels() == label).sum()) for label, name in enumerate(summary["train"]["names"])} == \
        {name: count for name, count in counts.items() if name not in BY_FOLD[3]}
    assert made == Built(9, 17, 2, 2, 3, 24, 12) and not made.whole


# folds

@pytest.mark.parametrize("folds", [[1], [2, 3], [3, 2, 2], [1, 2, 3]])
@pytest.mark.parametrize("at_least", [1, 2, 3])
def test_nobody_of_the_pairs_is_trained_on(faces, tmp_path, folds, at_least):
    build_lfw(tmp_path, faces, folds, at_least=at_least)
    tested = set().union(*(BY_FOLD[fold] for fold in folds))
    trained = [name for name, count in sorted(COUNTS.items()) if name not in tested and count >= at_least]
    crop = Crop("lfwcrop")
    jpegs = {crop(image_of(faces, name, k + 1)): (name, k) for name, count in COUNTS.items() for k in range(count)}
    pairs = read_bin(tmp_path / "lfw.bin")
    rows = [row for fold in sorted(set(folds)) for row in listed()[4 * fold - 4:4 * fold]]
    shown = [tuple((name, k + 1) for name, k in (jpegs[pairs.images[side]] for side in sides)) for sides in zip(pairs.left, pairs.right)]
    assert shown == rows and pairs.same.tolist() == [left[0] == right[0] for left, right in rows]
    summary = json.loads((tmp_path / "lfw.json").read_text())
    assert summary["folds"] == sorted(set(folds)) and summary["pairs"]["true"] == summary["pairs"]["false"] == len(rows) // 2
    if len(trained) < 2:
        assert not (tmp_path / "train.rec").exists() and summary["train"] == {"identities": 0, "images": 0, "names": []}
        return
    dataset = RecordDataset(tmp_path)
    expected = [(name, k) for name in trained for k in range(COUNTS[name])]
    assert summary["train"] == {"identities": len(trained), "images": len(expected), "names": trained}
    assert dataset.num_classes == len(trained) and len(dataset) == len(expected)
    for (image, label), (name, k) in zip(dataset, expected):
        assert trained[label] == name and torch.equal(image, decode_image(crop(image_of(faces, name, k + 1)), name))
    assert (tmp_path / "property").read_text() == f"{len(trained)},112,112\n"


def test_all_folds_leave_no_training_set_of_an_earlier_run(faces, tmp_path, capsys):
    assert lfw(faces, tmp_path, "--folds", "1") == 0 and (tmp_path / "train.rec").exists()
    assert lfw(faces, tmp_path, "--folds", "all", "--at-least", "3") == 0
    assert contents(tmp_path).keys() == {"lfw.bin", "lfw.json"}
    said = capsys.readouterr().out
    assert "no train.rec" in said and "24 images of 12 people were there, LFW has 13233 of 5749" in said
    assert lfw(faces, tmp_path, "--folds", "2", "1") == 0 and (tmp_path / "train.rec").exists()


@pytest.mark.parametrize("folds", [["4"], ["1", "11"]])
def test_folds_that_are_not_there(faces, tmp_path, folds, capsys):
    assert lfw(faces, tmp_path / "out", "--folds", *folds) == 2
    assert f"3 folds, expected --folds from 1 to 3, not {' '.join(folds)}" in refused(capsys) and not (tmp_path / "out").exists()


def test_the_default_folds_are_those_of_the_tables(faces, tmp_path, capsys):
    assert lfw(faces, tmp_path / "out") == 2 and "not 8 9" in refused(capsys)


# crops

def random_image(height=250, width=250, seed=0):
    small = torch.randint(256, (1, 3, 20, 20), generator=torch.Generator().manual_seed(seed)).float()
    return F.interpolate(small, (height, width), mode="bilinear")[0].round().to(torch.uint8)


def resized(image, size):
    """Of another library: PyTorch's bicubic kernel with antialiasing has Pillow's coefficient."""
    return F.interpolate(image[None].float(), (size, size), mode="bicubic", antialias=True)[0].round().clamp(0, 255)


@pytest.mark.parametrize("size", [112, 84, 40])
@pytest.mark.parametrize("kind, places, most", [("region", lambda image: image[:, 92:176, 83:167], 1.0),
                                                ("lfwcrop", lambda image: resized(image[:, 92:176, 83:167], 64), 2.0)])
def test_crops_are_the_square_resized_by_another_library(kind, places, most, size):
    image = random_image()
    made = torch.from_numpy(Crop(kind, size).pixels(image.permute(1, 2, 0).numpy(), "x")).permute(2, 0, 1).float()
    assert made.shape == (3, size, size) and (made - resized(places(image), size)).abs().max() <= most


@pytest.mark.parametrize("height, width, taken", [(90, 60, (slice(15, 75), slice(0, 60))), (50, 121, (slice(0, 50), slice(35, 85))),
                                                  (300, 300, (slice(0, 300), slice(0, 300)))])
def test_the_square_is_the_largest_in_the_middle(height, width, taken):
    image = random_image(height, width)
    made = torch.from_numpy(Crop("square").pixels(image.permute(1, 2, 0).numpy(), "x")).permute(2, 0, 1).float()
    assert (made - resized(image[:, taken[0], taken[1]], 112)).abs().max() <= 1


def test_an_image_of_that_size_is_as_it_was():
    image = random_image(112, 112).permute(1, 2, 0).numpy()
    assert np.array_equal(Crop("square").pixels(image, "x"), image)


def test_images_are_jpegs_of_the_quality_that_was_asked_for(faces, tmp_path):
    build_lfw(tmp_path, faces, [1], quality=92)
    images = read_bin(tmp_path / "lfw.bin").images
    plain = io.BytesIO()
    Image.new("RGB", (8, 8)).save(plain, "JPEG", quality=92)
    assert all(Image.open(io.BytesIO(image)).quantization == Image.open(plain).quantization for image in images)
    assert {Image.open(io.BytesIO(image)).size for image in images} == {(112, 112)}


# repeated, interrupted

def test_the_summary_has_the_checksum_of_what_was_read(faces, tmp_path):
    build_lfw(tmp_path, faces, [3])
    root = faces / "lfw_home" / "lfw_funneled"
    read = [("Gus", k) for k in (1, 2, 3, 4)] + [("Hal", 1), ("Hal", 2), ("Ida", 1)]
    read += [(name, k + 1) for name, count in COUNTS.items() for k in range(count) if count > 1 and name not in BY_FOLD[3]]
    lines = sorted(f"{name}/{name}_{k:04d}.jpg" for name, k in read)
    text = "".join(f"{hashlib.sha256((root / line).read_bytes()).hexdigest()}  {line}\n" for line in lines)
    summary = json.loads((tmp_path / "lfw.json").read_text())
    assert summary["images_read"] == len(read) and summary["images_sha256"] == hashlib.sha256(text.encode()).hexdigest()
    assert summary["pairs_sha256"] == hashlib.sha256(PAIRS.encode()).hexdigest()


def test_a_second_run_writes_the_same(faces, tmp_path):
    build_lfw(tmp_path, faces, [1])
    first = contents(tmp_path)
    build_lfw(tmp_path, faces, [1])
    assert contents(tmp_path) == first and first.keys() == {"lfw.bin", "lfw.json", "train.rec", "train.idx", "property"}


@pytest.mark.parametrize("place", ["train", "pairs"])
def test_what_cannot_be_finished_leaves_what_was_there(home, tmp_path, place, capsys):
    assert lfw(home, tmp_path / "out", "--folds", "1") == 0
    before = contents(tmp_path / "out")
    spoilt = image_of(home, *(("Joe", 3) if place == "train" else ("Gus", 4)))
    spoilt.write_bytes(spoilt.read_bytes()[:2000])
    assert lfw(home, tmp_path / "out", "--folds", "3") == 2
    assert str(spoilt) in refused(capsys) and contents(tmp_path / "out") == before


def test_a_run_that_ends_between_files_leaves_no_pairs_of_other_folds(faces, tmp_path, monkeypatch):
    out, expected = tmp_path / "out", tmp_path / "expected"
    build_lfw(out, faces, [1])

    def killed(*_):
        raise KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr("utils.public_faces.written.write_bin", killed)
        with pytest.raises(KeyboardInterrupt):
            build_lfw(out, faces, [2])
    assert not (out / "lfw.bin").exists() and json.loads((out / "lfw.json").read_text())["folds"] == [2]
    build_lfw(out, faces, [2])
    build_lfw(expected, faces, [2])
    assert contents(out) == contents(expected)


@pytest.mark.parametrize("name", ["train.rec", "lfw.bin"])
def test_files_of_another_origin_are_not_overwritten(faces, tmp_path, name, capsys):
    (tmp_path / name).write_bytes(b"a week of downloading")
    assert lfw(faces, tmp_path, "--folds", "1") == 2
    assert f"holds a {name} without lfw.json" in refused(capsys) and contents(tmp_path) == {name: b"a week of downloading"}


# the download

@pytest.fixture
def offered(faces, tmp_path, monkeypatch):
    """What the fetcher downloads, with its own code, is a copy of `faces` at addresses of files."""
    place = faces / "lfw_home"
    archive = tmp_path / "served.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(place / "lfw_funneled", "lfw_funneled")

    def remote(path, name):
        return _lfw.RemoteFileMetadata(name, path.as_uri(), hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setattr(_lfw, "TARGETS", tuple(remote(place / each.filename, each.filename) for each in _lfw.TARGETS))
    monkeypatch.setattr(_lfw, "FUNNELED_ARCHIVE", remote(archive, "lfw-funneled.tgz"))
    return archive


def test_downloads_what_is_missing(faces, offered, tmp_path):
    assert lfw(tmp_path / "home", tmp_path / "out", "--folds", "2") == 0
    build_lfw(tmp_path / "again", faces, [2])
    assert contents(tmp_path / "out") == contents(tmp_path / "again")
    assert not list((tmp_path / "home" / "lfw_home").glob("*.tgz*"))


def test_an_archive_that_was_put_there_by_hand_is_enough(faces, offered, tmp_path, monkeypatch):
    place = tmp_path / "home" / "lfw_home"
    place.mkdir(parents=True)
    offline(monkeypatch)
    shutil.copy(offered, place / "lfw-funneled.tgz")
    for name in ("pairsDevTrain.txt", "pairsDevTest.txt", "pairs.txt"):
        shutil.copy(faces / "lfw_home" / name, place)
    assert lfw(tmp_path / "home", tmp_path / "out", "--folds", "2") == 0


def test_unpacking_that_was_interrupted_goes_on(home, offered, tmp_path):
    place = home / "lfw_home"
    expected = {path: path.read_bytes() for path in (place / "lfw_funneled").rglob("*.jpg")}
    shutil.copy(offered, place / "lfw-funneled.tgz")
    image_of(home, "Joe", 2).write_bytes(image_of(home, "Joe", 2).read_bytes()[:100])
    shutil.rmtree(image_of(home, "Kim", 1).parent)
    assert lfw(home, tmp_path / "out", "--folds", "2") == 0
    assert {path: path.read_bytes() for path in (place / "lfw_funneled").rglob("*.jpg")} == expected
    assert not (place / "lfw-funneled.tgz").exists()


@pytest.mark.parametrize("unpacked", [True, False])
def test_an_archive_that_is_cut_short_is_named(home, offered, tmp_path, unpacked, capsys):
    archive = home / "lfw_home" / "lfw-funneled.tgz"
    archive.write_bytes(offered.read_bytes()[:5000])
    shutil.rmtree(image_of(home, "Kim", 1).parent if unpacked else home / "lfw_home" / "lfw_funneled")
    assert lfw(home, tmp_path / "out", "--folds", "2") == 2
    assert f"{archive}: could not be unpacked" in refused(capsys) and archive.exists() and not (tmp_path / "out").exists()


def offline(monkeypatch):
    def urlretrieve(url, path):
        raise OSError("Name or service not known")
    monkeypatch.setattr("sklearn.datasets._base.urlretrieve", urlretrieve)


@pytest.mark.parametrize("missing", ["all", "pairs.txt", "lfw_funneled"])
def test_without_a_network_one_line_says_what_belongs_where(home, tmp_path, monkeypatch, missing, capsys):
    offline(monkeypatch)
    place = home / "lfw_home"
    if missing == "pairs.txt":
        (place / missing).unlink()
    else:
        shutil.rmtree(place if missing == "all" else place / missing)
    assert lfw(home, tmp_path / "out", "--folds", "1") == 2
    said = refused(capsys)
    assert said.startswith(f"error: {place}: LFW is not there and could not be fetched (Name or service not known)")
    assert all(word in said for word in ("pairs.txt", "lfw_funneled", "lfw-funneled.tgz", "--home"))
    assert not (tmp_path / "out").exists() and place.exists() == (missing != "all")


def test_a_home_that_is_not_there_is_not_left_behind(tmp_path, monkeypatch, capsys):
    offline(monkeypatch)
    assert lfw(tmp_path / "typo", tmp_path / "out") == 2 and not list(tmp_path.iterdir())


# what cannot be used

@pytest.mark.parametrize("spoil, said", [
    (lambda path: path.write_bytes(path.read_bytes()[:3000]), "cannot be decoded"),
    (lambda path: path.write_bytes(b""), "0 bytes"),
    (lambda path: path.write_bytes(b"<!DOCTYPE html><html>"), "HTML page"),
    (lambda path: path.write_bytes(encode_image(random_image(112, 112), "jpeg")), "(height, width) (112, 112), expected (250, 250)")])
def test_images_that_cannot_be_used_are_named(home, tmp_path, spoil, said, capsys):
    spoil(image_of(home, "Joe", 2))
    assert lfw(home, tmp_path / "out", "--folds", "1") == 2
    error = refused(capsys)
    assert str(image_of(home, "Joe", 2)) in error and said in error and not (tmp_path / "out").exists()


def test_a_person_of_the_pairs_who_is_missing_is_named(home, tmp_path, capsys):
    shutil.rmtree(image_of(home, "Eve", 1).parent)
    assert lfw(home, tmp_path / "out", "--folds", "1") == 2
    assert "pairs.txt: line 7 is 'Eve 1 2'" in refused(capsys)


def test_a_person_without_images_is_named(home, tmp_path, capsys):
    image_of(home, "Lee", 1).unlink()
    assert lfw(home, tmp_path / "out", "--folds", "1") == 2 and "no images in Lee" in refused(capsys)


@pytest.mark.parametrize("text, said", [
    ("", "line 1 is ''"), (PAIRS.partition("\n")[2], "line 1 is 'Ann_A 1 3'"), (PAIRS.replace("3\t2\n", "2\n", 1), "line 1 is '2'"),
    (PAIRS.replace("3\t2\n", "2\t3\n", 1), "12 pairs, expected 2 folds of 3 true"), (PAIRS + "Joe\t1\t2\n", "13 pairs, expected 3 folds"),
    (PAIRS.replace("Gus\t4\t1", "Gus\t5\t1"), "line 10 is 'Gus 5 1'"), (PAIRS.replace("Dan\t1\tEve\t2", "Dan\t1\tDan\t2"), "expected 3 folds"),
    (PAIRS.replace("3\t2\n", "0\t2\n", 1), "line 1 is '0 2'"), (PAIRS.replace("3\t2\n", "999999\t999999\n", 1), "12 pairs, expected"), (PAIRS.replace("Bob\t2\t1", "Bob\tx\t1"), "line 3 is")])
def test_lists_of_another_form_are_refused(home, tmp_path, text, said, capsys):
    (home / "lfw_home" / "pairs.txt").write_text(text)
    assert lfw(home, tmp_path / "out", "--folds", "1") == 2 and said in refused(capsys)


# CFP

@pytest.fixture
def cfp(tmp_path):
    """Three people with two images from the front and one in profile, two splits."""
    folder = tmp_path / "cfp"
    frontal, profile = [], []
    for person in (1, 2, 3):
        for view, count, found in (("frontal", 2, frontal), ("profile", 1, profile)):
            for k in range(1, count + 1):
                path = folder / "Data" / "Images" / f"{person:03d}" / view / f"{k:02d}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(encode_image(random_image(130, 100 + k, 10 * person + k), "jpeg"))
                found.append(f"../Data/Images/{person:03d}/{view}/{k:02d}.jpg")
    for view, found in (("F", frontal), ("P", profile)):
        path = folder / "Protocol" / f"Pair_list_{view}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(f"{number} {name}\n" for number, name in enumerate(found, 1)))
    for split, same, diff in (("01", "1,1\n2,1\n", "1,2\n3,1\n"), ("02", "6,3\n", "4,3")):
        place = folder / "Protocol" / "Split" / "FP" / split
        place.mkdir(parents=True)
        (place / "same.txt").write_text(same)
        (place / "diff.txt").write_text(diff)
    return folder


CFP_PAIRS = [("001/frontal/01", "001/profile/01", True), ("001/frontal/02", "001/profile/01", True), ("001/frontal/01", "002/profile/01", False),
             ("002/frontal/01", "001/profile/01", False), ("003/frontal/02", "003/profile/01", True), ("002/frontal/02", "003/profile/01", False)]


@pytest.mark.parametrize("moved", [False, True])
def test_cfp_pairs_are_those_of_its_protocol(cfp, tmp_path, moved):
    images = cfp / "Data" / "Images"
    if moved:
        images = images.rename(cfp / "Images")
    assert build_dataset.main(["cfp_fp", "--images", str(cfp), "--out", str(tmp_path / "out")]) == 0
    pairs, crop = read_bin(tmp_path / "out" / "cfp_fp.bin"), Crop("square")
    expected = [(crop(images / f"{left}.jpg"), crop(images / f"{right}.jpg"), same) for left, right, same in CFP_PAIRS]
    assert [(pairs.images[left], pairs.images[right], bool(same)) for left, right, same in zip(pairs.left, pairs.right, pairs.same)] == expected
    summary = json.loads((tmp_path / "out" / "cfp_fp.json").read_text())
    assert summary["folds"] == 2 and summary["pairs"] == {"true": 3, "false": 3, "images": 8}


@pytest.mark.parametrize("name, text, said", [
    ("Split/FP/02/same.txt", "6,2\n", "line 1 is '6,2', expected the numbers of two images of one person"),
    ("Split/FP/02/diff.txt", "1,2\n1,9\n", "line 2 is '1,9'"), ("Split/FP/01/diff.txt", "", "diff.txt: empty"),
    ("Pair_list_P.txt", "1 ../Data/Images/009/profile/01.jpg\n", "line 1 is"), ("Pair_list_F.txt", "../Data/Images\n", "line 1 is")])
def test_cfp_lists_that_cannot_be_used_are_named(cfp, name, text, said):
    (cfp / "Protocol" / name).write_text(text)
    with pytest.raises(InputError, match="Protocol/.*: ") as error:
        cfp_pairs(cfp)
    assert said in str(error.value)


def test_folders_that_are_not_cfp(cfp, tmp_path):
    with pytest.raises(InputError, match="no folder Data/Images or Images"):
        cfp_pairs(tmp_path)
    shutil.rmtree(cfp / "Protocol" / "Split")
    with pytest.raises(InputError, match="Split/FP: cannot be read"):
        cfp_pairs(cfp)
    shutil.rmtree(cfp / "Protocol")
    with pytest.raises(InputError, match="Pair_list_F.txt: cannot be read"):
        cfp_pairs(cfp)


# AgeDB

def album(seed, people=6, count=90):
    rng = np.random.default_rng(seed)
    return [Portrait(f"{k}", f"P{rng.integers(people)}", int(rng.integers(20, 80))) for k in range(count)]


@pytest.mark.parametrize("seed", range(4))
def test_age_pairs_are_all_that_are_thirty_years_apart(seed):
    images = album(seed)
    apart = Apart(images)
    every = {(young, old) for young, old in itertools.permutations(images, 2) if old.age - young.age == 30}
    numbered = [apart.pair(number) for number in range(apart.count)]
    assert len(numbered) == len(every) and set(numbered) == every
    found = true_pairs(images)
    assert len(found) == len(set(found)) and set(found) == {pair for pair in every if pair[0].name == pair[1].name}


@pytest.fixture(scope="module")
def agedb(tmp_path_factory):
    folder = tmp_path_factory.mktemp("agedb")
    for number, (_, name, age) in enumerate(album(0, people=4, count=160)):
        path = folder / f"{number}_{name}_{age}_{'fm'[number % 2]}.jpg"
        path.write_bytes(encode_image(random_image(30, 30, number), "jpeg"))
    return folder


def test_agedb_pairs_by_folds(agedb):
    folds = agedb_pairs(agedb)
    images = [Portrait(path, path.name.split("_")[1], int(path.name.split("_")[2])) for path in sorted(agedb.iterdir())]
    every = {(young.path, old.path, young.name == old.name) for young, old in itertools.permutations(images, 2) if old.age - young.age == 30}
    each = min(Counter(same for *_, same in every).values()) // 10
    assert [[same for *_, same in fold] for fold in folds] == 10 * [each * [True] + each * [False]] and each > 1
    drawn = [pair for fold in folds for pair in fold]
    assert len(set(drawn)) == len(drawn) and set(drawn) <= every
    assert agedb_pairs(agedb) == folds != agedb_pairs(agedb, seed=1)


def test_agedb_command(agedb, tmp_path, capsys):
    assert build_dataset.main(["agedb_30", "--images", str(agedb), "--out", str(tmp_path), "--size", "24"]) == 0
    pairs, folds, crop = read_bin(tmp_path / "agedb_30.bin"), agedb_pairs(agedb), Crop("square", 24)
    expected = [(crop(left), crop(right), same) for fold in folds for left, right, same in fold]
    assert [(pairs.images[left], pairs.images[right], bool(same)) for left, right, same in zip(pairs.left, pairs.right, pairs.same)] == expected
    assert f"{len(expected)} pairs in 10 folds" in capsys.readouterr().out
    assert json.loads((tmp_path / "agedb_30.json").read_text())["published_pairs"] is False


def test_folders_that_are_not_agedb(tmp_path):
    with pytest.raises(InputError, match="no images NUMBER_NAME_AGE_GENDER"):
        agedb_pairs(tmp_path)
    for name in ("0_A_b_20_m.jpg", "1_A_b_50_m.jpg", "2_C_50_f.JPG"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(InputError, match="1 true and 1 false pairs 30 years apart among 3 images"):
        agedb_pairs(tmp_path)
    (tmp_path / "holiday.jpg").write_bytes(b"")
    with pytest.raises(InputError, match="holiday.jpg: expected a name like"):
        agedb_pairs(tmp_path)


# make

@pytest.mark.parametrize("given, there, built", [([], False, True), ([], True, False), (["DATA=data/mine"], False, False)])
def test_make_builds_the_faces_that_ablation_needs(tmp_path, given, there, built):
    shutil.copy(ROOT / "Makefile", tmp_path)
    if there:
        (tmp_path / "data" / "lfw").mkdir(parents=True)
        (tmp_path / "data" / "lfw" / "lfw.bin").touch()
    said = subprocess.run(["make", "-n", "ablation", *given], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert ("utils.build_dataset lfw --out data/lfw" in said) == built
    assert f"ablation.py data={given[0].partition('=')[2] if given else 'data/lfw'}" in said
