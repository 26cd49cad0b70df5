"""Five points of a face and the crop that they make, against complex arithmetic; and detectors, of which none has to be installed."""
import json
import sys
import types

import numpy as np
import pytest
from PIL import Image

from eval import alignment, detection
from eval.alignment import Face, cropped, of_face, read_points, template
from eval.photos import Photo
from utils import InputError, RunError
from utils.images import decode_image

FIELD = np.array([[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]])


def complex_numbers(points):
    return np.asarray(points) @ np.array([1, 1j])


def best_similarity(source, target):
    """(a, b) of z -> a z + b, the least squares of target over source."""
    design = np.stack([complex_numbers(source), np.ones(len(source))], 1)
    return np.linalg.lstsq(design, complex_numbers(target), rcond=None)[0]


def moved(points, scale, angle, by):
    turned = scale * np.exp(1j * np.deg2rad(angle)) * complex_numbers(points) + complex(*by)
    return np.stack([turned.real, turned.imag], 1)


def gradient(width, height):
    """A photo whose colours are linear in the place, which every interpolation and every mean keeps."""
    x, y = np.meshgrid(np.arange(width) / width, np.arange(height) / height)
    values = np.stack([40 + 150 * x, 30 + 180 * y, 200 - 60 * x - 80 * y], -1)
    return Photo("gradient.png", Image.fromarray(values.round().astype(np.uint8))), values


def pixels(crop):
    return decode_image(crop.encoded, "").permute(1, 2, 0).numpy()


def test_the_template_is_the_field_s_or_that_shape_at_the_pupils():
    assert np.allclose(template(112), FIELD)
    assert np.allclose(template(224) + 0.5, 2 * (FIELD + 0.5))
    pupils = [[29.5, 25.5], [82.5, 25.0]]
    found = template(112, pupils)
    assert np.allclose(found[:2], pupils)
    a, b = best_similarity(FIELD[:2], pupils)
    assert np.allclose(complex_numbers(found), a * complex_numbers(FIELD) + b)


@pytest.mark.parametrize("scale, angle", [(0.4, 0), (1, 20), (2.5, -35), (7.3, 170), (19, 5)])
def test_a_crop_brings_the_points_to_the_template(scale, angle):
    rng = np.random.default_rng(int(10 * scale))
    photo, _ = gradient(2600, 2400)
    points = moved(FIELD - 56, scale, angle, (1300, 1200)) + rng.normal(0, scale, (5, 2))
    crop = cropped(photo, points, FIELD, 112)
    a, b = best_similarity(points, FIELD)
    grid = np.stack(np.meshgrid(np.arange(112), np.arange(112)), -1)
    at = (complex_numbers(grid) - b) / a
    x, y = at.real / 2600, at.imag / 2400
    expected = np.stack([40 + 150 * x, 30 + 180 * y, 200 - 60 * x - 80 * y], -1)
    assert np.abs(pixels(crop) - expected).max() <= 1.3  # of grey levels: both the photo and the crop are rounded
    assert crop.remarks == () and crop.size == (2600, 2400)
    corner = (complex(-0.5, -0.5) - b) / a
    assert crop.outline[0] == pytest.approx([corner.real, corner.imag])


def test_what_shrinks_is_averaged():
    """A chessboard of single pixels, ten times too large, comes out grey."""
    board = (np.indices((1200, 1200)).sum(0) % 2 * 255).astype(np.uint8)
    photo = Photo("board.png", Image.fromarray(board).convert("RGB"))
    crop = cropped(photo, moved(FIELD - 56, 10, 3, (600, 600)), FIELD, 112)
    assert np.abs(pixels(crop).astype(int) - 127).max() <= 14  # blocks of 9 x 9 pixels have one more of one colour


def test_what_lies_outside_repeats_the_edge_and_is_said():
    photo = Photo("red.png", Image.new("RGB", (100, 100), (200, 10, 10)))
    crop = cropped(photo, FIELD - [40, 0], FIELD, 112)
    assert (pixels(crop) == [200, 10, 10]).all()
    outside = 1 - 72 * 100 / 112**2  # columns 40 to 111, rows 0 to 99
    assert crop.remarks == (f"{int(np.ceil(100 * outside))} % of the crop lie outside of the photo and repeat its edge",)


@pytest.mark.parametrize("points, words", [
    (FIELD[[1, 0, 2, 4, 3]], "miss those of a face"), (FIELD[[3, 4, 2, 0, 1]], "miss those of a face"), (np.ones((5, 2)), "one point"),
    (FIELD * [1, np.nan], "finite"), (FIELD[:4], "five"), (FIELD + 1000, "outside"), (FIELD * -1 - 200, "outside")])
def test_points_of_no_face_are_refused(points, words):
    with pytest.raises(InputError, match=f"gradient.png: .*{words}"):
        cropped(gradient(112, 112)[0], points, FIELD, 112)


def test_an_aligned_crop_stays_as_it_is_or_is_made_smaller():
    photo, values = gradient(112, 112)
    same = alignment.as_it_is(photo, 112)
    assert np.array_equal(pixels(same), np.asarray(photo.image)) and same.remarks == ()
    smaller = alignment.as_it_is(gradient(1120, 1120)[0], 112)
    assert np.abs(pixels(smaller)[5:-5, 5:-5] - values[5:-5, 5:-5]).max() < 3
    assert smaller.remarks == ("resized from 1120 x 1120 to 112 x 112",)
    with pytest.raises(InputError, match="112 x 150 pixels: an aligned crop is square"):
        alignment.as_it_is(gradient(112, 150)[0], 112)


def test_points_of_a_table(tmp_path):
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).touch()
    heading = "image," + ",".join(f"{axis}{number}" for number in range(5) for axis in "xy")
    rows = [f"{name}," + ",".join(map(str, (FIELD + shift).flatten())) for name, shift in (("a.jpg", 0), ("sub/b.jpg", 1))]
    (tmp_path / "points.csv").write_text("\n".join([heading, *rows]))
    (tmp_path / "points.json").write_text(json.dumps({"a.jpg": FIELD.tolist(), "sub/b.jpg": (FIELD + 1).flatten().tolist()}))
    for table in ("points.csv", "points.json"):
        points_of = read_points(tmp_path / table)
        assert np.allclose(points_of(str(tmp_path / "a.jpg")), FIELD)
        assert np.allclose(points_of("elsewhere/b.jpg"), FIELD + 1)  # no other has that name
        with pytest.raises(InputError, match="no points of c.jpg"):
            points_of("c.jpg")


@pytest.mark.parametrize("content, words", [
    ("", "no points"), ("image,x,y\n", "no points"), ("image,x\na.jpg,1,2,3\n", "a.jpg: .*expected x and y of five points"), ("{", "not JSON"),
    ("{}", "no points"), ('{"a": 5}', "expected x and y"), ('{"a": [1, 2, 3, 4, 5, 6, 7, 8, 9, "x"]}', "expected x and y"),
    ("h\n" + 2 * "a.jpg,1,2,3,4,5,6,7,8,9,10\n", "twice"), (200 * "[", "no points"),
    ('{"a": [1, 2, 3, 4, 5, 6, 7, 8, 9, 1' + 400 * "0" + "]}", "expected x and y"), ("h\n" + 10**6 * "a", "not a csv"),
    ("h\na\0.jpg,1,2,3,4,5,6,7,8,9,10\n", "names no file|not a csv")])
def test_tables_of_points_that_are_none(tmp_path, content, words):
    (tmp_path / "points").write_text(content)
    with pytest.raises(InputError, match=f"points: .*{words}"):
        read_points(tmp_path / "points")


def faces_at(*sizes):
    """A detector of faces with boxes of these sizes."""
    return lambda image: [Face((0, 0, size, size), moved(FIELD - 56, size / 112, 0, (250, 250))) for size in sizes]


def test_the_largest_face_is_number_one():
    photo = gradient(500, 500)[0]
    crop = of_face(photo, faces_at(100, 300, 200), 2, FIELD, 112)
    assert [face.box[2] for face in crop.faces] == [300, 200, 100] and crop.chosen == 1
    assert np.array_equal(pixels(crop), pixels(cropped(photo, moved(FIELD - 56, 200 / 112, 0, (250, 250)), FIELD, 112)))
    assert of_face(photo, faces_at(100), 0, FIELD, 112).chosen == 0


@pytest.mark.parametrize("sizes, chosen, words", [((), 0, "no face found"), ((), 1, "no face found"), ((100,), 2, "1 face found, expected at least 2"),
                                                  ((100, 50), 0, "2 faces found, expected one: --face 1 takes the largest")])
def test_no_face_and_several(sizes, chosen, words):
    with pytest.raises(InputError, match=f"gradient.png: {words}"):
        of_face(gradient(500, 500)[0], faces_at(*sizes), chosen, FIELD, 112)


def test_a_detector_that_fails_is_one_line():
    with pytest.raises(InputError, match="gradient.png: the detector fails: ZeroDivisionError"):
        of_face(gradient(500, 500)[0], lambda image: 1 // 0, 0, FIELD, 112)


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "uniface", None)
    with pytest.raises(InputError, match=r"pip install -c constraints.txt 'uniface\[cpu\]>=4'"):
        detection.detector("uniface")


def uniface(monkeypatch, init=lambda self, **how: None):
    """A package of that name with what is used of it: the image in BGR, contiguous, and faces of arrays in float32."""
    seen = []

    class RetinaFace:
        def __init__(self, *, providers):
            init(self, providers=providers)

        def detect(self, image):
            seen.append(image)
            return [types.SimpleNamespace(bbox=np.array([1, 2, 30, 40], dtype=np.float32), confidence=0.9, landmarks=FIELD.astype(np.float32))]
    package = types.ModuleType("uniface")
    package.RetinaFace = RetinaFace
    monkeypatch.setitem(sys.modules, "uniface", package)
    return seen


def test_the_package_sees_bgr_and_its_faces_are_ours(monkeypatch):
    seen = uniface(monkeypatch)
    image = np.asarray(gradient(120, 120)[0].image)
    (face,) = detection.detector("uniface")(image)
    assert np.array_equal(seen[0], image[:, :, ::-1]) and seen[0].flags.c_contiguous
    assert face.box == (1, 2, 30, 40) and face.score == 0.9 and np.allclose(face.points, FIELD, atol=1e-4)


def test_a_model_that_cannot_be_had_is_one_line(monkeypatch):
    def fails(self, **how):
        raise ConnectionError("Download failed")
    uniface(monkeypatch, fails)
    with pytest.raises(RunError, match="uniface cannot load its model, which it downloads once: Download failed"):
        detection.detector("uniface")


def test_a_detector_is_one_s_own_or_known(monkeypatch):
    own = types.ModuleType("own_detector")
    own.Mine, own.Wrong = (lambda: faces_at(100)), (lambda: 5)
    monkeypatch.setitem(sys.modules, "own_detector", own)
    assert len(detection.detector("own_detector:Mine")(None)) == 1
    with pytest.raises(InputError, match="makes a int, expected what is called"):
        detection.detector("own_detector:Wrong")
    with pytest.raises(InputError, match="detector 'unifaec' is not known; did you mean 'uniface'"):
        detection.detector("unifaec")
