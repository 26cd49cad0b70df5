"""The .bin reader against well-formed and hostile pickles, embeddings, and the figures of merit against brute force."""
import pickle
import struct
import warnings

import numpy as np
import pytest
import torch
from conftest import SHARED, needs_shared
from torch import nn

from eval import verification
from eval.verification import embed_images, read_bin
from utils import InputError
from utils.images import decode_image, encode_image
from utils.untrusted.pickles import MAX_OPCODES, load_plain


def pictures(count, size=16, seed=0):
    noise = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 256, (3, size, size), dtype=torch.uint8, generator=noise) for _ in range(count)]


def png(image):
    return encode_image(image, "png")


@pytest.fixture
def write(tmp_path):
    def writer(content, name="faces.bin"):
        (tmp_path / name).write_bytes(content)
        return tmp_path / name
    return writer


def scores(count=200, seed=0, share=0.5, decimals=None):
    rng = np.random.default_rng(seed)
    same = rng.random(count) < share
    cosines = np.clip(rng.normal(np.where(same, 0.4, 0.1), 0.2), -1, 1)
    return (cosines if decimals is None else cosines.round(decimals)), same


# reading

@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("kind", [bytes, bytearray, lambda data: np.frombuffer(data, np.uint8)])
def test_reads_every_pickle_protocol_and_kind_of_image(write, protocol, kind):
    images = [png(image) for image in pictures(3)]
    path = write(pickle.dumps(([kind(images[k]) for k in (0, 1, 2, 0, 1, 1)], [True, np.bool_(False), 1]), protocol))
    pairs = read_bin(path)
    assert pairs.images == images and pairs.name == "faces"
    assert pairs.left.tolist() == [0, 2, 1] and pairs.right.tolist() == [1, 0, 1] and pairs.left.dtype == np.int64
    assert pairs.same.tolist() == [True, False, True] and pairs.same.dtype == bool
    assert pairs.positions.tolist() == [0, 1, 2]


def test_reads_python_2_pickles(write):
    image = b"\xff\xd8'\n\\\x00"
    text = b"(lp0\nS" + repr(image)[1:].encode() + b"\np1\nag1\na(lp2\nI01\naI00\na"
    protocol_0 = b"(" + text.replace(b"ag1\na", b"ag1\nag1\nag1\na") + b"t."
    protocol_2 = (b"\x80\x02](U" + bytes([len(image)]) + image + b"q\x01h\x01T" + struct.pack("<i", 3) + b"abch\x01e]"
                  + b"(\x88\x89e\x86.")
    assert read_bin(write(protocol_0)).same.tolist() == [True, False]
    assert read_bin(write(protocol_0)).images == [image]
    assert read_bin(write(protocol_2)).images == [image, b"abc"]


def test_decoded_arrays_survive_unchanged(write):
    images = pictures(2)
    arrays = np.stack([image.permute(1, 2, 0).numpy() for image in images])
    for content in (arrays, list(arrays)):
        pairs = read_bin(write(pickle.dumps((content, np.array([True])))))
        assert [torch.equal(decode_image(data, ""), image) for data, image in zip(pairs.images, images)] == [True] * 2


@pytest.mark.parametrize("value", [
    np.arange(24.).reshape(2, 3, 4), np.asfortranarray(np.arange(6).reshape(2, 3)), np.float32(2), np.array(3, ">i2"),
    np.zeros((0, 3)), [1.5, -2**100, 2**40, None, "text \u20ac", ()], (1, 2, 3, 4), list(range(3000))])
@pytest.mark.parametrize("protocol", range(6))
def test_plain_data_comes_back_as_from_pickle(write, value, protocol):
    content = pickle.dumps(value, protocol)
    found, expected = load_plain(write(content)), pickle.loads(content)
    assert type(found) is type(expected)
    if isinstance(expected, np.ndarray):
        assert found.dtype == expected.dtype.newbyteorder("=") and found.shape == expected.shape
        assert np.array_equal(found, expected)
    else:
        assert found == expected


@needs_shared
def test_reads_the_reference_bin():
    path = SHARED / "data/lfwcrop/lfw.bin"
    pairs = read_bin(path)
    with open(path, "rb") as file:
        images, same = pickle.load(file)
    assert (len(pairs.same), len(pairs.images)) == (1200, 1549)
    assert [pairs.images[k] for k in pairs.left] == images[0::2]
    assert [pairs.images[k] for k in pairs.right] == images[1::2]
    assert pairs.same.tolist() == same and pairs.images[5] == images[pairs.positions[5]]


class _Calls:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def _hostile():
    import os
    yield "os.system", pickle.dumps(_Calls(os.system, "touch hacked"), 2), "system"
    yield "builtins.eval", pickle.dumps(_Calls(eval, "open('hacked', 'w')"), 4), "eval"
    yield "getattr", pickle.dumps(_Calls(getattr, b"", "join"), 4), "getattr"
    yield "attribute path", b"\x80\x04\x8c\x05numpy\x8c\x11ndarray.__class__\x93.", "numpy.ndarray.__class__"
    yield "codecs other", b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00ax\x06\x00\x00\x00rot_13\x86R.", ""
    yield "codecs rot13", b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x06\x00\x00\x00rot_13\x86R.", "latin1"
    yield "object array", pickle.dumps(np.array([{}, None], dtype=object), 2), "dtype"
    yield "object array 5", pickle.dumps(np.array([print], dtype=object), 5), ""
    yield "structured array", pickle.dumps(np.zeros(2, dtype=[("a", "u1")]), 2), "dtype"
    yield "text array", pickle.dumps(np.array(["a"]), 2), "dtype"
    yield "dictionary", pickle.dumps({}, 2), "EMPTY_DICT"
    yield "set", pickle.dumps({1}, 4), "EMPTY_SET"
    yield "class", pickle.dumps(_Calls, 2), "_Calls"
    yield "instance by INST", b"(S'touch hacked'\nios\nsystem\n.", "INST"
    yield "extension", b"\x80\x02\x82\x01.", "EXT1"
    yield "persistent", b"Psomething\n.", "PERSID"
    yield "newobj", b"\x80\x02cnumpy\nndarray\n)\x81.", "NEWOBJ"
    yield "bytes of a number", b"cbuiltins\nbytes\nJ\xff\xff\xff\x7f\x85R.", "int"
    yield "huge frame", b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"N.", "frame"
    yield "huge bytes", b"\x80\x04\x8e" + struct.pack("<Q", 2**63 + 5) + b"abc.", "end of the file"
    yield "large bytes", b"\x80\x03B" + struct.pack("<I", 2**31) + b"abc.", "end of the file"
    yield "negative string", b"T" + struct.pack("<i", -5) + b"abc.", "end of the file"
    yield "huge integer", b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"\x01.", "integer"
    yield "integer of digits", b"I" + b"9" * 100_000 + b"\n.", "unfinished"
    yield "huge memo", b"\x80\x02]r\xff\xff\xff\xffq\x00a", "damaged"
    yield "shape bomb", pickle.dumps(np.zeros(3), 2).replace(b"K\x03\x85", b"J\xff\xff\xff\x7f\x85"), "elements"
    yield "memo copies", b"\x80\x02c_codecs\nencode\nq\x00X" + struct.pack("<I", 10**6) + b"a" * 10**6 + \
        b"q\x01X\x06\x00\x00\x00latin1\x86q\x020" + b"h\x00h\x02R" * 2000 + b".", "more bytes"
    yield "opcodes", b"\x80\x02](" + b"N0" * (MAX_OPCODES // 2) + b".", "opcodes"
    yield "marks only", b"(" * 1000 + b".", "damaged"
    yield "missing memo", b"\x80\x02h\x07.", "damaged"
    yield "empty stack", b".", "damaged"
    yield "appended to bytes", b"\x80\x03C\x01aNa.", "appended"
    yield "state of bytes", b"\x80\x03C\x01aN\x85b.", "state"
    yield "call of bytes", b"\x80\x03C\x01aN\x85R.", "call"
    yield "empty", b"", "it seems to be an empty file"
    yield "text", b"<html>not found</html>", ""
    yield "image", b"\xff\xd8\xff\xe0JFIF", "it seems to be a JPEG"


@pytest.mark.parametrize("content, reason", [pytest.param(*case[1:], id=case[0]) for case in _hostile()])
def test_refuses_hostile_and_damaged_pickles(write, monkeypatch, tmp_path, content, reason):
    monkeypatch.chdir(tmp_path)
    path = write(content)
    with pytest.raises(InputError, match="not a pickle of plain data") as caught:
        read_bin(path)
    message = str(caught.value)
    assert str(path) in message and reason in message and "\n" not in message and len(message) < 500
    assert not (tmp_path / "hacked").exists()


def test_every_truncation_and_many_edits_end_in_an_input_error_or_data(write):
    content = pickle.dumps(([b"abc" * 30, np.arange(9, dtype=np.uint8)], [True]), 2)
    for end in range(len(content)):
        with pytest.raises(InputError):
            read_bin(write(content[:end]))
    rng = np.random.default_rng(0)
    for _ in range(500):
        edited = bytearray(content)
        for place in rng.integers(0, len(content), rng.integers(1, 4)):
            edited[place] = rng.integers(256)
        try:
            read_bin(write(edited))
        except InputError as error:
            assert "\n" not in str(error)


def _recursive():
    loop = []
    loop.append(loop)
    return loop


def _deep(depth):
    return b"]" * depth + b"a" * (depth - 1) + b"."


@pytest.mark.parametrize("content, reason", [
    (pickle.dumps(7), "found int"), (pickle.dumps(([], [], [])), "tuple of 3"), (pickle.dumps(([], [])), "0 images"),
    (pickle.dumps(([b"a"] * 3, [True])), "3 images for 1 labels"), (pickle.dumps(([b"a", "b"], [True])), "image 1"),
    (pickle.dumps(([b"a", 1.5], [True])), "found float"), (pickle.dumps(([b"a"] * 2, ["yes"])), "label 0"),
    (pickle.dumps(([b"a"] * 4, [True, 2])), "label 1"), (pickle.dumps(([b"a"] * 2, [0.5])), "label 0"),
    (pickle.dumps((b"ab", [True])), "images"), (pickle.dumps(([b"a"] * 2, True)), "issame"),
    (pickle.dumps(([np.zeros(3, np.float32)] * 2, [True])), "array [3] of float32"),
    (pickle.dumps(_recursive()), "list of 1"), (pickle.dumps((_recursive() * 2, [True])), "image 0"),
    (_deep(100_000), "list of 1")])
def test_refuses_plain_data_that_is_no_pair_set(write, content, reason):
    path = write(content)
    with pytest.raises(InputError) as caught:
        read_bin(path)
    assert str(path) in str(caught.value) and reason in str(caught.value) and "\n" not in str(caught.value)


def test_refuses_what_is_no_file(tmp_path):
    with pytest.raises(InputError, match="regular"):
        read_bin(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_bin(tmp_path / "none.bin")


# embedding

class Flat(nn.Module):
    """Remembers how it was called."""

    def __init__(self):
        super().__init__()
        self.linear, self.dropout, self.batches = nn.Linear(3 * 16 * 16, 5), nn.Dropout(0.5), []

    def forward(self, images):
        assert not torch.is_grad_enabled() and torch.get_float32_matmul_precision() == "highest"
        self.batches.append(len(images))
        return self.dropout(self.linear(images.flatten(1)))


@pytest.mark.parametrize("workers", [0, 2])
def test_embeds_each_image_once_a_flip_in_batches(workers):
    images = pictures(7)
    network = Flat().double()
    network.dropout.eval()
    encoded = [png(image) for image in images]
    found = embed_images(network, encoded, flips=(False, True), batch_size=3, num_workers=workers)
    batch = (torch.stack(images).double() - 127.5) / 255
    expected = torch.stack([network.linear(view.flatten(1)) for view in (batch, batch.flip(-1))])
    assert found.shape == (2, 7, 5) and found.dtype == torch.float64
    torch.testing.assert_close(found, expected.detach())
    assert network.batches == [3, 3, 3, 3, 1, 1]
    assert network.training and network.linear.training and not network.dropout.training  # as they were


def test_precision_that_was_set_comes_back():
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        embed_images(Flat(), [png(image) for image in pictures(2)])
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("bad, reason", [(b"\xff\xd8 not a picture", ""), (b"", ""),
                                         (png(pictures(1, size=8)[0]), "expected [3, 16, 16]")])
def test_a_bad_image_is_named_by_its_place_in_the_file(write, bad, reason, workers):
    good = [png(image) for image in pictures(3)]
    pairs = read_bin(write(pickle.dumps((good[:1] * 3 + good[1:] + [bad], [True] * 3))))
    with pytest.raises(InputError) as caught:
        embed_images(Flat(), pairs.images, describe=pairs.describe, batch_size=2, num_workers=workers)
    assert "faces.bin: image 5" in str(caught.value) and reason in str(caught.value) and "\n" not in str(caught.value)


def test_images_of_a_size_that_the_network_cannot_take():
    with pytest.raises(InputError, match="image 0 is .3, 8, 8., which the network cannot take"):
        embed_images(Flat(), [png(picture) for picture in pictures(2, size=8)])


def test_jpegs_are_embedded_as_decoded():
    images = [encode_image(image, "jpeg") for image in pictures(2)]
    found = embed_images(lambda batch: batch.flatten(1), images, dtype=torch.float64)
    expected = torch.stack([decode_image(data, "") for data in images]).flatten(1).double().sub(127.5).div(255)
    torch.testing.assert_close(found[0], expected)


def _rank(rank, world, folder, counts):
    import torch.distributed as dist
    torch.set_num_threads(1)  # the thread pool of the parent does not exist in a forked process
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    for count in counts:
        images = [png(image) for image in pictures(count)]
        found = embed_images(lambda batch: batch.flatten(1), images, (False, True), batch_size=2, distributed=True)
        torch.save(found, f"{folder}/{rank}_{count}.pt")
    dist.destroy_process_group()


def test_ranks_share_the_images_and_all_get_everything(tmp_path):
    counts = (1, 4, 5)
    torch.multiprocessing.start_processes(_rank, (2, str(tmp_path), counts), nprocs=2, start_method="fork")
    for count in counts:
        alone = embed_images(lambda batch: batch.flatten(1), [png(image) for image in pictures(count)], (False, True))
        for rank in range(2):
            assert torch.equal(torch.load(tmp_path / f"{rank}_{count}.pt", weights_only=True), alone)


def test_cosines_and_norms_with_embeddings_without_direction():
    embeddings = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    embeddings[1], embeddings[2, 0], embeddings[3, 1] = 0, torch.nan, torch.inf
    assert verification.norms(embeddings)[1:4].tolist() == [0, 0, 0]
    found = verification.pair_cosines(embeddings, [0, 0, 2, 3, 0], [4, 1, 5, 3, 0])
    u, v = embeddings[0].double().numpy(), embeddings[4].double().numpy()
    cosine = u @ v / np.linalg.norm(u) / np.linalg.norm(v)
    assert found == pytest.approx([cosine, -np.inf, -np.inf, -np.inf, 1], abs=1e-15)


# figures of merit

def test_ten_fold_accuracy_is_the_textbook_loop():
    from sklearn.model_selection import KFold
    for count, decimals in ((200, None), (203, 2), (10, None)):
        cosines, same = scores(count, seed=count, decimals=decimals)
        accuracies = []
        for train, test in KFold(10, shuffle=False).split(cosines):
            thresholds = np.arange(0, 4, 0.01)
            right = [np.mean((2 - 2 * cosines[train] < t) == same[train]) for t in thresholds]
            accuracies.append(np.mean((2 - 2 * cosines[test] < thresholds[np.argmax(right)]) == same[test]))
        assert verification.ten_fold_accuracy(cosines, same) == pytest.approx((np.mean(accuracies), np.std(accuracies)))
    with pytest.raises(InputError, match="10 pairs"):
        verification.ten_fold_accuracy(cosines[:9], same[:9])


@pytest.mark.parametrize("far", [1e-3, 1e-2, 0.1, 0.5, 1 / 97])
@pytest.mark.parametrize("decimals", [None, 1])
@pytest.mark.filterwarnings("ignore:.*false pairs are too few")
def test_thresholds_by_exhaustive_search(far, decimals):
    for seed in range(5):
        cosines, same = scores(200, seed, decimals=decimals)
        negatives = cosines[~same]
        allowed = [tau for tau in cosines if np.mean(negatives > tau) <= far]
        assert verification.threshold_at_far(cosines, same, far) == min(allowed)
        exceeding = [tau for tau in np.linspace(-1, 1, 1000) if np.mean(negatives > tau) > far]
        assert verification.threshold_at_far(cosines, same, far, "paper") == max(exceeding)


def test_far_is_compared_exactly():
    for count in (3, 10, 29, 1000):
        cosines, same = np.linspace(-0.9, 0.9, count), np.zeros(count, dtype=bool)
        for accepted in range(1, min(count, 40)):
            tau = verification.threshold_at_far(cosines, same, accepted / count)
            assert (cosines > tau).sum() == accepted


def test_threshold_warns_or_refuses_where_it_has_to():
    cosines, same = scores(40)
    with pytest.warns(UserWarning, match=f"finest they support is {1 / (~same).sum():.2g}"):
        tau = verification.threshold_at_far(cosines, same, 1e-3)
    assert tau == cosines[~same].max()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        verification.threshold_at_far(cosines, same, 0.1)
    with pytest.raises(InputError, match="no false pairs"):
        verification.threshold_at_far(cosines, np.ones(40, bool), 0.1)
    for protocol in ("strict", "paper"):
        with pytest.raises(InputError, match="no threshold inside"):
            verification.threshold_at_far(np.full(40, -np.inf), np.zeros(40, bool), 0.1, protocol)


def test_rates_auc_and_eer_by_counting():
    cosines, same = scores(300, decimals=2)
    cosines[:5] = -np.inf
    assert verification.tar_far(cosines, same, 0.2) == (np.mean(cosines[same] > 0.2), np.mean(cosines[~same] > 0.2))
    assert verification.tar_far(cosines[same], same[same], 0.2)[1] is None
    wins = [(p > n) + (p == n) / 2 for p in cosines[same] for n in cosines[~same]]
    assert verification.auc(cosines, same) == pytest.approx(np.mean(wins))
    errors = [(np.mean(cosines[~same] > tau), np.mean(cosines[same] <= tau)) for tau in np.linspace(-1, 1, 2001)]
    above = min(max(pair) for pair in errors)
    below = max(min(pair) for pair in errors)
    assert below - 1e-12 <= verification.eer(cosines, same) <= above + 1e-12
    from sklearn.metrics import roc_curve
    scores_above = np.where(np.isfinite(cosines), cosines, -2)
    expected = roc_curve(same, scores_above, drop_intermediate=False)[:2]
    assert np.array_equal(verification.roc(cosines, same), expected)
    for function in (verification.auc, verification.eer):
        with pytest.raises(InputError, match="both true and false"):
            function(cosines[same], same[same])
