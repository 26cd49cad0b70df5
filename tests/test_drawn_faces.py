"""Made-up people: who they are, that their pictures show it, and that drawing keeps to the geometry and the sizes that it is given."""
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import made_up_people
from drawn_faces import Canvas, draw
from made_up_people import person_of, view_of
from synthetic_faces import SyntheticFaces

NEUTRAL = view_of(np.random.default_rng(0))._replace(turn=0., scale=1., shift=(0., 0.), aside=0., up=0., smile=0., open=0., lids=1., gaze=(0., 0.), brows=0.,
                                                     light=(0., 0.), background=(0.2, 0.6, 0.3), slope=(0., 0.), clothes=(0.3, 0.3, 0.6))


def people(count, **traits):
    return [person_of(np.random.default_rng([1, number]))._replace(**traits) for number in range(count)]


def at(image, x, y):
    """The colour of a picture at a place of a neutral view."""
    size = image.shape[1]
    return image[:, round((y + 1) / 2 * size - 0.5), round((x + 1) / 2 * size - 0.5)]


def test_a_picture_has_the_parts_of_a_face_where_the_person_has_them():
    for person in people(40, parting=0., beard=0., moustache=0., glasses=0., curls=0., eye_tilt=0.):
        image = draw(person, NEUTRAL, 112)
        skin, iris = torch.tensor(person.skin), torch.tensor(person.iris)
        for side in (-1, 1):
            eye = at(image, side * person.eye_gap, person.eye_height)
            assert torch.allclose(eye, torch.tensor((0.08, 0.06, 0.06)), atol=0.15), "a pupil"
            beside = image[:, :, : 56] if side < 0 else image[:, :, 56:]
            assert (beside - iris[:, None, None]).abs().amax(0).min() < 0.12, "an iris of its colour"
        assert (at(image, 0, person.mouth[2]) - at(image, 0, 0.6)).abs().max() > 0.03, "a mouth"
        assert (at(image, 0, (sum(person.mouth[1:]) + person.length) / 2) / skin).std() < 0.05, "a chin in the colour of the skin, in some light"
        assert torch.allclose(at(image, 0.95, -0.95), torch.tensor(NEUTRAL.background), atol=1e-3) or person.volume > 0.2
        if person.volume > 0.05:
            top = at(image, 0, max(-0.99, person.hair_line - 0.12))
            assert (top / torch.tensor(person.hair)).std() < 0.05, "hair above the forehead"
        assert torch.allclose(image, image.flip(2), atol=0.6) and (image - image.flip(2)).abs().mean() < 0.01, "seen from the front in even light"


def test_pictures_are_those_of_a_finer_one():
    """Borders are as smooth as they are when each pixel is the mean over what is in it: nothing flickers at any size."""
    rng = np.random.default_rng(3)
    for person in people(12):
        view = view_of(rng)
        coarse, fine = draw(person, view, 56), F.avg_pool2d(draw(person, view, 448)[None], 8)[0]
        assert (coarse - fine).abs().mean() < 0.01 and (coarse - fine).abs().amax(0).quantile(0.99) < 0.25


def test_the_view_moves_and_turns_the_picture():
    for person in people(6):
        still = draw(person, NEUTRAL, 112)
        moved = draw(person, NEUTRAL._replace(shift=(2 * 10 / 112, -2 * 6 / 112)), 112)
        assert torch.allclose(moved[:, 20:80, 30:90], still[:, 26:86, 20:80], atol=1e-3)
        turned = draw(person, NEUTRAL._replace(turn=np.pi / 2), 112)
        assert (turned - still.rot90(-1, (1, 2))).abs().mean() < 1e-3
        larger = draw(person, NEUTRAL._replace(scale=2.), 112)
        inner = F.interpolate(still[None, :, 28:84, 28:84], size=(112, 112), mode="bilinear")[0]
        assert (larger - inner).abs().mean() < 0.03


def test_windows_leave_nothing_out(monkeypatch):
    """A part of a face is painted within a window around it, and would be the same on the whole canvas."""
    rng = np.random.default_rng(5)
    drawn = [(person, view_of(rng)) for person in people(60)]
    pictures = [draw(*each, 112) for each in drawn]
    monkeypatch.setattr(Canvas, "window", lambda canvas, *borders: Canvas(canvas.image, canvas.x.clone(), canvas.y.clone(), canvas.view, canvas.pixel))
    for (person, view), picture in zip(drawn, pictures):
        assert (draw(person, view, 112) - picture).abs().max() < 0.01, person


@pytest.mark.parametrize("size", [1, 2, 3, 7, 28, 200])
def test_any_size(size):
    faces = SyntheticFaces(4, 2, size=size)
    for number in range(len(faces)):
        image, _ = faces[number]
        assert image.shape == (3, size, size) and image.dtype == torch.uint8 and image.is_contiguous()


def test_traits_are_drawn_independently():
    drawn = people(3000)
    brightness = {"skin": [sum(person.skin) for person in drawn], "hair": [sum(person.hair) for person in drawn],
                  "iris": [sum(person.iris) for person in drawn], "volume": [person.volume for person in drawn],
                  "nose": [person.nose[0] for person in drawn], "lips": [person.mouth[1] for person in drawn],
                  "beard": [person.beard for person in drawn], "width": [person.width for person in drawn]}
    correlations = np.corrcoef(list(brightness.values())) - np.eye(len(brightness))
    assert np.abs(correlations).max() < 0.08, "each is within four standard deviations of none"
    tones = np.histogram(brightness["skin"], bins=6)[0]
    assert tones.min() > 200, "every tone of skin is there, about equally often"
    assert 0.2 < np.mean([person.glasses > 0 for person in drawn]) < 0.3 and len({person.hair_length for person in drawn}) > 2000


def test_colours_are_colours():
    for person, view in zip(people(500), (view_of(np.random.default_rng([2, number])) for number in range(500))):
        for colour in (person.skin, person.hair, person.iris, person.lips, person.frame, view.background, view.clothes):
            assert len(colour) == 3 and all(0 <= value <= 1 for value in colour)
    assert made_up_people.mix((0, 0, 0), (1, 1, 1), 0.25) == (0.25,) * 3


def test_pictures_of_one_differ_and_are_of_one():
    faces = SyntheticFaces(3, 5, seed=7)
    images = torch.stack([faces[number][0] for number in range(15)]).float().view(3, 5, -1)
    assert len({image.numpy().tobytes() for image in images.flatten(0, 1)}) == 15
    assert person_of(np.random.default_rng([7, 1, 0])) == person_of(np.random.default_rng([7, 1, 0])) != person_of(np.random.default_rng([7, 2, 0]))
    within = (images - images.mean(1, keepdim=True)).square().mean()
    assert (images - images.mean((0, 1))).square().mean() > 1.1 * within
