"""docs/formats.md: a test for each row of its tables, under the row's own words; inputs are written by other means than the readers."""
import codecs
import gzip
import io
import pickle
import re
import struct
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from many_records import Many
from PIL import Image
from torch import nn

import utils.foreign_weights
from datasets import ImageFolderFaces, RecordDataset, get_dataset
from eval.verification import read_bin
from utils import InputError, RecordError, build_dataset, checkpoint
from utils.files import kind_of
from utils.images import decode_image
from utils.record_layout import image_keys
from utils.recordio import RecordWriter, pack
from utils.utils_logging import read_training_log

PAGE = (ROOT / "docs" / "formats.md").read_text()
FORMS = {}


def form(name):
    """The test of a row of the page: it takes a folder."""
    def add(function):
        FORMS[name] = function
        return function
    return add


def rows():
    """The first cells of all tables, without their headings and rules."""
    return [cell for heading, cell in re.findall(r"^(?:(\|.*\n\|[-|]+\n))?\| (.*?) \|", PAGE, re.MULTILINE) if cell not in HEADINGS]


HEADINGS = ("image", "data", "pairs", "weights", "log")


def test_every_row_has_its_test_and_every_test_its_row():
    assert rows() == list(FORMS)


@pytest.fixture
def folder(tmp_path):
    return tmp_path


# --- images

def face(number=0, size=48):
    """A smooth picture, of which a JPEG has some hundred bytes of data."""
    y, x = np.mgrid[:size, :size] / size
    waves = [127 + 120 * np.sin(9 * x * (k + 1 + number % 5) + 5 * y * (3 - k) + number) for k in range(3)]
    return np.stack(waves, 2).astype(np.uint8)


def written(pixels, kind="JPEG", mode=None, **options):
    file, image = io.BytesIO(), Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(file, kind, **options)
    return file.getvalue()


def decoded(data):
    return decode_image(data, "x").permute(1, 2, 0).numpy()


def by_pillow(data):
    return np.array(Image.open(io.BytesIO(data)).convert("RGB"))


def as_pillow(*images):
    for data in images:
        np.testing.assert_array_equal(decoded(data), by_pillow(data))


def refused(data, *words):
    with pytest.raises(RecordError) as error:
        decode_image(data, "a.rec: key 3")
    assert all(word in str(error.value) for word in ("a.rec: key 3", *words)) and "\n" not in str(error.value)


PLAIN = written(face())
RESTARTS = written(face(size=96), restart_marker_blocks=3)
MARKERS = [place for place in range(len(RESTARTS) - 1) if RESTARTS[place] == 255 and 0xD0 <= RESTARTS[place + 1] <= 0xD7]
DATA = PLAIN.index(b"\xff\xda") + 100  # a place in the middle of the entropy-coded data


@form("JPEG, baseline or progressive, with or without restart markers")
def _(folder):
    as_pillow(PLAIN, RESTARTS, written(face(), progressive=True), written(face(), subsampling=0))
    assert len(MARKERS) > 3


@form("JPEG in grey")
def _(folder):
    data = written(face()[..., 0])
    as_pillow(data)
    assert np.ptp(decoded(data), axis=2).max() == 0


@form("JPEG in CMYK or YCCK")
def _(folder):
    cmyk = written(face(), mode="CMYK")
    ycck = cmyk.replace(b"Adobe\0\x64\0\0\0\0\0", b"Adobe\0\x64\0\0\0\0\2")
    assert ycck != cmyk
    as_pillow(cmyk, ycck)
    assert np.abs(decoded(cmyk).astype(int) - face()).mean() < 10 < np.abs(decoded(ycck).astype(int) - face()).mean()


@form("JPEG with stray bytes in its data or in its header")
def _(folder):
    for count in (1, 3, 16, 2000):
        for data in (PLAIN, RESTARTS, written(face(), progressive=True), written(face()[..., 0]), written(face(), mode="CMYK")):
            stray = data[:-2] + bytes(count) + data[-2:]
            as_pillow(stray)
            np.testing.assert_array_equal(decoded(stray), decoded(data))
            first = 4 + int.from_bytes(data[4:6], "big")  # the end of the first segment
            as_pillow(data[:first] + bytes(count) + data[first:])


@form("JPEG with a wrong restart marker, or without one of them")
def _(folder):
    for place in MARKERS[:4]:
        as_pillow(RESTARTS[:place + 1] + b"\xd5" + RESTARTS[place + 2:], RESTARTS[:place] + RESTARTS[place + 2:])


@form("JPEG with damaged data, all of it there")
def _(folder):
    random = np.random.default_rng(0)
    for place in random.integers(PLAIN.index(b"\xff\xda") + 14, len(PLAIN) - 2, 40):
        data = PLAIN[:place] + bytes([PLAIN[place] ^ 0x55]) + PLAIN[place + 1:]
        try:
            by_pillow(data)
        except OSError:
            refused(data)
        else:
            as_pillow(data)


@form("JPEG with any Adobe colour transform")
def _(folder):
    for transform in (0, 1, 2, 77):
        adobe = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0" + bytes([transform])
        as_pillow(PLAIN[:2] + adobe + PLAIN[20:], PLAIN[:20] + adobe + PLAIN[20:])  # instead of, and beside JFIF


@form("JPEG without its end marker")
def _(folder):
    for data in (PLAIN, RESTARTS, written(face(), progressive=True), written(face()[..., 0]), written(face(), mode="CMYK")):
        for end in (1, 2):
            np.testing.assert_array_equal(decoded(data[:-end]), by_pillow(data))


@form("JPEG with something behind its end marker")
def _(folder):
    for rest in (b"\0", bytes(999), b"text", PLAIN):
        np.testing.assert_array_equal(decoded(PLAIN + rest), by_pillow(PLAIN))


@form("JPEG that ends before its last pixel")
def _(folder):
    for data in (PLAIN, written(face(), mode="CMYK")):
        for end in (DATA, len(data) - 100, len(data) - 10):
            refused(data[:end], "cannot be decoded")
    refused(PLAIN[:60], "frame header")
    with RecordWriter(folder / "train") as writer:
        for key, label in enumerate((0, 0, 1)):
            writer.write(key, pack(label, key, PLAIN[:DATA] if key == 1 else PLAIN))
    dataset = RecordDataset(folder)
    with pytest.raises(RecordError, match="key 1"):  # the kind that on_bad_record=skip leaves out
        dataset[1]


@form("PNG, BMP, PPM, TIFF, WebP")
def _(folder):
    for kind in ("PNG", "BMP", "PPM", "TIFF"):
        np.testing.assert_array_equal(decoded(written(face(), kind)), face())
    np.testing.assert_array_equal(decoded(written(face(), "WEBP", lossless=True)), face())
    clear = np.dstack([face(), face()[..., 0]])
    np.testing.assert_array_equal(decoded(written(clear, "PNG")), face())
    as_pillow(written(face(), "PNG", mode="P"))


@form("PNG with 16 bits a sample")
def _(folder):
    grey = face()[..., 0]
    np.testing.assert_array_equal(decoded(written(grey.astype(np.uint16) * 256 + 200, "PNG")), np.repeat(grey[..., None], 3, 2))


@form("anything else (GIF, HEIF, a web page, ...) under any name")
def _(folder):
    refused(written(face(), "GIF"), "a GIF", "expected an image")
    refused(b"\0\0\0\x18ftypheic" + bytes(50), "HEIF")
    refused(b"<!DOCTYPE html><html>", "web page")
    refused(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull")
    refused(bytes(100), "zeros")
    refused(b"")


# --- faces with identities

PEOPLE = 4


def records(folder, labels, header=None, property_=None, size=48):
    """train.rec and train.idx with an image a label, after a header, and before the identity records that it speaks of."""
    folder.mkdir(exist_ok=True)
    with RecordWriter(folder / "train") as writer:
        if header:
            writer.write(0, pack([float(number) for number in header]))
        for key, label in enumerate(labels, 1):
            writer.write(key, pack(float(label), key, written(face(label, size), "PNG")))
        for key in range(len(labels) + 1, int(header[1]) if header else 0):
            writer.write(key, pack([1.0, 2.0], key))
    if property_ is not None:
        (folder / "property").write_bytes(property_)
    return folder


def read_all(dataset):
    return [dataset[index][1] for index in range(len(dataset))]


@form("`train.rec` and `train.idx` with a header in key 0")
def _(folder):
    dataset = RecordDataset(records(folder, [0, 0, 1, 2], (5, 8)))
    assert len(dataset) == 4 and dataset.num_classes == 3 and read_all(dataset) == [0, 0, 1, 2]


@form("`train.rec` and `train.idx` without a header")
def _(folder):
    dataset = RecordDataset(records(folder, [2, 0, 0]))
    assert read_all(dataset) == [2, 0, 0] and dataset.num_classes == 3


@form("labels with gaps, or more of them than the header has identities")
def _(folder):
    gaps = [0, 0, 20, 41]
    for number, (header, property_, classes) in enumerate((
            ((5, 8), b"42,48,48\n", 42), ((5, 8), None, 42), (None, b"50,48,48", 50), (None, b"2,48,48", 42), ((5, 65), b"3,48,48", 60))):
        dataset = RecordDataset(records(folder / str(number), gaps, header, property_))
        assert dataset.num_classes == classes and read_all(dataset) == gaps
    assert RecordDataset(folder / "0", num_classes=100).num_classes == 100


@form("a label that `num_classes=` has no room for")
def _(folder):
    with pytest.raises(InputError, match=r"train.rec: key 4: label 41, expected an integer in \[0, 10\); num_classes=42 has room") as error:
        RecordDataset(records(folder, [0, 0, 20, 41], (5, 8)), num_classes=10)
    assert not isinstance(error.value, RecordError)  # which on_bad_record=skip would leave out
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.LABELS_CHECKED", 2)  # the first and the last of these
        dataset = RecordDataset(records(folder, [0, 30, 20, 9], (5, 8)), num_classes=25)
    with pytest.raises(InputError, match="key 2: label 30.*num_classes=31 has room") as error:
        dataset[1]
    assert not isinstance(error.value, RecordError) and dataset[2][1] == 20
    with RecordWriter(folder / "train") as writer:
        for key, label in enumerate((0, 1, float("nan"), -3, 0.5, 2.0**40)):
            writer.write(key, pack(label, key, PLAIN))
    dataset = RecordDataset(folder, num_classes=2)
    for index in range(2, 6):  # no labels at all: these are damaged
        with pytest.raises(RecordError, match="label"):
            dataset[index]


@form("more than 2^24 records, whose header is rounded")
def _(folder):
    for images, identities in ((2**24 - 2, 5), (2**24 + 1, 1), (2**24 + 3, 0), (2**25 + 5, 777)):
        keys, found = image_keys(Many(images, identities, tiled=False))
        assert (keys[0], keys[-1], len(keys)) == (1, images, images) and found == identities, (images, identities)
    images, identities, step = 2**24 + 2, 1001, 512
    assert np.float32(images + 1) != images + 1 and len(image_keys(Many(images, identities, damaged=(images + 2,), tiled=False))[0]) == images
    total, small = 1 + images + identities, written(face(size=4), "PNG")
    with open(folder / "train.rec", "wb") as file:  # most of it is a hole
        def put(key, payload):
            file.seek(key * step)
            file.write(struct.pack("<II", 0xCED7230A, len(payload)) + payload + bytes(-len(payload) % 4))
        put(0, pack([float(images + 1), float(images + 1 + identities)]))
        for key in (1, *range(images - 9, images + 1)):
            put(key, pack(0.0, key, small))
        for key in (*range(images + 1, images + 9), total - 1):
            put(key, pack([1.0, 2.0], key))
        file.truncate(total * step)
    (folder / "train.idx").write_text("0\t0\n")
    with pytest.MonkeyPatch.context() as patch:  # a text of 300 MB would say the same
        patch.setattr("utils.recordio.read_index", lambda path: (np.arange(total), np.arange(total) * step))
        dataset = RecordDataset(folder)
    assert len(dataset) == images and dataset.num_classes == identities and dataset[images - 1][1] == 0


@form("a rounded header whose counts neither index nor records say")
def _(folder):
    for images, damaged, header in ((2**24 + 8, (2**24 + 8,), 2**24 + 8), (2**24 + 90, (), 2**24 + 8)):
        many = Many(images, 0, damaged, tiled=False)
        many.header = pack([float(header)] * 2)
        with pytest.raises(InputError, match=f"key 0: the header promises about {header - 1} images"):
            image_keys(many)
    place = records(folder / "identities", [0, 0, 1, 1])
    with RecordWriter(place / "train") as writer:
        writer.write(0, pack([5.0, 2.0**24 + 100]))
        for key in range(1, 5):
            writer.write(key, pack(float(key // 3), key, PLAIN))
    with pytest.raises(InputError, match="key 0: a rounded number of identities, but 4 images; num_classes="):
        RecordDataset(place)
    assert RecordDataset(place, num_classes=2).num_classes == 2
    (place / "property").write_text("3,48,48")
    assert RecordDataset(place).num_classes == 3


@form("labels from 2^24 on, where float32 has one for several identities")
def _(folder):
    with pytest.raises(InputError, match="key 2: label 16777216, expected one below 16777216"):
        RecordDataset(records(folder, [0, 2**24 + 1]), num_classes=2**25)


@form("several of them, with commas: `rec=/data/a,/data/b`")
def _(folder):
    for name, labels in (("a", [0, 1, 1]), ("b", [0, 2]), ("c", [1, 0])):
        records(folder / name, labels)
    dataset = get_dataset(f"{folder / 'a'},{folder / 'b' / 'train.rec'},{folder / 'c'}")
    assert read_all(dataset) == [0, 1, 1, 2, 4, 6, 5] and dataset.num_classes == 7


@form("a header that is wrong about how many images there are")
def _(folder):
    for number, (header, words) in enumerate((((4, 6), "promises 3 images, but key 4 is one as well"),
                                              ((6, 8), "promises 5 images, but key 5 is none"))):
        place = records(folder / str(number), [0, 0, 1, 1], (5, 8))
        with RecordWriter(place / "train") as writer:
            writer.write(0, pack([float(value) for value in header]))
            for key in range(1, 5):
                writer.write(key, pack(float(key // 3), key, PLAIN))
            for key in (5, 6, 7):
                writer.write(key, pack([1.0, 2.0], key))
        with pytest.raises(InputError, match=words) as error:
            RecordDataset(place)
        assert not isinstance(error.value, RecordError)


@form("a `.rec` without an `.idx`")
def _(folder):
    place, magic = records(folder, [0, 1, 1], (4, 6)), struct.pack("<I", 0xCED7230A)
    with RecordWriter(place / "train") as writer:  # a record in parts is one record
        writer.write(0, pack([4.0, 6.0]))
        for key in range(1, 4):
            writer.write(key, pack(float(key > 1), key, PLAIN + magic * 5))
        for key in (4, 5):
            writer.write(key, pack([1.0, 2.0], key))
    index, known = (place / "train.idx").read_text(), RecordDataset(place)
    (place / "train.idx").unlink()
    dataset = get_dataset(place)
    assert read_all(dataset) == [0, 1, 1] and dataset.fingerprint() == known.fingerprint()
    assert len(dataset.remarks) == 1 and "build_dataset idx --rec" in dataset.remarks[0] and not known.remarks
    assert build_dataset.main(["idx", "--rec", str(place / "train.rec")]) == 0 and (place / "train.idx").read_text() == index
    assert build_dataset.main(["idx", "--rec", str(place / "train.rec")]) == 2  # there is one now
    whole = (place / "train.rec").read_bytes()
    (place / "train.idx").unlink()
    for content, words in ((whole[:-30], "cut short"), (whole[:400] + b"junk" + whole[404:], None), (b"", "cut short"),
                           (b"<html>" + bytes(40), "HTML"), (whole + b"junk" * 5, "expected the magic number")):
        (place / "train.rec").write_bytes(content)
        if words:
            with pytest.raises(InputError, match=words):
                RecordDataset(place)


@form("an `.idx` or a `property` with a byte order mark or Windows line ends")
def _(folder):
    records(folder, [0, 1, 5], None, codecs.BOM_UTF8 + b"9,48,48\r\n")
    (folder / "train.idx").write_bytes(codecs.BOM_UTF8 + (folder / "train.idx").read_bytes().replace(b"\n", b"\r\n"))
    assert read_all(RecordDataset(folder)) == [0, 1, 5] and RecordDataset(folder).num_classes == 9
    (folder / "property").write_bytes("7,48,48".encode("utf-16"))
    assert RecordDataset(folder).num_classes == 7
    (folder / "train.rec").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(InputError, match="git lfs pull"):
        RecordDataset(folder)
    (folder / "train.idx").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(InputError, match="train.idx: line 1 is .*git lfs pull"):
        RecordDataset(folder)


def people(folder, count=3, images=2):
    for person in range(count):
        (folder / f"p{person}").mkdir(parents=True)
        for number in range(images):
            (folder / f"p{person}" / f"{number}.jpg").write_bytes(written(face(person)))
    return folder


@form("a folder with a folder of images for each identity")
def _(folder):
    people(folder)
    (folder / "p1" / "more" / "deep").mkdir(parents=True)
    (folder / "p1" / "more" / "deep" / "2.png").write_bytes(written(face(1), "PNG"))
    dataset = get_dataset(folder)
    assert dataset.num_classes == 3 and read_all(dataset) == [0, 0, 1, 1, 1, 2, 2]


APPLE = b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(200)
LITTER = [".ipynb_checkpoints/0-checkpoint.jpg", "p0/.ipynb_checkpoints/0-checkpoint.jpg", "__MACOSX/p0/._0.jpg", "p0/._0.jpg",
          "._p0.jpg", "p0/@eaDir/0.jpg/SYNOPHOTO_THUMB_M.jpg", "@eaDir/x.jpg", "p1/Thumbs.db", "Thumbs.db", "p1/desktop.ini",
          "p0/.DS_Store", ".DS_Store",
          ".git/objects/x.jpg", ".Trash-1000/files/0.jpg", "$RECYCLE.BIN/S-1/0.jpg", "System Volume Information/x.jpg", "lost+found/0.jpg",
          "#recycle/0.jpg", "p2/.thumbnails/0.png", "p2/.0.jpg.icloud"]


def litter(folder, names=LITTER):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(written(face(9)) if "checkpoint" in name or "recycle" in name.lower() else APPLE)
    return folder


@form("what tools leave in folders (`.ipynb_checkpoints`, `__MACOSX`, `._x.jpg`, `@eaDir`, `Thumbs.db`, ...)")
def _(folder):
    clean = ImageFolderFaces(people(folder / "faces"))
    (folder / "faces" / ".cache").mkdir()  # an empty one is no identity without images
    dataset = get_dataset(litter(folder / "faces"))
    assert dataset.samples == clean.samples and dataset.classes == clean.classes and read_all(dataset) == [0, 0, 1, 1, 2, 2]
    assert build_dataset.build_rec(folder / "faces", folder / "rec" / "train") == (6, 3)
    # files that are found by a pattern
    from backbones import adversarially_trained
    from eval.show import toy
    from eval.store import results
    from eval.validation import validations
    pickled = pickle.dumps(([PLAIN] * 40, [True] * 20))
    (folder / "rec" / "lfw.bin").write_bytes(pickled)
    for name in ("._lfw.bin", ".lfw-checkpoint.bin"):
        (folder / "rec" / name).write_bytes(APPLE)
    assert list(validations(None, folder / "rec", (48, 48))) == ["lfw"]
    for name in ("PGD-Arc.pt", "._PGD-Arc.pt", "._PGD-Cos.pt"):
        (folder / name).write_bytes(b"")
    assert list(adversarially_trained(folder)) == ["PGD-Arc"]
    for name in (".ipynb_checkpoints", "__MACOSX", "@eaDir"):
        place = folder / "results" / name
        place.mkdir(parents=True)
        (place / "summary.json").write_text("no JSON")
        (place / "results.csv").write_text("no table")
    for read, words in ((results.read_summaries, "no summary.json"), (toy.read_results, "no results.csv")):
        with pytest.raises(InputError, match=words):
            read(folder / "results")


@form("a folder one level too high or too low")
def _(folder):
    people(folder / "up" / "train")
    with pytest.raises(InputError, match=r"up: one folder too high: train holds folders of images.*up/train has 3 folders of them"):
        get_dataset(folder / "up")
    people(folder / "up" / "val")
    with pytest.raises(InputError, match="one folder too high: train, val hold folders"):
        get_dataset(folder / "up")
    with pytest.raises(InputError, match="one folder too high"):
        build_dataset.build_rec(folder / "up", folder / "x" / "train")
    with pytest.raises(InputError, match=r"p0: holds images itself, so it may be .*train that is meant"):
        get_dataset(folder / "up" / "train" / "p0")
    records(folder / "sets", [0, 1])
    (folder / "sets").rename(folder / "ms1mv3")
    (folder / "all").mkdir()
    (folder / "ms1mv3").rename(folder / "all" / "ms1mv3")
    with pytest.raises(InputError, match=r"no images in ms1mv3, but train.rec: it may be .*all/ms1mv3 that is meant"):
        get_dataset(folder / "all")
    (folder / "all" / "ms1mv3" / "train.rec").rename(folder / "all" / "ms1mv3" / "faces.rec")
    (folder / "all" / "ms1mv3" / "train.idx").rename(folder / "all" / "ms1mv3" / "faces.idx")
    with pytest.raises(InputError, match=r"has no train.rec, but .*faces.rec, which can be named itself"):
        get_dataset(folder / "all" / "ms1mv3")
    assert get_dataset(folder / "all" / "ms1mv3" / "faces.rec").num_classes == 2
    videos = people(folder / "videos" / "ann") and people(folder / "videos" / "bob") and folder / "videos"
    assert get_dataset(videos).num_classes == 2  # two people with a folder for each video
    with pytest.raises(InputError, match="not a regular file, but a folder"):
        read_bin(folder)


@form("data of a single identity")
def _(folder):
    import train
    from config import config
    from utils.settings import override
    people(folder / "images", count=1, images=3)
    records(folder / "records", [4, 4, 4])
    for name in ("images", "records"):
        with pytest.raises(InputError, match=f"setting rec=.*{name}: all 3 images are of one identity"):
            train.training_set(override(config, [f"rec={folder / name}", "num_classes=9"]))


# --- pairs

FACES = [written(face(number)) for number in range(8)]
SAME = [True, False, True, False]


def pair_set(folder, content, protocol=4):
    (folder / "faces.bin").write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol))
    return read_bin(folder / "faces.bin")


def is_read(folder, content, images=None, protocol=4):
    found = pair_set(folder, content, protocol)
    assert found.images == (FACES if images is None else images) and found.same.tolist() == SAME


@form("a pickle of (images, labels) of Python 2 or 3, images as bytes")
def _(folder):
    for protocol in range(6):
        is_read(folder, (FACES, SAME), protocol=protocol)
    is_read(folder, [tuple(map(bytearray, FACES)), tuple(SAME)])
    python2 = b"((lp0\n" + b"".join(b"S" + repr(data)[1:].encode() + b"\na" for data in FACES) + b"(lp1\n" \
        + b"".join(b"I0%d\na" % label for label in SAME) + b"tp2\n."
    is_read(folder, python2)


@form("images as `uint8` arrays [N] or [N, 1], as OpenCV's `imencode` gave them")
def _(folder):
    arrays = [np.frombuffer(data, np.uint8) for data in FACES]
    for images in (arrays, [array.reshape(-1, 1) for array in arrays], [array.reshape(1, -1) for array in arrays]):
        for protocol in (2, 4, 5):
            is_read(folder, (images, SAME), protocol=protocol)


@form("images as numpy bytes, in arrays of dtype object or bytes")
def _(folder):
    for protocol in (2, 3, 4, 5):
        is_read(folder, ([np.bytes_(data) for data in FACES], SAME), protocol=protocol)
        is_read(folder, (np.array(FACES, dtype=object), np.array(SAME, dtype=object)), protocol=protocol)
        is_read(folder, (np.array(FACES), np.array(SAME)), protocol=protocol)  # dtype S: bytes that end in no zero
        both = np.empty(2, dtype=object)
        both[:] = FACES, SAME
        is_read(folder, both, protocol=protocol)
    is_read(folder, ([np.bytes_(data + b"\0\0") for data in FACES], SAME), [data + b"\0\0" for data in FACES])
    count = 50_000  # a list of the file, copied into an array again and again
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85N\x87R(K\1J" + struct.pack("<i", count) + b"\x85h\1\x89h\0tb"
    bomb = b"\x80\2](" + b"N" * count + b"eq\0" + b"cnumpy\ndtype\nX\2\0\0\0O8K\0K\1\x87Rq\1" + array * 1000 + b"."
    with pytest.raises(InputError, match="more bytes than a file of this size can hold"):
        pair_set(folder, bomb)
    for hostile in (np.array([print], dtype=object), np.array([{}], dtype=object), np.array(["a"]), np.zeros(2, [("a", "u1")])):
        with pytest.raises(InputError, match="not a pickle of plain data"):
            pair_set(folder, ([hostile] * 8, SAME))


@form("images as `uint8` arrays [H, W, 3], [H, W] or [H, W, 1]")
def _(folder):
    colour, grey = [face(number) for number in range(8)], [face(number)[..., 0] for number in range(8)]
    for images in (colour, np.stack(colour), grey, np.stack(grey), [image[..., None] for image in grey]):
        found = pair_set(folder, (images, SAME))
        for number, image in enumerate(images):
            np.testing.assert_array_equal(found.decode(number).permute(1, 2, 0).numpy(), np.broadcast_to(np.atleast_3d(image), (48, 48, 3)))
    for image in (face().astype(np.float32), np.dstack([face()] * 2), face().transpose(2, 0, 1), np.zeros((0, 3), np.uint8)):
        with pytest.raises(InputError, match=r"image 0: expected encoded bytes or a uint8 array \[H, W, 3\] or \[H, W\], found an array"):
            pair_set(folder, ([image] * 8, SAME))


@form("labels as booleans, 0 and 1, 0.0 and 1.0, in lists or arrays [N] or [N, 1]")
def _(folder):
    for kind in (bool, int, float, np.bool_, np.int64, np.float32, np.float64, np.uint8):
        is_read(folder, (FACES, [kind(label) for label in SAME]))
        is_read(folder, (FACES, np.array(SAME).astype(kind)))
        is_read(folder, (FACES, np.array(SAME).astype(kind).reshape(-1, 1)))
    for label in (0.5, float("nan"), 2, -1, "True", None):
        with pytest.raises(InputError, match="label 3: expected True or False"):
            pair_set(folder, (FACES, [*SAME[:3], label]))


@form("a pointer of Git LFS, a web page, a JPEG, an archive called `.bin`")
def _(folder):
    for content, words in ((b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "pointer of Git LFS"),
                           (b"\n<!DOCTYPE html><html>", "HTML page"), (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code>", "XML"),
                           (PLAIN, "a JPEG"), (gzip.compress(b"x"), "gunzip"), (written(face(), "PNG"), "a PNG"), (bytes(500), "zeros"),
                           (b"PK\3\4" + bytes(30), "zip"), (b'{"images": []}', "JSON"), (APPLE, "AppleDouble")):
        with pytest.raises(InputError, match=f"faces.bin: not a pickle of plain data: .*{words}"):
            pair_set(folder, content)
    assert kind_of(pickle.dumps((FACES, SAME))[:300]) == ""


def build(folder, text, status=0):
    (folder / "list.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    pairs, images, out = (str(folder / name) for name in ("list.txt", "faces", "x.bin"))
    done = build_dataset.main(["bin", "--pairs", pairs, "--images", images, "--out", out])
    assert done == status
    return [] if status else pickle.loads((folder / "x.bin").read_bytes())


def lfw(folder):
    for person, name in enumerate(("Ann_B", "Carl D", "E,F")):
        (folder / "faces" / name).mkdir(parents=True)
        for number in (1, 2, 3):
            (folder / "faces" / name / f"{name}_{number:04d}.jpg").write_bytes(FACES[2 * person + number - 1])
    return folder


@form("a list of two paths and 1, 0, True or False, by tabs, commas or blanks")
def _(folder):
    one, two, three = "Ann_B/Ann_B_0001.jpg", "Ann_B/Ann_B_0002.jpg", "Carl D/Carl D_0001.jpg"
    lfw(folder)
    for text in (f"{one} {two} 1\n{one} {two} 0\n", f"{one}  {two} True\n\n{one} {two} false", f"{one}\t{two}\t1\n{one}\t{two}\t0",
                 f"{one},{two},TRUE\n{one}, {two}, 0\n", f"left,right,issame\n{one},{two},1\n{one},{two},0\n"):
        assert build(folder, text) == ([FACES[0], FACES[1]] * 2, [True, False])
    for text in (f"{one}\t{three}\t0", f"{one},{three},0", f'"{one}","{three}",0'):
        assert build(folder, text) == ([FACES[0], FACES[2]], [False])
    for text in (f"{one} {two} 2\n", f"{one} {two}\n", "", f"{one} {two} yes\n", "a,b,label\n"):
        build(folder, text, status=2)


@form("LFW's own `pairs.txt`: a line with the folds, then names and numbers")
def _(folder):
    lfw(folder)
    body = "Ann_B\t1\t3\nAnn_B\t2\tCarl D\t1\nE,F\t1\t2\n"
    expected = ([FACES[0], FACES[2], FACES[1], FACES[2], FACES[4], FACES[5]], [True, False, True])
    for text in ("10\t300\n" + body, "1100\n" + body, body, ("10\t300\n" + body).replace("\n", "\r\n")):
        assert build(folder, text) == expected
    assert build(folder, "1 1\nAnn_B 1 2\n") == ([FACES[0], FACES[1]], [True])
    assert build(folder, "name,imagenum1,imagenum2,\nAnn_B,1,2,\n") == ([FACES[0], FACES[1]], [True])
    assert build(folder, "name,imagenum1,name,imagenum2\nAnn_B,1,Carl D,2\n") == ([FACES[0], FACES[3]], [False])
    (folder / "faces" / "Ann_B" / "Ann_B_0007.png").write_bytes(written(face(7), "PNG"))
    assert build(folder, "1 1\nAnn_B 1 7\n")[0][1] == written(face(7), "PNG")
    for text in ("1 1\nAnn_B 1 4\n", "1 1\nNobody 1 2\n", "1 1\nAnn_B one two\n", "1 1\n"):
        build(folder, text, status=2)


@form("a list with a byte order mark, in UTF-16, or with Windows line ends")
def _(folder):
    lfw(folder)
    text = "Ann_B/Ann_B_0001.jpg Ann_B/Ann_B_0002.jpg 1\r\n"
    for data in (codecs.BOM_UTF8 + text.encode(), text.encode("utf-16"), text.encode(), codecs.BOM_UTF16_BE + text.encode("utf-16-be")):
        assert build(folder, data) == (FACES[:2], [True])
    assert build(folder, codecs.BOM_UTF8 + b"1\t1\r\nAnn_B\t1\t2\r\n") == (FACES[:2], [True])


# --- weights

class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)


def is_loaded(path, source, *remarks):
    target = Network()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        checkpoint.load_weights(target, path)
    state = source.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in target.state_dict().items() if "num_batches" not in key)
    assert [str(remark) in str(warning.message) and str(path) in str(warning.message) for remark, warning in zip(remarks, said)] \
        == [True] * len(said) and len(said) == len(remarks), [str(warning.message) for warning in said]


def is_refused(path, *words):
    network = Network()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(InputError) as error:
        checkpoint.load_weights(network, path)
    assert all(word in str(error.value) for word in (str(path), *words)) and "\n" not in str(error.value), str(error.value)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@form("a state dict of `torch.save`, in either of its formats")
def _(folder):
    source = Network()
    for archive in (True, False):
        torch.save(source.state_dict(), folder / "m.pt", _use_new_zipfile_serialization=archive)
        is_loaded(folder / "m.pt", source)


@form("names under `module.`, `_orig_mod.`, `backbone.` or another prefix that all share")
def _(folder):
    source, path = Network(), folder / "m.pt"
    state = source.state_dict()
    for prefix, remarks in (("module.", ["'module.'"]), ("_orig_mod.", ["'_orig_mod.'"]), ("backbone.", ["'backbone.'"]),
                            ("module._orig_mod.", ["'_orig_mod.'", "'module.'"]), ("_orig_mod.module.", ["'_orig_mod.'", "'module.'"]),
                            ("model.encoder.", ["'model.'", "'encoder.'"])):
        torch.save({prefix + key: value for key, value in state.items()}, path)
        is_loaded(path, source, *remarks)
    compiled = Network()
    compiled.conv = torch.compile(compiled.conv, backend="eager")  # a part of it alone
    torch.save(compiled.state_dict(), path)
    assert any("conv._orig_mod." in key for key in compiled.state_dict())
    is_loaded(path, Network_of(compiled), "'_orig_mod.'")
    torch.save(torch.optim.swa_utils.AveragedModel(source).state_dict(), path)
    is_loaded(path, source, "'n_averaged'", "'module.'")
    torch.save({key.replace("conv.", "conv._checkpoint_wrapped_module."): value for key, value in state.items()}, path)
    is_loaded(path, source, "'_checkpoint_wrapped_module.'")

    class Outer(nn.Module):  # a network of its own with such names keeps them
        def __init__(self):
            super().__init__()
            self.module = nn.Linear(2, 2)
    torch.save(Outer().state_dict(), path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checkpoint.load_weights(Outer(), path)
    torch.save({("module." if "fc" in key else "") + key: value for key, value in state.items()}, path)
    is_refused(path, "2 unexpected (module.fc.bias, module.fc.weight)")  # not all of them
    torch.save({"conv.weight": state["conv.weight"], "_orig_mod.conv.weight": state["conv.weight"]}, path)
    is_refused(path, "1 names")


def Network_of(compiled):
    plain = Network()
    plain.load_state_dict({key.replace("_orig_mod.", ""): value for key, value in compiled.state_dict().items()})
    return plain


@form("a state dict inside one wrapper (`state_dict`, `state_dict_backbone`, `model`, ...)")
def _(folder):
    source, path = Network(), folder / "m.pt"
    state, other = source.state_dict(), {"weight": torch.zeros(3)}
    for content, key in (({"state_dict": state, "epoch": 3}, "state_dict"), ({"net": state}, "net"), ({"mine": state, "step": 1}, "mine"),
                         ({"epoch": 1, "state_dict_backbone": state, "state_dict_softmax_fc": other}, "state_dict_backbone"),
                         ({"model": state, "header": other, "optimizer": {"state": {}, "param_groups": []}}, "model")):
        torch.save(content, path)
        is_loaded(path, source, repr(key))
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, path)
    is_loaded(path, source, "'state_dict'", "'module.'")
    ours = {"format": 1, "settings": {}, "progress": {}, "random": [], "model": state}  # which resume= takes
    for content in (ours, {"a": state, "b": other}, {"state_dict": {"state_dict": state}}, {"step": 3, **state}, {"state_dict": {}}):
        torch.save(content, path)
        is_refused(path, "expected a state dict")


@form("BatchNorm without `num_batches_tracked`")
def _(folder):
    source, path = Network(), folder / "m.pt"
    torch.save({key: value for key, value in source.state_dict().items() if "num_batches" not in key}, path)
    is_loaded(path, source, "num_batches_tracked")
    torch.save({key: value for key, value in source.state_dict().items() if "running_mean" not in key}, path)
    is_refused(path, "1 missing (norm.running_mean)")


@form("safetensors")
def _(folder):
    library = pytest.importorskip("safetensors.torch")
    source, path = Network(), folder / "m.safetensors"
    library.save_file(source.state_dict(), path, metadata={"format": "pt"})
    is_loaded(path, source)
    library.save_file({f"module.{key}": value for key, value in source.state_dict().items()}, folder / "m.pt")  # whatever it is called
    is_loaded(folder / "m.pt", source, "'module.'")
    whole = path.read_bytes()
    length = struct.unpack("<Q", whole[:8])[0]
    for content in (whole[:-5], whole + b"more", whole[:8] + b"{" + b"x" * (length - 1) + whole[8 + length:],
                    whole.replace(b'"shape":[4,3,3,3]', b'"shape":[9,3,3,3]'), struct.pack("<Q", 2**40) + b"{" + bytes(20)):
        path.write_bytes(content)
        is_refused(path)
    path.write_bytes(struct.pack("<Q", 2**24 + 1) + b"{" + bytes(2**24 + 9))
    is_refused(path, "a header of")
    path.write_bytes(whole)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "safetensors", None)
        is_refused(path, "pip install safetensors")
    assert utils.foreign_weights.is_safetensors(path)


@form("a whole module of `torch.save`, an archive, a web page, a pointer of Git LFS")
def _(folder):
    torch.save(nn.Linear(2, 2), folder / "m.pt")
    is_refused(folder / "m.pt", "torch.nn.modules.linear.Linear")
    for content, words in ((b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"), (b"<!doctype HTML>", "web page"),
                           (gzip.compress(b"x" * 50), "gzip"), (b"\x89HDF\r\n\x1a\n", "HDF5"), (b"", "0 bytes")):
        (folder / "m.pt").write_bytes(content)
        is_refused(folder / "m.pt", words)


# --- logs

LINE = "Training: 2024-01-01 00:00:01,000-Speed 463.03 samples/sec   Loss {}   LearningRate 0.0781   Epoch: 0   Global Step: {}   {}"


@form("a log of `train.py` or of the published runs")
def _(folder):
    tail = "Required: 30 hours  Feat Norm 11.1632  Reg Loss 0.2500\n"
    (folder / "a.log").write_text("".join(LINE.format(40 - step, step, tail) for step in (20, 40)))
    steps = read_training_log(folder / "a.log").steps
    assert steps["loss"].tolist() == [20, 0] and steps["feature_norm"].tolist() == [11.1632] * 2
    (folder / "a.log").write_text("".join(LINE.format(40 - step, step, "Required: 30 hours  Feat Norm 11.1632\n") for step in (20, 40)))
    steps = read_training_log(folder / "a.log").steps  # of a header whose log has no regulariser
    assert steps["feature_norm"].tolist() == [11.1632] * 2 and steps["reg_loss"].isna().all()


@form("a log of arcface_torch, without feature norms")
def _(folder):
    import eval.__main__ as command_line
    text = "".join(LINE.format(f"4{step}.1258", step, end) for step, end in (
        (20, "Fp16 Grad Scale: 12800   Required: 237 hours\n"), (40, "Required: 9 hours\r\n"), (60, "Required: 1 hours   \n")))
    text += "Training: 2021-05-19 17:35:46,123-Speed 2300.12 samples/sec   Loss 42.5   Epoch: 0   Global Step: 80   Required: 9 hours\n"
    text += "Training: 2021-05-19 17:35:46,123-[lfw][80]XNorm: 22.310000\n"
    torn = LINE.format("1.0", 100, "Required: 237 hours\n")
    for end in range(1, len(torn)):
        (folder / "a.log").write_text(text + torn[:end])
        steps, verified = read_training_log(folder / "a.log")
        assert steps["step"].tolist() == [20, 40, 60, 80] and len(verified) == 1
    assert steps["loss"].tolist() == [420.1258, 440.1258, 460.1258, 42.5]
    assert steps["learning_rate"].tolist()[:3] == [0.0781] * 3 and steps["learning_rate"].isna()[3] and steps["feature_norm"].isna().all()
    (folder / "a.log").write_text(text.rpartition("Training")[0])
    assert command_line.main(["curves", str(folder / "a.log"), "--out", str(folder / "c.png")]) == 0 and (folder / "c.png").stat().st_size


@pytest.mark.parametrize("name", FORMS)
def test_form(name, folder, capsys):
    FORMS[name](folder)


# --- paths

@pytest.mark.skipif(sys.platform == "win32", reason="homes are found otherwise there")
def test_paths_may_begin_with_the_home_folder(tmp_path, monkeypatch):
    import argparse

    import eval.__main__ as command_line
    from config import config
    from utils.files import with_homes
    from utils.settings import override
    home, here = tmp_path / "home", tmp_path / "here"
    for place in (home, here):
        place.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    settings = override(config, ["rec=~/faces", "output=~/run", "init_weights='~/m.pt'", "resume=~/run/state_1.pt", "backbone=sllnet"])
    assert [settings[key] for key in ("rec", "output", "init_weights", "resume", "backbone")] == [
        f"{home}/faces", f"{home}/run", f"{home}/m.pt", f"{home}/run/state_1.pt", "sllnet"]
    settings.output = "~/again"  # as a script sets it
    assert override(settings, []).output == f"{home}/again"
    args = with_homes(argparse.Namespace(bin=["~/a.bin", "b.bin"], out="~/r", images=Path("~/i"), far=0.1, title="~5 steps", rec="x~/y"))
    assert vars(args) == dict(bin=[f"{home}/a.bin", "b.bin"], out=f"{home}/r", images=home / "i", far=0.1, title="~5 steps", rec="x~/y")
    people(home / "faces")
    assert build_dataset.main(["rec", "--images", "~/faces", "--out", "~/rec/train"]) == 0 and (home / "rec" / "train.rec").exists()
    (home / "a.log").write_text(LINE.format(1.0, 20, "Required: 237 hours\n"))
    assert command_line.main(["curves", "~/a.log", "--out", "~/c.png"]) == 0 and (home / "c.png").exists()
    assert not list(here.iterdir())


def test_hints_lead_to_what_is_alike():
    from config import config
    from utils.settings import override
    for given, words in (("epochs=3", "did you mean one of num_epoch, warmup_epoch, save_epochs"), ("batch=3", "'batch_size'"),
                         ("Xi=1", "'xi'"), ("lamda=3", "'lambda_'")):
        with pytest.raises(InputError, match=words):
            override(config, [given])
