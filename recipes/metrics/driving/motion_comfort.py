"""Whether a motion is comfortable, by the six bounds of nuPlan that NAVSIM and Bench2Drive share. numpy alone."""

import numpy as np

# m/s^2, m/s^3, rad/s^2, rad/s: autonomousvision/navsim @0a380a9, pdm_comfort_metrics.py
MIN_ALONG, MAX_ALONG = -4.05, 2.40
MAX_ACROSS = 4.89
MAX_JERK, MAX_JERK_ALONG = 8.37, 4.13
MAX_YAW_ACCELERATION, MAX_YAW_RATE = 1.93, 0.95
SMOOTHED_SECONDS = 0.75  # the window of the fit; the public code takes 8 values at 10 Hz
DEGREE = 2


def comfortable_moments(motion, seconds):
    """(T,) bool: the moments that keep all six bounds.

    Args:
        motion: (T, 4): x, y (m), yaw (radians), speed (m/s).
        seconds: between two moments.
    """
    motion = np.asarray(motion, dtype=float)
    yaw, speed = np.unwrap(motion[:, 2]), motion[:, 3]
    along = derivative(speed, seconds)
    yaw_rate = derivative(yaw, seconds)
    across = speed * yaw_rate
    jerk_along, jerk_across = derivative(along, seconds), derivative(across, seconds)
    return (
        (along > MIN_ALONG)
        & (along < MAX_ALONG)
        & (np.abs(across) < MAX_ACROSS)
        & (np.hypot(jerk_along, jerk_across) < MAX_JERK)
        & (np.abs(jerk_along) < MAX_JERK_ALONG)
        & (np.abs(derivative(yaw_rate, seconds)) < MAX_YAW_ACCELERATION)
        & (np.abs(yaw_rate) < MAX_YAW_RATE)
    )


def derivative(values, seconds):
    """(T,): slope at each moment of the parabola fitted to the moments within the window (Savitzky and Golay 1964).
    At the ends the window is shifted inwards, as in the public code."""
    count = len(values)
    width = min(count, 2 * round(SMOOTHED_SECONDS / seconds / 2) + 1)
    if width < 2:
        return np.zeros(count)
    starts = np.clip(np.arange(count) - width // 2, 0, count - width)
    slopes = np.empty(count)
    for place in range(width):  # place of the moment in its window
        times = (np.arange(width) - place) * seconds
        weights = np.linalg.pinv(np.vander(times, min(DEGREE, width - 1) + 1, increasing=True))[1]
        rows = np.flatnonzero(np.arange(count) - starts == place)
        if len(rows):
            slopes[rows] = values[starts[rows][:, None] + np.arange(width)] @ weights
    return slopes
