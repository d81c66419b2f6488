"""Colours of a synthetic scene and how the light of a weather changes them."""

import numpy as np

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


def dim(colour, brightness: float) -> tuple[int, int, int]:
    """A colour in the light of a weather."""
    return tuple(int(min(255.0, value * brightness)) for value in colour)


def pack(colours: np.ndarray) -> np.ndarray:
    """(n, 3) colours as (n,) little-endian RGBX words."""
    values = np.clip(colours, 0, 255).astype(np.uint32)
    return values[:, 0] | (values[:, 1] << 8) | (values[:, 2] << 16)
