"""Processes that do not outlive the one that started them: what they would go on writing, nobody expects."""

import ctypes
import os
import signal
import sys
import threading
import time

PR_SET_PDEATHSIG = 1  # of Linux' prctl


def killed_with_parent() -> None:
    """Called in a new process: on Linux it is killed the moment its parent ends, however that ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def die_with_parent() -> None:
    """The same for a worker, elsewhere than on Linux too, within a second: it does not wait for work for ever."""
    parent = os.getppid()
    killed_with_parent()

    def watch():
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
