"""What the cameras see of one frame of a synthetic scene.

An object is CLEAR in a camera that shows at least MIN_PIXELS of it (in pixels of 1600x900; 13 of 96x96) and a fifth of
its outline, and not just a thin slice at the edge. Any smaller piece of it is UNCLEAR there: where an unclear piece
could change an answer, the question is not asked. An object that two cameras share is seen by both, as it would be for
someone who describes the pictures one by one.
"""

from dataclasses import dataclass

import numpy as np

from data_scripts.world.cameras import CAMERAS, FULL_WIDTH
from data_scripts.world.render import Look
from data_scripts.world.simulation import Scene
from data_scripts.world.surroundings import Source

MIN_PIXELS = 2000.0  # of 1600x900
MAX_UNSEEN_PIXELS = 500.0  # a piece this small counts as not visible at all
MIN_SHARE = 0.2  # of the outline's box
MIN_SLICE = 110.0  # width in pixels of 1600 of what the edge of the picture cuts off; 6.6 of 96
FRONT = CAMERAS.index("CAM_FRONT")


@dataclass
class Seen:
    """An object in one camera in which it is clear."""

    kind: str  # a class, or "traffic light"
    status: str
    colour: str
    rider: bool
    camera: str
    box: tuple[float, float, float, float]  # x0, y0, x1, y1 in 1600x900 pixels
    ahead: float  # metres along the road from the ego's rear axle to its middle
    left: float  # metres to the left of the ego, across the road
    half_length: float
    crossing: bool
    main: bool  # the camera shows more of it than the others
    tag: str = ""  # `<c1,CAM_FRONT,x,y>` of the important objects

    @property
    def named(self) -> str:
        if self.kind == "traffic light":
            return f"{self.colour} light"
        rider = {True: " with a rider", False: " without a rider"}[self.rider]
        return f"{self.colour} {self.kind}" + (rider if self.kind in ("bicycle", "motorcycle") else "")


@dataclass
class Frame:
    """What the cameras see of one moment."""

    t: int  # number of the 2 Hz moment
    seen: list[Seen]
    unclear: set[tuple[str, str]]  # (camera, kind)
    visibility: dict[int, float]  # agent -> visible share of its outline, for nuScenes' visibility levels

    def in_camera(self, camera: str, kind: str | None = None) -> list[Seen]:
        """The objects that are clear in a camera, of one kind or of all."""
        return [o for o in self.seen if o.camera == camera and kind in (None, o.kind)]

    def light(self) -> Seen | None:
        """The traffic light that the ego has to mind."""
        return next((o for o in self.seen if o.kind == "traffic light"), None)


def frame_of(scene: Scene, t: int, look: Look) -> Frame:
    """The clear and the unclear objects of a rendered frame."""
    beside = signals_beside(look)
    shows = np.where(beside, look.pixels, 0).max(axis=1, initial=0) > MAX_UNSEEN_PIXELS
    frame = Frame(t, [], {(CAMERAS[camera], "traffic light") for camera in np.flatnonzero(shows)}, {})
    pixels_of = np.where(beside, 0, look.pixels)
    best_camera = pixels_of.argmax(axis=0)
    most_first = sorted(range(len(look.sources)), key=lambda n: -pixels_of[best_camera[n], n])
    signals = set()
    for n in most_first:
        source, pixels, boxes = look.sources[n], pixels_of[:, n], look.bounds[:, n]
        if source.what == "agent":
            frame.visibility[source.index] = visible_share(pixels, boxes)
        elif source.index in signals:
            continue  # the heads of a signal, which show the same colour, count once: the one that shows most
        else:
            signals.add(source.index)
        clear = clear_in(pixels, boxes)
        for camera, name in enumerate(CAMERAS):
            if clear[camera]:
                main = camera == best_camera[n] or not clear[best_camera[n]]
                frame.seen.append(seen_object(scene, t, source, name, boxes[camera], bool(main)))
            elif pixels[camera] > MAX_UNSEEN_PIXELS:
                kind = scene.agents[source.index].kind if source.what == "agent" else "traffic light"
                frame.unclear.add((name, kind))
    return frame


def signals_beside(look: Look) -> np.ndarray:
    """(camera, object) bool: the signals in the other cameras than the front one. They do not count, so that the view
    of a camera that shows one has no caption."""
    return np.outer(np.arange(len(CAMERAS)) != FRONT, [source.what == "light" for source in look.sources])


def areas_of(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def visible_share(pixels: np.ndarray, boxes: np.ndarray) -> float:
    """Visible share of an object's outline, which fills about 0.7 of its box."""
    return float(min(1.0, pixels.sum() / max(np.nansum(areas_of(boxes)), 1.0) / 0.7))


def clear_in(pixels: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(camera,) bool: in which cameras an object is clear, by its visible pixels and its boxes (camera, 4)."""
    slices = (boxes[:, 0] <= 0) | (boxes[:, 2] >= FULL_WIDTH)
    wide = ~slices | (boxes[:, 2] - boxes[:, 0] >= MIN_SLICE)
    return (pixels >= MIN_PIXELS) & (pixels >= MIN_SHARE * areas_of(boxes)) & wide


def seen_object(scene: Scene, t: int, source: Source, camera: str, box, main: bool) -> Seen:
    index = source.index
    box = tuple(round(float(value), 1) for value in box)
    if source.what == "light":
        leg = scene.light_legs[index]
        ahead = leg.stop_line - scene.ego_s[t]
        colour = str(scene.light_colours[t, index])
        return Seen("traffic light", "", colour, False, camera, box, ahead, 0.0, 0.0, crossing=False, main=main)
    agent = scene.agents[index]
    s, d = scene.road[t, index].tolist()
    ahead, left = s - float(scene.ego_s[t]), d - float(scene.ego_d[t])
    status, half = str(scene.statuses[t, index]), agent.size[1] / 2
    return Seen(agent.kind, status, agent.colour, agent.rider, camera, box, ahead, left, half, agent.crossing, main)
