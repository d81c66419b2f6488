"""One frame of a drive as a picture: six views, the scene from above, answers, guard and events."""

import io
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, Patch, Rectangle
from PIL import Image, ImageColor

from data_scripts.world.agents import THINGS
from data_scripts.world.colours import LAMP
from data_scripts.world.simulation import SAMPLE_SECONDS
from data_scripts.world.vehicle import ego_boxes
from recipes.driving.replay import Drive, Moment
from recipes.metrics.driving.driven_scenes import DrivenEvent
from recipes.planning.from_above import box_patch, draw_way, upwards
from smoldriver_common.whole_files import written_whole

LAYOUT = [["CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT"], ["CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT"]]
WIDTH, HEIGHT, DOTS = 900, 752, 100  # pixels, and per inch
HEAD, VIEW_HEIGHT = 34, 168
BELOW = HEAD + 2 * VIEW_HEIGHT + 6  # pixels from the top
MAP_WIDTH = 470
AHEAD, BEHIND = 33.0, 9.0  # metres that are shown
MILLISECONDS = round(1000 * SAMPLE_SECONDS)

LUMINANCE = (0.299, 0.587, 0.114)  # the ground is grey: colour means something
# Okabe and Ito's colours, which colour-blind readers can tell apart, on dark asphalt
PLAN, EXPERT, EGO = "#56b4e9", "#ffffff", "#0072b2"
PLAN_STYLE = {"color": PLAN, "linewidth": 2.0, "markersize": 4.5}
EXPERT_STYLE = {"color": EXPERT, "linewidth": 4.5, "markersize": 8.5}
KINDS = {"vehicle": "#c9ccd1", "two wheels": "#cc79a7", "pedestrian": "#e69f00", "cone, barrier": "#f0e442"}
LIGHTS = {"red": "#d55e00", "yellow": "#f0e442", "green": "#009e73"}
ALARM, INK, PALE, ASPHALT = "#c43c00", "#1c1f24", "#5d646d", "#4f5257"
MEANING = (*KINDS.values(), *LIGHTS.values(), PLAN, EXPERT, EGO, ALARM, INK)
KEPT = [*map(ImageColor.getrgb, MEANING), *LAMP.values()]  # whatever else is in a picture


@dataclass(frozen=True)
class Answered:
    """A question to the SmolDriver, and what it answered."""

    question: str
    answer: str


def draw(drive: Drive, moment: Moment, answers: list[Answered]) -> Image.Image:
    """-> RGB, WIDTH x HEIGHT pixels."""
    figure = Figure(figsize=(WIDTH / DOTS, HEIGHT / DOTS), dpi=DOTS, facecolor="white")
    draw_head(figure, drive, moment)
    draw_views(figure, moment.pictures)
    draw_from_above(area(figure, 0, BELOW, MAP_WIDTH, HEIGHT - BELOW), moment)
    write_words(area(figure, MAP_WIDTH + 14, BELOW, WIDTH - MAP_WIDTH - 20, HEIGHT - BELOW), drive, moment, answers)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def area(figure: Figure, left: int, top: int, width: int, height: int):
    """Axes without frame at a place in pixels from the top left."""
    place = left / WIDTH, 1 - (top + height) / HEIGHT, width / WIDTH, height / HEIGHT
    axes = figure.add_axes(place)
    axes.set_axis_off()
    return axes


def draw_head(figure: Figure, drive: Drive, moment: Moment) -> None:
    y = 1 - HEAD / 2 / HEIGHT
    name = textwrap.shorten(drive.policy, 22)
    figure.text(0.009, y, name, fontsize=12, weight="bold", color=EGO, va="center", parse_math=False)
    figure.text(0.27, y, f"scene {drive.index} of world {drive.seed}", fontsize=10, color=PALE, va="center")
    figure.text(0.50, y, moment.command, fontsize=10, color=INK, va="center")
    figure.text(0.845, y, f"{moment.speed:.1f} m/s", fontsize=12, color=INK, va="center", ha="right")
    figure.text(0.991, y, f"{moment.time:.1f} s", fontsize=12, weight="bold", color=INK, va="center", ha="right")


def draw_views(figure: Figure, pictures: dict) -> None:
    for row, cameras in enumerate(LAYOUT):
        for column, camera in enumerate(cameras):
            left = column * WIDTH // 3
            panel = area(figure, left, HEAD + row * VIEW_HEIGHT, WIDTH // 3 - 2, VIEW_HEIGHT - 2)
            panel.imshow(pictures[camera])
            name = camera.removeprefix("CAM_").replace("_", " ").lower()
            box = {"facecolor": "black", "alpha": 0.6, "pad": 2, "edgecolor": "none"}
            panel.text(0.02, 0.94, name, fontsize=8, color="white", va="top", transform=panel.transAxes, bbox=box)


def draw_from_above(panel, moment: Moment) -> None:
    height = HEIGHT - BELOW
    aside = (AHEAD + BEHIND) * MAP_WIDTH / height / 2
    panel.set_xlim(-aside, aside)
    panel.set_ylim(-BEHIND, AHEAD)
    panel.axhspan(-BEHIND, AHEAD, facecolor="#8f9a80")
    colours = [str(np.dot(colour, LUMINANCE) / 255) for _, colour in moment.ground]
    panel.add_collection(PolyCollection([upwards(p) for p, _ in moment.ground], facecolors=colours, zorder=1))
    for ends, colour in moment.lights:
        (left, low), (right, high) = upwards(ends)
        panel.plot((left, right), (low, high), linewidth=5, color=LIGHTS[colour], solid_capstyle="butt", zorder=2)
        label(panel, upwards(ends)[0] + (1.0, 0.0), colour, LIGHTS[colour])
    for agent, box in zip(moment.agents, moment.boxes, strict=True):
        style = {"facecolor": KINDS[kind_of(agent.kind)], "edgecolor": "black", "linewidth": 0.8, "zorder": 3}
        small = agent.kind in ("pedestrian", "traffic cone")
        panel.add_patch(Circle(upwards(box[:2]), 0.6, **style) if small else box_patch(box, **style))
        if agent.kind not in ("pedestrian", *THINGS):  # the front
            front = box[:2] + box[3] / 2 * np.array([np.cos(box[2]), np.sin(box[2])])
            panel.plot(*upwards(np.stack([box[:2], front])).T, color="black", linewidth=1.2, zorder=3)
    panel.add_patch(box_patch(ego_boxes(np.zeros(3)), facecolor=EGO, edgecolor="white", linewidth=1.2, zorder=4))
    draw_way(panel, moment.expert, zorder=5, **EXPERT_STYLE)  # wide, so that it is seen below a plan that is the same
    draw_way(panel, moment.plan, zorder=6, **PLAN_STYLE)
    for event, place in moment.events:
        colour = ALARM if event.at_fault else PALE
        panel.plot(*upwards(place), marker="X", markersize=13, color=colour, markeredgecolor="white", zorder=7)
        if event.time > moment.time:  # in the half second that follows
            panel.add_patch(Rectangle((0, 0), 1, 1, fill=False, color=colour, linewidth=9, transform=panel.transAxes))


def label(panel, place: np.ndarray, text: str, colour: str) -> None:
    box = {"facecolor": "#1c1f24", "pad": 2, "edgecolor": colour}
    panel.text(*place, text, fontsize=8, color="white", va="center", zorder=8, bbox=box, clip_on=True)


def kind_of(kind: str) -> str:
    """Of KINDS."""
    if kind in THINGS:
        return "cone, barrier"
    if kind in ("bicycle", "motorcycle"):
        return "two wheels"
    return kind if kind in KINDS else "vehicle"


def write_words(panel, drive: Drive, moment: Moment, answers: list[Answered]) -> None:
    """The column beside the map, from its top downwards; the axes count pixels."""
    height = HEIGHT - BELOW
    panel.set_xlim(0, WIDTH - MAP_WIDTH - 20)
    panel.set_ylim(height, 0)
    y = 8
    for answered in answers:
        y = lines(panel, y, answered.question, color=PALE, fontsize=9.5)
        y = lines(panel, y, answered.answer or "(no answer)", color=INK, fontsize=10.5, weight="bold") + 10
    if moment.guard is not None:
        state = f"guard: brakes for {moment.guard}" if moment.guard else "guard: lets the plan be"
        text = f"{state}; interventions until now: {moment.interventions}"
        y = lines(panel, y, text, color=ALARM if moment.guard else INK, fontsize=10) + 8
    for event, _ in moment.events[-4:]:
        text = f"{event.time:.1f} s: {words_of(event)}"
        y = lines(panel, y, text, color=ALARM if event.at_fault else INK, fontsize=10.5, weight="bold")
    draw_legend(panel)


def draw_legend(panel) -> None:
    ways = {"plan": PLAN_STYLE, "the expert's way from here": EXPERT_STYLE}
    handles = [Line2D([], [], marker="o", label=name, **style) for name, style in ways.items()]
    handles += [Patch(facecolor=EGO, edgecolor="white", label="ego")]
    handles += [Patch(facecolor=colour, edgecolor="black", label=name) for name, colour in KINDS.items()]
    options = {"facecolor": ASPHALT, "labelcolor": "white", "framealpha": 1, "edgecolor": ASPHALT}
    panel.legend(handles=handles, fontsize=9, loc="lower left", ncols=2, borderaxespad=0.4, **options)


def words_of(event: DrivenEvent) -> str:
    """ "HIT a vehicle (stands in the lane)", "RAN a red light", "LEFT the route", "touched: vehicle (from behind)"."""
    if not event.at_fault:
        return f"touched: {event.kind} ({event.where})"
    deeds = {"red light": "RAN a red light", "left the route": "LEFT the route"}
    return deeds.get(event.kind, f"HIT a {event.kind} ({event.where})")


def lines(panel, y: float, text: str, fontsize: float, **style) -> float:
    """Write a text in as many lines as it needs, four at most -> where the next one begins."""
    text = "".join(letter if letter.isprintable() else " " for letter in text)  # a model may answer anything
    characters = (WIDTH - MAP_WIDTH) / fontsize * (1.12 if "weight" in style else 1.3)
    for line in textwrap.wrap(text, round(characters))[:4]:
        panel.text(0, y, line, fontsize=fontsize, va="top", parse_math=False, **style)
        y += 1.65 * fontsize
    return y + 2


def write_gif(pictures: list[Image.Image], path: Path, limit: int) -> int:
    """In real time, with as many colours as the limit in bytes allows -> bytes."""
    options = {"save_all": True, "duration": MILLISECONDS, "loop": 0}

    def encoded(colours: int) -> bytes:
        first, *others = [in_colours(picture, colours) for picture in pictures]
        return bytes_of(first, format="GIF", append_images=others, **options)

    return write_within(encoded, path, limit)


def write_png(picture: Image.Image, path: Path, limit: int) -> int:
    """With as many colours as the limit in bytes allows -> bytes."""
    return write_within(lambda n: bytes_of(in_colours(picture, n), format="PNG", optimize=True), path, limit)


def in_colours(picture: Image.Image, colours: int) -> Image.Image:
    """So many colours at most: those that mean something, and the picture's own."""
    own = picture.quantize(colours - len(KEPT)).getpalette()
    palette = Image.new("P", (1, 1))
    palette.putpalette([*own, *(value for colour in KEPT for value in colour)])
    return picture.quantize(palette=palette, dither=Image.Dither.NONE)


def bytes_of(picture: Image.Image, **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, **options)
    return file.getvalue()


def write_within(encoded: Callable[[int], bytes], path: Path, limit: int) -> int:
    """Raises ValueError where not even 32 colours are few enough."""
    for colours in (256, 128, 64, 32):
        data = encoded(colours)
        if len(data) <= limit:
            with written_whole(path) as aside:
                aside.write_bytes(data)
            return len(data)
    raise ValueError(f"{path} would have {len(data):,} bytes, more than {limit:,}: draw a shorter scene")
