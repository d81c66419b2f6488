"""What recipes/benchmark.py measures: its parts one after the other, and what the machine could do at best."""

import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import transformers
from tqdm import tqdm

from recipes.benchmarking.counts import LimitProbe, Limits, device_name, free_bytes, gigabytes, limit_of
from recipes.benchmarking.inference import NEW_TOKENS, InferenceBench, take_turns
from recipes.benchmarking.inference import estimate_bytes as estimate_inference
from recipes.benchmarking.models import CONTESTANTS, SIZES, Size, name_of
from recipes.benchmarking.tables import ratios

PAPER_SIZE = "2.2b"


@dataclass(frozen=True)
class BenchmarkOptions:
    """As the command line of recipes/benchmark.py names them."""

    size: str
    dtype: str
    device: str
    parts: list[str]
    repeats: int
    tower_image_size: int | None
    json: Path | None
    plot: Path | None


def measure(options: BenchmarkOptions, size: Size) -> dict:
    """The report: {"ratios": {name: value}, "rows": [...], "machine": {...}, "left_out": [reason]}."""
    device, dtype = options.device, getattr(torch, options.dtype)
    probe = LimitProbe(device, dtype, size.tower_width, 4 * size.tower_width)
    rows, left_out = [], []

    def fits(what: str, needed: int) -> bool:
        free = free_bytes(device)
        if needed >= free:
            left_out.append(f"{what}: about {gigabytes(needed)} of memory needed, {gigabytes(free)} free")
        return needed < free

    inference = [part for part in ("vision", "prefill", "answers") if part in options.parts]
    if inference and fits(", ".join(inference), estimate_inference(size, dtype)):
        rows += measure_inference(size, inference, device, dtype, options.repeats, probe)
    if "training" in options.parts:
        trained, stopped = measure_training(size, fits, options, probe)
        rows += trained
        left_out += stopped
    rows = [{"size": options.size, **row} for row in rows]
    paper = SIZES[PAPER_SIZE].without_language_model()
    if "vision" in options.parts and options.size not in ("tiny", PAPER_SIZE):
        if fits(f"vision at {PAPER_SIZE} dimensions", estimate_inference(paper, dtype)):
            at_papers = measure_inference(paper, ["vision"], device, dtype, options.repeats, probe)
            rows += [{"size": PAPER_SIZE, **row} for row in at_papers]
    while len(probe.copies) < max(3, options.repeats):
        probe.probe()

    limits = probe.result()
    rows = [finish(row, limits) for row in rows]
    machine = describe(options, size, limits)
    return {"ratios": ratios(rows, options.size), "rows": rows, "machine": machine, "left_out": left_out}


def finish(row: dict, limits: Limits) -> dict:
    """Compare a row with the machine's limits."""
    phases = row.pop("phases")
    seconds, bound = limit_of(phases, limits)
    products = 2 * row["macs"] / limits.matmul_flops
    shares = {"limit_seconds": seconds, "limit_share": seconds / row["seconds"], "bound": bound}
    return {**row, **shares, "matmul_share": products / row["seconds"]}


@torch.no_grad()
def measure_inference(
    size: Size, parts: list[str], device: str, dtype: torch.dtype, repeats: int, probe: LimitProbe
) -> list[dict]:
    bench = InferenceBench(size, device, dtype)
    return [row for part in parts for row in take_turns(getattr(bench, part)(), repeats, probe)]


def measure_training(
    size: Size, fits: Callable[[str, int], bool], options: BenchmarkOptions, probe: LimitProbe
) -> tuple[list[dict], list[str]]:
    """Rows, and what was left out: peak memory each in a process of its own, then the times in this one.

    Args:
        fits: whether so many bytes of memory are free for what is named.
    """
    try:
        from recipes.benchmarking import training  # here: the other parts need neither TRL nor datasets
    except ModuleNotFoundError as error:
        return [], [f"training: the package {error.name} is missing"]
    device, dtype = options.device, getattr(torch, options.dtype)
    peaks, left_out = {}, []
    chosen = [one for one in CONTESTANTS if fits(named(one), training.estimate_bytes(size, one[0], dtype))]
    for questions, packs in tqdm(chosen, desc="measuring peak memory"):
        peak = training.peak_of_step(size, device, dtype, questions, packs)
        if peak is None:
            left_out.append(f"{named((questions, packs))}: its process was stopped, memory ran out")
        else:
            peaks[questions, packs] = peak
    if not peaks:
        return [], left_out
    bench = training.TrainingBench(size, device, dtype)
    rows = take_turns([bench.contestant(*one) for one in peaks], options.repeats, probe)
    for row in rows:
        row["peak_bytes"] = peaks[row["questions"], row["packs"]]
        row["estimated_bytes"] = training.estimate_bytes(size, row["questions"], dtype)
    return rows, left_out


def named(contestant: tuple[int, int]) -> str:
    return f"training, {name_of(*contestant)}"


def describe(options: BenchmarkOptions, size: Size, limits: Limits) -> dict:
    """What was measured, with what and where, for the report."""
    return {
        "size": options.size,
        "dtype": options.dtype,
        "device": device_name(options.device),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "new_tokens": NEW_TOKENS,
        "full_budget": size.budgets[0],
        "small_budget": size.small_budget,  # the "9" of the ratios' names
        "tower_image_size": size.tower_image_size,
        **asdict(limits),
    }
