"""Oriented boxes in the plane: corners, overlap, and the headings that a path of waypoints implies. numpy alone."""

import numpy as np

MIN_CHORD = 0.5  # metres per second: below it a path has no direction of its own


def box_corners(boxes):
    """Corners of boxes (..., 5), x, y, yaw, length, width, in turn round each box -> (..., 4, 2)."""
    x, y, yaw, length, width = np.moveaxis(boxes, -1, 0)
    along = np.stack([np.cos(yaw), np.sin(yaw)], axis=-1)[..., None, :] * (length / 2)[..., None, None]
    across = np.stack([-np.sin(yaw), np.cos(yaw)], axis=-1)[..., None, :] * (width / 2)[..., None, None]
    signs = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]])
    return np.stack([x, y], axis=-1)[..., None, :] + signs[:, :1] * along + signs[:, 1:] * across


def boxes_overlap(one, other):
    """Whether boxes (..., 5) touch: the separating-axis test on their four sides' directions. Exact, without a grid.

    -> (...) bool, of the shape that the two broadcast to.
    """
    one, other = np.broadcast_arrays(one, other)
    between = other[..., :2] - one[..., :2]
    turn = other[..., 2] - one[..., 2]
    cos, sin = np.abs(np.cos(turn)), np.abs(np.sin(turn))
    overlap = np.ones(between.shape[:-1], dtype=bool)
    for box, guest in ((one, other), (other, one)):
        yaw, (length, width), (far, wide) = box[..., 2], _halves(box), _halves(guest)
        along = between[..., 0] * np.cos(yaw) + between[..., 1] * np.sin(yaw)
        across = between[..., 1] * np.cos(yaw) - between[..., 0] * np.sin(yaw)
        overlap &= np.abs(along) <= length + far * cos + wide * sin
        overlap &= np.abs(across) <= width + far * sin + wide * cos
    return overlap


def _halves(boxes):
    return boxes[..., 3] / 2, boxes[..., 4] / 2


def plan_headings(waypoints):
    """Headings of a car whose rear axle passes through waypoints (..., 6, 2), from heading 0 at (0, 0) -> (..., 6).

    The heading at a waypoint is the direction from the one before to the one after, which on an arc is the tangent.
    At the last waypoint the car turns from the heading before to the last chord and by the same angle again: the arc
    continues. A chord slower than 0.5 m/s keeps the heading before. A chord more than 90 degrees from the heading
    before is driven in reverse.
    """
    points = np.concatenate([np.zeros_like(waypoints[..., :1, :]), waypoints], axis=-2)
    heading, headings = np.zeros(waypoints.shape[:-2]), []
    last = waypoints.shape[-2]
    for step in range(1, last + 1):
        chord = points[..., min(step + 1, last), :] - points[..., step - 1, :]
        seconds = 0.5 if step == last else 1.0
        turn = _wrap(np.arctan2(chord[..., 1], chord[..., 0]) - heading)
        turn = np.where(np.abs(turn) > np.pi / 2, _wrap(turn + np.pi), turn)
        if step == last:
            turn = 2 * turn
        moves = np.linalg.norm(chord, axis=-1) >= MIN_CHORD * seconds
        heading = np.where(moves, heading + turn, heading)
        headings.append(heading)
    return np.stack(headings, axis=-1)


def _wrap(angle):
    return (angle + np.pi) % (2 * np.pi) - np.pi
