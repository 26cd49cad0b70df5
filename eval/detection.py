"""Detectors of faces by name: what `--align auto` finds the five points with. That of another project is named `package.module:Name`.

A detector is made without arguments and called with an image, uint8 [H, W, 3] in RGB; it returns the faces in it, in any order. None is a
requirement of this repository: the built-in one says what to install.
"""
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eval.alignment import Face
from utils import InputError, RunError
from utils.registry import Registry

Detector = Callable[[np.ndarray], Sequence[Face]]


@dataclass(frozen=True)
class Entry:
    """name: what commands call it; build: the class."""
    name: str
    build: Callable[[], Detector]


DETECTORS: Registry[Entry] = Registry("detector", Entry)


@DETECTORS.register("uniface")
class UniFace:
    """RetinaFace (Deng et al., CVPR 2020) with a MobileNet, of the package uniface, on onnxruntime. It downloads its model once.

    Raises InputError where the package is missing, RunError where its model cannot be had.
    """

    def __init__(self) -> None:
        try:
            from uniface import RetinaFace
        except ImportError as error:
            raise InputError(f"--align auto: the detector needs a package that is not here ({error}): pip install -c constraints.txt "
                             "'uniface[cpu]>=4' (Python 3.11 or newer); or give --landmarks FILE, or --detector package.module:Name"
                             ) from None
        logging.getLogger("uniface").setLevel(logging.CRITICAL)  # what fails is said below
        try:
            self.detector = RetinaFace(providers=["CPUExecutionProvider"])  # on every machine the same
        except Exception as error:  # of downloads and of onnxruntime
            raise RunError(f"--align auto: uniface cannot load its model, which it downloads once: {error}") from error

    def __call__(self, image: np.ndarray) -> list[Face]:
        """The faces in an image, uint8 [H, W, 3] in RGB."""
        found = self.detector.detect(np.ascontiguousarray(image[:, :, ::-1]))  # it takes BGR
        return [Face((float(left), float(top), float(right), float(bottom)), np.asarray(face.landmarks, dtype=float),
                     float(face.confidence)) for face in found for left, top, right, bottom in [face.bbox]]


def detector(name: str) -> Detector:
    """The detector of a registered name, or of `package.module:Name`, made ready. Raises InputError where there is none."""
    found: Any = DETECTORS.find(name).build()
    if not callable(found):
        raise InputError(f"detector {name}: makes a {type(found).__name__}, expected what is called with an image")
    return found
