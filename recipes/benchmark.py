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
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil
import torch
import transformers
from tqdm import tqdm

from modeling_smoldriver.training_smoldriver import bfloat16_is_fast
from recipes.benchmarking.counts import LimitProbe, Limits, limit_of
from recipes.benchmarking.inference import NEW_TOKENS, InferenceBench, take_turns
from recipes.benchmarking.inference import estimate_bytes as estimate_inference
from recipes.benchmarking.models import SIZES, Size
from recipes.benchmarking.tables import draw, print_table, ratios
from recipes.benchmarking.training import CONTESTANTS, TrainingBench, name_of, peak_of_step
from recipes.benchmarking.training import estimate_bytes as estimate_training
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


def free_bytes(device: str) -> int:
    return torch.cuda.mem_get_info()[0] if device == "cuda" else psutil.virtual_memory().available


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
    return [row for part in parts for row in take_turns(getattr(bench, part)(), repeats, probe, device)]


def measure_training(
    size: Size, chosen: list[tuple[int, int]], device: str, dtype: torch.dtype, repeats: int, probe: LimitProbe
) -> tuple[list[dict], list[str]]:
    """Rows, and what was left out: peak memory each in a process of its own, then the times in this one."""
    peaks, left_out = {}, []
    for questions, packs in tqdm(chosen, desc="measuring peak memory"):
        peak = peak_of_step(size, device, dtype, questions, packs)
        if peak is None:
            left_out.append(f"training, {name_of(questions, packs)}: its process was stopped, memory ran out")
        else:
            peaks[questions, packs] = peak
    if not peaks:
        return [], left_out
    bench = TrainingBench(size, device, dtype)
    rows = take_turns([bench.contestant(*one) for one in peaks], repeats, probe, device)
    for row in rows:
        row["peak_bytes"] = peaks[row["questions"], row["packs"]]
        row["estimated_bytes"] = estimate_training(size, row["questions"], dtype)
    return rows, left_out


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
        chosen = [
            one for one in CONTESTANTS if fits(f"training, {name_of(*one)}", estimate_training(size, one[0], dtype))
        ]
        trained, stopped = measure_training(size, chosen, device, dtype, options.repeats, probe)
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
    name = torch.cuda.get_device_name() if options.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return {
        "size": options.size,
        "dtype": options.dtype,
        "device": name,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "new_tokens": NEW_TOKENS,
        "full_budget": size.budgets[0],
        "small_budget": size.small_budget,  # the "9" of the ratios' names
        "tower_image_size": size.tower_image_size,
        **asdict(limits),
    }


def gigabytes(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"


if __name__ == "__main__":
    main()
