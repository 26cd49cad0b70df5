"""Datasets, the loader over ranks and workers, synthetic identities, and the builder's command line."""
import io
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, SHARED, needs_shared
from PIL import Image

from datasets import ImageFolderFaces, RecordDataset, get_dataloader, get_dataset, to_float
from synthetic_faces import SyntheticFaces, synthetic_pairs
from utils import InputError
from utils.build_dataset import build_rec, main, write_bin
from utils.images import MAX_PIXELS, decode_image, encode_image, image_size
from utils.loader import coin
from utils.recordio import IndexedRecordFile, RecordWriter, import_mxnet, pack, unpack
from utils.utils_distributed_sampler import DistributedSampler, Partners

FACES = SHARED / "data" / "lfwcrop"


def picture(number, height=12, width=10):
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(pixels, kind="JPEG", **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def as_pixels(image):
    return image.permute(1, 2, 0).numpy()


def write(folder, records):
    with RecordWriter(folder / "train") as writer:
        for key, payload in records.items():
            writer.write(key, payload)
    return folder


class Numbered(torch.utils.data.Dataset):
    """Image i is filled with i in its left column and 200 elsewhere; i itself is the label."""

    num_classes, image_size = 97, (4, 5)

    def __init__(self, length=97, bad=None):
        self.length, self.bad = length, bad

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if index == self.bad:
            raise InputError(f"faces.rec: key {index}: damaged")
        image = torch.full((3, 4, 5), 200, dtype=torch.uint8)
        image[:, :, 0] = index
        return image, index


def labels_of(loader, epoch=0, start=0):
    loader.set_epoch(epoch, start)
    return [labels.tolist() for _, labels in loader]


# --- images

def test_links_without_end_are_not_followed(tmp_path):
    for person in ("a", "b"):
        (tmp_path / person).mkdir()
        (tmp_path / person / "1.png").write_bytes(encode_image(torch.zeros(3, 4, 4, dtype=torch.uint8), "png"))
        for number in range(3):
            (tmp_path / person / f"again{number}").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "c").symlink_to(tmp_path / "a", target_is_directory=True)  # identities may be links
    assert [os.path.relpath(path, tmp_path) for path, _ in ImageFolderFaces(tmp_path).samples] == ["a/1.png", "b/1.png", "c/1.png"]


@pytest.mark.parametrize("where", ["label", "header", "property"])
def test_many_more_identities_than_images_need_to_be_asked_for(tmp_path, where):
    image = encode_image(torch.zeros(3, 4, 4, dtype=torch.uint8), "png")
    with RecordWriter(tmp_path / "train") as writer:
        if where == "header":
            writer.write(0, pack([4, 1e9]))
        for key in range(1, 4):
            writer.write(key, pack(1e9 if where == "label" else 0, key, image))
    if where == "property":
        (tmp_path / "property").write_text("1000000000,4,4")
    with pytest.raises(InputError, match="train.rec: .* identities, but 3 images; num_classes="):
        RecordDataset(tmp_path)


def test_decoding_agrees_with_pil():
    pixels = picture(0)
    for kind in ("PNG", "BMP", "PPM", "TIFF"):
        np.testing.assert_array_equal(as_pixels(decode_image(encoded(pixels, kind), "x")), pixels)
    for options in ({"quality": 90}, {"progressive": True}, {"subsampling": 0}):
        data = encoded(pixels, **options)
        theirs = np.asarray(Image.open(io.BytesIO(data)))
        assert np.abs(as_pixels(decode_image(memoryview(data), "x")).astype(int) - theirs).max() <= 3
    assert image_size(encoded(pixels), "x") == image_size(encoded(pixels, "PNG"), "x") == (12, 10)


def test_decoding_grey_transparent_and_deep_images():
    grey = picture(1)[..., 0]
    for kind in ("PNG", "JPEG"):
        image = decode_image(encoded(grey, kind), "x")
        assert image.shape == (3, 12, 10) and (image == image[:1]).all()
    clear = np.dstack([picture(2), grey])
    np.testing.assert_array_equal(as_pixels(decode_image(encoded(clear, "PNG"), "x")), clear[..., :3])
    deep = decode_image(encoded(grey.astype(np.uint16) * 256 + 7, "PNG"), "x")
    assert deep.dtype == torch.uint8 and np.array_equal(deep[0].numpy(), grey)


def bomb(kind):
    if kind == "PNG":
        data = bytearray(encoded(picture(0), "PNG"))
        data[16:24] = (60000).to_bytes(4, "big") * 2
    else:
        data = bytearray(encoded(picture(0)))
        place = data.index(b"\xff\xc0")
        data[place + 5:place + 9] = (60000).to_bytes(2, "big") * 2
    return bytes(data)


@pytest.mark.parametrize("data, words", [
    (b"", "0 bytes"), (b"\xff\xd8", "frame header"), (b"\x89PNG\r\n\x1a\n", "8 bytes"), (b"GIF89a" + bytes(20), "GIF89a"),
    (encoded(picture(0))[:-20], "cannot be decoded"), (encoded(picture(0), "PNG")[:-60], "cannot be decoded"),
    (encoded(picture(0))[:40], "frame header"), (encoded(picture(0), "BMP")[:60], "cannot be decoded"),
    (bomb("PNG"), f"60000 x 60000 pixels, expected 1 to {MAX_PIXELS}"), (bomb("JPEG"), "60000 x 60000 pixels"),
    (encoded(picture(0)) + b"\xff\xda" * 2**22, "scans"),
])
def test_undecodable_images(data, words):
    with pytest.raises(InputError) as error:
        decode_image(data, "a.bin: image 7")
    assert str(error.value).startswith("a.bin: image 7: ") and words in str(error.value) and "\n" not in str(error.value)


def test_to_float():
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    expected = (np.arange(256) - 127.5) / 255
    np.testing.assert_allclose(to_float(images).flatten().numpy(), expected, rtol=1e-6)
    np.testing.assert_allclose(to_float(images, "cpu", torch.float64).flatten().numpy(), expected, rtol=1e-15)
    assert images.max() == 255  # untouched
    assert to_float(images.expand(2, 3, 16, 16).contiguous(memory_format=torch.channels_last)).is_contiguous()
    with pytest.raises(TypeError, match="float32"):
        to_float(torch.zeros(1, 3, 4, 4))


# --- RecordIO datasets

def image_record(label, number, **options):
    return pack(label, number, encoded(picture(number, **options), "PNG"))


def test_without_header_all_keys_are_images_in_index_order(tmp_path):
    write(tmp_path, {5: image_record(2.0, 5), 0: image_record([1.0, 7.0], 0), 3: image_record([0.0], 3)})
    dataset = RecordDataset(tmp_path)
    assert len(dataset) == 3 and dataset.num_classes == 3 and dataset.image_size == (12, 10)
    for index, (key, label) in enumerate([(5, 2), (0, 1), (3, 0)]):
        image, found = dataset[index]
        assert found == label and type(found) is int and np.array_equal(as_pixels(image), picture(key))
    (tmp_path / "property").write_text("40,12,10\n")
    assert RecordDataset(tmp_path / "train.rec").num_classes == 40
    assert RecordDataset(tmp_path, num_classes=3).num_classes == 3


def test_header_record(tmp_path):
    records = {2: image_record(4.0, 2), 0: pack([3.0, 8.0]), 3: pack([1.0, 2.0]), 1: image_record(0.0, 1)}
    dataset = RecordDataset(write(tmp_path, records))
    assert len(dataset) == 2 and dataset.num_classes == 5
    assert [dataset[0][1], dataset[1][1]] == [0, 4]


@pytest.mark.parametrize("records, num_classes, words", [
    ({0: pack([4.0, 9.0]), 1: image_record(0, 1), 3: image_record(0, 3)}, None, ["train.idx: key 2 is not in the index", "3 images"]),
    ({0: pack([5.0, 9.0]), 1: image_record(0, 1), 3: image_record(0, 3)}, None, ["train.rec: key 0", "4 images", "3 entries"]),
    ({0: pack([3.0]), 1: image_record(0, 1)}, None, ["train.rec: key 0", "header labels [3.0]"]),
    ({0: pack([float("nan"), 1.0]), 1: image_record(0, 1)}, None, ["train.rec: key 0", "header labels"]),
    ({0: pack([1e30, 2e30]), 1: image_record(0, 1)}, None, ["train.rec: key 0", "images"]),
    ({1: image_record(0, 1), 2: image_record(7, 2)}, 5, ["train.rec: key 2", "label 7", "[0, 5)"]),
    ({1: image_record(0, 1), 2: image_record(-1, 2)}, 5, ["train.rec: key 2", "label -1", "[0, 5)"]),
    ({1: image_record(0, 1), 2: image_record(0.5, 2)}, 5, ["train.rec: key 2", "label 0.5", "integer"]),
    ({1: image_record(0, 1), 2: image_record(float("nan"), 2)}, 5, ["train.rec: key 2", "label nan"]),
    ({1: image_record(0, 1), 2: image_record(float("inf"), 2)}, None, ["train.rec: key 2", "label inf"]),
    ({1: image_record(0, 1), 2: image_record(0.5, 2)}, None, ["train.rec: key 2", "label 0.5"]),
    ({1: image_record(0, 1), 2: image_record(0, 2, height=11)}, 5, ["train.rec: key 2", "(11, 10)", "(12, 10)"]),
    ({1: image_record(0, 1), 2: pack(0, 2, b"no image")}, 5, ["train.rec: key 2", "no image"]),
    ({1: pack(0, 2, encoded(picture(1))[:-100])}, 5, ["train.rec: key 1", "cannot be decoded"]),
    ({1: b"abc"}, 5, ["train.rec: key 1", "3 bytes"]),
    ({1: b"\x09" + bytes(27)}, 5, ["train.rec: key 1", "9 labels"]),
])
def test_bad_records(tmp_path, records, num_classes, words):
    with pytest.raises(InputError) as error:
        dataset = RecordDataset(write(tmp_path, records), num_classes)
        for index in range(len(dataset)):
            dataset[index]
    assert all(word in str(error.value) for word in [str(tmp_path), *words]) and "\n" not in str(error.value), error.value


def test_bad_property_and_backend(tmp_path):
    write(tmp_path, {1: image_record(0.0, 1)})
    with pytest.raises(InputError, match="recordio_backend is 'pandas', expected one of builtin, mxnet"):
        RecordDataset(tmp_path, recordio_backend="pandas")
    (tmp_path / "property").write_text("many,112,112")
    with pytest.raises(InputError, match="property: 'many,112,112'"):
        RecordDataset(tmp_path)


@needs_shared
def test_both_backends_give_the_same_samples():
    try:
        import_mxnet()
    except InputError as error:
        pytest.skip(str(error))
    ours, theirs = (RecordDataset(FACES, recordio_backend=backend) for backend in ("builtin", "mxnet"))
    assert len(ours) == len(theirs) == 6262 and ours.num_classes == theirs.num_classes == 1176
    for index in range(0, 6262, 50):
        (a, i), (b, j) = ours[index], theirs[index]
        assert i == j and torch.equal(a, b)


# --- order, sharding, flips

@pytest.mark.parametrize("length, world", [(97, 1), (97, 2), (97, 5), (3, 5)])
def test_sampler_deals_each_sample_once(length, world):
    samplers = [DistributedSampler(range(length), world, rank, seed=3) for rank in range(world)]
    shares = [list(sampler) for sampler in samplers]
    dealt = [index for position in zip(*shares) for index in position]
    assert {len(sampler) for sampler in samplers} == {len(share) for share in shares} == {length // world}
    assert len(set(dealt)) == len(dealt) and set(dealt) <= set(range(length))
    assert dealt == list(DistributedSampler(range(length), 1, 0, seed=3))[:len(dealt)]


def test_sampler_order_is_keyed_by_seed_and_epoch():
    orders = {}
    for seed, epoch in [(0, 0), (0, 1), (1, 0), (1, 1)]:
        sampler = DistributedSampler(range(50), seed=seed)
        sampler.set_epoch(epoch)
        orders[seed, epoch] = tuple(sampler)
        assert sorted(orders[seed, epoch]) == list(range(50)) and tuple(sampler) == orders[seed, epoch]
    assert len(set(orders.values())) == 4
    assert list(DistributedSampler(range(5), shuffle=False)) == list(range(5))
    with pytest.raises(ValueError, match="rank is 2"):
        DistributedSampler(range(5), 2, 2)


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_together_see_the_batches_of_one_process(world):
    alone = get_dataloader(Numbered(), 4 * world, seed=1, num_replicas=1, rank=0)
    ranks = [get_dataloader(Numbered(), 4, seed=1, num_replicas=world, rank=rank) for rank in range(world)]
    for epoch in range(2):
        for loader in (alone, *ranks):
            loader.set_epoch(epoch)
        steps = list(zip(alone, *ranks))
        assert len(steps) == len(alone) == len(ranks[0]) == 97 // (4 * world)
        for (images, labels), *shares in steps:
            for rank, (share_images, share_labels) in enumerate(shares):
                assert torch.equal(share_images, images[rank::world]) and torch.equal(share_labels, labels[rank::world])


@pytest.mark.parametrize("workers, start_method", [(1, "fork"), (2, "fork"), (2, "spawn")])
def test_workers_change_nothing(workers, start_method):
    alone = get_dataloader(Numbered(), 8, seed=5)
    loader = get_dataloader(Numbered(), 8, seed=5, num_workers=workers, start_method=start_method)
    state = torch.get_rng_state()
    for epoch, start in [(0, 0), (3, 0), (1, 7)]:  # the same workers, persistent, for all epochs
        alone.set_epoch(epoch, start)
        loader.set_epoch(epoch, start)
        batches, expected = list(loader), list(alone)
        assert len(batches) == len(expected) == 12 - start
        for (images, labels), (same_images, same_labels) in zip(batches, expected):
            assert images.dtype == torch.uint8 and labels.dtype == torch.int64 and images.shape == (8, 3, 4, 5)
            assert torch.equal(images, same_images) and torch.equal(labels, same_labels)
    loader.set_epoch(0)
    next(iter(loader))  # an epoch that is broken off does not disturb the next
    assert labels_of(loader, 2) == labels_of(alone, 2)
    assert torch.equal(state, torch.get_rng_state())


def test_going_on_within_an_epoch_reads_only_what_is_left():
    whole = labels_of(get_dataloader(Numbered(), 6, seed=2), epoch=4)
    assert len(whole) == 16
    read = [index for batch in whole[:10] for index in batch]
    rest = get_dataloader(Numbered(bad=read[0]), 6, seed=2)  # reading that one again would raise
    assert labels_of(rest, 4, start=10) == whole[10:] and len(rest) == 16
    assert labels_of(rest, 4, start=16) == []


def test_flips_follow_seed_epoch_and_sample():
    def flipped(**options):
        loader = get_dataloader(Numbered(), 97, **options)
        images, labels = next(iter(loader))
        assert all((image[:, :, 0] == label).all() or (image[:, :, 4] == label).all() for image, label in zip(images, labels))
        return {int(label): bool((image[:, :, 0] != label).any()) for image, label in zip(images, labels)}

    first = flipped(seed=1)
    assert first == flipped(seed=1, shuffle=False) and 20 < sum(first.values()) < 77
    assert first != flipped(seed=2) and not any(flipped(flip=False).values())


class Labelled(Numbered):
    """40 images in some order: 20 of person 7, 9 of person 3, 6 of person 12, one each of 0 and 1, three of nobody."""

    def labels(self):
        return np.random.default_rng(0).permutation([7] * 20 + [3] * 9 + [12] * 6 + [0, 1] + [-1] * 3)


def samples(loader, epoch=0, start=0):
    """[batches, B]: the number of each image."""
    return np.array(labels_of(loader, epoch, start))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_the_second_half_of_a_batch_are_partners(world):
    dataset, batch = Labelled(40), 6 * (world == 3) + 4 * (world < 3)
    people = dataset.labels()
    plain = get_dataloader(dataset, batch, seed=1, num_replicas=1, rank=0)
    loader = get_dataloader(dataset, batch, seed=1, partners=True, num_replicas=1, rank=0)
    shares = [get_dataloader(dataset, batch // world, seed=1, partners=True, num_replicas=world, rank=rank) for rank in range(world)]
    for epoch in range(3):
        before, found = samples(plain, epoch), samples(loader, epoch)
        assert found.shape == before.shape == (40 // batch, batch) and len(loader) == 40 // batch
        half = batch // 2
        assert np.array_equal(found[:, :half], before[:, :half])
        for one, other in zip(found[:, :half].flat, found[:, half:].flat):
            alone = people[one] < 0 or (people == people[one]).sum() == 1
            assert people[other] == people[one] and (other == one) == alone
        assert np.array_equal(samples(loader, epoch, start=2), found[2:]), "as a resumed run goes on"
        for rank, share in enumerate(shares):
            assert np.array_equal(samples(share, epoch), found[:, rank::world])


def test_partners_are_keyed_by_seed_epoch_and_sample_and_alike_likely():
    dataset = Labelled(40)
    people = dataset.labels()

    def table(seed, epoch, batch_size=4):
        return Partners(people, batch_size, seed).of_epoch(epoch)
    assert np.array_equal(table(0, 5), table(0, 5, 10)) and len({tuple(table(*key)) for key in [(0, 0), (0, 1), (1, 0), (1, 1)]}) == 4
    drawn = np.array([table(3, epoch) for epoch in range(4000)])
    for sample in range(40):
        others = np.flatnonzero((people == people[sample]) & (np.arange(40) != sample)) if people[sample] >= 0 else []
        counts = np.bincount(drawn[:, sample], minlength=40)
        expected = 4000 / max(len(others), 1)
        assert set(np.flatnonzero(counts)) == set(others if len(others) else [sample])
        assert np.abs(counts[counts > 0] - expected).max() < 6 * expected**0.5
    pair = drawn[:, np.flatnonzero(people == 12)[:2]]
    assert abs(np.corrcoef(pair.T)[0, 1]) < 0.1, "samples draw by themselves"


def test_partners_need_an_even_batch():
    with pytest.raises(InputError, match="batch_size: 9 on all ranks together, expected an even number"):
        get_dataloader(Labelled(40), 3, partners=True, num_replicas=3, rank=0)


def test_coins_are_fair_and_independent():
    rows = np.array([[[coin(seed, epoch, index) for index in range(400)] for epoch in range(8)] for seed in range(8)])
    sigma = 0.5 / np.sqrt(rows.size)
    assert abs(rows.mean() - 0.5) < 4 * sigma
    for axis in range(3):  # neighbours in seed, epoch and index differ half of the time
        before, after = (np.take(rows, range(a, b), axis) for a, b in ((0, rows.shape[axis] - 1), (1, rows.shape[axis])))
        assert abs((before == after).mean() - 0.5) < 5 * sigma
    counts = rows.reshape(-1, 4) @ [1, 2, 4, 8]  # runs of four neighbours: chi-squared with 15 degrees of freedom
    expected = counts.size / 16
    assert ((np.bincount(counts, minlength=16) - expected) ** 2 / expected).sum() < 45


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_record_ends_in_one_line(workers):
    loader = get_dataloader(Numbered(bad=11), 8, num_workers=workers)
    with pytest.raises(InputError) as error:
        for _ in loader:
            pass
    assert str(error.value) == "faces.rec: key 11: damaged"


def test_dataset_smaller_than_a_batch():
    with pytest.raises(InputError, match="batch_size: 60 on each of 2 ranks, but the dataset has 97 images"):
        get_dataloader(Numbered(), 60, num_replicas=2, rank=0)


# --- synthetic identities

def test_synthetic_samples_follow_from_seed_identity_and_sample():
    faces = SyntheticFaces(6, 3, seed=4)
    image, label = faces[7]
    assert image.dtype == torch.uint8 and image.shape == (3, 112, 112) and label == 2 and len(faces) == 18
    again, other_label = SyntheticFaces(2, 3, seed=4, first_identity=2)[1]
    assert torch.equal(image, again) and other_label == 0
    assert torch.equal(faces[7][0], image) and faces.image_size == (112, 112) and faces.num_classes == 6
    others = [faces[6][0], faces[8][0], faces[10][0], SyntheticFaces(6, 3, seed=5)[7][0]]
    assert all((image.float() - other.float()).abs().mean() > 5 for other in others)
    with pytest.raises(IndexError):
        faces[18]


def test_synthetic_faces_look_alike_within_an_identity_only():
    """Each sample is nearest to its own identity once the nuisances are averaged out, yet single pixels do not verify."""
    faces = SyntheticFaces(20, 24, size=28)
    images = torch.stack([faces[index][0] for index in range(len(faces))]).double().view(20, 24, -1)
    means, rest = images[:, :12].mean(1), images[:, 12:]
    nearest = torch.cdist(rest.flatten(0, 1), means).argmin(1)
    assert (nearest == torch.arange(20).repeat_interleave(12)).double().mean() > 0.5
    centred = torch.nn.functional.normalize(rest - rest.mean((0, 1)), dim=-1)
    same = (centred[:, 0] * centred[:, 1]).sum(-1)
    different = (centred[:, 0] * centred[:, 1].roll(1, 0)).sum(-1)
    assert same.mean() > different.mean() and same.min() < different.max()


@pytest.mark.parametrize("pairs, classes", [(40, None), (13, 2), (24, 5), (1, None)])
def test_synthetic_pairs_show_what_they_say(pairs, classes):
    images, same = synthetic_pairs(pairs, 24, 1, first_identity=5, num_classes=classes, kind="png")
    assert len(images) == len(set(images)) == 2 * pairs and same == [number % 2 == 0 for number in range(pairs)]
    faces = SyntheticFaces(classes or max(2, pairs // 4), 40, 24, seed=1, first_identity=5)
    identity = {faces[index][0].contiguous().numpy().tobytes(): faces[index][1] for index in range(len(faces))}
    shown = [identity[decode_image(image, "x").contiguous().numpy().tobytes()] for image in images]
    assert [left == right for left, right in zip(shown[::2], shown[1::2])] == same


def test_synthetic_pairs_are_held_out_and_reproducible():
    assert synthetic_pairs(6, 24) == synthetic_pairs(6, 24) != synthetic_pairs(6, 24, seed=1)
    assert synthetic_pairs(6, 24) != synthetic_pairs(6, 24, first_identity=0)


# --- folders, and what `rec` may name

@pytest.fixture
def folder(tmp_path):
    for name in ("b", "a", "c"):
        (tmp_path / "faces" / name).mkdir(parents=True)
        for number in range(3):
            (tmp_path / "faces" / name / f"{number}.jpg").write_bytes(encoded(picture(ord(name) + number)))
    return tmp_path / "faces"


def test_image_folder(folder):
    dataset = ImageFolderFaces(folder)
    assert (len(dataset), dataset.num_classes, dataset.image_size) == (9, 3, (12, 10))
    assert [label for _, label in dataset] == [0] * 3 + [1] * 3 + [2] * 3
    assert torch.equal(dataset[4][0], decode_image((folder / "b" / "1.jpg").read_bytes(), "x"))
    with pytest.raises(InputError, match="3 identities, expected at most num_classes = 2"):
        ImageFolderFaces(folder, 2)
    (folder / "b" / "1.jpg").write_bytes(encoded(picture(0, height=9)))
    (folder / "b" / "2.jpg").write_bytes(b"text")
    for index, words in ((4, r"b/1.jpg: the image has \(height, width\) \(9, 10\)"), (5, "b/2.jpg: 4 bytes")):
        with pytest.raises(InputError, match=words):
            dataset[index]


def test_get_dataset(folder, tmp_path):
    assert isinstance(get_dataset("synthetic"), SyntheticFaces) and get_dataset("synthetic", num_classes=7).num_classes == 7
    assert isinstance(get_dataset(folder), ImageFolderFaces)
    (tmp_path / "rec").mkdir()
    write(tmp_path / "rec", {1: image_record(0.0, 1)})
    assert all(isinstance(get_dataset(path), RecordDataset) for path in (tmp_path / "rec", tmp_path / "rec" / "train.rec"))
    (tmp_path / "rec" / "train.rec").unlink()
    (tmp_path / "empty").mkdir()
    (folder / "b").rename(tmp_path / "b")
    (folder / "b").mkdir()
    for rec, words in [("nowhere", "rec=nowhere: does not exist; expected .* synthetic"), (tmp_path / "empty", "has neither"),
                       (tmp_path / "rec", "train.rec: there is no such file"), (folder, "not a folder of image folders")]:
        with pytest.raises(InputError, match=words):
            get_dataset(rec)


# --- the builder

def test_build_rec_round_trip_from_the_shell(folder, tmp_path):
    Image.fromarray(picture(9)).save(folder / "a" / "9.png")
    command = [sys.executable, "-m", "utils.build_dataset", "rec", "--images", folder, "--out", tmp_path / "out" / "train"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0 and "10 images of 3 identities" in run.stdout, run.stderr
    dataset, faces = RecordDataset(tmp_path / "out"), ImageFolderFaces(folder)
    assert len(dataset) == 10 and dataset.num_classes == 3 and (tmp_path / "out" / "property").read_text() == "3,12,10\n"
    for index, (path, label) in enumerate(faces.samples):
        image, found = dataset[index]
        assert found == label
        if path.endswith("jpg"):  # stored as it is
            assert torch.equal(image, faces[index][0])
    file = IndexedRecordFile(tmp_path / "out" / "train.rec", tmp_path / "out" / "train.idx")
    assert file.keys.tolist() == list(range(14)) and unpack(file.read(0)).label.tolist() == [11, 14]
    assert [unpack(file.read(key)).label.tolist() for key in (11, 12, 13)] == [[1, 5], [5, 8], [8, 11]]


@needs_shared
def test_build_rec_lays_records_out_like_the_published_files(tmp_path):
    file = IndexedRecordFile(FACES / "train.rec", FACES / "train.idx")
    ranges = [unpack(file.read(key)).label.astype(int) for key in (6263, 6264, 6265)]
    assert [unpack(file.read(0)).label.tolist(), ranges[0][0]] == [[6263, 7439], 1]
    for label, (start, end) in enumerate(ranges):
        folder = tmp_path / "images" / f"{label}"
        folder.mkdir(parents=True)
        for key in range(start, end):
            (folder / f"{key:05}.jpg").write_bytes(unpack(file.read(key)).image)
    build_rec(tmp_path / "images", tmp_path / "train")
    ours = IndexedRecordFile(tmp_path / "train.rec", tmp_path / "train.idx")
    count = ranges[-1][1] - 1
    assert len(ours) == count + 4
    for key in range(1, count + 1):
        assert ours.read(key) == file.read(key)
    for label in range(3):
        assert unpack(ours.read(count + 1 + label)).label.tolist() == ranges[label].tolist()


def build(*arguments):
    return main([str(argument) for argument in arguments])


def test_build_resizes_on_request_only(folder, tmp_path, capsys):
    (folder / "c" / "2.jpg").write_bytes(encoded(picture(1, height=30)))
    assert build("rec", "--images", folder, "--out", tmp_path / "out" / "train") == 2
    assert "c/2.jpg: (height, width) (30, 10), expected (12, 10)" in capsys.readouterr().err.splitlines()[-1]
    assert not list((tmp_path / "out").glob("*"))
    assert build("rec", "--images", folder, "--out", tmp_path / "out" / "train", "--size", 16, "--quality", 80) == 0
    dataset = RecordDataset(tmp_path / "out")
    assert dataset.image_size == (16, 16) and len([dataset[index] for index in range(9)]) == 9


def test_build_bin_round_trip(folder, tmp_path, capsys):
    Image.fromarray(picture(9)).save(folder / "a" / "9.bmp")
    (tmp_path / "pairs.txt").write_text("a/0.jpg a/1.jpg 1\n\nb/0.jpg\tc/2.jpg\t0\na/9.bmp a/0.jpg 1\n")
    out = tmp_path / "made" / "x.bin"
    assert build("bin", "--pairs", tmp_path / "pairs.txt", "--images", folder, "--out", out) == 0
    assert "3 pairs" in capsys.readouterr().out
    with open(out, "rb") as file:
        images, same = pickle.load(file, encoding="bytes")
    assert same == [True, False, True] and all(type(image) is bytes for image in images)
    assert images[:4] == [(folder / name).read_bytes() for name in ("a/0.jpg", "a/1.jpg", "b/0.jpg", "c/2.jpg")]
    np.testing.assert_array_equal(as_pixels(decode_image(images[4], "x")), picture(9))  # lossless


@pytest.mark.parametrize("line, words", [("a/0.jpg a/1.jpg", "line 2"), ("a/0.jpg a/1.jpg yes", "line 2"), ("a/0.jpg a/7.jpg 1", "7.jpg")])
def test_build_bin_refuses(folder, tmp_path, capsys, line, words):
    (tmp_path / "pairs.txt").write_text(f"a/0.jpg a/1.jpg 1\n{line}\n")
    assert build("bin", "--pairs", tmp_path / "pairs.txt", "--images", folder, "--out", tmp_path / "x.bin") == 2
    assert words in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "x.bin").exists()


def test_write_bin_checks_its_lengths(tmp_path):
    with pytest.raises(ValueError, match="3 images for 1 pairs"):
        write_bin(tmp_path / "x.bin", [b"a"] * 3, [True])
