"""Processes that end with the one that started them, and the memory that one takes."""

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path

PR_SET_PDEATHSIG = 1  # of Linux' prctl


def killed_with_parent(parent: int) -> None:
    """Called in a new process: on Linux it is killed the moment its parent ends, however that ends.

    Args:
        parent: the parent's process id, which only the parent can say: by now it may have ended.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def die_with_parent(parent: int) -> None:
    """The same for a worker on every system, within a second: an orphan would wait for work without end."""
    killed_with_parent(parent)

    def watch():
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def kill_children() -> None:
    """Kill the processes that this one started, and theirs. It reads Linux' /proc; elsewhere it does nothing.

    What the kernel tells about a child that ends is no longer handled: a library might raise an error for it.
    """
    if hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for process in _descendants(os.getpid()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def _descendants(ancestor: int) -> list[int]:
    """The processes below one, parents before children."""
    children = defaultdict(list)
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # a process that has ended meanwhile
            parent = stat.read_text().rpartition(")")[2].split()[1]  # its name, in brackets, may hold blanks
            children[int(parent)].append(int(stat.parent.name))
    found = [ancestor]
    for process in found:
        found += children[process]
    return found[1:]


def peak_resident_bytes() -> int:
    """Largest resident memory of this process; on Linux without that of its parent, which getrusage may report."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    import resource  # here, since Windows has none

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
