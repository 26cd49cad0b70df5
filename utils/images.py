"""Encoded images <-> uint8 tensors, with the size read from the header first so that no small file can ask for all the memory."""
import contextlib
import io
import re
import struct
from typing import Any

import numpy as np
import simplejpeg
import torch

from utils import RecordError
from utils.files import is_a

Buffer = bytes | bytearray | memoryview

MAX_PIXELS = 2**24
MAX_ENCODED = 2**27  # bytes of an image file: more than the largest image that is decoded has pixels
# A progressive JPEG of a few kilobytes can hold thousands of scans, each of which costs a pass over all pixels.
MAX_SCANNED_PIXELS = 2**28
OTHER_FORMATS = ("PNG", "BMP", "PPM", "TIFF", "WEBP")  # what else an image folder or a .bin may hold; read through Pillow

# Pillow reads comments byte by byte, however long they are
_BLANK = rb"(?:\s|#[^\r\n]{0,200}[\r\n]){1,20}"
_PPM = re.compile(rb"P(?:[14](?:" + _BLANK + rb"\d{1,9}){2}|[2356](?:" + _BLANK + rb"\d{1,9}){3})\s")
_JPEG, _END_OF_JPEG, _PNG = b"\xff\xd8", b"\xff\xd9", b"\x89PNG\r\n\x1a\n"


def decode_image(data: Buffer, name: str) -> torch.Tensor:
    """Decode a JPEG (by libjpeg-turbo), or a PNG, BMP, PPM, TIFF or WebP, to a uint8 tensor [3, H, W], RGB, channels last in memory.

    Grey images are repeated over the channels, transparency is dropped, 16-bit samples keep their upper 8 bits. Of a JPEG that libjpeg
    has a warning for (stray bytes, a wrong restart marker, ...) come the pixels that it and Pillow give all the same. `name` is what
    error messages call the image. Raises RecordError where the bytes are not such an image, end before the last pixel, or where their
    header asks for more than MAX_PIXELS pixels.
    """
    data = bytes(data)
    image_size(data, name)
    try:
        pixels = _decode_jpeg(data) if data[:2] == _JPEG else _decode_other(data)
    except Exception as error:  # Pillow's decoders raise what their libraries raise
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise RecordError(f"{name}: an image of {len(data)} bytes that cannot be decoded: {reason}") from None
    return torch.from_numpy(pixels).permute(2, 0, 1)


def image_size(data: bytes, name: str) -> tuple[int, int]:
    """(height, width) from the header of an encoded image, without decoding it.

    Raises RecordError, with `name` in the message, where there is no such header or decoding would cost more than MAX_PIXELS allow.
    """
    if data[:2] == _JPEG:
        height, width = _jpeg_size(data, name)
    elif data[:8] == _PNG and len(data) >= 24:
        width, height = struct.unpack_from(">II", data, 16)  # Pillow would refuse a bomb without saying its size
    elif data[:1] == b"P" and not _PPM.match(data):
        raise RecordError(f"{name}: a PPM of {len(data)} bytes without a header of three numbers and short comments")
    else:
        width, height = _open(data, name, OTHER_FORMATS).size
    if not 0 < height * width <= MAX_PIXELS:
        raise RecordError(f"{name}: the header says {width} x {height} pixels, expected 1 to {MAX_PIXELS} in all")
    scans = data.count(b"\xff\xda") if data[:2] == _JPEG else 1
    if scans * height * width > MAX_SCANNED_PIXELS:
        raise RecordError(f"{name}: {scans} scans of {width} x {height} pixels, expected at most {MAX_SCANNED_PIXELS} pixels in all")
    return height, width


def encode_image(image: torch.Tensor, kind: str, quality: int = 95) -> bytes:
    """Encode a uint8 tensor [3, H, W] as "jpeg" (with `quality` from 1 to 100) or "png" (lossless)."""
    pixels = image.permute(1, 2, 0).contiguous().numpy()
    if kind == "jpeg":
        return simplejpeg.encode_jpeg(pixels, quality=quality, colorspace="RGB", colorsubsampling="420")
    from PIL import Image  # rarely needed, and not by the workers that read JPEG
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _jpeg_size(data: bytes, name: str) -> tuple[int, int]:
    with contextlib.suppress(ValueError):
        return simplejpeg.decode_jpeg_header(data)[:2]
    try:  # also without warnings it refuses what libjpeg warns of in a header
        return _open(data, name, ("JPEG",)).size[::-1]
    except RecordError:
        raise RecordError(f"{name}: a JPEG of {len(data)} bytes without a frame header: cut short or damaged") from None


def _decode_jpeg(data: bytes) -> np.ndarray:
    with contextlib.suppress(ValueError):
        return _without_a_warning(data)
    with contextlib.suppress(ValueError):
        return _without_a_warning(data + _END_OF_JPEG)  # that marker alone was missing: no pixel was
    return _by_pillow(data, ("JPEG",))  # goes on after warnings, but not where the data end


def _without_a_warning(data: bytes) -> np.ndarray:
    """The pixels of a JPEG; raises ValueError where libjpeg has something to say of it."""
    if simplejpeg.decode_jpeg_header(data)[2] in ("CMYK", "YCCK"):  # libjpeg leaves their conversion to others
        simplejpeg.decode_jpeg(data, colorspace="CMYK")
        return _by_pillow(data, ("JPEG",))
    return simplejpeg.decode_jpeg(data, colorspace="RGB")


def _by_pillow(data: bytes, formats: tuple[str, ...]) -> np.ndarray:
    return np.array(_open(data, "", formats).convert("RGB"))


def _decode_other(data: bytes) -> np.ndarray:
    image = _open(data, "", OTHER_FORMATS)
    if image.mode.startswith("I"):
        return np.repeat((np.asarray(image).astype(np.int64) >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
    return np.array(image.convert("RGB"))


def _open(data: bytes, name: str, formats: tuple[str, ...]) -> Any:
    from PIL import Image

    try:
        return Image.open(io.BytesIO(data), formats=formats)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise RecordError(f"{name}: {len(data)} bytes beginning with {data[:8]!r}{is_a(data)}, expected an image "
                         f"(JPEG, {', '.join(OTHER_FORMATS)})") from None
