"""The ground of a synthetic scene: what is painted on it, and a map of the ground around the ego."""

import math

import numpy as np
from PIL import Image, ImageDraw

from data_scripts.world.agents import Agent
from data_scripts.world.cameras import rotated
from data_scripts.world.colours import GROUNDS, SKIES, dim, pack
from data_scripts.world.road import (
    CHANGE_LEFT,
    CHANGE_RIGHT,
    GO_STRAIGHT,
    LANE_WIDTH,
    PATH_BEHIND,
    PAVEMENT_WIDTH,
    SAME_LANES,
    TURN_LEFT,
    TURN_RIGHT,
    arrow_places,
    ego_offset,
)
from data_scripts.world.simulation import Scene

MAP_RANGE = 45.0  # metres of ground around the ego; haze beyond
WHITE, YELLOW, KERB, PAVEMENT = (235, 235, 235), (240, 200, 60), (225, 222, 215), (178, 172, 165)


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
        asphalt = (scene.asphalt,) * 3
        left, right = scene.kerb_left, scene.kerb_right
        start, end = -PATH_BEHIND + 1, scene.legs[-1].end + 60.0
        arms = [arm for leg in scene.legs if leg.junction is not None for arm in cross_streets(scene, leg)]
        for arm in arms:
            self.add(street(*arm, 6.0 + PAVEMENT_WIDTH), PAVEMENT)
        self.strip(scene, start, end, right - PAVEMENT_WIDTH, left + PAVEMENT_WIDTH, PAVEMENT)
        for arm in arms:
            self.add(street(*arm, 6.0), asphalt)
        self.strip(scene, start, end, right, left, asphalt)
        at = start
        for low, high in [*junction_zones(scene), (end, end)]:
            if low > at:
                self.markings(scene, at, low)
            at = max(at, high)
        self.stop_lines(scene)

    def markings(self, scene: Scene, start: float, end: float) -> None:
        """Parking strips, kerbs and lines between two junctions."""
        asphalt, left, right = scene.asphalt, scene.kerb_left, scene.kerb_right
        same, opposite = -LANE_WIDTH * SAME_LANES, LANE_WIDTH * scene.opposite_lanes
        strip = (asphalt + 28, asphalt + 26, asphalt + 20)
        for d0, d1, colour in (
            (right, same, strip),
            (opposite, left, strip),
            (right - 0.3, right + 0.1, KERB),
            (left - 0.1, left + 0.3, KERB),
            (same - 0.1, same + 0.1, WHITE),
            (opposite - 0.1, opposite + 0.1, WHITE),
            (-0.25, -0.05, YELLOW),
            (0.05, 0.25, YELLOW),
        ):
            self.strip(scene, start, end, d0, d1, colour)
        for lane in [*range(1 - scene.opposite_lanes, 0), *range(1, SAME_LANES)]:
            d = -lane * LANE_WIDTH
            self.bars(scene, np.arange(start + 1, end - 3, 9.0), 3.5, d - 0.1, d + 0.1, WHITE)

    def stop_lines(self, scene: Scene) -> None:
        """Stop lines and a zebra crossing at each light."""
        same, opposite = -LANE_WIDTH * SAME_LANES, LANE_WIDTH * scene.opposite_lanes
        for leg in scene.light_legs:
            self.bars(scene, [leg.stop_line - 0.3], 0.6, same, -0.3, WHITE)
            self.bars(scene, [leg.oncoming_line - 0.3], 0.6, 0.3, opposite, WHITE)
            stripes = np.arange(scene.kerb_right + 0.5, scene.kerb_left - 0.5, 1.4)
            self.bars(scene, np.full_like(stripes, leg.stop_line + 0.8), 2.2, stripes, stripes + 0.7, WHITE)

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


def junction_zones(scene: Scene) -> list[tuple[float, float]]:
    """Intervals of s without road markings."""
    zones = []
    for leg in scene.legs:
        if leg.is_turn:
            zones.append((leg.bend_start - 1.0, leg.end + 1.0))
        elif leg.junction is not None:
            zones.append((leg.junction - 7.0, leg.junction + 7.0))
    return zones


def cross_streets(scene: Scene, leg):
    """(x, y, yaw) of the streets that leave a junction and that the ego does not follow."""
    if leg.is_turn:
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
    """The corners of a street that begins at x, y."""
    c, s = math.cos(yaw), math.sin(yaw)
    corners = ((0, -half_width), (length, -half_width), (length, half_width), (0, half_width))
    return [(x + a * c - b * s, y + a * s + b * c) for a, b in corners]


class GroundPainter:
    """Paints the ground around the ego as a square map of `cells` x `cells`, each `cell` metres wide."""

    def __init__(self, cell: float):
        self.cell = cell
        self.cells = int(round(2 * MAP_RANGE / cell))

    def paint(self, scene: Scene, ground: GroundMap, t: int) -> np.ndarray:
        """(cells * cells + 1,) packed colours of the ground around the ego; the last one is the haze beyond it."""
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
        self.paint_shadows_and_glow(scene, t, draw, brightness)
        packed = np.empty(self.cells * self.cells + 1, dtype=np.uint32)
        packed[:-1] = np.frombuffer(image.tobytes("raw", "RGBX"), dtype="<u4")
        packed[-1] = pack(np.array([dim((150, 150, 150), brightness)], dtype=float))[0]
        return packed

    def paint_shadows_and_glow(self, scene: Scene, t: int, draw, brightness: float) -> None:
        """Shadows below vehicles; light on the road ahead of moving ones, red behind stopped ones."""
        x, y, yaw, _ = scene.ego[t]
        ego_c, ego_s = math.cos(yaw), math.sin(yaw)
        for i, agent in enumerate(scene.agents):
            if agent.kind in ("pedestrian", "traffic cone", "barrier"):
                continue
            dx, dy = scene.poses[t, i, 0] - x, scene.poses[t, i, 1] - y
            if dx * dx + dy * dy > MAP_RANGE * MAP_RANGE:
                continue
            place = (dx * ego_c + dy * ego_s, dy * ego_c - dx * ego_s, scene.poses[t, i, 2] - yaw)
            for patch, colour in patches_of(agent, str(scene.statuses[t, i]), brightness):
                self.paint_patch(draw, place, patch, colour)

    def paint_patch(self, draw, place: tuple[float, float, float], patch, colour) -> None:
        """A trapezium in the frame of an object, which is at x, y and yaw `place` in the ego frame."""
        x, y, turn = place
        x0, x1, half0, half1 = patch
        c, s = math.cos(turn), math.sin(turn)
        corners = ((x0, -half0), (x1, -half1), (x1, half1), (x0, half0))
        points = [value for a, b in corners for value in (x + a * c - b * s, y + a * s + b * c)]
        draw.polygon([(value + MAP_RANGE) / self.cell for value in points], fill=colour)


def patches_of(agent: Agent, status: str, brightness: float):
    """Yields what a vehicle throws on the ground: (from x, to x, half the width there and there), colour."""
    width, length, _ = agent.size
    half, side = length / 2, width / 2
    yield (-half - 0.1, half + 0.1, side + 0.2, side + 0.2), dim((38, 38, 42), brightness)
    if status == "moving" and agent.kind != "bicycle":
        yield (half, half + 4.5, side, side * 1.6), dim((250, 235, 160), max(brightness, 0.8))
    elif status == "stopped" and agent.kind != "bicycle":
        yield (-half - 3.0, -half, side * 1.2, side), dim((205, 40, 30), max(brightness, 0.8))
