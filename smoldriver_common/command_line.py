"""What every command line of the project does alike."""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def whole_number(low: int = 1, high: int | None = None) -> Callable[[str], int]:
    """`type=whole_number(1, 8)`: an argument of at least `low` and, where it is given, at most `high`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if value < low or (high is not None and value > high):
            limits = f"at least {low}" if high is None else f"{low} to {high}"
            raise argparse.ArgumentTypeError(f"{value} is out of range: choose {limits}")
        return value

    return parse


@contextmanager
def errors_in_one_line(program: str) -> Iterator[None]:
    """Bad input ends the program with one line and no traceback: wrap what reads what the user named."""
    try:
        yield
    except (OSError, ValueError) as error:
        sys.exit(f"{program}: {' '.join(str(error).split())}")
