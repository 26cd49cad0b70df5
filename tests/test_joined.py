"""Several .rec files, named in one setting, as one dataset."""
import pickle

import numpy as np
import pytest
import torch
from small_world import faces, write_bin
from tiny_training import SETTINGS, write_faces

import train
from config import config
from datasets import RecordDataset, get_dataloader, get_dataset, sources
from utils import InputError, RecordError
from utils.in_memory import InMemory


def parts(tmp_path, **bad):
    return [write_faces(tmp_path / name, people, bad.get(name, ()), seed=people) for name, people in (("a", 12), ("b", 5), ("c", 7))]


def named(folders) -> str:
    return ",".join(map(str, folders))


def run(folders, output, *more):
    given = {argument.partition("=")[0]: argument for argument in (*SETTINGS, f"rec={named(folders)}", f"output={output}", *more)}
    return train.run(config, list(given.values()))


def same_weights(one, other):
    one, other = (torch.load(folder / "model_final.pt", weights_only=True) for folder in (one, other))
    return all(torch.equal(value, other[key]) for key, value in one.items())


def test_identities_of_later_ones_follow_those_of_former_ones(tmp_path):
    folders = parts(tmp_path)
    (folders[1] / "property").write_text("9,16,16")  # more identities than it has images of
    alone, joined = [RecordDataset(folder) for folder in folders], get_dataset(named(folders))
    assert len(joined) == 96 and joined.num_classes == 12 + 9 + 7 and joined.image_size == (16, 16) and joined.identities_seen == 24
    place = 0
    for dataset, before in zip(alone, (0, 12, 21)):
        for index in range(len(dataset)):
            (image, label), (expected, own) = joined[place], dataset[index]
            assert label == own + before and type(label) is int and torch.equal(image, expected)
            assert joined.name(place) == dataset.name(index) and joined.labels()[place] == label
            place += 1
    assert joined.labels().dtype == np.int64 and len(list(joined)) == 96
    for index in (-1, 96):
        with pytest.raises(IndexError):
            joined[index]
    again = pickle.loads(pickle.dumps(joined))
    assert again.fingerprint() == joined.fingerprint() and again[50][1] == joined[50][1]
    others = [named(folders[::-1]), named(folders[:2]), folders[0]]
    assert len({joined.fingerprint(), *(get_dataset(other).fingerprint() for other in others)}) == 4
    (folders[1] / "property").write_text("10,16,16")
    assert get_dataset(named(folders)).fingerprint() != joined.fingerprint(), "others have other labels"
    assert get_dataset(folders, num_classes=40).num_classes == 40
    with pytest.raises(InputError, match=r"12 \+ 10 \+ 7 = 29 identities, expected at most num_classes = 28"):
        get_dataset(folders, num_classes=28)


def test_what_rec_names(tmp_path, monkeypatch):
    folders = parts(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert sources("~/a, ~/b/train.rec") == [str(tmp_path / "a"), str(tmp_path / "b/train.rec")] and sources("synthetic") == ["synthetic"]
    assert len(get_dataset("~/a,~/b/train.rec")) == 48 + 20
    comma = write_faces(tmp_path / "a,b")  # a path that is there is meant itself
    assert sources(str(comma)) == [str(comma)] and len(get_dataset(comma)) == 48 and len(get_dataset([comma, folders[1]])) == 68
    for rec, words in ((f"{folders[0]},", "either side of each comma"), (named([folders[0], folders[0]]), "a is there twice"),
                       (f"{folders[0]},{folders[0]}/../a", "there twice"), (f"synthetic,{folders[0]}", "synthetic is there beside others"),
                       (f"{folders[0]},{tmp_path}/nowhere", "nowhere: does not exist"), ([], "expected a path")):
        with pytest.raises(InputError, match=words) as error:
            get_dataset(rec)
        assert "\n" not in str(error.value)


def test_images_of_other_sizes_are_refused(tmp_path):
    from utils.images import encode_image
    from utils.recordio import RecordWriter, pack
    with RecordWriter(tmp_path / "large" / "train") as writer:
        writer.write(1, pack(0, 1, encode_image(torch.zeros(3, 8, 8, dtype=torch.uint8), "png")))
    with pytest.raises(InputError, match=r"large/train.rec: key 1: .* \(8, 8\), expected \(16, 16\) as in .*a/train.rec: key 1"):
        get_dataset(named([write_faces(tmp_path / "a"), tmp_path / "large"]))


@pytest.mark.parametrize("partners", [False, True])
def test_ranks_and_workers_see_the_batches_of_one_process(tmp_path, partners):
    dataset = get_dataset(named(parts(tmp_path)))
    alone = get_dataloader(dataset, 16, seed=1, num_replicas=1, rank=0, partners=partners)
    ranks = [get_dataloader(dataset, 8, seed=1, num_replicas=2, rank=rank, partners=partners, num_workers=rank) for rank in range(2)]
    for (images, labels), *shares in zip(alone, *ranks):
        assert not partners or torch.equal(labels[:8], labels[8:])
        for rank, (share_images, share_labels) in enumerate(shares):
            assert torch.equal(share_images, images[rank::2]) and torch.equal(share_labels, labels[rank::2])


def test_a_damaged_record_at_the_end_of_one_is_stood_in_for_by_the_first_of_the_next(tmp_path):
    dataset = get_dataset(named(parts(tmp_path, a=(48,))))
    for one in (dataset, InMemory(dataset)):
        with pytest.raises(RecordError, match="a/train.rec: key 48"):
            one[47]
        loader = get_dataloader(one, 96, shuffle=False, skip_bad_records=True)
        (_, labels), = loader
        assert labels[47] == labels[48] == 12 and list(loader.bad_records) == [dataset.name(47)]


def test_a_run_is_the_same_in_memory_and_goes_on_elsewhere(tmp_path, capsys):
    folders = parts(tmp_path, b=(3,))
    write_bin(folders[0] / "one.bin", faces(16))
    write_bin(folders[1] / "two.bin", faces(16))
    more = ("on_bad_record=skip", "val_targets=None", "partners=True", "contrast=1")
    assert run(folders, tmp_path / "plain", *more) == 0 and run(folders, tmp_path / "kept", "in_memory=True", *more) == 0
    assert same_weights(tmp_path / "plain", tmp_path / "kept")
    log = (tmp_path / "plain" / "training.log").read_text()
    assert "verified on: one\n" in log and "b/train.rec: key 3" in log and "num_classes" in log
    assert run(folders, tmp_path / "half", "num_epoch=1", *more) == 0
    moved = [folder.rename(tmp_path / f"moved_{folder.name}") for folder in folders]
    assert run(moved, tmp_path / "plain", "resume=auto", *more) == 0, "the same data in other folders"
    assert run(moved[::-1], tmp_path / "plain", "resume=auto", "val_targets=[]", *more[:1], *more[2:]) == 2
    assert "data" in capsys.readouterr().err
    assert run(moved, tmp_path / "x", "num_image=95") == 2 and "has 96 images" in capsys.readouterr().err
