"""From a photo to the crop that a network compares: five points of a face, and where they are to lie.

The points are, in the picture: left eye, right eye, tip of the nose, left and right corner of the mouth, x to the right and y down from the
centre of the upper left pixel. The certificate begins behind all this: it is about the crop.
"""
import csv
import io
import json
import math
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from eval.photos import Photo
from utils import InputError
from utils.files import read_file, text_of
from utils.images import encode_image

FIELD = ((38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041))  # in 112 x 112
_SIDE = 112
_MOST_OFF = 20  # pixels of 112, root mean square, by which five points may miss the template: profiles come to 10
_MOST_TABLE = 2**24
_VIEW = 480  # pixels of the longer side of a photo that is kept to be shown


class Face(NamedTuple):
    """A face that was found: box (x0, y0, x1, y1), points [5, 2], score (how sure the detector is)."""
    box: tuple[float, float, float, float]
    points: np.ndarray
    score: float = 1.0

    @property
    def area(self) -> float:
        """Of the box, in pixels."""
        return (self.box[2] - self.box[0]) * (self.box[3] - self.box[1])


class Crop(NamedTuple):
    """What of a photo a network is given.

    encoded: the square crop, losslessly; size: (width, height) of the photo; outline: its corners [4, 2] in the photo; points [5, 2] that
    it was made by, or None; faces: all that were found, the largest first; chosen: the number of the one that was taken; remarks: what was
    done; view: the photo made small, to be shown, where it is to be.
    """
    path: str
    encoded: bytes
    size: tuple[int, int]
    outline: np.ndarray
    remarks: tuple[str, ...]
    view: "Image.Image | None"
    points: "np.ndarray | None" = None
    faces: tuple[Face, ...] = ()
    chosen: int = 0


def template(side: int, pupils: Sequence[Sequence[float]] = ()) -> np.ndarray:
    """Where five points are to lie in a crop of side x side, [5, 2]: the field's template, or the same shape moved, turned and scaled so
    that its eyes are at `pupils` [2][x, y] of 112 x 112.
    """
    points = np.array(FIELD)
    if len(pupils):
        points = _similarity(points[:2], np.array(pupils, dtype=float))(points)
    return (points + 0.5) * side / _SIDE - 0.5


def as_it_is(photo: Photo, side: int) -> Crop:
    """A crop that is aligned already: brought to side x side, where it is larger. Raises InputError for one that is not square."""
    width, height = photo.image.size
    if width != height:
        raise InputError(f"{photo.path}: {width} x {height} pixels: an aligned crop is square. --align auto finds the face in a photo, "
                         "--landmarks FILE takes five points of it")
    image = photo.image if width <= side else photo.image.resize((side, side), Image.Resampling.BICUBIC)
    remarks = () if width == side else (f"resized from {width} x {height} to {side} x {side}",)
    return _crop(photo, np.asarray(image), _corners(-0.5, -0.5, width - 0.5, height - 0.5), remarks)


def of_face(photo: Photo, detector: Callable[[np.ndarray], Sequence[Face]], chosen: int, target: np.ndarray, side: int) -> Crop:
    """The crop of a face that a detector finds. chosen: which of several, 1 being the largest; 0: the only one.

    Raises InputError where none is found, where there are several and none is chosen, where there are fewer than the one that is, and where
    the detector fails.
    """
    try:
        faces = sorted(detector(np.asarray(photo.image)), key=lambda face: -face.area)
    except Exception as error:  # of a detector of somebody else's: anything
        raise InputError(f"{photo.path}: the detector fails: {type(error).__name__}: {error}") from error
    if not faces:
        raise InputError(f"{photo.path}: no face found")
    if len(faces) > 1 and not chosen or chosen > len(faces):
        places = "; ".join(f"{number} from ({box[0]:.0f}, {box[1]:.0f}) to ({box[2]:.0f}, {box[3]:.0f})"
                           for number, (box, *_) in enumerate(faces[:9], 1))
        raise InputError(f"{photo.path}: {len(faces)} face{'s' * (len(faces) > 1)} found, expected "
                         + (f"at least {chosen}" if chosen else "one: --face 1 takes the largest") + f" ({places})")
    place = max(chosen - 1, 0)
    return cropped(photo, faces[place].points, target, side)._replace(faces=tuple(faces), chosen=place)


def cropped(photo: Photo, points: np.ndarray, target: np.ndarray, side: int) -> Crop:
    """The crop side x side in which the similarity that fits best, in the least squares, has brought `points` [5, 2] to `target`.

    A photo that is larger is reduced by a whole factor first (means of blocks of pixels), so that the bilinear interpolation skips none.
    Outside of it its edge is repeated: black bars move embeddings further than faces do. Raises InputError, with the path, for points that
    are not those of a face.
    """
    from skimage.transform import SimilarityTransform, warp

    width, height = photo.image.size
    points = np.asarray(points, dtype=float)
    if points.shape != (5, 2) or not np.isfinite(points).all():
        raise InputError(f"{photo.path}: points {points.tolist()}, expected five of two finite numbers each"[:300])
    if ((points < -0.5 * np.array([width, height])) | (points > 1.5 * np.array([width, height]))).any():
        raise InputError(f"{photo.path}: points {points.tolist()} lie outside of its {width} x {height} pixels"[:300])
    try:
        to_crop = _similarity(points, target)
    except InputError as error:
        raise InputError(f"{photo.path}: {error}") from None
    off = math.sqrt(((to_crop(points) - target) ** 2).sum(1).mean()) * _SIDE / side
    if off > _MOST_OFF:
        raise InputError(f"{photo.path}: its five points miss those of a face by {off:.0f} pixels of {_SIDE}, expected left eye, right "
                         "eye, nose, left and right corner of the mouth, as they are in the picture")
    to_photo = to_crop.inverse
    corners = to_photo(_corners(-0.5, -0.5, side - 0.5, side - 0.5))
    factor = max(1, int(1 / to_crop.scale))
    low = np.clip(np.floor(corners.min(0)) - 2 * factor, 0, [width - 1, height - 1]).astype(int)
    high = np.clip(np.ceil(corners.max(0)) + 2 * factor, low + 1, [width, height]).astype(int)
    part = photo.image.reduce(factor, box=(*low, *high))
    to_part = to_photo + SimilarityTransform(scale=1 / factor, translation=-(low + (factor - 1) / 2) / factor)
    pixels = warp(np.asarray(part, dtype=np.float64), to_part, output_shape=(side, side), order=1, mode="edge", preserve_range=True)
    grid = to_photo(np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2))
    outside = ((grid < -0.5) | (grid > np.array([width, height]) - 0.5)).any(1).mean()
    remarks = (f"{math.ceil(100 * outside)} % of the crop lie outside of the photo and repeat its edge",) if outside > 0 else ()
    return _crop(photo, pixels.round().clip(0, 255).astype(np.uint8), corners, remarks)._replace(points=points)


def read_points(path: "str | os.PathLike[str]") -> Callable[[str], np.ndarray]:
    """The five points of each image that a table has, as a function of the image's path.

    A JSON object {"image.jpg": [[x, y], ...], ...}, or a csv with a line of names and then image, x and y of each point in eleven columns.
    Images are named relative to the folder of the table, or by their file name where only one has it. Coordinates are those of the photo
    as it is shown, turned by its EXIF data. Raises InputError, with the file, for a table that is none; the function raises it for an
    image that is not in it.
    """
    rows = _rows(path)
    folder = os.path.dirname(os.path.abspath(path))
    by_path = {os.path.realpath(os.path.join(folder, name)): points for name, points in rows}
    names = [os.path.basename(name) for name, _ in rows]
    by_name = {name: points for name, (_, points) in zip(names, rows) if names.count(name) == 1} if len(rows) < 10**4 else {}
    if len(by_path) < len(rows):
        raise InputError(f"{path}: an image is in it twice")

    def points_of(image: str) -> np.ndarray:
        found = by_path.get(os.path.realpath(image), by_name.get(os.path.basename(image)))
        if found is None:
            raise InputError(f"{path}: no points of {image}")
        return found
    return points_of


def _rows(path: "str | os.PathLike[str]") -> list[tuple[str, np.ndarray]]:
    text = text_of(read_file(path, _MOST_TABLE))
    if text.lstrip()[:1] == "{":
        try:
            content: Any = list(json.loads(text).items())
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: not JSON: {error}") from None
    else:
        try:
            content = [(row[0], row[1:]) for row in csv.reader(io.StringIO(text)) if row][1:]
        except csv.Error as error:
            raise InputError(f"{path}: not a csv: {error}") from None
    found = []
    for name, points in content:
        try:
            array = np.array(points, dtype=float).reshape(5, 2)
        except (ValueError, TypeError, OverflowError):
            raise InputError(f"{path}: {name[:80]}: {str(points)[:80]}, expected x and y of five points") from None
        if "\0" in name:
            raise InputError(f"{path}: {name[:80]!r} names no file")
        found.append((name, array))
    if not found:
        raise InputError(f"{path}: no points in it, expected a JSON object or a csv with a line of names and a line for each image")
    return found


def _similarity(source: np.ndarray, target: np.ndarray) -> Any:
    """The scikit-image transform that brings points [n, 2] to others best. Raises InputError where they determine none."""
    from skimage.transform import estimate_transform

    found = estimate_transform("similarity", source, target)
    if not np.isfinite(getattr(found, "params", np.nan)).all() or not found.scale > 0:  # older versions: NaN; newer ones: no transform
        raise InputError("its five points are one point")
    return found


def _corners(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]], dtype=float)


def _crop(photo: Photo, pixels: np.ndarray, outline: np.ndarray, remarks: tuple[str, ...]) -> Crop:
    share = min(1., _VIEW / max(photo.image.size))
    view = photo.image.resize([max(1, round(share * length)) for length in photo.image.size], reducing_gap=2.0)
    encoded = encode_image(torch.from_numpy(pixels.copy()).permute(2, 0, 1), "png")
    return Crop(photo.path, encoded, photo.image.size, outline, (*photo.remarks, *remarks), view)
