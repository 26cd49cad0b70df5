"""Simple faces, drawn: `draw(person, view, 112)` is the picture [3, 112, 112] of a person of made_up_people.py in a view.

Everything is made of a few smooth shapes, each given by the distance of every place from its border, painted one over the other. Lengths
are those of made_up_people.py.
"""
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from made_up_people import LIPS, Colour, Person, View, mix, scaled

WHITE, DARK, MOUTH = (0.95, 0.94, 0.92), (0.08, 0.06, 0.06), (0.28, 0.09, 0.09)
LONG = 0.35  # hair that goes further down falls from the sides of the head


class Canvas:
    """An image [3, h, w] and the places x, y [h, w] of its pixels in the face, which are `pixel` apart. Paint covers what is below.

    An image of -1 to 1 on both sides is turned, scaled and shifted to be that of the view.
    """

    def __init__(self, image: Tensor, x: Tensor, y: Tensor, view: View, pixel: float) -> None:
        self.image, self.x, self.y, self.view, self.pixel = image, x, y, view, pixel

    def window(self, left: float, top: float, right: float, bottom: float) -> "Canvas":
        """The part of a whole image that has all places with left <= x <= right and top <= y <= bottom."""
        half, (right_by, down_by) = self.image.shape[1] / 2, self.view.shift
        cos, sin = math.cos(self.view.turn) * self.view.scale, math.sin(self.view.turn) * self.view.scale
        corners = [(x + right_by, y + down_by) for x in (left, right) for y in (top, bottom)]
        columns, rows = [x * cos - y * sin for x, y in corners], [y * cos + x * sin for x, y in corners]
        down, across = (slice(max(0, int((min(side) + 1) * half)), max(0, math.ceil((max(side) + 1) * half))) for side in (rows, columns))
        return Canvas(self.image[:, down, across], self.x[down, across], self.y[down, across], self.view, self.pixel)

    def ellipses(self, x: Tensor, y: Tensor, *ellipses: tuple[float, ...]) -> Tensor:
        """The masks [n, h, w] of ellipses (x and y of the middle, half axes, soft, how much of it is covered at most), all at once."""
        rows = []
        for right, down, width, height, soft, most in ellipses:
            slope = -min(width, height) / self.border(soft)
            rows.append((right, down, 1 / width, 1 / height, slope, 0.5 - slope, most))
        right, down, by_width, by_height, slope, start, most = torch.tensor(rows).T[..., None, None]
        far = (x - right).mul_(by_width).square_().add_((y - down).mul_(by_height).square_()).sqrt_()
        return far.mul_(slope).add_(start).clamp_(0, 1).mul_(most)

    def paint_all(self, masks: Tensor, colours: Sequence[Colour]) -> None:
        """`paint` for each of several masks and its colour."""
        for mask, colour in zip(masks, torch.tensor(colours)[..., None, None]):
            self.image.lerp_(colour, mask)

    def inside(self, distance: Tensor, soft: float = 1.0) -> Tensor:
        """How much of each pixel lies where a distance is negative, 0 to 1; soft: as `border` takes it."""
        return (distance * (-1 / self.border(soft))).add_(0.5).clamp_(0, 1)

    def border(self, soft: float) -> float:
        """How wide a border is: a pixel where soft is 1, so that it is smooth, and further ones of an image of 112 where it is more."""
        return self.pixel + (soft - 1) * 2 / 112 / self.view.scale

    def paint(self, mask: Tensor, colour: "Colour | Tensor") -> None:
        """Cover the image with a colour, or a picture [3, h, w], where and as far as a mask [h, w] from 0 to 1 says."""
        paint = colour if isinstance(colour, Tensor) else torch.tensor(colour)[:, None, None]
        self.image.lerp_(paint, mask)


def ellipse(x: Tensor, y: Tensor, width: float, height: float) -> Tensor:
    """About the distance of places from the border of an ellipse around 0 with these half axes, negative inside."""
    return (x / width).square_().add_((y / height).square_()).sqrt_().sub_(1).mul_(min(width, height))


def _both(one: Tensor, other: Tensor, radius: float) -> Tensor:
    """The distance from the border of what lies in two shapes at once, its corner rounded."""
    one, other = one + radius, other + radius
    rounded = torch.hypot(one.clamp(min=0), other.clamp(min=0))
    return torch.maximum(one, other).clamp_(max=0).add_(rounded).sub_(radius)


def draw(person: Person, view: View, size: int) -> Tensor:
    """The picture as float32 [3, size, size], 0 to 1 and a little beyond."""
    line = (2 * torch.arange(size, dtype=torch.float32) + 1) / size - 1
    across, down = line, line[:, None]
    cos, sin = math.cos(view.turn) / view.scale, math.sin(view.turn) / view.scale
    x, y = across * cos + (down * sin - view.shift[0]), down * cos - (across * sin + view.shift[1])
    image = torch.tensor(view.background)[:, None, None] + (across * view.slope[0] + down * view.slope[1])
    canvas = Canvas(image, x, y, view, 2 / size / view.scale)
    shade = (x * (0.16 * view.light[0])).add_(y, alpha=0.16 * view.light[1]).add_(1)
    hair = _hair(person, x, y)
    _draw_back(canvas, person, hair, shade)
    _draw_head(canvas, person, shade)
    _draw_nose(canvas.window(-0.6, -0.25, 0.6, 0.46), person)
    if person.beard or person.moustache:
        _draw_beard(canvas.window(-0.65, 0, 0.65, 0.9), person)
    _draw_mouth(canvas.window(-0.46, 0.2, 0.46, 0.64), person)
    _draw_eyes(canvas.window(-0.6, -0.45, 0.6, 0.14), person)
    _draw_front(canvas, person, hair, shade)
    if person.glasses:
        _draw_glasses(canvas.window(-0.72, -0.4, 0.72, 0.2), person)
    return image


def _hair(person: Person, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor] | None:
    """The outlines of what is behind the face and of what may be before it: an ellipse around the head; long hair falls from its sides."""
    if person.volume <= 0:
        return None
    falls = person.hair_length > LONG
    around = (y + 0.08).clamp_(max=0) if falls else y + 0.08
    all_of_it = ellipse(x, around, person.width + person.volume, person.length - 0.04 + person.volume)
    if person.curls:
        all_of_it += person.curls * torch.sin(x * 21) * torch.sin(y * 19)
    cut = _both(all_of_it, y - person.hair_length, 0.16)
    return cut, all_of_it if falls else cut


def _toned(colour: Colour, shade: Tensor) -> Tensor:
    return torch.tensor(colour)[:, None, None] * shade


def _draw_back(canvas: Canvas, person: Person, hair: tuple[Tensor, Tensor] | None, shade: Tensor) -> None:
    """Hair behind the head, neck and clothes."""
    if hair:
        canvas.paint(canvas.inside(hair[0]), _toned(scaled(person.hair, 0.75), shade))
    below = canvas.window(-1.2, 0.3, 1.2, 1.6)
    below.paint(below.inside(torch.maximum(below.x.abs() - 0.27, 0.3 - below.y)), scaled(person.skin, 0.72))
    below.paint(below.inside(ellipse(below.x, below.y - 1.32, 1.05, 0.46)), canvas.view.clothes)


def _draw_head(canvas: Canvas, person: Person, shade: Tensor) -> None:
    """Ears and face."""
    x, y = canvas.x, canvas.y
    side = canvas.window(-0.8, -0.25, 0.8, 0.3)
    ears = ellipse(side.x.abs() - person.width, side.y - 0.02, 0.075 * person.ears, 0.14 * person.ears)
    side.paint(side.inside(ears), scaled(person.skin, 0.85))
    far = _outline(person, x, y)
    rounded = shade - (far / 0.55 + 1).square_().mul_(0.22)  # darker towards the borders
    canvas.paint(canvas.inside(far), _toned(person.skin, rounded.add_(0.06)))


def _outline(person: Person, x: Tensor, y: Tensor) -> Tensor:
    """The distance from the border of the face: an ellipse, narrower towards the chin."""
    narrowing = 1 - (y + 0.1).clamp_(min=0).square_().mul_(1.6 * person.jaw)
    return ellipse(x / narrowing, y, person.width, person.length)


def _draw_nose(face: Canvas, person: Person) -> None:
    view, skin = face.view, person.skin
    width, length = 0.085 * person.nose[0], person.nose[1]
    x, y = face.x - 0.13 * view.aside, face.y - (0.13 + 0.05 * view.up + length - 0.21)
    side = -math.copysign(0.35 * width, view.light[0])
    face.paint_all(face.ellipses(x, y, (side, -0.5 * length, 0.35 * width, 0.5 * length, 5, 0.3), (0, -0.012, width, 0.055, 2.5, 0.6),
                                 (0, 0.008, 0.85 * width, 0.050, 3, 1)),
                   (scaled(skin, 0.6), scaled(skin, 0.62), scaled(skin, 1.03)))
    face.paint_all(face.ellipses(x.abs_(), y, (0.5 * width, 0.028, 0.25 * width, 0.013, 1.5, 0.8), (0.31, 0, 0.16, 0.13, 8, person.blush)),
                   (scaled(skin, 0.3), mix(scaled(skin, 0.9), LIPS, 0.5)))


def _draw_mouth(face: Canvas, person: Person) -> None:
    view = face.view
    width, thickness, height = person.mouth
    width *= 1 + 2 * max(0., view.smile)
    x = (face.x - 0.1 * view.aside) / width
    y = face.y - height - 0.04 * view.up + view.smile * (x.square() - 0.3)
    half = thickness + 0.6 * view.open
    lips = ellipse(x * width, y, width, half)
    face.paint(face.inside(lips, 1.5), person.lips)
    if view.open:
        hole = face.inside(ellipse(x * width, y, 0.78 * width, view.open + 0.01))
        face.paint(hole, MOUTH)
        face.paint(hole * face.inside(y + 0.1 * view.open), WHITE)
    else:
        face.paint(face.inside(torch.maximum(y.abs_() - 0.006, (x.abs() - 0.95) * width), 1.5) * 0.8, scaled(person.lips, 0.45))


def _draw_beard(face: Canvas, person: Person) -> None:
    view = face.view
    x, y = face.x, face.y
    if person.beard:
        border = 0.06 + 0.26 * (1 - (x / person.width).square_()) - y
        cheeks = ellipse(x, y - 0.12, 0.72 * person.width, 0.36)
        face.paint(face.inside(torch.maximum(border, -cheeks), 3) * face.inside(_outline(person, x, y)) * person.beard, person.hair)
    if person.moustache:
        above = person.mouth[2] - person.mouth[1] - 0.03
        x, y = x - 0.11 * view.aside, y - above - 0.04 * view.up
        face.paint(face.inside(ellipse(x, y - 0.9 * x.square(), 1.05 * person.mouth[0], 0.032), 2) * person.moustache, person.hair)


def _draw_eyes(face: Canvas, person: Person) -> None:
    view = face.view
    middle = face.x - 0.08 * view.aside
    x = middle.abs() - person.eye_gap
    y = (face.y - (person.eye_height + 0.04 * view.up)).add_(x, alpha=person.eye_tilt)
    width, height, radius = 0.098 * person.eye_size, 0.048 * person.eye_size * view.lids, 0.046 * (0.5 + 0.5 * person.eye_size)
    masks = face.ellipses(x, y, (0, 0, 1.5 * width, 0.095, 6, person.shadow), (0, 0, width, height, 1, 1))
    gazing = x - view.gaze[0] * middle.sign_()
    irises = face.ellipses(gazing, y, (0, view.gaze[1], radius, radius, 1, 1), (0, view.gaze[1], 0.45 * radius, 0.45 * radius, 1, 1))
    face.paint_all(masks, (scaled(person.skin, 0.6), WHITE))
    face.paint_all(irises.mul_(masks[1]), (person.iris, DARK))
    lid = torch.maximum(ellipse(x, y, width, height).abs_().sub_(0.011), y)
    face.paint(face.inside(lid), mix(scaled(person.skin, 0.3), DARK, 0.5))
    over, thickness, tilt, arch = person.brow
    x -= 0.01
    arc = (y + (over + view.brows)).add_(x, alpha=tilt).sub_(x.square(), alpha=arch)
    brow = torch.maximum(arc.abs_().add_(x.clamp(min=0), alpha=2.5 * thickness).sub_(thickness), x.abs_().sub_(0.125))
    face.paint(face.inside(brow, 1.5), mix(scaled(person.hair, 0.75), DARK, 0.2))


def _draw_front(canvas: Canvas, person: Person, hair: tuple[Tensor, Tensor] | None, shade: Tensor) -> None:
    """Hair on the head: all of it but an opening for the face."""
    if not hair:
        return
    x, y, height = canvas.x - (0.4 * person.parting + 0.05 * canvas.view.aside), canvas.y, 0.6
    opening = ellipse(x, (y - (person.hair_line + height)).clamp_(max=0), person.width * person.hair_line_width, height)
    canvas.paint(canvas.inside(torch.maximum(hair[1], -opening)), _toned(person.hair, shade + (-0.4 - y).clamp_(min=0).mul_(0.25)))


def _draw_glasses(face: Canvas, person: Person) -> None:
    view = face.view
    middle = face.x - 0.09 * view.aside
    x, y = middle.abs() - person.eye_gap, face.y - person.eye_height - 0.045 * view.up
    ring = ellipse(x, y, person.glasses, 0.82 * person.glasses).abs_() - 0.011
    bridge = torch.maximum((y + 0.02).abs_() - 0.010, x + person.glasses)
    temple = torch.maximum((y + 0.04).abs_() - 0.010, person.glasses - x)
    temple = torch.maximum(temple, middle.abs() - person.width)
    face.paint(face.inside(torch.minimum(torch.minimum(ring, bridge), temple)), person.frame)
