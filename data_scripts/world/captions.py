"""What each single view of a synthetic frame shows: captions to pretrain a base model on, before driving questions.

The world's `captions.json` maps a key frame's token to the views that can be captioned, and those to lists of
`[number, attribute, noun]`:

    {"<sample token>": {"CAM_FRONT": [["two", "moving", "cars"], ["one", "red", "light"], ["one", "left", "arrow"]]}}

A view with an UNCLEAR object (see `sight.py`) has no caption. Nor has a view other than the front one that shows a
traffic light. Attributes are the status (moving, stopped, parked, standing), `ridden`
or `empty` of bicycles and motorcycles, nothing ("") of cones and barriers, the colour of a traffic light and the
direction of the arrows on the ego's lane (straight, left, right, slanted left, slanted right).
"""

from collections import Counter

from data_scripts.world.driving import target_action
from data_scripts.world.road import CHANGE_LEFT, CHANGE_RIGHT, GO_STRAIGHT, TURN_LEFT, TURN_RIGHT
from data_scripts.world.sight import Frame, Seen
from data_scripts.world.simulation import Scene
from data_scripts.world.words import CLASSES, DIRECTIONS, PLURALS

NUMBERS = ("one", "two", "three", "many")
ARROWS = {
    GO_STRAIGHT: "straight",
    TURN_LEFT: "left",
    TURN_RIGHT: "right",
    CHANGE_LEFT: "slanted left",
    CHANGE_RIGHT: "slanted right",
}


def captions(scene: Scene, frame: Frame) -> dict[str, list[list[str]]]:
    """The captions of a frame's views, by camera."""
    action = target_action(scene, frame)
    found = {}
    for camera in DIRECTIONS:
        if any(where == camera for where, _ in frame.unclear):
            continue
        here = frame.in_camera(camera)
        counts = Counter((o.kind, _attribute(o)) for o in here if o.kind != "traffic light")
        items = []
        for kind in CLASSES:
            for (other, attribute), count in sorted(counts.items()):
                if other == kind:
                    items.append([NUMBERS[min(count, 4) - 1], attribute, kind if count == 1 else PLURALS[kind]])
        items += [["one", o.colour, "light"] for o in here if o.kind == "traffic light"][:1]
        if camera == "CAM_FRONT" and action is not None:
            items.append(["one", ARROWS[action], "arrow"])
        found[camera] = items
    return found


def _attribute(o: Seen) -> str:
    if o.kind in ("bicycle", "motorcycle"):
        return "ridden" if o.rider else "empty"
    return o.status
