"""Six pinhole cameras that look at a scene of `world_simulation.py`.

Cameras: the mounting and intrinsics below are those of a nuScenes car, rounded; the intrinsics are for 1600x900 pixels
and scale with the picture. Camera frame: x right, y down, z forward. No lens distortion, all six exposed at the same
moment.

A picture is made in three steps: the ground is painted as a map around the ego (0.2 m a cell at 160 pixels) and looked
up through a fixed table of the ground point that each pixel sees; boxes are projected, sorted far to near and painted
over it; the double-sized picture is halved. Beside it a 320x180 buffer holds, for each pixel, the object that is seen
there: that is what "visible" means everywhere in the synthetic world.

What would be too small to make out is left out of the picture: an object is drawn in a camera only where its full
height is at least MIN_HEIGHT of 900 pixels (8.5 of 96; 10.7 for slim ones) and a metre at its distance at least
MIN_METRE (30 m ahead, 19 m behind).
"""

import io
import math
from functools import cache, lru_cache

import numpy as np
from PIL import Image, ImageDraw

from data_scripts.world.simulation import (
    CHANGE_LEFT,
    CHANGE_RIGHT,
    GO_STRAIGHT,
    LANE_WIDTH,
    LIGHT_BEYOND_LINE,
    MOTOR_VEHICLES,
    PATH_BEHIND,
    PAVEMENT_WIDTH,
    SAME_LANES,
    TURN_LEFT,
    TURN_RIGHT,
    Scene,
    ego_offset,
    lane_offset,
)

# Translation in the ego frame (m), yaw (degrees, left positive), focal length and principal point at 1600x900.
CAMERA_CALIBRATION = {
    "CAM_FRONT_LEFT": ((1.52, 0.49, 1.51), 55.0, 1272.0, (826.0, 480.0)),
    "CAM_FRONT": ((1.70, 0.02, 1.51), 0.0, 1266.0, (816.0, 491.0)),
    "CAM_FRONT_RIGHT": ((1.55, -0.49, 1.50), -55.0, 1260.0, (808.0, 495.0)),
    "CAM_BACK_LEFT": ((1.04, 0.48, 1.59), 110.0, 1257.0, (792.0, 493.0)),
    "CAM_BACK": ((0.03, 0.00, 1.58), 180.0, 809.0, (829.0, 482.0)),
    "CAM_BACK_RIGHT": ((1.01, -0.48, 1.56), -110.0, 1259.0, (807.0, 501.0)),
}
CAMERAS = tuple(
    CAMERA_CALIBRATION
)  # the project's order; spelt out here so that no more than numpy and Pillow is needed
FULL_WIDTH, FULL_HEIGHT = 1600, 900
MIN_HEIGHT, MIN_SLIM_HEIGHT = 80.0, 100.0  # pixels of 900
MIN_METRE = 42.0
LIGHT_MIN_HEIGHT = 75.0
LIGHT_SIZE = (1.1, 0.4, 2.6)  # width, depth, height in metres
LIGHT_BOTTOM = 2.9
ID_WIDTH, ID_HEIGHT = 320, 180
ID_AREA = (FULL_WIDTH / ID_WIDTH) * (
    FULL_HEIGHT / ID_HEIGHT
)  # 1600x900 pixels that one pixel of the id buffer stands for
MAP_RANGE = 45.0  # metres of ground around the ego; haze beyond
NEAR = 0.4

RGB = {
    "white": (238, 238, 238),
    "blue": (40, 90, 220),
    "black": (28, 28, 34),
    "green": (30, 140, 60),
    "brown": (150, 95, 50),
    "tan": (205, 170, 115),
    "purple": (140, 60, 190),
    "teal": (0, 150, 150),
    "gray": (175, 178, 185),
    "yellow": (250, 205, 0),
    "pink": (245, 95, 170),
    "light blue": (110, 190, 245),
    "cyan": (0, 205, 235),
    "lime": (160, 225, 40),
    "orange": (255, 115, 0),
    "red and white": (225, 35, 35),
}
DARK, GLASS, TYRE, SKIN = (45, 45, 50), (60, 75, 95), (18, 18, 20), (225, 175, 140)
HEADLIGHT, TAIL_DIM, BRAKE, HAZARD = (255, 250, 205), (120, 25, 25), (255, 25, 15), (255, 150, 0)
LAMP = {"red": (255, 30, 20), "yellow": (255, 205, 0), "green": (20, 240, 90)}
GROUNDS = ((150, 145, 130), (105, 135, 85), (165, 155, 140), (125, 140, 110))
HOUSES = ((185, 165, 140), (150, 120, 105), (165, 170, 175), (140, 145, 135), (195, 185, 165), (125, 125, 135))
# Sky above, sky at the horizon, brightness of everything that does not shine.
SKIES = {
    "clear": ((95, 155, 225), (195, 220, 240), 1.0),
    "overcast": ((165, 170, 178), (205, 208, 212), 0.9),
    "dusk": ((85, 80, 125), (235, 165, 120), 0.75),
    "rain": ((105, 112, 122), (150, 155, 160), 0.72),
    "night": ((10, 12, 28), (40, 42, 62), 0.6),
}
# Relative brightness of the faces of a box: front, back, left, right, top.
SHADES = (0.88, 0.82, 0.72, 0.66, 1.05)
NORMALS = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, 0]], dtype=float)
FRONT, BACK, LEFT, RIGHT, TOP, BOTH_SIDES = range(6)


class Model:
    """Quads of one kind of object in its own frame: x forward, y left, z up, origin on the ground below its middle."""

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
        """Head and tail lamps, wide enough to be seen from the side too. They tell moving, stopped and parked
        apart."""
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
            # Side markers: of a long vehicle alongside a camera may show no more than its middle.
            for x in np.arange(-length / 2 + 2.4, length / 2 - 2.0, 2.2):
                self.panel(face, (x, x + 0.6), (-side, side), z, front, shining_front)

    def wheels(self, length, width, radius, places):
        side = width / 2 + 0.03
        for face in (LEFT, RIGHT):
            for place in places:
                middle = place * length / 2
                self.panel(face, (middle - radius, middle + radius), (-side, side), (0.0, 2 * radius), TYRE)

    def person(self, colour, walking):
        """A flat figure in the y-z plane, 1.8 m tall, turned to the ego by `gather`; limbs apart when it walks."""
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

    def arrays(self):
        faces = np.array(self.faces)
        return (
            np.array(self.quads, dtype=float),  # (quad, corner, xyz)
            NORMALS[faces],  # (quad, xyz); zero: seen from both sides
            np.array(self.colours, dtype=float),  # (quad, rgb)
            np.array(self.shining),
            np.array(self.solid),
            part_centres(np.array(self.quads, dtype=float), np.array(self.parts)),  # (quad, xyz)
        )


def part_centres(quads: np.ndarray, parts: np.ndarray) -> np.ndarray:
    centres = np.empty((len(quads), 3))
    for part in np.unique(parts):
        centres[parts == part] = quads[parts == part].mean(axis=(0, 1))
    return centres


@cache
def model_of(kind: str, colour: str, status: str, rider: bool):
    """The quads of one object; `arrays()` of its Model."""
    m, paint = Model(), RGB[colour]
    if kind == "car":
        m.box((-2.25, 2.25), (-0.95, 0.95), (0.25, 0.95), paint)
        m.box((-1.5, 0.9), (-0.82, 0.82), (0.95, 1.65), paint)
        m.panel(FRONT, (-1.5, 0.92), (-0.72, 0.72), (1.0, 1.55), GLASS)
        m.panel(BACK, (-1.52, 0.9), (-0.72, 0.72), (1.0, 1.55), GLASS)
        for face in (LEFT, RIGHT):
            m.panel(face, (-1.35, 0.75), (-0.84, 0.84), (1.0, 1.5), GLASS)
        m.wheels(4.5, 1.9, 0.34, (-0.62, 0.62))
        m.lamps(4.5, 1.9, (0.5, 0.9), status)
    elif kind == "truck":
        cab = (235, 235, 240)
        m.box((-3.5, 1.6), (-1.25, 1.25), (0.7, 3.2), paint, part=0)
        m.box((1.7, 3.5), (-1.15, 1.15), (0.4, 2.6), cab, part=1)
        m.panel(FRONT, (1.7, 3.52), (-1.0, 1.0), (1.5, 2.4), GLASS, part=1)
        for face in (LEFT, RIGHT):
            m.panel(face, (2.3, 3.3), (-1.17, 1.17), (1.5, 2.4), GLASS, part=1)
        m.wheels(7.0, 2.5, 0.5, (-0.7, -0.35, 0.72))
        m.lamps(7.0, 2.5, (0.75, 1.25), status)
    elif kind == "bus":
        m.box((-5.25, 5.25), (-1.3, 1.3), (0.35, 3.4), paint)
        band = (205, 225, 240)
        for i in range(5):
            for face in (LEFT, RIGHT):
                m.panel(face, (-4.9 + 2 * i, -3.3 + 2 * i), (-1.32, 1.32), (1.7, 2.8), band)
        m.panel(FRONT, (-5.25, 5.27), (-1.15, 1.15), (1.5, 2.9), band)
        m.panel(BACK, (-5.27, 5.25), (-1.0, 1.0), (1.9, 2.8), band)
        m.wheels(10.5, 2.6, 0.5, (-0.6, 0.6))
        m.lamps(10.5, 2.6, (0.7, 1.25), status)
    elif kind == "trailer":
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
    elif kind == "construction vehicle":
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
            m.quad(
                [(x0, -0.3, z0), (x0, 0.3, z0), (x2, 0.3, z1), (x2, -0.3, z1)], BOTH_SIDES, colour, solid=True, part=1
            )
            m.quad(
                [(x1, -0.3, z0), (x1, 0.3, z0), (x3, 0.3, z1), (x3, -0.3, z1)], BOTH_SIDES, colour, solid=True, part=1
            )
        m.box((1.9, 2.75), (-0.9, 0.9), (0.5, 1.3), (95, 85, 60), part=1)
        m.wheels(5.5, 2.5, 0.6, (-0.7, 0.1))
        m.lamps(5.5, 2.5, (0.85, 1.3), status)
    elif kind == "pedestrian":
        m.person(paint, walking=status == "moving")
    elif kind == "bicycle":
        m.box((-0.55, 0.55), (-0.12, 0.12), (0.45, 1.0), paint)
        m.box((0.35, 0.6), (-0.3, 0.3), (0.95, 1.2), paint)
        for face in (LEFT, RIGHT):
            for x in (-0.6, 0.6):
                m.panel(face, (x - 0.3, x + 0.3), (-0.14, 0.14), (0.0, 0.6), TYRE, solid=True)
        for face in (FRONT, BACK):
            m.panel(face, (-0.9, 0.9), (-0.12, 0.12), (0.0, 0.6), TYRE, solid=True)
    elif kind == "motorcycle":
        m.box((-0.85, 0.85), (-0.3, 0.3), (0.3, 0.95), paint)
        m.box((0.3, 0.75), (-0.45, 0.45), (0.95, 1.25), paint)
        for face in (LEFT, RIGHT):
            for x in (-0.75, 0.75):
                m.panel(face, (x - 0.35, x + 0.35), (-0.32, 0.32), (0.0, 0.7), TYRE, solid=True)
        m.lamps(2.1, 0.8, (0.55, 0.95), status)
    elif kind == "traffic cone":
        m.figure([(-0.35, 0.0), (0.35, 0.0), (0.08, 1.1), (-0.08, 1.1)], paint)
        m.figure([(-0.24, 0.4), (0.24, 0.4), (0.16, 0.68), (-0.16, 0.68)], (250, 250, 250))
    elif kind == "barrier":
        m.box((-1.1, 1.1), (-0.25, 0.25), (0.0, 1.1), paint)
        for i in range(3):
            for face in (LEFT, RIGHT, TOP):
                m.panel(face, (-0.9 + 0.75 * i, -0.55 + 0.75 * i), (-0.27, 0.27), (0.0, 1.12), (250, 250, 250))
        for face in (FRONT, BACK):
            m.panel(face, (-1.12, 1.12), (-0.25, 0.25), (0.4, 0.75), (250, 250, 250))
    if rider and kind in ("bicycle", "motorcycle"):
        # A box, seen from all sides: a bright vest on a bicycle, dark clothes and a white helmet on a motorcycle.
        vest = (245, 250, 90) if kind == "bicycle" else (70, 60, 75)
        m.box((-0.3, 0.15), (-0.32, 0.32), (0.95, 1.5), vest)
        m.box((-0.22, 0.1), (-0.16, 0.16), (1.5, 1.85), (250, 250, 250) if kind == "motorcycle" else SKIN)
    return m.arrays()


@cache
def light_model(colour: str):
    m = Model()
    width, depth, height = LIGHT_SIZE
    low, high = LIGHT_BOTTOM, LIGHT_BOTTOM + height
    m.box((-depth / 2, depth / 2), (-width / 2, width / 2), (low, high), (25, 25, 28))
    for i, name in enumerate(("green", "yellow", "red")):
        z = low + height * (i + 0.5) / 3
        lit = name == colour
        half = 0.48 if lit else 0.25
        value = LAMP[name] if lit else tuple(c // 5 for c in LAMP[name])
        m.panel(BACK, (-depth / 2 - 0.02, 0.0), (-half, half), (z - half * 0.86, z + half * 0.86), value, shining=lit)
    return m.arrays()


@cache
def post_model(top: float):
    m = Model()
    m.box((-0.12, 0.12), (-0.12, 0.12), (0.0, top), (70, 72, 76))
    return m.arrays()


@cache
def gantry_model(length: float):
    m = Model()
    m.box(
        (-0.1, 0.1),
        (-length / 2, length / 2),
        (LIGHT_BOTTOM + LIGHT_SIZE[2], LIGHT_BOTTOM + LIGHT_SIZE[2] + 0.2),
        (70, 72, 76),
    )
    return m.arrays()


@lru_cache(maxsize=4096)
def house_model(length: float, depth: float, height: float, colour: int):
    m = Model()
    m.box((-length / 2, length / 2), (-depth / 2, depth / 2), (0.0, height), HOUSES[colour])
    window = tuple(c // 2 for c in HOUSES[colour])
    for face in (LEFT, RIGHT):
        for floor in range(min(2, int(height // 3.5))):
            z = 1.6 + 3.2 * floor
            m.panel(
                face, (-length / 2 + 1, length / 2 - 1), (-depth / 2 - 0.02, depth / 2 + 0.02), (z, z + 1.2), window
            )
    return m.arrays()


def camera_rotation(name: str) -> np.ndarray:
    """(3, 3), columns are the camera's right, down and forward axes in the ego frame."""
    yaw = math.radians(CAMERA_CALIBRATION[name][1])
    c, s = math.cos(yaw), math.sin(yaw)
    return np.array([[s, 0.0, c], [-c, 0.0, s], [0.0, -1.0, 0.0]])


def camera_intrinsics(name: str, width: int, height: int) -> np.ndarray:
    """(3, 3) for a picture of that many pixels."""
    _, _, focal, (cx, cy) = CAMERA_CALIBRATION[name]
    x, y = width / FULL_WIDTH, height / FULL_HEIGHT
    return np.array([[focal * x, 0.0, cx * x], [0.0, focal * y, cy * y], [0.0, 0.0, 1.0]])


class Renderer:
    """Renders frames of scenes at one picture size. Holds the tables that depend on the size alone."""

    def __init__(self, width: int, height: int):
        self.width, self.height = width, height
        self.scale = 2 if width <= 800 else 1  # supersampling
        self.canvas = (width * self.scale, height * self.scale)
        self.cell = min(0.2, max(0.05, 32.0 / width))  # metres of ground a map cell
        self.cells = int(round(2 * MAP_RANGE / self.cell))
        self.rotations = np.stack([camera_rotation(name) for name in CAMERAS])  # (camera, 3, 3)
        self.positions = np.array([CAMERA_CALIBRATION[name][0] for name in CAMERAS])  # (camera, 3)
        self.focals = np.array([CAMERA_CALIBRATION[name][2] for name in CAMERAS])
        self.centres = np.array([CAMERA_CALIBRATION[name][3] for name in CAMERAS])
        self.ground_rows, self.ground_cells = zip(*(self.ground_table(i) for i in range(len(CAMERAS))), strict=True)
        self.skies = {}

    def ground_table(self, camera: int):
        """First row below the horizon, and for each pixel from there on the cell of the ground map that it sees."""
        width, height = self.canvas
        matrix = camera_intrinsics(CAMERAS[camera], width, height)
        first = int(math.ceil(matrix[1, 2]))
        u, v = np.meshgrid(np.arange(width) + 0.5, np.arange(first, height) + 0.5)
        rays = np.stack([(u - matrix[0, 2]) / matrix[0, 0], (v - matrix[1, 2]) / matrix[1, 1], np.ones_like(u)], -1)
        rays = rotated(rays, self.rotations[camera].T)  # ego frame
        distance = self.positions[camera][2] / np.maximum(-rays[..., 2], 1e-6)
        x = self.positions[camera][0] + rays[..., 0] * distance
        y = self.positions[camera][1] + rays[..., 1] * distance
        inside = (np.abs(x) < MAP_RANGE - 0.5) & (np.abs(y) < MAP_RANGE - 0.5)
        column, row = (((np.where(inside, value, 0.0) + MAP_RANGE) / self.cell).astype(int) for value in (x, y))
        return first, np.where(inside, row * self.cells + column, self.cells * self.cells)

    def sky(self, weather: str, camera: int) -> np.ndarray:
        """(rows above the horizon, width) of packed colours."""
        key = (weather, camera)
        if key not in self.skies:
            top, horizon, _ = SKIES[weather]
            rows = self.ground_rows[camera]
            part = (np.linspace(0, 1, max(rows, 1)) ** 1.5)[:, None]
            colours = np.array(top) * (1 - part) + np.array(horizon) * part
            self.skies[key] = np.repeat(pack(colours)[:, None], self.canvas[0], axis=1)
        return self.skies[key]

    def render(self, scene: Scene, ground: "GroundMap", t: int) -> tuple[list[Image.Image], dict]:
        """Six pictures, in the order of CAMERAS, and what is seen in them (see `look`)."""
        surface = self.paint_ground(scene, ground, t)
        things = gather(scene, t)
        return self.look(scene, t, surface, things)

    def paint_ground(self, scene: Scene, ground: "GroundMap", t: int) -> np.ndarray:
        """(cells * cells + 1,) packed colours of the ground around the ego; the last one is the haze beyond."""
        x, y, yaw, _ = scene.ego[t]
        brightness = SKIES[scene.weather][2]
        image = Image.new("RGB", (self.cells, self.cells), dim(GROUNDS[scene.ground], brightness))
        draw = ImageDraw.Draw(image)
        c, s = math.cos(yaw), math.sin(yaw)
        points = rotated(ground.points - (x, y), np.array([[c, -s], [s, c]]))
        low, high = (pick.reduceat(points, ground.ends[:-1]) for pick in (np.minimum, np.maximum))
        near = ((low < MAP_RANGE) & (high > -MAP_RANGE)).all(axis=1)
        points = ((points + MAP_RANGE) / self.cell).ravel().tolist()
        ends = (2 * ground.ends).tolist()
        for index in np.nonzero(near)[0].tolist():
            draw.polygon(points[ends[index] : ends[index + 1]], fill=ground.colours[index])
        self.paint_glow(scene, t, draw, brightness)
        packed = np.empty(self.cells * self.cells + 1, dtype=np.uint32)
        packed[:-1] = np.frombuffer(image.tobytes("raw", "RGBX"), dtype="<u4")
        packed[-1] = pack(np.array([dim((150, 150, 150), brightness)], dtype=float))[0]
        return packed

    def paint_glow(self, scene: Scene, t: int, draw, brightness: float) -> None:
        """Shadows below vehicles; light on the road ahead of moving ones, red behind stopped ones."""
        x, y, yaw, _ = scene.ego[t]
        ego_c, ego_s = math.cos(yaw), math.sin(yaw)
        for i, agent in enumerate(scene.agents):
            if agent.kind in ("pedestrian", "traffic cone", "barrier"):
                continue
            dx, dy = scene.poses[t, i, 0] - x, scene.poses[t, i, 1] - y
            if dx * dx + dy * dy > MAP_RANGE * MAP_RANGE:
                continue
            width, length, _ = agent.size
            turn = scene.poses[t, i, 2] - yaw
            c, s = math.cos(turn), math.sin(turn)
            px, py = dx * ego_c + dy * ego_s, dy * ego_c - dx * ego_s

            def patch(x0, x1, half0, half1, colour, px=px, py=py, c=c, s=s):
                corners = ((x0, -half0), (x1, -half1), (x1, half1), (x0, half0))
                points = [value for a, b in corners for value in (px + a * c - b * s, py + a * s + b * c)]
                draw.polygon([(value + MAP_RANGE) / self.cell for value in points], fill=colour)

            half, side = length / 2, width / 2
            patch(-half - 0.1, half + 0.1, side + 0.2, side + 0.2, dim((38, 38, 42), brightness))
            status = scene.statuses[t, i]
            if status == "moving" and agent.kind != "bicycle":
                patch(half, half + 4.5, side, side * 1.6, dim((250, 235, 160), max(brightness, 0.8)))
            elif status == "stopped" and agent.kind != "bicycle":
                patch(-half - 3.0, -half, side * 1.2, side, dim((205, 40, 30), max(brightness, 0.8)))

    def look(self, scene: Scene, t: int, surface: np.ndarray, things: dict) -> tuple[list[Image.Image], dict]:
        """The pictures, and what is seen, over cameras (C) and the named objects near the ego (N: agents, then
        lights):
        `sources`: N pairs of "agent" or "light" and its index in the scene;
        `ids`: for each camera (180, 320), the object seen at each pixel, 1 to N, or 0;
        `pixels` (C, N): visible pixels, counted at 320x180 and given in pixels of 1600x900;
        `bounds` (C, N, 4): x0, y0, x1, y1 of the whole silhouette, cut to the picture, in 1600x900 pixels; nan where
        it is not drawn.
        """
        count, owner = len(things["sources"]), things["owner"]
        width, height = self.canvas
        to_canvas = np.array([width / FULL_WIDTH, height / FULL_HEIGHT])
        to_ids = np.array([ID_WIDTH / FULL_WIDTH, ID_HEIGHT / FULL_HEIGHT])
        brightness = np.where(things["shining"], 1.0, SKIES[scene.weather][2])
        colours = pack(things["colours"] * brightness[:, None])
        pixels, bounds = np.zeros((len(CAMERAS), count)), np.full((len(CAMERAS), count, 4), np.nan)
        images, seen_ids = [], []
        for camera in range(len(CAMERAS)):
            rows = self.ground_rows[camera]
            canvas = np.empty((height, width), dtype=np.uint32)
            canvas[:rows] = self.sky(scene.weather, camera)
            np.take(surface, self.ground_cells[camera], out=canvas[rows:], mode="clip")
            image = Image.frombytes("RGB", (width, height), canvas.tobytes(), "raw", "RGBX")
            ids = Image.new("L", (ID_WIDTH, ID_HEIGHT))
            draw, draw_id = ImageDraw.Draw(image), ImageDraw.Draw(ids)

            quads, outlines, clipped = self.project(camera, things)
            named = things["solid"][quads] & (owner[quads] < count)
            on_canvas = point_lists(outlines, clipped, to_canvas)
            same_grid = np.array_equal(to_canvas, to_ids)
            on_ids = on_canvas if same_grid else point_lists(outlines, clipped, to_ids)
            marks = np.where(named, owner[quads] + 1, 0)
            solid = things["solid"][quads].tolist()
            paint = zip(on_canvas, on_ids, colours[quads].tolist(), solid, marks.tolist(), strict=True)
            for points, id_points, colour, is_solid, mark in paint:
                draw.polygon(points, fill=colour)
                if is_solid:
                    draw_id.polygon(id_points, fill=mark)
            if scene.weather == "rain":
                self.rain(draw, scene, t, camera)
            images.append(image.reduce(self.scale) if self.scale > 1 else image)

            bounds[camera] = object_bounds(owner[quads], outlines, clipped, named, count)
            seen = np.frombuffer(ids.tobytes(), dtype=np.uint8).reshape(ID_HEIGHT, ID_WIDTH)
            pixels[camera] = np.bincount(seen.ravel(), minlength=256)[1 : count + 1] * ID_AREA
            seen_ids.append(seen)
        return images, {"sources": things["sources"], "pixels": pixels, "bounds": bounds, "ids": seen_ids}

    def project(self, camera: int, things: dict) -> tuple[np.ndarray, np.ndarray, dict[int, np.ndarray]]:
        """The quads that a camera sees, far to near.

        Returns:
            Their numbers (Q,), their corners in pixels of 1600x900 (Q, 4, 2), and by place in Q the corners of those
            that reach behind the camera and had to be cut, (corner, 2).
        """
        owner, position, rotation = things["owner"], self.positions[camera], self.rotations[camera]
        middle = rotated(things["centre"] - position, rotation)  # (object, right down forward)
        depth, sideways, reach = middle[:, 2], np.abs(middle[:, 0]), things["radius"]
        large = self.focals[camera] / np.maximum(depth, 1.0) >= things["min_metre"]
        shown = large & (depth > NEAR - reach) & (sideways - reach < (depth + reach) * 1.05 + 1.0)
        quads = np.nonzero(shown[owner])[0]
        toward = position - things["corners"][quads, 0]
        facing = np.einsum("qi,qi->q", things["normals"][quads], toward) > 0
        quads = quads[facing | things["both_sides"][quads]]

        local = rotated(things["corners"][quads] - position, rotation)  # (quad, corner, right down forward)
        z = local[..., 2]
        outlines = local[..., :2] / np.maximum(z, NEAR)[..., None] * self.focals[camera] + self.centres[camera]
        cut = z.min(axis=1) <= NEAR
        low, high = outlines.min(axis=1), outlines.max(axis=1)
        inside = ((high > 0) & (low < (FULL_WIDTH, FULL_HEIGHT))).all(axis=1)
        kept = (z.max(axis=1) > NEAR) & (cut | inside)
        # By object, then by part, then in the order of the model.
        far = things["distance"][camera][owner[quads]]
        order = np.lexsort((quads, -things["part_distance"][camera][quads], owner[quads], -far))
        order = order[kept[order]]
        clipped = {
            k: clip_near(local[n]) * self.focals[camera] + self.centres[camera]
            for k, n in enumerate(order.tolist())
            if cut[n]
        }
        return quads[order], outlines[order], clipped

    def rain(self, draw, scene: Scene, t: int, camera: int) -> None:
        rng = np.random.default_rng([scene.seed, scene.index, t, camera])
        width, height = self.canvas
        for x, y in rng.random((14, 2)).tolist():
            x, y = x * width, y * height
            draw.line([x, y, x - 0.008 * width, y + 0.09 * height], fill=(150, 158, 168))


class GroundMap:
    """Everything painted on the ground of a scene: polygons in global coordinates, in the order of painting."""

    def __init__(self, scene: Scene):
        self.brightness = SKIES[scene.weather][2]
        self.polygons, self.colours = [], []
        self.road(scene)
        self.arrows(scene)
        self.points = np.concatenate(self.polygons)  # (corner of any polygon, xy)
        self.ends = np.cumsum([0] + [len(points) for points in self.polygons])  # polygon i: ends[i] to ends[i + 1]

    def add(self, points, colour) -> None:
        self.polygons.append(np.asarray(points, dtype=float))
        self.colours.append(dim(colour, self.brightness))

    def strip(self, scene: Scene, start: float, end: float, d0: float, d1: float, colour) -> None:
        """The road between two offsets, in pieces of at most 5 m so that bends are round."""
        pieces = max(1, int(math.ceil((end - start) / 5.0)))
        grid = np.linspace(start, end, pieces + 1)
        x0, y0, _ = scene.path.at(grid, d0)
        x1, y1, _ = scene.path.at(grid, d1)
        for i in range(0, pieces, 4):  # long thin polygons of four pieces each
            j = min(i + 4, pieces)
            there = np.stack([x0[i : j + 1], y0[i : j + 1]], -1)
            back = np.stack([x1[i : j + 1], y1[i : j + 1]], -1)[::-1]
            self.add(np.concatenate([there, back]), colour)

    def bars(self, scene: Scene, starts, length: float, d0, d1, colour) -> None:
        """Rectangles of one length along the road; `starts`, `d0` and `d1` are arrays of one shape, or numbers."""
        starts, d0, d1 = np.broadcast_arrays(np.asarray(starts, dtype=float), d0, d1)
        corners = [
            scene.path.at(s, d)[:2]
            for s, d in ((starts, d0), (starts + length, d0), (starts + length, d1), (starts, d1))
        ]
        for points in np.array(corners).transpose(2, 0, 1):  # (corner, xy)
            self.add(points, colour)

    def road(self, scene: Scene) -> None:
        asphalt = scene.asphalt
        road, strip, white = (asphalt,) * 3, (asphalt + 28, asphalt + 26, asphalt + 20), (235, 235, 235)
        pavement = (178, 172, 165)
        left, right = scene.kerb_left, scene.kerb_right
        same, opposite = -LANE_WIDTH * SAME_LANES, LANE_WIDTH * scene.opposite_lanes
        start, end = -PATH_BEHIND + 1, scene.legs[-1].end + 60.0
        arms = [arm for leg in scene.legs if leg.junction is not None for arm in cross_streets(scene, leg)]
        for arm in arms:
            self.add(street(*arm, 6.0 + PAVEMENT_WIDTH), pavement)
        self.strip(scene, start, end, right - PAVEMENT_WIDTH, left + PAVEMENT_WIDTH, pavement)
        for arm in arms:
            self.add(street(*arm, 6.0), road)
        self.strip(scene, start, end, right, left, road)
        at = start
        for low, high in [*junction_zones(scene), (end, end)]:
            if low > at:
                self.strip(scene, at, low, right, same, strip)
                self.strip(scene, at, low, opposite, left, strip)
                self.strip(scene, at, low, right - 0.3, right + 0.1, (225, 222, 215))
                self.strip(scene, at, low, left - 0.1, left + 0.3, (225, 222, 215))
                self.strip(scene, at, low, same - 0.1, same + 0.1, white)
                self.strip(scene, at, low, opposite - 0.1, opposite + 0.1, white)
                self.strip(scene, at, low, -0.25, -0.05, (240, 200, 60))
                self.strip(scene, at, low, 0.05, 0.25, (240, 200, 60))
                for lane in [*range(1 - scene.opposite_lanes, 0), *range(1, SAME_LANES)]:
                    d = -lane * LANE_WIDTH
                    self.bars(scene, np.arange(at + 1, low - 3, 9.0), 3.5, d - 0.1, d + 0.1, white)
            at = max(at, high)
        for leg in scene.light_legs:
            self.bars(scene, [leg.stop_line - 0.3], 0.6, same, -0.3, white)
            self.bars(scene, [leg.oncoming_line - 0.3], 0.6, 0.3, opposite, white)
            stripes = np.arange(right + 0.5, left - 0.5, 1.4)
            self.bars(scene, np.full_like(stripes, leg.stop_line + 0.8), 2.2, stripes, stripes + 0.7, white)

    def arrows(self, scene: Scene) -> None:
        """An arrow every 7 m on the ego's lane shows the target action of its leg; those for lane changes are
        yellow."""
        for leg in scene.legs:
            for s in arrow_places(leg):
                d, slope = ego_offset(scene.legs, s)
                x, y, yaw = (float(value) for value in scene.path.at(s, d))
                turn = math.atan(slope) + yaw
                c, n = math.cos(turn), math.sin(turn)
                colour = (255, 205, 0) if leg.action in (CHANGE_LEFT, CHANGE_RIGHT) else (245, 245, 245)
                for shape in ARROWS[leg.action]:
                    self.add([(x + a * c - b * n, y + a * n + b * c) for a, b in shape], colour)


ARROW_LENGTH, ARROW_PERIOD = 4.4, 7.0
_SHAFT = ((0.0, -0.25), (3.0, -0.25), (3.0, 0.25), (0.0, 0.25))
_TURN = (
    ((0.0, -0.75), (3.4, -0.75), (3.4, -0.2), (0.0, -0.2)),
    ((2.8, -0.75), (3.4, -0.75), (3.4, 0.5), (2.8, 0.5)),
    ((1.8, 0.4), (4.4, 0.4), (3.1, 1.7)),
)
_CHANGE = (
    ((0.0, -1.3), (0.0, -0.7), (3.2, 0.9), (3.2, 0.3)),
    ((2.2, 1.5), (3.6, -0.5), (4.4, 1.6)),
)


def mirrored(shapes):
    return tuple(tuple((x, -y) for x, y in shape) for shape in shapes)


# Polygons in metres, x along the lane and y to the left.
ARROWS = {
    GO_STRAIGHT: (_SHAFT, ((2.4, -0.95), (4.4, 0.0), (2.4, 0.95))),
    TURN_LEFT: _TURN,
    TURN_RIGHT: mirrored(_TURN),
    CHANGE_LEFT: _CHANGE,
    CHANGE_RIGHT: mirrored(_CHANGE),
}


def arrow_places(leg) -> np.ndarray:
    """s at which the arrows of a leg begin."""
    return np.arange(leg.start + 1.0, leg.end - ARROW_LENGTH, ARROW_PERIOD)


def junction_zones(scene: Scene) -> list[tuple[float, float]]:
    """Intervals of s without road markings."""
    zones = []
    for leg in scene.legs:
        if leg.action in (TURN_LEFT, TURN_RIGHT):
            zones.append((leg.bend_start - 1.0, leg.end + 1.0))
        elif leg.junction is not None:
            zones.append((leg.junction - 7.0, leg.junction + 7.0))
    return zones


def cross_streets(scene: Scene, leg):
    """(x, y, yaw) of the streets that leave a junction and that the ego does not follow."""
    if leg.action in (TURN_LEFT, TURN_RIGHT):
        middle = (scene.kerb_left + scene.kerb_right) / 2
        x, y, yaw = scene.path.at(leg.bend_start, middle)
        yield float(x), float(y), float(yaw)
        x, y, yaw = scene.path.at(leg.end, middle)
        yield float(x), float(y), float(yaw) + math.pi
    else:
        x, y, yaw = scene.path.at(leg.junction, 0.0)
        yield float(x), float(y), float(yaw) + math.pi / 2
        yield float(x), float(y), float(yaw) - math.pi / 2


def street(x: float, y: float, yaw: float, half_width: float, length: float = 60.0):
    c, s = math.cos(yaw), math.sin(yaw)
    corners = ((0, -half_width), (length, -half_width), (length, half_width), (0, half_width))
    return [(x + a * c - b * s, y + a * s + b * c) for a, b in corners]


def gather(scene: Scene, t: int) -> dict:
    """All boxes near the ego at moment `t`, in the ego frame: first the named ones (agents, then lights), then
    scenery."""
    ego_x, ego_y, ego_yaw, _ = scene.ego[t]
    ego_c, ego_s = math.cos(ego_yaw), math.sin(ego_yaw)
    sources, placed = [], []

    def place(model, x, y, yaw, min_metre):
        """`yaw` None: turned to the ego. `min_metre`: not drawn where a metre takes fewer pixels of 900."""
        dx, dy = x - ego_x, y - ego_y
        px, py = dx * ego_c + dy * ego_s, dy * ego_c - dx * ego_s
        placed.append((model, px, py, math.atan2(py, px) if yaw is None else yaw - ego_yaw, min_metre))

    near = np.hypot(scene.poses[t, :, 0] - ego_x, scene.poses[t, :, 1] - ego_y) < MAP_RANGE
    for i in np.nonzero(near)[0].tolist():
        agent = scene.agents[i]
        model = model_of(agent.kind, agent.colour, str(scene.statuses[t, i]), agent.rider)
        x, y, yaw, _ = scene.poses[t, i].tolist()
        upright = agent.kind in ("pedestrian", "traffic cone")
        min_height = MIN_HEIGHT if agent.kind in MOTOR_VEHICLES else MIN_SLIM_HEIGHT
        place(model, x, y, None if upright else yaw, max(MIN_METRE, min_height / agent.size[2]))
        sources.append(("agent", i))
    gantries = []
    for i, leg in enumerate(scene.light_legs):
        if not 0 < leg.stop_line - scene.ego_s[t] + LIGHT_BEYOND_LINE < 60:
            continue
        for lane in range(SAME_LANES):
            model = light_model(str(scene.light_colours[t, i]))
            place(model, *light_pose(scene, leg, lane_offset(lane)), LIGHT_MIN_HEIGHT / LIGHT_SIZE[2])
            sources.append(("light", i))
        gantries.append(leg)
    for leg in gantries:
        edge = scene.kerb_right - 0.5
        place(post_model(LIGHT_BOTTOM + LIGHT_SIZE[2] + 0.2), *light_pose(scene, leg, edge), 0.0)
        place(gantry_model(-edge), *light_pose(scene, leg, edge / 2), 0.0)
    for x, y, yaw, length, depth, height, colour in scene.houses:
        if math.hypot(x - ego_x, y - ego_y) < 55:
            place(house_model(length, depth, height, colour), x, y, yaw, 0.0)

    sizes = [len(item[0][0]) for item in placed]
    owner = np.repeat(np.arange(len(placed)), sizes)
    angles = np.array([item[3] for item in placed])
    spin = np.zeros((len(placed), 3, 3))
    spin[:, 0, 0] = spin[:, 1, 1] = np.cos(angles)
    spin[:, 0, 1], spin[:, 1, 0], spin[:, 2, 2] = -np.sin(angles), np.sin(angles), 1.0
    shift = np.array([[item[1], item[2], 0.0] for item in placed])
    local = np.concatenate([item[0][0] for item in placed])
    turned = spin[owner]
    corners = np.einsum("qij,qkj->qki", turned, local) + shift[owner][:, None]
    normals = np.concatenate([item[0][1] for item in placed])
    parts = np.einsum("qij,qj->qi", turned, np.concatenate([item[0][5] for item in placed])) + shift[owner]
    positions = np.array([CAMERA_CALIBRATION[name][0] for name in CAMERAS])
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    flat = np.hypot(
        corners[None, :, :, 0] - positions[:, None, None, 0], corners[None, :, :, 1] - positions[:, None, None, 1]
    )
    nearest = np.minimum.reduceat(flat.min(axis=2), starts, axis=1)
    low = np.minimum.reduceat(corners.min(axis=1), starts)
    high = np.maximum.reduceat(corners.max(axis=1), starts)
    centre = (low + high) / 2
    middle = np.hypot(centre[None, :, 0] - positions[:, None, 0], centre[None, :, 1] - positions[:, None, 1])
    return {
        "sources": sources,
        "corners": corners,  # (quad, corner, xyz)
        "normals": np.einsum("qij,qj->qi", turned, normals),
        "both_sides": ~normals.any(axis=1),
        "colours": np.concatenate([item[0][2] for item in placed]),
        "shining": np.concatenate([item[0][3] for item in placed]),
        "solid": np.concatenate([item[0][4] for item in placed]),
        "owner": owner,
        "part_distance": np.hypot(
            parts[None, :, 0] - positions[:, None, 0], parts[None, :, 1] - positions[:, None, 1]
        ),
        "centre": centre,  # (object, xyz)
        "radius": np.hypot(high[:, 0] - low[:, 0], high[:, 1] - low[:, 1]) / 2,
        "distance": (nearest + middle) / 2,  # (camera, object)
        "min_metre": np.array([item[4] for item in placed]),
    }


def light_pose(scene: Scene, leg, d: float) -> tuple[float, float, float]:
    """Global x, y and yaw of a point on the beam of a signal, which hangs straight on from the stop line."""
    x, y, yaw = (float(value) for value in scene.path.at(leg.stop_line, d))
    return x + LIGHT_BEYOND_LINE * math.cos(yaw), y + LIGHT_BEYOND_LINE * math.sin(yaw), yaw


def point_lists(outlines: np.ndarray, clipped: dict[int, np.ndarray], scale: np.ndarray) -> list[list[float]]:
    """For each quad x0, y0, x1, y1, ... in pixels of a picture, as Pillow takes them."""
    lists = (outlines * scale).reshape(-1, 8).tolist()
    for k, points in clipped.items():
        lists[k] = (points * scale).ravel().tolist()
    return lists


def object_bounds(owner, outlines, clipped, named, count: int) -> np.ndarray:
    """(count, 4): x0, y0, x1, y1 around each object's quads within the picture, nan where there are none."""
    low, high = outlines.min(axis=1), outlines.max(axis=1)
    for k, points in clipped.items():
        low[k], high[k] = points.min(axis=0), points.max(axis=0)
    bounds = np.tile([np.inf, np.inf, -np.inf, -np.inf], (count, 1))
    np.minimum.at(bounds[:, :2], owner[named], low[named])
    np.maximum.at(bounds[:, 2:], owner[named], high[named])
    bounds = np.clip(bounds, 0, (FULL_WIDTH, FULL_HEIGHT, FULL_WIDTH, FULL_HEIGHT))
    bounds[(bounds[:, 2:] <= bounds[:, :2]).any(axis=1)] = np.nan
    return bounds


def rotated(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """`points @ matrix` without BLAS, whose last bits and threads differ between machines."""
    return np.einsum("...i,ij->...j", points, matrix)


def clip_near(points: np.ndarray) -> np.ndarray:
    """The part of a polygon (corner, right down forward) beyond the near plane, divided by depth: (corner, 2)."""
    kept = []
    for a, b in zip(points, np.roll(points, -1, axis=0), strict=True):
        if a[2] > NEAR:
            kept.append(a)
        if (a[2] > NEAR) != (b[2] > NEAR):
            kept.append(a + (b - a) * (NEAR - a[2]) / (b[2] - a[2]))
    kept = np.array(kept)
    return kept[:, :2] / np.maximum(kept[:, 2:], NEAR)


def dim(colour, brightness: float) -> tuple[int, int, int]:
    return tuple(int(min(255.0, value * brightness)) for value in colour)


def pack(colours: np.ndarray) -> np.ndarray:
    """(n, 3) colours as (n,) little-endian RGBX words."""
    values = np.clip(colours, 0, 255).astype(np.uint32)
    return values[:, 0] | (values[:, 1] << 8) | (values[:, 2] << 16)


def to_jpeg(image: Image.Image) -> bytes:
    """Full colour resolution: lamps are a pixel or two at the demo's size."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88, subsampling=0)
    return buffer.getvalue()
