"""Made-up people: what is the same in all pictures of one, what changes from picture to picture, and how both are drawn at random.

Lengths and places are in half faces: a head is about one wide and 1.4 high, its middle is (0, 0), x goes right and y down. Traits are
drawn independently of each other: no tone of skin has a hair, a nose or a style of its own.
"""
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Colour = tuple[float, float, float]  # red, green, blue, 0 to 1

SKIN = ((0.97, 0.84, 0.75), (0.91, 0.73, 0.60), (0.82, 0.62, 0.47), (0.69, 0.48, 0.34), (0.54, 0.36, 0.25), (0.41, 0.27, 0.19),
        (0.30, 0.20, 0.15))
HAIR = ((0.09, 0.08, 0.08), (0.20, 0.13, 0.10), (0.35, 0.22, 0.13), (0.51, 0.34, 0.20), (0.60, 0.29, 0.15), (0.82, 0.66, 0.42),
        (0.60, 0.59, 0.58), (0.83, 0.81, 0.78), (0.45, 0.14, 0.22), (0.22, 0.28, 0.42))
EYES = ((0.20, 0.12, 0.07), (0.36, 0.22, 0.11), (0.42, 0.40, 0.18), (0.30, 0.45, 0.34), (0.34, 0.50, 0.66), (0.48, 0.53, 0.57))
FRAMES = ((0.08, 0.06, 0.06), (0.35, 0.20, 0.10), (0.55, 0.55, 0.58))
LIPS = (0.70, 0.27, 0.28)


class Hair(NamedTuple):
    """A style: how far it stands off the head, down to which y it goes, where it begins on the forehead, and how curly it is."""
    volume: tuple[float, float]
    length: tuple[float, float]
    line: tuple[float, float]
    curls: tuple[float, float] = (0, 0)


STYLES = (Hair((0.02, 0.06), (-0.2, 0.0), (-0.50, -0.36)), Hair((0.10, 0.18), (-0.05, 0.15), (-0.46, -0.30)),
          Hair((0.08, 0.16), (0.4, 0.7), (-0.50, -0.30)), Hair((0.08, 0.16), (1.0, 1.5), (-0.50, -0.30)),
          Hair((0.18, 0.36), (0.0, 0.45), (-0.48, -0.30), (0.02, 0.05)), Hair((0.10, 0.22), (0.6, 1.1), (-0.48, -0.30), (0.02, 0.05)),
          Hair((-0.02, -0.02), (-0.4, -0.4), (-0.9, -0.9)))  # the last one is none at all


class Person(NamedTuple):
    """What is the same in all pictures of one. Sizes are factors of the usual ones, or in half faces where no usual one is."""
    skin: Colour
    hair: Colour
    iris: Colour
    lips: Colour
    width: float
    length: float
    jaw: float  # by how much the face is narrower at the chin
    eye_gap: float
    eye_size: float
    eye_height: float
    eye_tilt: float
    brow: tuple[float, float, float, float]  # height over the eye, thickness, tilt, arch
    nose: tuple[float, float]  # width, length
    mouth: tuple[float, float, float]  # width, thickness, height
    ears: float
    volume: float
    hair_length: float
    hair_line: float
    hair_line_width: float
    parting: float
    curls: float
    beard: float  # how dense, 0: none
    moustache: float
    glasses: float  # radius, 0: none
    frame: Colour
    blush: float  # how red the cheeks are
    shadow: float  # how dark it is around the eyes


class View(NamedTuple):
    """What changes from picture to picture of a person."""
    turn: float  # radians, in the plane of the picture
    scale: float
    shift: tuple[float, float]
    aside: float  # the head is turned to a side: what is nearer moves further
    up: float
    smile: float
    open: float
    lids: float  # how far the eyes are open
    gaze: tuple[float, float]
    brows: float
    light: tuple[float, float]  # where it comes from
    background: Colour
    slope: tuple[float, float]  # of the brightness of the background
    clothes: Colour


def person_of(rng: np.random.Generator) -> Person:
    """A person, drawn at random."""
    shares = iter(rng.random(40).tolist())
    style = STYLES[rng.integers(len(STYLES))]

    def of(low: float, high: float) -> float:
        return low + (high - low) * next(shares)

    def some(part: float, low: float, high: float) -> float:
        has, much = next(shares) < part, of(low, high)
        return much if has else 0.

    hair = _warm(scaled(HAIR[int(of(0, len(HAIR)))], of(0.8, 1.2)), of(-0.10, 0.10))
    skin = _warm(_between(SKIN, next(shares)), of(-0.04, 0.04))
    lips = mix(scaled(skin, 0.75), LIPS, of(0.2, 0.9))
    iris = scaled(EYES[int(of(0, len(EYES)))], of(0.85, 1.15))
    return Person(
        skin, hair, iris, lips, width=of(0.48, 0.64), length=of(0.68, 0.84), jaw=of(0.05, 0.35), eye_gap=of(0.21, 0.27),
        eye_size=of(0.8, 1.25), eye_height=of(-0.14, -0.04), eye_tilt=of(-0.10, 0.10),
        brow=(of(0.12, 0.18), of(0.012, 0.040), of(-0.05, 0.15), of(0.5, 3.0)), nose=(of(0.75, 1.5), of(0.16, 0.27)),
        mouth=(of(0.17, 0.27), of(0.030, 0.065), of(0.36, 0.44)), ears=of(0.7, 1.2), volume=of(*style.volume),
        hair_length=of(*style.length), hair_line=of(*style.line), hair_line_width=of(0.82, 1.1), parting=of(-0.2, 0.2),
        curls=of(*style.curls), beard=some(0.25, 0.35, 0.9), moustache=some(0.2, 0.4, 0.9), glasses=some(0.25, 0.15, 0.19),
        frame=_between(FRAMES, next(shares)), blush=of(0, 0.4), shadow=of(0.1, 0.5))


def view_of(rng: np.random.Generator) -> View:
    """A picture of somebody, drawn at random."""
    turn, scale, right, down, aside, up, smile, lids, look, see, brows, light, slope, other = rng.standard_normal(14).clip(-2, 2).tolist()
    u = rng.random(7).tolist()
    return View(
        turn=0.07 * turn, scale=1.12 * math.exp(0.04 * scale), shift=(0.04 * right, 0.04 * down - 0.04), aside=0.35 * aside, up=0.35 * up,
        smile=0.03 * smile + 0.035, open=max(0., 0.10 * (u[0] - 0.6)), lids=1 + 0.12 * lids, gaze=(0.014 * look, 0.008 * see),
        brows=0.012 * brows, light=(0.6 * light, -0.4), background=_muted(u[1:4]), slope=(0.1 * slope, 0.1 * other), clothes=_muted(u[4:7]))


def _muted(u: Sequence[float]) -> Colour:
    """A colour that is never bright: some grey, and a little of each of the three."""
    red, green, blue = (0.3 + 0.35 * u[0] + 0.25 * (share - 0.5) for share in (u[1], u[2], 1 - 0.5 * (u[1] + u[2])))
    return red, green, blue


def mix(one: Colour, other: Colour, share: float) -> Colour:
    """One colour with a share, 0 to 1, of another one."""
    red, green, blue = (a + (b - a) * share for a, b in zip(one, other))
    return red, green, blue


def scaled(colour: Colour, factor: float) -> Colour:
    """A darker or lighter colour."""
    red, green, blue = (min(1., factor * value) for value in colour)
    return red, green, blue


def _warm(colour: Colour, by: float) -> Colour:
    """More red and less blue, or the other way round."""
    red, green, blue = colour
    return min(1., red * (1 + by)), green, min(1., blue * (1 - by))


def _between(colours: Sequence[Colour], share: float) -> Colour:
    """The colour at a share of the way along a line of colours."""
    place = share * (len(colours) - 1)
    first = min(int(place), len(colours) - 2)
    return mix(colours[first], colours[first + 1], place - first)
