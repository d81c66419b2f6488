"""What every command line of the project does alike."""

import argparse
import io
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from safetensors import SafetensorError


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
    """Bad input or a full disk ends the program with one line and no traceback: wrap what reads what the user named.

    From here on the program prints every text, whatever the terminal's encoding: see [`print_every_text`].
    """
    print_every_text()
    try:
        yield
    except Exception as error:
        message = _expected(error)
        if message is None:
            raise
        sys.exit(f"{program}: {' '.join(message.split())}")


def print_every_text() -> None:
    """Print characters that the terminal's encoding lacks as escapes (`\\u2011`) instead of ending with an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a notebook's is not
            stream.reconfigure(errors="backslashreplace")


def _expected(error: Exception) -> str | None:
    """What to print of an error that input or the system causes; None for a fault of the program."""
    expected = (OSError, ValueError, SafetensorError)
    if isinstance(error, expected):
        return str(error)
    # libraries wrap such errors in their own: `datasets` a full disk while it unpacks rows, for example
    return f"{error}: {error.__cause__}" if isinstance(error.__cause__, expected) else None
