"""Measure SmolDriver beside SmolVLM and beside the usual way to train and to answer, on this machine, in one run.

python recipes/benchmark.py --size 256m --json outputs/benchmark.json --plot outputs/benchmark.png

Weights are random, pictures are noise, questions have DriveLM's wording and lengths. Contestants take turns,
`--repeats` times; the table shows medians, with the fastest and the slowest. SmolVLM2-2.2B's tower, the paper's, is
measured at every size except the tiny one, beside SmolDriver's vision model of those dimensions. Each row is compared
with the least time that this machine's matrix products and memory traffic allow for its multiply-adds and bytes.
Preparing pictures and text is not timed. Rows marked `x N` were measured on one question and multiplied.
"""

import argparse
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import transformers
from tqdm import tqdm

from recipes.benchmarking.counts import LimitProbe, Limits, device_name, free_bytes, gigabytes, limit_of
from recipes.benchmarking.inference import NEW_TOKENS, InferenceBench, take_turns
from recipes.benchmarking.inference import estimate_bytes as estimate_inference
from recipes.benchmarking.models import CONTESTANTS, SIZES, Size, name_of
from recipes.benchmarking.tables import draw, print_table, ratios
from smoldriver_common.command_line import stopped_in_one_line
from smoldriver_common.precision import bfloat16_is_fast
from smoldriver_common.whole_files import write_json, written_whole

PAPER_SIZE = "2.2b"
PARTS = ("vision", "prefill", "answers", "training", "limits")


@dataclass(frozen=True)
class BenchmarkOptions:
    """Options of the command line."""

    size: str
    dtype: str
    device: str
    parts: list[str]
    repeats: int
    tower_image_size: int | None
    json: Path | None
    plot: Path | None


def parse_arguments(arguments: list[str] | None = None) -> BenchmarkOptions:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="256m", choices=tuple(SIZES))
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), help="default: what is faster on the device")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS, help="default: all of them")
    parser.add_argument("--repeats", type=int, default=3, help="rounds; the first also warms up")
    parser.add_argument("--tower-image-size", type=int, help="pixels of SmolDriver's pictures at the full budget")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    parser.add_argument("--plot", type=Path, help="PNG file")
    parsed = parser.parse_args(arguments)
    if parsed.dtype is None:
        parsed.dtype = "bfloat16" if bfloat16_is_fast(parsed.device == "cuda") else "float32"
    if parsed.repeats < 1:
        parser.error(f"--repeats {parsed.repeats} must be at least 1")
    if parsed.tower_image_size is not None and (parsed.tower_image_size < 16 or parsed.tower_image_size % 16):
        parser.error(f"--tower-image-size {parsed.tower_image_size} is not a multiple of 16, the tower's patches")
    return BenchmarkOptions(**vars(parsed))


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


def main(arguments: list[str] | None = None):
    options = parse_arguments(arguments)
    size = SIZES[options.size]
    if options.tower_image_size:
        size = replace(size, tower_image_size=options.tower_image_size)
    report = measure(options, size)
    print_report(report)
    if options.json:
        write_json(options.json, report)
    if options.plot:
        with written_whole(options.plot) as aside:
            draw(report, aside)


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


def print_report(report: dict) -> None:
    machine = report["machine"]
    print_table(report["rows"])
    print(
        f"limits of {machine['device']}: {machine['matmul_flops'] / 1e9:,.0f} GFLOP/s in {machine['dtype']} products"
        f" of {machine['matmul_shape']}, {machine['memory_bytes_per_second'] / 1e9:.1f} GB/s"
    )
    for name, value in report["ratios"].items():
        print(f"  {name:34s} {value:8.3g}")
    for reason in report["left_out"]:
        print(f"left out: {reason}")


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


if __name__ == "__main__":
    with stopped_in_one_line("benchmark"):
        main()
