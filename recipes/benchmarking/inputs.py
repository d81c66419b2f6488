"""What the benchmarks ask, and about which pictures; needs no model."""

import itertools

import numpy as np
from PIL import Image

from smoldriver_common.shipped import CAMERAS

OBJECTS = ("barriers", "parked trucks", "moving cars", "motorcycles with riders", "standing pedestrians", "bicycles")
PLACES = ("front", "front left", "front right", "back", "back left", "back right")


def drivelm_style_questions(count: int) -> list[tuple[str, str]]:
    """`count` different (question, answer) pairs in DriveLM's wording and mix of lengths, object tags included."""
    generator = np.random.default_rng(0)

    def tag(number: int) -> str:
        x, y = generator.uniform(0, 1600), generator.uniform(300, 600)
        return f"<c{number},{CAMERAS[generator.integers(6)]},{x:.1f},{y:.1f}>"

    def draw(form: int) -> tuple[str, str]:
        thing, place = OBJECTS[generator.integers(len(OBJECTS))], PLACES[generator.integers(len(PLACES))]
        where = f"to the {place} of the ego car"
        return (
            (f"Are there {thing} {where}?", "Yes."),
            (f"What are objects {where}?", f"There are two trucks, many {thing} and one car {where}."),
            (f"What is the status of the {thing} that are {where}?", "One of them is parked and one is moving."),
            (f"Is {tag(1)} an object that the ego vehicle should consider in the current scene?", "No."),
            (f"What is the future state of {tag(2)}?", "Turn left."),
            (f"What object would consider {tag(1)} to be most relevant to its decision?", f"{tag(2)}."),
            (f"What actions could the ego vehicle take based on {tag(3)}?", "Brake gently to a stop, slow down."),
            (f"Would {tag(2)} be in the moving direction of the ego vehicle?", "No."),
        )[form]

    pairs = {}
    for number in itertools.count():
        pairs.setdefault(*draw(number % 8))
        if len(pairs) == count:
            return list(pairs.items())


def pictures(width: int = 640, height: int = 360, seed: int = 0) -> dict[str, Image.Image]:
    """Coarse noise for the six cameras."""
    generator = np.random.default_rng(seed)
    noise = generator.integers(0, 256, (len(CAMERAS), 9, 16, 3), dtype=np.uint8)
    return {name: Image.fromarray(pixels).resize((width, height)) for name, pixels in zip(CAMERAS, noise, strict=True)}
