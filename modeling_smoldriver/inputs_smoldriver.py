"""What a model may be shown: the cameras' names, and how any picture becomes RGB. It needs no model library.

The scene rows are written by the same rules (see `smoldriver_common/shipped.py`).
"""

import numpy as np
from PIL import Image

CAMERAS = (
    "CAM_FRONT_LEFT",
    "CAM_FRONT",
    "CAM_FRONT_RIGHT",
    "CAM_BACK_LEFT",
    "CAM_BACK",
    "CAM_BACK_RIGHT",
)
"""nuScenes' six surround cameras, in the one order that data, prompt and resamplers share."""


def to_rgb(image: Image.Image) -> Image.Image:
    """Any PIL mode to 8-bit RGB; 16-bit grey keeps its upper byte, alpha is dropped."""
    image.load()
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        image = Image.fromarray((values >> (8 if values.max(initial=0) > 255 else 0)).clip(0, 255).astype(np.uint8))
    return image.convert("RGB")
