"""What each kind of object looks like: painted quads in the object's own frame."""

from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np

from data_scripts.world.colours import (
    BRAKE,
    DARK,
    GLASS,
    HAZARD,
    HEADLIGHT,
    HOUSES,
    LAMP,
    RGB,
    SKIN,
    TAIL_DIM,
    TYRE,
)

LIGHT_SIZE = (1.1, 0.4, 2.6)  # width, depth, height in metres
LIGHT_BOTTOM = 2.9
STEEL = (70, 72, 76)
# Relative brightness of the faces of a box: front, back, left, right, top.
SHADES = (0.88, 0.82, 0.72, 0.66, 1.05)
NORMALS = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, 0]], dtype=float)
FRONT, BACK, LEFT, RIGHT, TOP, BOTH_SIDES = range(6)


@dataclass(frozen=True)
class Shape:
    """The quads (Q) of one object in its own frame: x forward, y left, z up, origin on the ground below its middle."""

    corners: np.ndarray  # (Q, 4, 3)
    normals: np.ndarray  # (Q, 3); zero: seen from both sides
    colours: np.ndarray  # (Q, 3)
    shining: np.ndarray  # (Q,) bool: as bright by night as by day
    solid: np.ndarray  # (Q,) bool: belongs to the silhouette
    part_centres: np.ndarray  # (Q, 3): the centre of the part of the object that the quad belongs to


class Drawing:
    """A Shape that is being drawn."""

    def __init__(self):
        self.quads, self.faces, self.colours, self.shining, self.solid, self.parts = [], [], [], [], [], []

    def quad(self, corners, face, colour, shining=False, solid=False, part=0):
        self.quads.append(corners)
        self.faces.append(face)
        shade = 1.0 if shining or face == BOTH_SIDES else SHADES[face]
        self.colours.append([min(255.0, value * shade) for value in colour])
        self.shining.append(shining)
        self.solid.append(solid)
        self.parts.append(part)

    def box(self, x, y, z, colour, part=0):
        for face in range(5):
            self.panel(face, x, y, z, colour, solid=True, part=part)

    def panel(self, face, x, y, z, colour, shining=False, solid=False, part=0):
        """One face of the box with the ranges x, y, z."""
        (x0, x1), (y0, y1), (z0, z1) = x, y, z
        if face == TOP:
            corners = [(x0, y0, z1), (x1, y0, z1), (x1, y1, z1), (x0, y1, z1)]
        elif face in (FRONT, BACK):
            at = x1 if face == FRONT else x0
            corners = [(at, y0, z0), (at, y1, z0), (at, y1, z1), (at, y0, z1)]
        else:
            at = y1 if face == LEFT else y0
            corners = [(x0, at, z0), (x1, at, z0), (x1, at, z1), (x0, at, z1)]
        self.quad(corners, face, colour, shining, solid, part)

    def lamps(self, length, width, z, status):
        """Head and tail lamps, wide enough to be seen from the side too. They distinguish moving, stopped and
        parked."""
        half, side = length / 2 + 0.02, width / 2 + 0.02
        front = {"moving": HEADLIGHT, "stopped": HAZARD}.get(status, DARK)
        back = {"moving": TAIL_DIM, "stopped": BRAKE}.get(status, (60, 28, 28))
        shining_front, shining_back = status in ("moving", "stopped"), status == "stopped"
        big = 0.42 if status != "parked" else 0.25
        for sign in (-1, 1):
            inner = sign * (side - big * 1.5)
            y = (min(inner, sign * side), max(inner, sign * side))
            self.panel(FRONT, (-half, half), y, z, front, shining_front)
            self.panel(BACK, (-half, half), y, z, back, shining_back)
        for face in (LEFT, RIGHT):
            self.panel(face, (half - 0.8, half), (-side, side), z, front, shining_front)
            self.panel(face, (-half, -half + 0.8), (-side, side), z, back, shining_back)
            # Side markers, as a camera may show no more than the middle of a long vehicle beside it.
            for x in np.arange(-length / 2 + 2.4, length / 2 - 2.0, 2.2):
                self.panel(face, (x, x + 0.6), (-side, side), z, front, shining_front)

    def wheels(self, length, width, radius, places):
        side = width / 2 + 0.03
        for face in (LEFT, RIGHT):
            for place in places:
                middle = place * length / 2
                self.panel(face, (middle - radius, middle + radius), (-side, side), (0.0, 2 * radius), TYRE)

    def person(self, colour, walking):
        """A flat figure in the y-z plane, 1.8 m tall; `surroundings.py` turns it to the ego. Its limbs are apart when
        it walks."""
        foot, waist, neck = 0.47 if walking else 0.16, 0.81, 1.44
        for sign in (-1, 1):
            hip = 0.13 * sign
            leg = [(sign * foot - 0.13, 0.0), (sign * foot + 0.13, 0.0), (hip + 0.13, waist), (hip - 0.13, waist)]
            self.figure(leg, DARK)
            if walking:
                arm = [(sign * 0.46, 0.91), (sign * 0.6, 1.01), (sign * 0.34, neck), (sign * 0.34, neck - 0.2)]
                self.figure(arm, colour)
        self.figure([(-0.34, waist), (0.34, waist), (0.34, neck), (-0.34, neck)], colour)
        self.figure([(-0.17, neck), (0.17, neck), (0.17, 1.8), (-0.17, 1.8)], SKIN)

    def figure(self, points, colour):
        self.quad([(0.0, y, z) for y, z in points], BOTH_SIDES, colour, solid=True)

    def shape(self) -> Shape:
        corners, parts = np.array(self.quads, dtype=float), np.array(self.parts)
        centres = np.empty((len(corners), 3))
        for part in np.unique(parts):
            centres[parts == part] = corners[parts == part].mean(axis=(0, 1))
        return Shape(
            corners,
            NORMALS[np.array(self.faces)],
            np.array(self.colours, dtype=float),
            np.array(self.shining),
            np.array(self.solid),
            centres,
        )


@cache
def shape_of(kind: str, colour: str, status: str, rider: bool) -> Shape:
    """The shape of an agent."""
    m = Drawing()
    DRAWINGS[kind](m, RGB[colour], status)
    if rider and kind in ("bicycle", "motorcycle"):
        draw_rider(m, kind)
    return m.shape()


def draw_car(m: Drawing, paint, status: str) -> None:
    m.box((-2.25, 2.25), (-0.95, 0.95), (0.25, 0.95), paint)
    m.box((-1.5, 0.9), (-0.82, 0.82), (0.95, 1.65), paint)
    m.panel(FRONT, (-1.5, 0.92), (-0.72, 0.72), (1.0, 1.55), GLASS)
    m.panel(BACK, (-1.52, 0.9), (-0.72, 0.72), (1.0, 1.55), GLASS)
    for face in (LEFT, RIGHT):
        m.panel(face, (-1.35, 0.75), (-0.84, 0.84), (1.0, 1.5), GLASS)
    m.wheels(4.5, 1.9, 0.34, (-0.62, 0.62))
    m.lamps(4.5, 1.9, (0.5, 0.9), status)


def draw_truck(m: Drawing, paint, status: str) -> None:
    cab = (235, 235, 240)
    m.box((-3.5, 1.6), (-1.25, 1.25), (0.7, 3.2), paint, part=0)
    m.box((1.7, 3.5), (-1.15, 1.15), (0.4, 2.6), cab, part=1)
    m.panel(FRONT, (1.7, 3.52), (-1.0, 1.0), (1.5, 2.4), GLASS, part=1)
    for face in (LEFT, RIGHT):
        m.panel(face, (2.3, 3.3), (-1.17, 1.17), (1.5, 2.4), GLASS, part=1)
    m.wheels(7.0, 2.5, 0.5, (-0.7, -0.35, 0.72))
    m.lamps(7.0, 2.5, (0.75, 1.25), status)


def draw_bus(m: Drawing, paint, status: str) -> None:
    m.box((-5.25, 5.25), (-1.3, 1.3), (0.35, 3.4), paint)
    band = (205, 225, 240)
    for i in range(5):
        for face in (LEFT, RIGHT):
            m.panel(face, (-4.9 + 2 * i, -3.3 + 2 * i), (-1.32, 1.32), (1.7, 2.8), band)
    m.panel(FRONT, (-5.25, 5.27), (-1.15, 1.15), (1.5, 2.9), band)
    m.panel(BACK, (-5.27, 5.25), (-1.0, 1.0), (1.9, 2.8), band)
    m.wheels(10.5, 2.6, 0.5, (-0.6, 0.6))
    m.lamps(10.5, 2.6, (0.7, 1.25), status)


def draw_trailer(m: Drawing, paint, status: str) -> None:
    m.box((-3.75, 3.75), (-1.25, 1.25), (0.9, 3.0), paint)
    rib = (95, 98, 108)
    for i in range(5):
        for face in (LEFT, RIGHT):
            m.panel(face, (-3.3 + 1.5 * i, -2.9 + 1.5 * i), (-1.27, 1.27), (0.9, 3.0), rib)
    for i in range(3):
        for face in (FRONT, BACK):
            m.panel(face, (-3.77, 3.77), (-0.95 + 0.75 * i, -0.6 + 0.75 * i), (0.9, 3.0), rib)
    m.wheels(7.5, 2.5, 0.5, (-0.75, -0.45))
    m.lamps(7.5, 2.5, (0.9, 1.35), status)


def draw_construction_vehicle(m: Drawing, paint, status: str) -> None:
    m.box((-2.75, 1.2), (-1.25, 1.25), (0.6, 1.6), paint, part=0)
    m.box((-2.2, -0.4), (-1.0, 1.0), (1.6, 2.7), paint, part=0)
    m.panel(BACK, (-2.22, -0.4), (-0.8, 0.8), (1.75, 2.5), GLASS, part=0)
    m.panel(FRONT, (-2.2, -0.38), (-0.8, 0.8), (1.75, 2.5), GLASS, part=0)
    for face in (LEFT, RIGHT):
        m.panel(face, (-2.0, -0.6), (-1.02, 1.02), (1.75, 2.5), GLASS, part=0)
    # The arm: up, out and down to the shovel.
    for colour, (x0, x1, z0), (x2, x3, z1) in (
        (paint, (0.1, 0.7, 1.5), (1.5, 2.0, 3.2)),
        ((215, 165, 0), (1.5, 2.0, 3.2), (2.3, 2.7, 1.2)),
    ):
        for y in (-0.3, 0.3):
            m.quad([(x0, y, z0), (x1, y, z0), (x3, y, z1), (x2, y, z1)], BOTH_SIDES, colour, solid=True, part=1)
        m.quad([(x0, -0.3, z0), (x0, 0.3, z0), (x2, 0.3, z1), (x2, -0.3, z1)], BOTH_SIDES, colour, solid=True, part=1)
        m.quad([(x1, -0.3, z0), (x1, 0.3, z0), (x3, 0.3, z1), (x3, -0.3, z1)], BOTH_SIDES, colour, solid=True, part=1)
    m.box((1.9, 2.75), (-0.9, 0.9), (0.5, 1.3), (95, 85, 60), part=1)
    m.wheels(5.5, 2.5, 0.6, (-0.7, 0.1))
    m.lamps(5.5, 2.5, (0.85, 1.3), status)


def draw_pedestrian(m: Drawing, paint, status: str) -> None:
    m.person(paint, walking=status == "moving")


def draw_bicycle(m: Drawing, paint, status: str) -> None:
    m.box((-0.55, 0.55), (-0.12, 0.12), (0.45, 1.0), paint)
    m.box((0.35, 0.6), (-0.3, 0.3), (0.95, 1.2), paint)
    for face in (LEFT, RIGHT):
        for x in (-0.6, 0.6):
            m.panel(face, (x - 0.3, x + 0.3), (-0.14, 0.14), (0.0, 0.6), TYRE, solid=True)
    for face in (FRONT, BACK):
        m.panel(face, (-0.9, 0.9), (-0.12, 0.12), (0.0, 0.6), TYRE, solid=True)


def draw_motorcycle(m: Drawing, paint, status: str) -> None:
    m.box((-0.85, 0.85), (-0.3, 0.3), (0.3, 0.95), paint)
    m.box((0.3, 0.75), (-0.45, 0.45), (0.95, 1.25), paint)
    for face in (LEFT, RIGHT):
        for x in (-0.75, 0.75):
            m.panel(face, (x - 0.35, x + 0.35), (-0.32, 0.32), (0.0, 0.7), TYRE, solid=True)
    m.lamps(2.1, 0.8, (0.55, 0.95), status)


def draw_cone(m: Drawing, paint, status: str) -> None:
    m.figure([(-0.35, 0.0), (0.35, 0.0), (0.08, 1.1), (-0.08, 1.1)], paint)
    m.figure([(-0.24, 0.4), (0.24, 0.4), (0.16, 0.68), (-0.16, 0.68)], (250, 250, 250))


def draw_barrier(m: Drawing, paint, status: str) -> None:
    m.box((-1.1, 1.1), (-0.25, 0.25), (0.0, 1.1), paint)
    for i in range(3):
        for face in (LEFT, RIGHT, TOP):
            m.panel(face, (-0.9 + 0.75 * i, -0.55 + 0.75 * i), (-0.27, 0.27), (0.0, 1.12), (250, 250, 250))
    for face in (FRONT, BACK):
        m.panel(face, (-1.12, 1.12), (-0.25, 0.25), (0.4, 0.75), (250, 250, 250))


def draw_rider(m: Drawing, kind: str) -> None:
    """A bright vest on a bicycle, dark clothes and a white helmet on a motorcycle. Boxes show from all sides."""
    vest = (245, 250, 90) if kind == "bicycle" else (70, 60, 75)
    m.box((-0.3, 0.15), (-0.32, 0.32), (0.95, 1.5), vest)
    m.box((-0.22, 0.1), (-0.16, 0.16), (1.5, 1.85), (250, 250, 250) if kind == "motorcycle" else SKIN)


DRAWINGS = {
    "car": draw_car,
    "truck": draw_truck,
    "bus": draw_bus,
    "trailer": draw_trailer,
    "construction vehicle": draw_construction_vehicle,
    "pedestrian": draw_pedestrian,
    "bicycle": draw_bicycle,
    "motorcycle": draw_motorcycle,
    "traffic cone": draw_cone,
    "barrier": draw_barrier,
}


@cache
def light_shape(colour: str) -> Shape:
    m = Drawing()
    width, depth, height = LIGHT_SIZE
    low, high = LIGHT_BOTTOM, LIGHT_BOTTOM + height
    m.box((-depth / 2, depth / 2), (-width / 2, width / 2), (low, high), (25, 25, 28))
    for i, name in enumerate(("green", "yellow", "red")):
        z = low + height * (i + 0.5) / 3
        lit = name == colour
        half = 0.48 if lit else 0.25
        value = LAMP[name] if lit else tuple(c // 5 for c in LAMP[name])
        m.panel(BACK, (-depth / 2 - 0.02, 0.0), (-half, half), (z - half * 0.86, z + half * 0.86), value, shining=lit)
    return m.shape()


@cache
def post_shape(top: float) -> Shape:
    m = Drawing()
    m.box((-0.12, 0.12), (-0.12, 0.12), (0.0, top), STEEL)
    return m.shape()


@cache
def gantry_shape(length: float) -> Shape:
    m = Drawing()
    low = LIGHT_BOTTOM + LIGHT_SIZE[2]
    m.box((-0.1, 0.1), (-length / 2, length / 2), (low, low + 0.2), STEEL)
    return m.shape()


@lru_cache(maxsize=4096)
def house_shape(length: float, depth: float, height: float, colour: int) -> Shape:
    m = Drawing()
    m.box((-length / 2, length / 2), (-depth / 2, depth / 2), (0.0, height), HOUSES[colour])
    window = tuple(c // 2 for c in HOUSES[colour])
    for face in (LEFT, RIGHT):
        for floor in range(min(2, int(height // 3.5))):
            z = 1.6 + 3.2 * floor
            along, across = (-length / 2 + 1, length / 2 - 1), (-depth / 2 - 0.02, depth / 2 + 0.02)
            m.panel(face, along, across, (z, z + 1.2), window)
    return m.shape()
