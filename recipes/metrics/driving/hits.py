"""Which contacts of two boxes are the ego's fault. numpy and siblings alone.

The rule is NAVSIM's (autonomousvision/navsim @0a380a9, pdm_scorer.py; the kinds are nuPlan's): the ego is at fault
where it hits with its front or hits who stands still, and at the side where it is in several lanes or off the road.
An ego that stands still is never at fault, and neither is one that is hit from behind.
"""

import numpy as np

from .oriented_boxes import box_corners, boxes_overlap

STANDS = 0.05  # m/s
BEHIND = np.radians(150)  # a middle at a larger angle to the ego's heading is behind it
AHEAD = np.radians(30)


def hit_kinds(ego_box, ego_axle, ego_speed, boxes, speeds):
    """How the ego touches boxes.

    Args:
        ego_box: (5,): x, y, yaw, length, width; metres and radians.
        ego_axle: (2,): x, y of its rear axle, from where angles are measured.
        ego_speed: m/s.
        boxes: (N, 5).
        speeds: (N,) m/s.

    -> list of N: None for no contact, else "ego stands", "they stand", "rear", "front" or "side".
    """
    kinds = [None] * len(boxes)
    touched = np.flatnonzero(boxes_overlap(ego_box, boxes)) if len(boxes) else []
    for n in touched:
        if ego_speed <= STANDS:
            kinds[n] = "ego stands"
        elif speeds[n] <= STANDS:
            kinds[n] = "they stand"
        elif angle_to(ego_axle, ego_box[2], boxes[n, :2]) > BEHIND:
            kinds[n] = "rear"
        else:
            kinds[n] = "front" if boxes_overlap(front_line(ego_box), boxes[n]) else "side"
    return kinds


def is_at_fault(kind, outside_a_lane):
    """Whether the ego is to blame; `outside_a_lane`: it is in several lanes, or off the road."""
    return kind in ("front", "they stand") or (kind == "side" and outside_a_lane)


def angle_to(axle, yaw, point):
    """Radians, 0 .. pi, between a heading and the direction from the rear axle to points (..., 2)."""
    dx, dy = point[..., 0] - axle[..., 0], point[..., 1] - axle[..., 1]
    return np.abs((np.arctan2(dy, dx) - yaw + np.pi) % (2 * np.pi) - np.pi)


def front_line(box):
    """The front edge of a box as a box without length."""
    front_left, _, _, front_right = box_corners(box)
    middle = (front_left + front_right) / 2
    return np.array([middle[0], middle[1], box[2], 0.0, box[4]])
