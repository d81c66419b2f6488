"""Ctrl-C and SIGTERM end a command with one line and its exit code, and leave no process behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fakes import command_line, scene_row, tiny_model, write_scenes

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143}


def children_of(process: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = stat.read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue
        if int(parent) == process:
            found.append(int(stat.parent.name))
    return found


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def start(*command: str) -> subprocess.Popen:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *command], env=ENVIRONMENT, start_new_session=True, **pipes)


def message(program: str, number: int) -> str:
    return f"{program}: stopped by {signal.Signals(number).name}; the same command resumes or starts again"


def stop(running: subprocess.Popen, number: int) -> tuple[str, list[int]]:
    """Send the signal, Ctrl-C as a terminal does to the whole group.

    -> (what was printed as errors, the children of that moment that are still running)
    """
    children = children_of(running.pid)
    if number == signal.SIGINT:
        os.killpg(running.pid, number)
    else:
        running.send_signal(number)
    _, printed = running.communicate(timeout=60)
    deadline = time.monotonic() + 2  # until the system has removed them
    while any(map(is_running, children)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return printed, [child for child in children if is_running(child)]


SWALLOWS = """
import sys, time
from smoldriver_common import command_line
command_line.GRACE = 1.0
with command_line.stopped_in_one_line("program"):
    print("ready", flush=True)
    while True:
        try:
            time.sleep(60)
        except BaseException:
            pass
"""
INTERRUPTED_CLEANING = """
import threading, time
from smoldriver_common import command_line
command_line.GRACE = 1.0
class Cleaned:
    def __del__(self):
        print("ready", flush=True)
        time.sleep(60)
def fail_later():
    time.sleep(0.7)
    raise RuntimeError("its worker is gone")
with command_line.stopped_in_one_line("program"):
    threading.Thread(target=fail_later, daemon=True).start()
    Cleaned()
    time.sleep(60)
"""
FORKS = """
import multiprocessing, time
from smoldriver_common.command_line import stopped_in_one_line
with stopped_in_one_line("program"):
    workers = [multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,)) for _ in range(2)]
    for worker in workers:
        worker.start()
    print("ready", flush=True)
    for worker in workers:
        worker.join()
"""


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize(
    "code",
    [SWALLOWS, INTERRUPTED_CLEANING, FORKS],
    ids=["a library swallows it", "in a __del__, and a thread fails", "with workers"],
)
def test_a_signal_ends_the_program_whatever_it_does(code, number):
    running = start("-c", code)
    assert running.stdout.readline() == "ready\n"
    time.sleep(0.2)
    printed, left = stop(running, number)
    assert running.returncode == SIGNALS[number] and not left
    assert printed.strip() == message("program", number)


@pytest.mark.parametrize("number", SIGNALS)
def test_training_ends_at_a_signal_in_its_first_second(number, config, processor, tmp_path):
    tiny_model(config).save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    options = {
        "model_name_or_path": tmp_path / "base",
        "scenes": write_scenes(tmp_path / "scenes", [scene_row(0, 4), scene_row(1, 4)]),
        "output_dir": tmp_path / "run",
        "max_steps": 100_000,
        "per_device_train_batch_size": 1,
        "dataloader_num_workers": 2,
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
        "save_strategy": "no",
    }
    running = start(str(ROOT / "recipes" / "sft_qlora.py"), *command_line(options))
    while not running.stdout.readline().endswith("trainable weights\n"):
        assert running.poll() is None, running.stderr.read()
    deadline = time.monotonic() + 60
    while len(children_of(running.pid)) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    printed, left = stop(running, number)
    assert running.returncode == SIGNALS[number] and not left
    assert printed.splitlines()[-1] == message("sft_qlora", number)
    assert not any(word in printed for word in ("Traceback", "Error", "Exception")), printed


@pytest.mark.parametrize("number", SIGNALS)
def test_a_world_ends_with_its_workers_and_resumes(number, tmp_path):
    options = ["--scenes", "40", "--frames-every", "4", "--image-size", "64x36", "--workers", "2"]
    script = str(ROOT / "data_scripts" / "synthesize_world.py")
    running = start(script, "--output-dir", str(tmp_path / "world"), *options)
    while not list((tmp_path / "world" / "work").glob("scene-*.txt")):
        assert running.poll() is None, running.stderr.read()
        time.sleep(0.02)
    printed, left = stop(running, number)
    assert running.returncode == SIGNALS[number] and not left
    assert printed.splitlines()[-1] == message("synthesize_world", number)


WORKERS = """
import multiprocessing, os, sys
from concurrent.futures import ProcessPoolExecutor
from smoldriver_common.processes import die_with_parent
if __name__ == "__main__":
    spawn = multiprocessing.get_context("spawn")
    parent = int(sys.argv[1]) or os.getpid()
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=die_with_parent, initargs=(parent,)) as pool:
        print(pool.submit(abs, -1).result(), flush=True)
"""


def test_a_worker_whose_parent_is_gone_by_its_first_line_ends(tmp_path):
    """The worker is told whose child it is: asking for its parent later would name the process that adopted it."""
    script = tmp_path / "workers.py"
    script.write_text(WORKERS)

    def ran(parent: int) -> subprocess.CompletedProcess:
        command = [sys.executable, str(script), str(parent)]
        return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)

    assert ran(0).stdout == "1\n"
    assert "BrokenProcessPool" in ran(os.getpid()).stderr  # not the parent of that worker, as if that were gone
