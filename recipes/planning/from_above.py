"""What a bird's-eye view is drawn from: the ego drives upwards, and its rear axle is the origin."""

import numpy as np
from matplotlib.patches import Polygon

from recipes.metrics.driving.oriented_boxes import box_corners


def upwards(points: np.ndarray) -> np.ndarray:
    """Points (..., 2) of the ego frame (metres, x forward, y left) as right and up on the panel."""
    return np.stack([-points[..., 1], points[..., 0]], axis=-1)


def box_patch(box: list[float], **style) -> Polygon:
    """A box in the ego frame: x, y, yaw, length, width."""
    return Polygon(upwards(box_corners(np.array(box, dtype=np.float64))), **style)


def draw_way(panel, way: np.ndarray, **style) -> None:
    """Waypoints (n, 2) of the ego frame, joined to the ego; `style` is matplotlib's."""
    across, ahead = upwards(np.concatenate([np.zeros((1, 2)), way])).T
    panel.plot(across, ahead, **{"marker": "o", "markersize": 3, "linewidth": 1.4} | style)
