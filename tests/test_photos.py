"""Image files of all kinds, read as photos: what they show, or one line that says why not."""
import contextlib
import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from eval.photos import MOST_PIXELS, read_photo
from utils import InputError
from utils.images import decode_image

NOISE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def encoded(image, kind, **how):
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


def read(tmp_path, data):
    (tmp_path / "photo").write_bytes(data)  # names tell nothing
    return read_photo(tmp_path / "photo")


def pixels(photo):
    assert photo.image.mode == "RGB"
    return np.asarray(photo.image)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_lossless_files_are_their_pixels(tmp_path, kind):
    photo = read(tmp_path, encoded(Image.fromarray(NOISE), kind, lossless=True))
    assert np.array_equal(pixels(photo), NOISE) and photo.remarks == ()


@pytest.mark.parametrize("how", [{}, {"progressive": True}, {"quality": 30}, {"subsampling": 0}])
def test_a_jpeg_is_what_every_other_command_sees(tmp_path, how):
    data = encoded(Image.fromarray(NOISE).resize((112, 112)), "JPEG", **how)
    assert np.array_equal(pixels(read(tmp_path, data)), decode_image(data, "").permute(1, 2, 0).numpy())


@pytest.mark.parametrize("orientation, upright", [
    (2, lambda a: a[:, ::-1]), (3, lambda a: a[::-1, ::-1]), (4, lambda a: a[::-1]), (5, lambda a: a.transpose(1, 0, 2)),
    (6, lambda a: np.rot90(a, -1)), (7, lambda a: np.rot90(a, 2).transpose(1, 0, 2)), (8, np.rot90)])
def test_exif_turns_it(tmp_path, orientation, upright):
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind in ("PNG", "WEBP"):
        photo = read(tmp_path, encoded(Image.fromarray(NOISE), kind, exif=exif, lossless=True))
        assert np.array_equal(pixels(photo), upright(NOISE)) and photo.remarks == ("turned as its EXIF data say",)


def test_grey_palette_and_bits(tmp_path):
    grey = Image.fromarray(NOISE[:, :, 0])
    assert np.array_equal(pixels(read(tmp_path, encoded(grey, "PNG"))), np.repeat(NOISE[:, :, :1], 3, 2))
    palette = Image.fromarray(NOISE).quantize(16)
    assert np.array_equal(pixels(read(tmp_path, encoded(palette, "PNG"))), np.asarray(palette.convert("RGB")))
    bits = grey.point(lambda value: 255 * (value > 100), "1")
    assert set(pixels(read(tmp_path, encoded(bits, "PNG"))).flatten()) == {0, 255}


def test_transparent_parts_are_laid_over_white(tmp_path):
    alpha = np.full((20, 30), 255, dtype=np.uint8)
    opaque = read(tmp_path, encoded(Image.fromarray(np.dstack([NOISE, alpha])), "PNG"))
    assert np.array_equal(pixels(opaque), NOISE) and opaque.remarks == ()
    alpha[:10], alpha[10:] = 0, 51  # nothing, and a fifth
    photo = read(tmp_path, encoded(Image.fromarray(np.dstack([NOISE, alpha])), "PNG"))
    assert (pixels(photo)[:10] == 255).all() and photo.remarks == ("transparent parts laid over white",)
    assert np.abs(pixels(photo)[10:] - (0.2 * NOISE[10:] + 0.8 * 255)).max() <= 1
    palette = Image.fromarray(NOISE).quantize(4)
    clear = pixels(read(tmp_path, encoded(palette, "PNG", transparency=2)))
    assert (clear[np.asarray(palette) == 2] == 255).all()


def test_the_second_picture_of_a_phone_is_left_out(tmp_path):
    others = [Image.new("RGB", (30, 20))]
    first = Image.fromarray(NOISE)
    photo = read(tmp_path, encoded(first, "MPO", save_all=True, append_images=others))
    assert photo.image.size == (30, 20) and pixels(photo).std() > 20


def test_a_large_photo(tmp_path):
    assert read(tmp_path, encoded(Image.new("RGB", (5000, 4000)), "JPEG")).image.size == (5000, 4000)


def png(width, height, depth, rows):
    """A PNG of three channels as its header says it, which Pillow may not write."""
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def png_header(width, height):
    return png(width, height, 8, bytes(100))


def animation(kind, **how):
    frames = [Image.new("RGB", (30, 20), colour) for colour in ("red", "blue")]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:], **how)


NOISY = Image.fromarray(NOISE)
REFUSED = {
    "truncated PNG": (encoded(NOISY, "PNG")[:-60], "cannot be decoded"), "truncated WebP": (encoded(NOISY, "WEBP")[:-60], "."),
    "truncated JPEG": (encoded(NOISY, "JPEG")[:-100], "cannot be decoded"), "header alone": (encoded(NOISY, "JPEG")[:30], "."),
    "empty": (b"", "0 bytes"), "text": (b"not an image", "expected an image"), "page": (b"<!doctype html><html>", "an HTML page"),
    "GIF": (encoded(NOISY, "GIF"), "a GIF"), "TIFF": (encoded(NOISY, "TIFF"), "a TIFF"), "HEIC": (b"\0\0\0\x18ftypheic" + bytes(40), "HEIF"),
    "APNG": (animation("PNG"), "an animation of 2"), "animated WebP": (animation("WEBP"), "an animation of 2"),
    "16 bits, grey": (encoded(Image.fromarray(NOISE[:, :, 0].astype(np.uint16) * 256), "PNG"), "16 bits"), "16 bits": (png(4, 4, 16, (b"\0" + bytes(range(24))) * 4), "16 bits"),
    "CMYK": (encoded(NOISY.convert("CMYK"), "JPEG"), "colours in CMYK"), "bomb": (png_header(60000, 60000), f"more than {MOST_PIXELS}"),
    "large": (png_header(9000, 9000), "9000 x 9000 pixels"), "larger": (png_header(10000, 10000), "10000 x 10000 pixels"),
    "no pixels": (png_header(0, 5), "."), "scans": (encoded(Image.new("RGB", (4000, 4000)), "JPEG") + b"\xff\xda" * 80, "81 scans"),
    "other bytes": (bytes(np.random.default_rng(1).integers(0, 256, 5000, dtype=np.uint8)), "expected an image")}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_photo_is_refused_by_its_name(tmp_path, name, recwarn):
    data, words = REFUSED[name]
    with pytest.raises(InputError, match=rf"photo: .*{words}") as found:
        read(tmp_path, data)
    assert "\n" not in str(found.value) and not recwarn


def test_what_is_no_file(tmp_path):
    with pytest.raises(InputError, match="a folder"):
        read_photo(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_photo(tmp_path / "missing.jpg")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="not a regular file"):
        read_photo(tmp_path / "pipe")
    with open(tmp_path / "long", "wb") as file:
        file.truncate(2**27 + 1)
    with pytest.raises(InputError, match="expected at most"):
        read_photo(tmp_path / "long")


def test_damage_never_ends_in_another_error(tmp_path):
    rng = np.random.default_rng(2)
    for kind in ("JPEG", "PNG", "WEBP"):
        data = encoded(NOISY, kind)
        for _ in range(40):
            damaged = bytearray(data)
            for place in rng.integers(0, len(data), 3):
                damaged[place] = rng.integers(0, 256)
            with contextlib.suppress(InputError):
                assert read(tmp_path, bytes(damaged)).image.mode == "RGB"

