"""The words of questions and answers: names of classes, directions and numbers."""

from data_scripts.world.agents import SIZES

CLASSES = tuple(SIZES)
PLURALS = {"bus": "buses"} | {kind: kind + "s" for kind in CLASSES if kind != "bus"}
DIRECTIONS = {
    "CAM_FRONT_LEFT": "front left",
    "CAM_FRONT": "front",
    "CAM_FRONT_RIGHT": "front right",
    "CAM_BACK_LEFT": "back left",
    "CAM_BACK": "back",
    "CAM_BACK_RIGHT": "back right",
}
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def number_of(kind: str, count: int) -> str:
    """ "one car", "two cars", "many cars" for more than three."""
    word = "many" if count > 3 else NUMBERS[count]
    return f"{word} {kind if count == 1 else PLURALS[kind]}"


def joined(parts: list[str]) -> str:
    """ "a", "a and b", "a, b, and c"."""
    if len(parts) < 3:
        return " and ".join(parts)
    return ", ".join(parts[:-1]) + ", and " + parts[-1]


def capitalized(text: str) -> str:
    """With a capital letter first, the rest as it is."""
    return f"{text[0].upper()}{text[1:]}"
