"""The demo killed in each of its steps and started again ends like one that was never killed."""

import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from recipes.tiny.demo import SHORT, steps_of
from recipes.tiny.pipeline import LOGS

ROOT = Path(__file__).parents[1]


def demo(folder: Path) -> subprocess.Popen:
    command = [sys.executable, "recipes/tiny/demo.py", "--short", "--output-dir", str(folder)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def results(printed: str, folder: Path) -> list[str]:
    """What was printed but for the progress of the steps and the folder's name."""
    return [line.replace(str(folder), "") for line in printed.splitlines() if not line.startswith("[")]


def kill_in(step: str, folder: Path, deadline: float = 300.0) -> None:
    """Run the demo until a step has written to its log, past its imports, and kill the demo's own process."""
    running, log = demo(folder), folder / LOGS / f"{step}.log"
    began = time.time()
    while not (log.exists() and log.stat().st_size):
        assert running.poll() is None and time.time() - began < deadline, running.stdout.read()
        time.sleep(0.02)
    running.kill()
    running.wait()


@pytest.mark.slow
def test_demo_killed_in_every_step_ends_like_one_never_killed(tmp_path):
    never, killed = tmp_path / "never", tmp_path / "killed"
    printed, _ = demo(never).communicate()
    assert "other_scene_images" in printed, printed
    for step in steps_of(killed, SHORT, seed=0):
        kill_in(step.name, killed)
    printed_again, _ = demo(killed).communicate()
    assert results(printed_again, killed) == results(printed, never)
    shards = [path.relative_to(never) for path in (never / "scenes" / "train").iterdir()]
    names = ["world/drivelm.json", "base/tower/model.safetensors", "model/model.safetensors", "eval/answers.png"]
    for name in [*shards, *names]:
        assert (killed / name).read_bytes() == (never / name).read_bytes(), name
    assert shards
    one, other = (pq.read_table(folder / "eval" / "predictions.parquet") for folder in (never, killed))
    assert one.equals(other)
