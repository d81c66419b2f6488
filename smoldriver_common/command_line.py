"""What every command line of the project does alike."""

import argparse
import contextlib
import io
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from smoldriver_common.processes import kill_children

GRACE = 5.0  # seconds for what must be tidied up after a signal


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


def named_folder(text: str) -> tuple[str, Path]:
    """`type=named_folder`: an argument NAME=FOLDER -> (name, folder). Files are called after the name."""
    name, _, folder = text.partition("=")
    if not folder or not re.fullmatch(r"\w[\w.-]*", name):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not NAME=FOLDER with a name of letters, digits, _, . and -, as in mine=outputs/mine"
        )
    return name, Path(folder)


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


class Stopped(KeyboardInterrupt):
    """SIGINT or SIGTERM, in a program under [`stopped_in_one_line`]."""


@contextmanager
def stopped_in_one_line(program: str) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the program with one line, exit code 130 or 143, and no process left behind.

    Wrap what the main thread does. A library may swallow the exception that the signal raises, and the run would go
    on: `GRACE` seconds later the process ends in any case. What others print as errors after the signal is dropped:
    Python's own line about an exception in a `__del__`, a thread whose worker is gone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner, received = os.getpid(), []

    def stop(number: int, frame) -> None:
        if os.getpid() != owner:  # a worker that was forked from it: its parent knows
            os._exit(0)
        if not received:
            received.append(number)
            _last_line(program, number)
            kill_children()
            threading.Thread(target=_end_for_good, args=(number,), daemon=True).start()
        raise Stopped

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except BaseException:
        if not received:
            raise
        for number in before:
            signal.signal(number, signal.SIG_IGN)
        _end(received[0])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _last_line(program: str, number: int) -> None:
    """Say what happened; from here on standard error is nothing."""
    name = signal.Signals(number).name
    with contextlib.suppress(OSError):  # it may be closed
        os.write(2, f"\n{program}: stopped by {name}; the same command resumes or starts again\n".encode())
    nothing = os.open(os.devnull, os.O_WRONLY)
    if nothing != 2:
        os.dup2(nothing, 2)
        os.close(nothing)


def _end_for_good(number: int) -> None:
    time.sleep(GRACE)
    _end(number)


def _end(number: int) -> None:
    """The process and its children end here, without what a normal end waits for: threads, queues, workers."""
    kill_children()
    with contextlib.suppress(Exception):  # the signal may have come within a write
        sys.stdout.flush()
    os._exit(128 + number)
