"""The six cameras of the synthetic car.

Their mounting and intrinsics are those of a nuScenes car, rounded. The intrinsics are for 1600x900 pixels and scale
with the picture. Camera frame: x right, y down, z forward. There is no lens distortion, and all six cameras expose at
the same moment.
"""

import math

import numpy as np

# Translation in the ego frame (m), yaw (degrees, left positive), focal length and principal point at 1600x900.
CAMERA_CALIBRATION = {
    "CAM_FRONT_LEFT": ((1.52, 0.49, 1.51), 55.0, 1272.0, (826.0, 480.0)),
    "CAM_FRONT": ((1.70, 0.02, 1.51), 0.0, 1266.0, (816.0, 491.0)),
    "CAM_FRONT_RIGHT": ((1.55, -0.49, 1.50), -55.0, 1260.0, (808.0, 495.0)),
    "CAM_BACK_LEFT": ((1.04, 0.48, 1.59), 110.0, 1257.0, (792.0, 493.0)),
    "CAM_BACK": ((0.03, 0.00, 1.58), 180.0, 809.0, (829.0, 482.0)),
    "CAM_BACK_RIGHT": ((1.01, -0.48, 1.56), -110.0, 1259.0, (807.0, 501.0)),
}
# The project's order, written out here so that the world needs no more than numpy and Pillow.
CAMERAS = tuple(CAMERA_CALIBRATION)
FULL_WIDTH, FULL_HEIGHT = 1600, 900


def camera_rotation(name: str) -> np.ndarray:
    """(3, 3), columns are the camera's right, down and forward axes in the ego frame."""
    yaw = math.radians(CAMERA_CALIBRATION[name][1])
    c, s = math.cos(yaw), math.sin(yaw)
    return np.array([[s, 0.0, c], [-c, 0.0, s], [0.0, -1.0, 0.0]])


def camera_intrinsics(name: str, width: int, height: int) -> np.ndarray:
    """(3, 3) for a picture of that many pixels."""
    _, _, focal, (cx, cy) = CAMERA_CALIBRATION[name]
    x, y = width / FULL_WIDTH, height / FULL_HEIGHT
    return np.array([[focal * x, 0.0, cx * x], [0.0, focal * y, cy * y], [0.0, 0.0, 1.0]])


def rotated(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """`points @ matrix` without BLAS, whose last bits and threads differ between machines."""
    return np.einsum("...i,ij->...j", points, matrix)
