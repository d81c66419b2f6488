"""How fast a driver drives on, given what is ahead: braking, lights, and the Intelligent Driver Model (Treiber,
Hennecke, Helbing 2000)."""

import math
from dataclasses import dataclass


@dataclass
class Ahead:
    """What a driver must not run into: `gap` metres ahead, driving at `speed` m/s; infinity where there is nothing."""

    gap: float = math.inf
    speed: float = 0.0


def follow(speed: float, wanted: float, ahead: Ahead, standstill_gap: float) -> float:
    """Acceleration by the Intelligent Driver Model, in m/s^2, never below a hard brake of 6."""
    if wanted <= 0.1:
        free = -2.5
    else:
        free = max(1.6 * (1 - (speed / wanted) ** 4), -3.0)
    if math.isinf(ahead.gap):
        return max(free, -6.0)
    approach = speed * (speed - ahead.speed) / (2 * math.sqrt(1.6 * 2.2))
    desired = standstill_gap + max(0.0, speed * 1.1 + approach)
    return max(free - 1.6 * (desired / max(ahead.gap, 0.3)) ** 2, -6.0)


def braking(speed: float, metres: float) -> float:
    """Acceleration, in m/s^2, of who brakes evenly to stand after some metres; infinity before it is time."""
    needed = speed * speed / (2 * max(metres, 0.3))
    return -min(max(needed, 1.6), 6.0) if needed > 1.2 or metres < 0.5 else math.inf


def can_stop(gap: float, speed: float) -> bool:
    """Whether who drives at `speed` stops in time before a crosser who is `gap` metres ahead and begins to walk."""
    return gap > 2.0 + speed * 0.5 + speed * speed / 5.0


def stopped_or(speed: float) -> float:
    """Speeds below a crawl are a standstill, so that nobody is half stopped."""
    return speed if speed > 0.35 else 0.0


def light_colour(phase: float, time: float) -> str:
    """A cycle of 13 s: green for 5, yellow for 2, red for 6."""
    moment = (phase + time) % 13.0
    return "green" if moment < 5.0 else "yellow" if moment < 7.0 else "red"


def must_stop(light: str, distance: float, speed: float) -> bool:
    """Whether who is `distance` metres before the stop line stops: yes at red, at yellow where the brakes allow."""
    if not -1.0 < distance < 40.0 or light == "green":
        return False
    return light == "red" or distance > speed * speed / 6.0
