"""The commands of utils/build_dataset.py for public faces: parsed options -> what was made, in a line or two."""
import argparse
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from utils.public_faces.agedb import agedb_pairs
from utils.public_faces.cfp import cfp_pairs
from utils.public_faces.crops import Crop
from utils.public_faces.lfw import IMAGES, PEOPLE, build_lfw
from utils.public_faces.written import write_pairs


def lfw(options: argparse.Namespace) -> str:
    """`build_dataset lfw`; fold 0 stands for all."""
    made = build_lfw(options.out, options.home, () if 0 in options.folds else options.folds, options.crop, options.size, options.quality,
                     options.at_least, options.original, progress=True)
    trained = f"{made.images} images of {made.identities} people to train on" if made.identities else \
        f"no train.rec, as fewer than two people with {options.at_least} images are in no pair"
    lacking = "" if made.whole else f"\nnote: {made.all_images} images of {made.all_people} people were there, LFW has {IMAGES} of {PEOPLE}"
    return f"{options.out}: {trained}; {made.true_pairs} true and {made.false_pairs} false pairs of {made.tested} others{lacking}"


def cfp_fp(options: argparse.Namespace) -> str:
    """`build_dataset cfp_fp`."""
    folds, images = cfp_pairs(options.images)
    return _written(options, folds, images, {})


def agedb_30(options: argparse.Namespace) -> str:
    """`build_dataset agedb_30`."""
    return _written(options, agedb_pairs(options.images, options.seed), options.images, {"published_pairs": False, "seed": options.seed})


def _written(options: argparse.Namespace, folds: Sequence[Sequence[tuple[Path, Path, bool]]], images: Path, about: dict) -> str:
    pairs = list(chain.from_iterable(folds))
    write_pairs(options.out, options.command, pairs, Crop("square", options.size, options.quality), {"folds": len(folds), **about}, images,
                progress=True)
    return f"{options.out / options.command}.bin: {len(pairs)} pairs in {len(folds)} folds"
