"""Processes that end with the one that started them, and the memory that one takes."""

import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1  # of Linux' prctl


def killed_with_parent() -> None:
    """Called in a new process: on Linux it is killed the moment its parent ends, however that ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def die_with_parent() -> None:
    """The same for a worker on every system, within a second: an orphan would wait for work without end."""
    parent = os.getppid()
    killed_with_parent()

    def watch():
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def peak_resident_bytes() -> int:
    """Largest resident memory of this process; on Linux without that of its parent, which getrusage may report."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    import resource  # here, since Windows has none

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
