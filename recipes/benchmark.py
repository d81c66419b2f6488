"""Measure SmolDriver beside SmolVLM and beside the usual way to train and to answer, on this machine, in one run.

python recipes/benchmark.py --size 256m --json outputs/benchmark.json --plot outputs/benchmark.png

Weights are random, pictures are noise, questions have DriveLM's wording and lengths. Contestants take turns,
`--repeats` times; the table shows medians, with the fastest and the slowest. SmolVLM2-2.2B's tower, the paper's, is
measured at every size except the tiny one, beside SmolDriver's vision model of those dimensions. Each row is compared
with the least time that this machine's matrix products and memory traffic allow for its multiply-adds and bytes.
Preparing pictures and text is not timed. Rows marked `x N` were measured on one question and multiplied.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from recipes.benchmarking.measuring import BenchmarkOptions, measure
from recipes.benchmarking.models import SIZES
from recipes.benchmarking.tables import draw, print_table
from smoldriver_common.command_line import stopped_in_one_line
from smoldriver_common.precision import bfloat16_is_fast
from smoldriver_common.whole_files import write_json, written_whole

PARTS = ("vision", "prefill", "answers", "training", "limits")


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


if __name__ == "__main__":
    with stopped_in_one_line("benchmark"):
        main()
