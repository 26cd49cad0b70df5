"""A training set split by people: records byte by byte, pairs against all that there are."""
import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from tiny_training import write_faces

from datasets import RecordDataset
from eval.verification import read_bin
from utils import InputError, build_dataset
from utils.images import encode_image
from utils.recordio import IndexedRecordFile, RecordWriter, pack, unpack
from utils.split_dataset import Split, _pairs, split_rec


def image_of(file, key):
    return bytes(unpack(file.read(key)).image)


def opened(folder):
    return IndexedRecordFile(folder / "train.rec", folder / "train.idx")


def test_the_first_people_are_a_training_set_as_it_was(tmp_path):
    write_faces(tmp_path)
    assert split_rec(tmp_path, tmp_path / "out", 8, 20) == Split(8, 32, 4, 24, 20)
    before, after = opened(tmp_path), opened(tmp_path / "out")
    assert list(after.keys) == list(range(33 + 8)) and all(before.read(key) == after.read(key) for key in range(1, 33))
    assert unpack(after.read(0)).label.tolist() == [33, 41] and unpack(after.read(0)).id == 0
    assert [unpack(after.read(33 + k)).label.tolist() for k in range(8)] == [[4 * k + 1, 4 * k + 5] for k in range(8)]
    dataset = RecordDataset(tmp_path / "out")
    assert dataset.num_classes == 8 and dataset.labels().tolist() == [k // 4 for k in range(32)]
    assert (tmp_path / "out/property").read_text() == "8,16,16\n"


@pytest.mark.parametrize("false_pairs", [1, 24, 96])
def test_pairs_are_all_true_ones_and_different_false_ones_of_the_others(tmp_path, false_pairs):
    write_faces(tmp_path)
    split_rec(tmp_path, tmp_path / "out", 8, false_pairs, seed=3)
    file, pairs = opened(tmp_path), read_bin(tmp_path / "out/heldout.bin")
    people = {image_of(file, key): (key - 1) // 4 for key in range(33, 49)}
    assert set(pairs.images) <= people.keys()
    found = Counter((frozenset((pairs.images[left], pairs.images[right])), bool(same))
                    for left, right, same in zip(pairs.left, pairs.right, pairs.same))
    every = [(frozenset(pair), people[pair[0]] == people[pair[1]]) for pair in itertools.combinations(people, 2)]
    assert set(found) <= set(every) and set(found.values()) == {1}
    assert {pair for pair in every if pair[1]} <= set(found) and sum(not same for _, same in found) == false_pairs
    assert false_pairs < 96 or set(found) == set(every)
    assert false_pairs < 24 or 0 < pairs.same[:10].mean() < 1, "both kinds from the beginning on"


def test_pairs_by_people_are_few_of_each_whoever_has_many_images(tmp_path):
    labels = np.repeat(np.arange(6), [40, 3, 3, 3, 2, 1])
    pairs = _pairs(labels, 60, 2, 0, "faces")
    assert len(set(pairs)) == len(pairs) == 60 + 9
    assert Counter(int(labels[left]) for left, right, same in pairs if same) == {0: 2, 1: 2, 2: 2, 3: 2, 4: 1}
    assert all((labels[left] == labels[right]) == same for left, right, same in pairs)
    big = np.mean([0 in labels[[left, right]] for left, right, same in pairs if not same])
    by_image = np.mean([0 in labels[[left, right]] for left, right, same in _pairs(labels, 60, None, 0, "faces") if not same])
    assert big < 0.7 < 0.8 < by_image, "of 6 people one is in a third of the pairs, or in more as the others run out"
    assert pairs == _pairs(labels, 60, 2, 0, "faces") != _pairs(labels, 60, 2, 1, "faces")
    with pytest.raises(InputError, match="false pairs, expected at least 270"):
        _pairs(labels, 270, 2, 0, "faces")


def test_pairs_are_keyed_by_the_seed(tmp_path):
    write_faces(tmp_path)
    bins = []
    for number, seed in enumerate((0, 0, 1)):
        split_rec(tmp_path, tmp_path / str(number), 8, seed=seed)
        bins.append((tmp_path / str(number) / "heldout.bin").read_bytes())
    assert bins[0] == bins[1] != bins[2]
    pairs = read_bin(tmp_path / "0/heldout.bin")
    assert pairs.same.sum() == 24 == (~pairs.same).sum()


def test_people_in_any_order_without_a_header(tmp_path):
    labels = [5, 2, 9, 2, 5, 9, 2, 7]
    with RecordWriter(tmp_path / "train") as writer:
        for key, label in enumerate(labels):
            writer.write(key, pack(label, key, encode_image(torch.full((3, 4, 6), 10 * key, dtype=torch.uint8), "png")))
    assert split_rec(tmp_path / "train.rec", tmp_path / "out", 2) == Split(2, 5, 2, 1, 1)
    before, after = opened(tmp_path), opened(tmp_path / "out")
    assert [after.read(key) for key in range(1, 6)] == [before.read(key) for key in (1, 3, 6, 0, 4)]
    assert [unpack(after.read(key)).label.tolist() for key in (0, 6, 7)] == [[6, 8], [1, 4], [4, 6]]
    assert (tmp_path / "out/property").read_text() == "2,4,6\n" and RecordDataset(tmp_path / "out").labels().tolist() == [2, 2, 2, 5, 5]


@pytest.mark.parametrize("identities, false_pairs, message", [
    (12, None, "12 identities, expected more than the 12"), (8, 97, "96 false pairs, expected at least 97")])
def test_what_cannot_be_is_refused(tmp_path, identities, false_pairs, message):
    write_faces(tmp_path)
    with pytest.raises(InputError, match=message):
        split_rec(tmp_path, tmp_path / "out", identities, false_pairs)
    assert not (tmp_path / "out").exists()


def test_a_split_does_not_overwrite_what_it_reads(tmp_path, capsys):
    write_faces(tmp_path)
    content = (tmp_path / "train.rec").read_bytes()
    argv = ["split", "--rec", str(tmp_path), "--identities", "8", "--out"]
    assert build_dataset.main([*argv, str(tmp_path)]) == 2 and "expected another folder" in capsys.readouterr().err
    assert (tmp_path / "train.rec").read_bytes() == content
    assert build_dataset.main([*argv, str(tmp_path / "out"), "--false-pairs", "5"]) == 0
    assert "32 images of 8 identities to train on; 24 true and 5 false pairs of 4 others" in capsys.readouterr().out


def test_people_with_one_image_each_make_no_true_pair(tmp_path):
    with RecordWriter(tmp_path / "train") as writer:
        for key in range(3):
            writer.write(key, pack(key, key, encode_image(torch.full((3, 4, 4), key, dtype=torch.uint8), "png")))
    with pytest.raises(InputError, match="no true pair"):
        split_rec(tmp_path, tmp_path / "out", 1)
    assert np.array_equal(opened(tmp_path).keys, [0, 1, 2])
