"""Images that are decoded once: the same run as without, from files that may be damaged, and never more memory than there is."""
import pickle

import pytest
import torch
from tiny_training import SETTINGS, write_faces

import train
from config import config
from config_checks import FREE
from datasets import RecordDataset, get_dataloader, get_dataset
from utils import InputError, RecordError, in_memory
from utils.faults import resources
from utils.in_memory import InMemory


def run(faces, output, *more):
    given = {argument.partition("=")[0]: argument for argument in (*SETTINGS, f"rec={faces}", f"output={output}", *more)}
    return train.run(config, list(given.values()))


def test_items_and_what_is_known_of_them_are_the_same(tmp_path, monkeypatch):
    plain = RecordDataset(write_faces(tmp_path, bad=(7,)))
    kept = InMemory(plain)
    monkeypatch.setattr(RecordDataset, "_decode", lambda *_: pytest.fail("decoded again"))
    for one in (kept, pickle.loads(pickle.dumps(kept))):
        assert len(one) == 48 and one.num_classes == 12 and one.image_size == (16, 16) and one.identities_seen == 12
        assert one.fingerprint() == plain.fingerprint() and one.name(5) == plain.name(5) and one.remarks == []
        assert (one.labels() == plain.labels()).all()
    monkeypatch.undo()
    for index in range(48):
        if index == 6:
            with pytest.raises(RecordError, match="key 7"):
                kept[index]
        else:
            (image, label), (expected, other) = kept[index], plain[index]
            assert image.dtype == torch.uint8 and torch.equal(image, expected) and (label, type(label)) == (other, int)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_is_bitwise_the_same(tmp_path, workers):
    faces = write_faces(tmp_path, bad=(7,))
    for name in ("False", "True"):
        more = ("on_bad_record=skip", f"num_workers={workers}", f"in_memory={name}")
        assert run(faces, tmp_path / name, *more) == 0
    for file in ("model_final.pt", "header_final.pt"):
        one, other = (torch.load(tmp_path / name / file, weights_only=True) for name in ("False", "True"))
        assert all(torch.equal(value, other[key]) for key, value in one.items())
    assert "left out:" in (tmp_path / "True/training.log").read_text()
    assert "in_memory" in FREE, "a run may go on either way"


def test_nothing_is_decoded_in_an_epoch(tmp_path, monkeypatch):
    kept = InMemory(get_dataset(write_faces(tmp_path)))
    monkeypatch.setattr(RecordDataset, "_decode", lambda *_: pytest.fail("decoded again"))
    assert sum(len(labels) for _, labels in get_dataloader(kept, 8)) == 48


def test_what_does_not_fit_is_refused_in_one_line(tmp_path, monkeypatch, capsys):
    faces, needed = write_faces(tmp_path), 48 * 3 * 16 * 16
    monkeypatch.setattr(in_memory, "free_memory", lambda: 2 * needed)
    assert len(InMemory(get_dataset(faces))) == 48
    monkeypatch.setattr(in_memory, "free_memory", lambda: 2 * needed - 2)
    with pytest.raises(InputError, match="48 images of 16 x 16 pixels"):
        InMemory(get_dataset(faces))
    assert run(faces, tmp_path / "out", "in_memory=True") == 2
    error = capsys.readouterr().err
    assert "in_memory=True" in error and error.count("\n") == 1
    monkeypatch.setattr(in_memory, "free_memory", lambda: None)
    assert len(InMemory(get_dataset(faces))) == 48


def test_free_memory_is_that_of_the_machine_or_of_the_container(tmp_path, monkeypatch):
    monkeypatch.setattr(resources, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(resources, "_CGROUP", tmp_path)
    assert resources.free_memory() is None
    (tmp_path / "meminfo").write_text("MemTotal:       24684084 kB\nMemAvailable:   1000 kB\n")
    assert resources.free_memory() == 1_024_000
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("5000\n")
    assert resources.free_memory() == 1_024_000
    (tmp_path / "memory.max").write_text("105000\n")
    assert resources.free_memory() == 100_000
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 3000\n")
    assert resources.free_memory() == 103_000
