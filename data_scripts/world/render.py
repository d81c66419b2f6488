"""Pictures of a synthetic scene, and which object each pixel shows.

A picture is made in three steps: the ground is painted as a map around the ego (0.2 m per cell at 160 pixels) and
looked up through a fixed table of the ground point that each pixel sees; boxes are projected, sorted far to near and
painted over it; the double-sized picture is halved. Beside it a 320x180 buffer holds, for each pixel, the object that
is seen there: that is what "visible" means everywhere in the synthetic world.

What would be too small to make out is left out of the picture: an object is drawn in a camera only where its full
height is at least MIN_HEIGHT of 900 pixels (8.5 of 96; 10.7 for slim ones) and a metre at its distance at least
MIN_METRE (30 m ahead, 19 m behind); see `surroundings.py`.
"""

import io
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from data_scripts.world.cameras import (
    CAMERA_CALIBRATION,
    CAMERAS,
    FULL_HEIGHT,
    FULL_WIDTH,
    camera_intrinsics,
    camera_rotation,
    rotated,
)
from data_scripts.world.colours import SKIES, pack
from data_scripts.world.ground import MAP_RANGE, GroundMap, GroundPainter
from data_scripts.world.simulation import Scene
from data_scripts.world.surroundings import Source, Surroundings, surroundings

ID_WIDTH, ID_HEIGHT = 320, 180
# 1600x900 pixels that one pixel of the id buffer stands for.
ID_AREA = (FULL_WIDTH / ID_WIDTH) * (FULL_HEIGHT / ID_HEIGHT)
NEAR = 0.4


@dataclass
class Look:
    """What six pictures show: cameras (C) by named objects near the ego (N: agents, then heads of lights)."""

    sources: list[Source]  # N
    pixels: np.ndarray  # (C, N): visible pixels, counted at 320x180 and given in pixels of 1600x900
    # (C, N, 4): x0, y0, x1, y1 of the whole silhouette, cut to the picture, in 1600x900 pixels; nan where not drawn
    bounds: np.ndarray
    ids: np.ndarray  # (C, 180, 320): the object seen at each pixel, 1 to N, or 0


class Outlines(NamedTuple):
    """The quads that one camera sees, far to near."""

    quads: np.ndarray  # (Q,): their numbers in the Surroundings
    corners: np.ndarray  # (Q, 4, 2): in pixels of 1600x900
    clipped: dict[int, np.ndarray]  # place in Q -> (corner, 2) of those that reach behind the camera and had to be cut


class Renderer:
    """Renders frames of scenes at one picture size. Holds the tables that depend on the size alone."""

    def __init__(self, width: int, height: int):
        self.width, self.height = width, height
        self.scale = 2 if width <= 800 else 1  # supersampling
        self.canvas = (width * self.scale, height * self.scale)
        self.painter = GroundPainter(cell=min(0.2, max(0.05, 32.0 / width)))
        self.rotations = np.stack([camera_rotation(name) for name in CAMERAS])  # (camera, 3, 3)
        self.positions = np.array([CAMERA_CALIBRATION[name][0] for name in CAMERAS])  # (camera, 3)
        self.focals = np.array([CAMERA_CALIBRATION[name][2] for name in CAMERAS])
        self.centres = np.array([CAMERA_CALIBRATION[name][3] for name in CAMERAS])
        self.ground_rows, self.ground_cells = zip(*(self.ground_table(i) for i in range(len(CAMERAS))), strict=True)
        self.skies = {}

    def ground_table(self, camera: int):
        """First row below the horizon, and for each pixel from there on the cell of the ground map that it sees."""
        (width, height), cells = self.canvas, self.painter.cells
        matrix = camera_intrinsics(CAMERAS[camera], width, height)
        first = int(math.ceil(matrix[1, 2]))
        u, v = np.meshgrid(np.arange(width) + 0.5, np.arange(first, height) + 0.5)
        rays = np.stack([(u - matrix[0, 2]) / matrix[0, 0], (v - matrix[1, 2]) / matrix[1, 1], np.ones_like(u)], -1)
        rays = rotated(rays, self.rotations[camera].T)  # ego frame
        distance = self.positions[camera][2] / np.maximum(-rays[..., 2], 1e-6)
        x = self.positions[camera][0] + rays[..., 0] * distance
        y = self.positions[camera][1] + rays[..., 1] * distance
        inside = (np.abs(x) < MAP_RANGE - 0.5) & (np.abs(y) < MAP_RANGE - 0.5)
        column, row = (
            ((np.where(inside, value, 0.0) + MAP_RANGE) / self.painter.cell).astype(int) for value in (x, y)
        )
        return first, np.where(inside, row * cells + column, cells * cells)

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

    def render(self, scene: Scene, ground: GroundMap, t: int) -> tuple[list[Image.Image], Look]:
        """Six pictures, in the order of CAMERAS, and what is seen in them."""
        surface = self.painter.paint(scene, ground, t)
        things = surroundings(scene, t)
        brightness = np.where(things.shining, 1.0, SKIES[scene.weather][2])
        colours = pack(things.colours * brightness[:, None])
        images, ids, bounds = [], [], []
        for camera in range(len(CAMERAS)):
            outlines = self.project(camera, things)
            image = self.background(scene.weather, camera, surface)
            ids.append(self.paint(image, outlines, things, colours))
            bounds.append(object_bounds(outlines, things))
            if scene.weather == "rain":
                self.rain(ImageDraw.Draw(image), scene, t, camera)
            images.append(image.reduce(self.scale) if self.scale > 1 else image)
        count = len(things.sources)
        pixels = [np.bincount(seen.ravel(), minlength=256)[1 : count + 1] * ID_AREA for seen in ids]
        return images, Look(things.sources, np.array(pixels), np.array(bounds), np.array(ids))

    def background(self, weather: str, camera: int, surface: np.ndarray) -> Image.Image:
        """Sky and ground of a picture, at the size of the canvas."""
        width, height = self.canvas
        rows = self.ground_rows[camera]
        canvas = np.empty((height, width), dtype=np.uint32)
        canvas[:rows] = self.sky(weather, camera)
        np.take(surface, self.ground_cells[camera], out=canvas[rows:], mode="clip")
        return Image.frombytes("RGB", (width, height), canvas.tobytes(), "raw", "RGBX")

    def paint(self, image: Image.Image, outlines: Outlines, things: Surroundings, colours: np.ndarray) -> np.ndarray:
        """Paint the quads over the background. Returns the object seen at each pixel, (180, 320) uint8."""
        ids = Image.new("L", (ID_WIDTH, ID_HEIGHT))
        draw, draw_id = ImageDraw.Draw(image), ImageDraw.Draw(ids)
        to_canvas = np.array(self.canvas) / (FULL_WIDTH, FULL_HEIGHT)
        to_ids = np.array([ID_WIDTH / FULL_WIDTH, ID_HEIGHT / FULL_HEIGHT])
        on_canvas = point_lists(outlines, to_canvas)
        on_ids = on_canvas if np.array_equal(to_canvas, to_ids) else point_lists(outlines, to_ids)
        solid = things.solid[outlines.quads].tolist()
        marks = np.where(is_named(outlines.quads, things), things.owner[outlines.quads] + 1, 0).tolist()
        painted = zip(on_canvas, on_ids, colours[outlines.quads].tolist(), solid, marks, strict=True)
        for points, id_points, colour, is_solid, mark in painted:
            draw.polygon(points, fill=colour)
            if is_solid:
                draw_id.polygon(id_points, fill=mark)
        return np.frombuffer(ids.tobytes(), dtype=np.uint8).reshape(ID_HEIGHT, ID_WIDTH)

    def project(self, camera: int, things: Surroundings) -> Outlines:
        """The quads that a camera sees, far to near."""
        owner, position, rotation = things.owner, self.positions[camera], self.rotations[camera]
        middle = rotated(things.centre - position, rotation)  # (object, right down forward)
        depth, sideways, reach = middle[:, 2], np.abs(middle[:, 0]), things.radius
        large = self.focals[camera] / np.maximum(depth, 1.0) >= things.min_metre
        shown = large & (depth > NEAR - reach) & (sideways - reach < (depth + reach) * 1.05 + 1.0)
        quads = np.nonzero(shown[owner])[0]
        toward = position - things.corners[quads, 0]
        facing = np.einsum("qi,qi->q", things.normals[quads], toward) > 0
        quads = quads[facing | things.both_sides[quads]]

        local = rotated(things.corners[quads] - position, rotation)  # (quad, corner, right down forward)
        z = local[..., 2]
        outlines = local[..., :2] / np.maximum(z, NEAR)[..., None] * self.focals[camera] + self.centres[camera]
        cut = z.min(axis=1) <= NEAR
        low, high = outlines.min(axis=1), outlines.max(axis=1)
        inside = ((high > 0) & (low < (FULL_WIDTH, FULL_HEIGHT))).all(axis=1)
        kept = (z.max(axis=1) > NEAR) & (cut | inside)
        # By object, then by part, then in the order of the model.
        far = things.distance[camera][owner[quads]]
        order = np.lexsort((quads, -things.part_distance[camera][quads], owner[quads], -far))
        order = order[kept[order]]
        clipped = {
            k: clip_near(local[n]) * self.focals[camera] + self.centres[camera]
            for k, n in enumerate(order.tolist())
            if cut[n]
        }
        return Outlines(quads[order], outlines[order], clipped)

    def rain(self, draw, scene: Scene, t: int, camera: int) -> None:
        rng = np.random.default_rng([scene.seed, scene.index, t, camera])
        width, height = self.canvas
        for x, y in rng.random((14, 2)).tolist():
            x, y = x * width, y * height
            draw.line([x, y, x - 0.008 * width, y + 0.09 * height], fill=(150, 158, 168))


def is_named(quads: np.ndarray, things: Surroundings) -> np.ndarray:
    """Which quads belong to the silhouette of a named object."""
    return things.solid[quads] & (things.owner[quads] < len(things.sources))


def point_lists(outlines: Outlines, scale: np.ndarray) -> list[list[float]]:
    """For each quad x0, y0, x1, y1, ... in pixels of a picture, as Pillow takes them."""
    lists = (outlines.corners * scale).reshape(-1, 8).tolist()
    for k, points in outlines.clipped.items():
        lists[k] = (points * scale).ravel().tolist()
    return lists


def object_bounds(outlines: Outlines, things: Surroundings) -> np.ndarray:
    """(N, 4): x0, y0, x1, y1 around each named object's quads within the picture, nan where there are none."""
    low, high = outlines.corners.min(axis=1), outlines.corners.max(axis=1)
    for k, points in outlines.clipped.items():
        low[k], high[k] = points.min(axis=0), points.max(axis=0)
    bounds = np.tile([np.inf, np.inf, -np.inf, -np.inf], (len(things.sources), 1))
    named = is_named(outlines.quads, things)
    owner = things.owner[outlines.quads][named]
    np.minimum.at(bounds[:, :2], owner, low[named])
    np.maximum.at(bounds[:, 2:], owner, high[named])
    bounds = np.clip(bounds, 0, (FULL_WIDTH, FULL_HEIGHT, FULL_WIDTH, FULL_HEIGHT))
    bounds[(bounds[:, 2:] <= bounds[:, :2]).any(axis=1)] = np.nan
    return bounds


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


def to_jpeg(image: Image.Image) -> bytes:
    """Full colour resolution: lamps are a pixel or two at the demo's size."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88, subsampling=0)
    return buffer.getvalue()
