"""What the cameras see of one frame of a synthetic scene.

A traffic light is in sight only where the front camera shows its lit lamp, and only before the ego has passed its stop
line: a light that is dark or passed is UNCLEAR.

An object is CLEAR in a camera that shows at least MIN_PIXELS of it (in pixels of 1600x900; 13 of 96x96) and a fifth of
its outline, and not just a thin slice at the edge. Any smaller piece of it is UNCLEAR there: where an unclear piece
could change an answer, the question is not asked. An object that two cameras share is seen by both, as it would be for
someone who describes the pictures one by one.
"""

from dataclasses import dataclass

import numpy as np

from data_scripts.world.cameras import CAMERAS, FULL_WIDTH
from data_scripts.world.manoeuvres import lane_of
from data_scripts.world.render import Look
from data_scripts.world.road import LANE_WIDTH
from data_scripts.world.scenarios import ONCOMING_TURN
from data_scripts.world.simulation import MATTERS_FOR, Scene
from data_scripts.world.surroundings import Source
from data_scripts.world.traffic import EGO_FRONT, has_to_pass

MIN_PIXELS = 2000.0  # of 1600x900
MAX_UNSEEN_PIXELS = 500.0  # a piece this small counts as not visible at all
MIN_SHARE = 0.2  # of the outline's box
MIN_SLICE = 110.0  # width in pixels of 1600 of what the edge of the picture cuts off; 6.6 of 96
# On which side the ego gets round what blocks its lane within 3 s, or that it waits; what the scene's end leaves open.
WAITS, OPEN = "wait", "open"
WAYS_ROUND = ("left", "right", WAITS, OPEN)
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
    crossing: bool  # walks across the road, and still has to pass the ego's lane
    main: bool  # the camera shows more of it than the others
    agent: int | None = None  # its number in the scene's `agents`; None for a light
    joining: bool = False  # changes to the ego's lane before the ego
    oncoming: bool = False  # comes straight on where the ego turns left and has to give way
    way_round: str = ""  # of what blocks the ego's lane: a side of WAYS_ROUND; "" of all else
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
    hidden = signals_out_of_sight(scene, t, look)
    frame = Frame(t, [], set(), {})
    pixels_of = np.where(hidden, 0, look.pixels)
    best_camera = pixels_of.argmax(axis=0)
    most_first = sorted(range(len(look.sources)), key=lambda n: -pixels_of[best_camera[n], n])
    signals, clear_signals = set(), set()
    for n in most_first:
        source, pixels, boxes = look.sources[n], pixels_of[:, n], look.bounds[:, n]
        if source.what == "agent":
            frame.visibility[source.index] = visible_share(pixels, boxes)
        elif source.index in signals:
            continue  # the heads of a signal, which show the same colour, count once: the one that shows most
        else:
            signals.add(source.index)
        clear = clear_in(pixels, boxes)
        if source.what == "light" and clear[FRONT]:
            clear_signals.add(source.index)
        for camera, name in enumerate(CAMERAS):
            if clear[camera]:
                main = camera == best_camera[n] or not clear[best_camera[n]]
                frame.seen.append(seen_object(scene, t, source, name, boxes[camera], bool(main)))
            elif pixels[camera] > MAX_UNSEEN_PIXELS:
                kind = scene.agents[source.index].kind if source.what == "agent" else "traffic light"
                frame.unclear.add((name, kind))
    for camera, n in zip(*np.nonzero(hidden & (look.pixels > MAX_UNSEEN_PIXELS)), strict=True):
        if camera != FRONT or look.sources[n].index not in clear_signals:
            frame.unclear.add((CAMERAS[camera], "traffic light"))
    return frame


def signals_out_of_sight(scene: Scene, t: int, look: Look) -> np.ndarray:
    """(camera, object) bool: the heads of lights that do not count, so that the view of a camera that shows one has no
    caption: those in other cameras than the front one, those whose lit lamp does not show, and those of a signal whose
    stop line the ego has passed."""
    hidden = np.tile([source.what == "light" for source in look.sources], (len(CAMERAS), 1))
    for n, source in enumerate(look.sources):
        if source.what == "light":
            ahead = scene.light_legs[source.index].stop_line > scene.ego_s[t] + EGO_FRONT
            hidden[FRONT, n] = not (ahead and look.lamps[FRONT, n])
    return hidden


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
    crossing = agent.crossing and status == "moving" and has_to_pass(agent, d, float(scene.ego_d[t]))
    seen = Seen(agent.kind, status, agent.colour, agent.rider, camera, box, ahead, left, half, crossing, main, index)
    if ahead > 0:
        seen.joining = is_joining(scene, t, index)
        seen.oncoming = agent.street is not None and s > agent.street and ONCOMING_TURN in scene.active[t]
        seen.way_round = way_round(scene, t, index) if agent.blocks and abs(left) < 1.5 else ""
    return seen


def is_joining(scene: Scene, t: int, index: int) -> bool:
    """Whether an agent is on its way to the ego's lane."""
    joins, d = scene.agents[index].joins, scene.road[:, index, 1]
    if joins is None or abs(joins - scene.ego_d[t]) > 1.5:
        return False
    return bool(abs(d[t] - d[0]) > 0.2 and abs(d[t] - joins) > 0.3)


def way_round(scene: Scene, t: int, index: int) -> str:
    """How the ego gets round what blocks its lane: one of WAYS_ROUND."""
    d = float(scene.road[t, index, 1])
    coming = scene.ego_d[t : t + MATTERS_FOR + 1]
    if (np.abs(coming - d) > LANE_WIDTH / 2).any():
        return "right" if lane_of(d) == 0 else "left"
    return WAITS if len(coming) > MATTERS_FOR else OPEN
