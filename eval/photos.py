"""Photos: image files as cameras, phones and browsers write them, read for one face rather than for a data set.

What cannot be shown in one way only is refused, in one line: an animation, 16 bits a sample (which eight?), the inks of CMYK. Records and
.bin files are read more leniently (utils/images.py); of an ordinary file both give the same pixels.
"""
import io
import os
import warnings
from typing import Any, NamedTuple

from PIL import Image, ImageOps

from utils import InputError
from utils.files import is_a, read_file
from utils.images import MAX_ENCODED

FORMATS = ("JPEG", "PNG", "WEBP")
MOST_PIXELS = 2**26  # 67 million: those of a phone with 64
_MOST_SCANNED = 2**30  # pixels times the scans of a progressive JPEG
_PLAIN = {"1", "L", "LA", "P", "PA", "RGB", "RGBA"}
_ORIENTATION = 0x0112  # the EXIF tag


class Photo(NamedTuple):
    """image: RGB, upright; path: where it is from; remarks: what was done to it."""
    path: str
    image: Image.Image
    remarks: tuple[str, ...] = ()


def read_photo(path: "str | os.PathLike[str]") -> Photo:
    """Read a JPEG, PNG or WebP of any size up to MOST_PIXELS.

    It is turned as its EXIF data say. Grey values stand for all three channels, palettes are looked up, what is transparent is laid over
    white; colour profiles are not looked at. Raises InputError, with the path, for everything else: an animation, 16 bits a sample, CMYK, a
    file that ends early or is none of these. Raises OSError where there is no file.
    """
    data = read_file(path, MAX_ENCODED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sizes that are refused below, and of odd EXIF data
        try:
            image = _opened(data)
            remarks = () if image.getexif().get(_ORIENTATION, 1) == 1 else ("turned as its EXIF data say",)
            return Photo(str(path), *_flat(ImageOps.exif_transpose(image), remarks))
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        except MemoryError:
            raise
        except Exception as error:  # Pillow's decoders raise what their libraries raise
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            raise InputError(f"{path}: an image of {len(data)} bytes that cannot be decoded: {reason}") from None


def _opened(data: bytes) -> Image.Image:
    """The image, its pixels not read yet, once its header has nothing that is refused."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise InputError(f"its header asks for more than {MOST_PIXELS} pixels") from None
    except Image.UnidentifiedImageError:
        raise InputError(f"{len(data)} bytes beginning with {data[:8]!r}{is_a(data)}, expected an image (JPEG, PNG or WebP)") from None
    width, height = image.size
    if not 0 < width * height <= MOST_PIXELS:
        raise InputError(f"{width} x {height} pixels, expected at most {MOST_PIXELS} in all")
    frames = getattr(image, "n_frames", 1)
    if image.format in ("PNG", "WEBP") and frames > 1:  # a phone's JPEG may hold a second picture
        raise InputError(f"an animation of {frames} pictures, expected a single one")
    if image.format == "PNG" and data[24] == 16 or image.mode.startswith(("I", "F")):
        raise InputError("16 bits a sample, expected 8: convert it first")
    if image.mode not in _PLAIN:
        raise InputError(f"colours in {image.mode}, expected RGB or grey: convert it first")
    scans = data.count(b"\xff\xda") if data[:2] == b"\xff\xd8" else 1
    if scans * width * height > _MOST_SCANNED:
        raise InputError(f"a JPEG with {scans} scans of {width} x {height} pixels, expected at most {_MOST_SCANNED} pixels in all")
    return image


def _flat(image: Image.Image, remarks: tuple[str, ...]) -> tuple[Image.Image, tuple[str, ...]]:
    """The image in RGB, over white."""
    if image.mode not in ("LA", "PA", "RGBA") and "transparency" not in image.info:
        return image.convert("RGB"), remarks
    image = image.convert("RGBA")
    lowest: Any = image.getchannel("A").getextrema()[0]
    if lowest == 255:
        return image.convert("RGB"), remarks
    over = Image.new("RGBA", image.size, "white")
    over.alpha_composite(image)
    return over.convert("RGB"), (*remarks, "transparent parts laid over white")
