"""Build data files from images.

    python -m utils.build_dataset rec --images FOLDER --out PREFIX       FOLDER/<identity>/<image> -> PREFIX.rec, .idx, property
    python -m utils.build_dataset bin --pairs LIST --images FOLDER --out FILE.bin
    python -m utils.build_dataset idx --rec FILE.rec                     the FILE.idx of a FILE.rec that has none
    python -m utils.build_dataset split --rec FOLDER --identities K --out FOLDER   the first K people to train on, pairs of the others
    python -m utils.build_dataset lfw --out FOLDER                       Labeled Faces in the Wild, downloaded: train.rec, lfw.bin
    python -m utils.build_dataset cfp_fp --images FOLDER --out FOLDER    cfp_fp.bin of CFP, where you have it
    python -m utils.build_dataset agedb_30 --images FOLDER --out FOLDER  agedb_30.bin of AgeDB, where you have it

LIST has a line for each pair: the paths of two images relative to FOLDER, and 1 or True (same identity), 0 or False, separated by blanks,
or by tabs or commas where paths hold blanks. Or it is LFW's own pairs.txt, with FOLDER/NAME/NAME_0001.jpg (or another format).
"""
import argparse
import pickle
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from utils import InputError
from utils.console import Parser, complain, lasting_console
from utils.faults.signals import INTERRUPTED, stopped, stops
from utils.files import atomic_write, read_file, text_of, with_homes
from utils.pair_lists import parse_pairs
from utils.public_faces import AT_LEAST, FOLDS, LFW_CROPS, QUALITY, SIZE

RESIZES = "; python -m utils.build_dataset rec --images FOLDER --size PIXELS --out PREFIX writes those of a folder in another size"
# Labels are float32: past this the header could not tell neighbouring keys apart.
MAX_RECORDS = 2**24


def build_rec(images: Path, prefix: Path, quality: int = 95, size: int | None = None, progress: bool = False) -> tuple[int, int]:
    """Write PREFIX.rec, PREFIX.idx and, in the same folder, `property` from a folder with a folder of images for each identity.

    Key 0 is the header (labels: first key past the images, first key past the identities), then come the images in the order of
    sorted identities and files, then one record an identity with the range of its keys. A JPEG of the right size is stored as it
    is, anything else encoded anew with `quality`. size: resize to size x size; None keeps the first image's size and refuses others.
    Returns (number of images, number of identities). Raises InputError naming the file that cannot be used.
    """
    samples, identities = _labelled_images(images)
    if len(samples) + 1 + identities > MAX_RECORDS:
        raise InputError(f"{images}: {len(samples)} images of {identities} identities, expected fewer than {MAX_RECORDS} records in all")
    write_rec(prefix, samples, identities, _Encoder("jpeg", quality, size), progress)
    return len(samples), identities


class Encoder(Protocol):
    """Path -> encoded image; `size` is the (height, width) of all, once there was one."""
    size: tuple[int, int] | None

    def __call__(self, path: Path) -> bytes: ...  # noqa: D102


def write_rec(prefix: Path, samples: Sequence[tuple[Path, int]], identities: int, encoder: Encoder, progress: bool = False,
              before: Callable[[], None] = lambda: None) -> None:
    """The files of `build_rec` from paths and labels, in the order of these; each label has an image.

    before: called when all is written but nothing has its name yet.
    """
    from utils.recordio import RecordWriter, pack

    first_identity = len(samples) + 1
    bounds = [0] * identities
    with atomic_write(prefix.parent / "property") as properties, RecordWriter(prefix) as writer, bar(samples, progress) as shown:
        writer.write(0, pack([first_identity, first_identity + identities]))
        for key, (path, label) in enumerate(shown, 1):
            writer.write(key, pack(label, key, encoder(path)))
            bounds[label] = key + 1
        for label, (start, end) in enumerate(zip([1, *bounds], bounds)):
            writer.write(first_identity + label, pack([start, end], first_identity + label))
        properties.write(f"{identities},{encoder.size[0]},{encoder.size[1]}\n")
        before()


def build_bin(pairs: Path, images: Path, out: Path, size: int | None = None, progress: bool = False) -> int:
    """Write a .bin of the verification pairs listed in the file `pairs` (see the top of this module); returns how many.

    JPEG and PNG files of the right size are stored as they are, anything else as PNG. Raises InputError naming file and line.
    """
    encoder = _Encoder("png", 0, size)
    encoded, same = [], []
    with bar(parse_pairs(text_of(read_bytes(pairs)), str(pairs), images), progress) as shown:
        for left, right, label in shown:
            encoded += [encoder(images / left), encoder(images / right)]
            same.append(label)
    write_bin(out, encoded, same)
    return len(same)


def build_idx(rec: Path) -> int:
    """Write the .idx beside a .rec; returns the number of records. Raises InputError where there is one, or the .rec is damaged."""
    from utils.record_index import write_index

    idx = rec.with_suffix(".idx")
    if idx.exists():
        raise InputError(f"{idx}: there is one already, expected none")
    return write_index(str(rec), str(idx))


def write_bin(path: str | Path, images: Sequence[bytes], same: Sequence[bool]) -> None:
    """Write a verification file: a pickle of (list of 2N encoded images, list of N bools), pair i being images 2i and 2i + 1."""
    if len(images) != 2 * len(same):
        raise ValueError(f"{len(images)} images for {len(same)} pairs, expected two for each")
    with atomic_write(path, "wb") as file:
        pickle.dump(([bytes(image) for image in images], [bool(value) for value in same]), file, protocol=4)


class _Encoder:
    """Path -> encoded image of one (height, width) for all: `size` x `size`, or that of the first image."""

    def __init__(self, kind: str, quality: int, size: int | None) -> None:
        self.kind, self.quality, self.resize = kind, quality, size is not None
        self.size, self.first = (size, size) if self.resize else None, None

    def __call__(self, path: Path) -> bytes:
        from utils.images import decode_image, encode_image

        data = read_bytes(path)
        image = decode_image(data, str(path))
        found = tuple(image.shape[1:])
        self.size, self.first = self.size or found, self.first or path
        if found != self.size and not self.resize:
            raise InputError(f"{path}: (height, width) {found}, expected {self.size} as in {self.first} (--size resizes)")
        if found == self.size and data.startswith(_SIGNATURES[self.kind]):
            return data
        return encode_image(image if found == self.size else _resized(image, self.size), self.kind, self.quality)


_SIGNATURES = {"jpeg": b"\xff\xd8", "png": (b"\xff\xd8", b"\x89PNG")}  # what needs no encoding, by what would be encoded to


def _resized(image, size: tuple[int, int]):
    import numpy as np
    import torch
    from PIL import Image

    pixels = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(size[::-1], Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1).contiguous()


def _labelled_images(root: Path) -> tuple[list[tuple[Path, int]], int]:
    from utils.image_folders import labelled_images

    samples, identities = labelled_images(root)
    return sorted(((Path(path), label) for path, label in samples), key=lambda sample: (sample[1], sample[0])), len(identities)


def read_bytes(path: Path) -> bytes:
    """The content of a file of a data set; raises InputError where it cannot be read, or is longer than any image may be."""
    from utils.images import MAX_ENCODED

    try:
        return read_file(path, MAX_ENCODED)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


def bar(items: Sequence, progress: bool):
    """A context of `items`, with a bar of progress where it is wanted, which ends before an error is printed."""
    from tqdm import tqdm

    return tqdm(items, unit="image", disable=not progress)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m utils.build_dataset", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    rec = commands.add_parser("rec", help="a .rec and .idx from a folder of identities")
    rec.add_argument("--images", type=Path, required=True, help="folder with a folder of images for each identity")
    rec.add_argument("--out", type=Path, required=True, help="prefix of the files: PREFIX.rec, PREFIX.idx (training reads train)")
    rec.add_argument("--quality", type=int, choices=range(1, 101), default=95, metavar="1..100", help="of JPEG where images are "
                     "encoded anew (default 95)")
    pairs = commands.add_parser("bin", help="a verification .bin from a list of pairs")
    pairs.add_argument("--pairs", type=Path, required=True, help="file with a line `path1 path2 0|1` for each pair")
    pairs.add_argument("--images", type=Path, required=True, help="folder the paths are relative to")
    pairs.add_argument("--out", type=Path, required=True, help="the file to write")
    index = commands.add_parser("idx", help="the index of a .rec that has none")
    index.add_argument("--rec", type=Path, required=True, help="the .rec file; its .idx is written beside it")
    split = commands.add_parser("split", help="the first people of a .rec as one, and pairs of the others as a .bin")
    split.add_argument("--rec", type=Path, required=True, help="the .rec file, or a folder with train.rec")
    split.add_argument("--identities", type=_count, required=True, metavar="K", help="how many people to train on")
    split.add_argument("--false-pairs", type=_count, metavar="N", help="random pairs of two people (default: as many as true pairs)")
    split.add_argument("--per-person", type=_count, metavar="M", help="true pairs of a person at most (default: all), and false ones drawn "
                                                                      "by people, so that who has many images counts no more than others")
    split.add_argument("--seed", type=int, default=0, metavar="S", help="of the false pairs and of the order of all (default 0)")
    split.add_argument("--out", type=Path, required=True, help="folder for train.rec, train.idx, property and heldout.bin")
    for command in (rec, pairs):
        command.add_argument("--size", type=_pixels, help="resize images to this many pixels a side (default: all must be equal)")
    _add_public(commands)
    return parser


def _add_public(commands: argparse._SubParsersAction) -> None:
    """The commands for data sets of others."""
    lfw = commands.add_parser("lfw", help="Labeled Faces in the Wild: people to train on, pairs of others")
    lfw.add_argument("--home", type=Path, help="folder with scikit-learn's lfw_home, where LFW is downloaded if it is not there (default: "
                                               "scikit-learn's own, ~/scikit_learn_data)")
    lfw.add_argument("--folds", nargs="+", type=_fold, default=list(FOLDS), metavar="1..10", help="folds of view 2 that are lfw.bin, "
                     f"whose people are not trained on, or `all` (default {' '.join(map(str, FOLDS))})")
    lfw.add_argument("--crop", choices=LFW_CROPS, default=LFW_CROPS[0], help="the face by way of 64 x 64 pixels, as LFWcrop has it "
                                                                             "(default), or resized once")
    lfw.add_argument("--at-least", type=_count, default=AT_LEAST, metavar="M", help="images of a person that is trained on (default "
                                                                                    f"{AT_LEAST})")
    lfw.add_argument("--original", action="store_true", help="the images as they were found, not the funneled ones")
    cfp = commands.add_parser("cfp_fp", help="pairs of CFP, frontal and in profile")
    cfp.add_argument("--images", type=Path, required=True, help="folder with Protocol and Data/Images, or Images")
    agedb = commands.add_parser("agedb_30", help="pairs of AgeDB, 30 years apart; not the published ones")
    agedb.add_argument("--images", type=Path, required=True, help="folder with images NUMBER_NAME_AGE_GENDER.jpg")
    agedb.add_argument("--seed", type=int, default=0, metavar="S", help="of the pairs that are drawn (default 0)")
    for command in (lfw, cfp, agedb):
        command.add_argument("--size", type=_pixels, default=SIZE, help=f"pixels a side of the images (default {SIZE})")
        command.add_argument("--quality", type=int, choices=range(1, 101), default=QUALITY, metavar="1..100", help="of JPEG (default "
                                                                                                                   f"{QUALITY})")
        command.add_argument("--out", type=Path, required=True, help="folder for the files")


def _pixels(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 4096):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of pixels from 1 to 4096")
    return int(text)


def _fold(text: str) -> int:
    """0 for all of them."""
    return 0 if text == "all" else _count(text)


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 2**31):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {2**31}")
    return int(text)


@lasting_console()
def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status (2 for input that cannot be used, 75 after a signal, 130 after Ctrl-C)."""
    options = with_homes(_parser().parse_args(arguments))
    try:
        with stops():
            _build(options)
    except (InputError, OSError) as error:
        complain("error", error)
        return 2
    except KeyboardInterrupt as error:
        return stopped(error, "nothing was written", INTERRUPTED)
    return 0


def _build(options: argparse.Namespace) -> None:
    from utils.faults.folder import owned

    if options.command == "rec":
        with owned(options.out.parent):
            count, identities = build_rec(options.images, options.out, options.quality, options.size, progress=True)
        print(f"{options.out}.rec: {count} images of {identities} identities")
    elif options.command == "split":
        from utils.split_dataset import split_rec

        with owned(options.out):
            made = split_rec(options.rec, options.out, options.identities, options.false_pairs, options.seed,
                             per_person=options.per_person)
        print(f"{options.out}: {made.images} images of {made.identities} identities to train on; {made.true_pairs} true and "
              f"{made.false_pairs} false pairs of {made.others} others")
    elif options.command in ("lfw", "cfp_fp", "agedb_30"):
        from utils.public_faces import command

        with owned(options.out):
            print(getattr(command, options.command)(options))
    elif options.command == "idx":
        print(f"{options.rec.with_suffix('.idx')}: {build_idx(options.rec)} records")
    else:
        with owned(options.out.parent, f".{options.out.name}.lock"):
            count = build_bin(options.pairs, options.images, options.out, options.size, progress=True)
        print(f"{options.out}: {count} pairs")


if __name__ == "__main__":
    sys.exit(main())
