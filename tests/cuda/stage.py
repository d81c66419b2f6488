# ruff: noqa: T201 - a script, not a test
"""A few steps of one of the paper's stages on random weights: memory, time and share of the card's matrix products.

    PYTHONPATH=. python tests/cuda/stage.py --base FOLDER --stage sft_vision_2b --size 2.2b --device cuda --json FILE

`--base` is the folder of tests/cuda/base.py. The stage's YAML is read as it is, but for the paths and the number of
steps; knowledge transfer runs at the full budget of visual tokens, its tower frozen in the first half of the steps.
Multiply-adds are counted by torch in one step, recomputation for gradient checkpointing included; times are medians of
the steps after it. On the CPU a stage runs in float32.
"""

import argparse
import importlib
import re
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import TrainerCallback
from trl import ModelConfig, TrlParser

from modeling_smoldriver.distillation_smoldriver import VisionDistillationConfig
from modeling_smoldriver.trainer_smoldriver import SmolDriverSFTConfig
from recipes.benchmarking.counts import LimitProbe
from recipes.benchmarking.models import SIZES
from smoldriver_common.command_line import whole_number
from smoldriver_common.processes import peak_resident_bytes
from smoldriver_common.whole_files import write_json

CONFIGS = Path(__file__).parents[2] / "recipes" / "configs" / "paper"
RECIPES = {
    "distill_2b": ("recipes.distill_vision", VisionDistillationConfig),
    "sft_vision_2b": ("recipes.sft_qlora", SmolDriverSFTConfig),
    "sft_qlora_2b": ("recipes.sft_qlora", SmolDriverSFTConfig),
}
"""Of each stage, by its YAML."""


@dataclass
class StageResult:
    """What one stage took.

    Fields:
        seconds: per step, from the end of one to the end of the next.
        computing_seconds: of it without waiting for the next batch.
        macs: multiply-adds of one step.
        matmul_flops: what the device reached in matrix products, per second.
        matmul_share: of it, by what a step computes.
        peak_bytes: tensors on the GPU at most; on the CPU the process' resident memory.
        stated_bytes: the memory that the head of the YAML states, for 2.2B dimensions.
        losses: of every step.
    """

    stage: str
    size: str
    dtype: str
    steps: int
    seconds: float
    computing_seconds: float
    macs: int
    matmul_flops: float
    matmul_share: float
    peak_bytes: int
    stated_bytes: float
    losses: list[float]


def stated_bytes(stage: str) -> float:
    """What the head of a stage's YAML computes; CUDA's own memory is not in it."""
    text = (CONFIGS / f"{stage}.yaml").read_text(encoding="utf-8")
    return 1e9 * float(re.search(r"^# Memory, computed: ([\d.]+) GB", text, re.MULTILINE)[1])


class StepClock(TrainerCallback):
    """Times every step, and counts the multiply-adds of one."""

    def __init__(self, device: str, counted_step: int):
        self.device, self.counted_step = device, counted_step
        self.begins, self.ends, self.macs = [], [], 0
        self.counting = ExitStack()

    def now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.counted_step:
            self.counter = self.counting.enter_context(FlopCounterMode(display=False))
            if self.device == "cpu":  # its fused attention is unknown to the counter
                self.counting.enter_context(sdpa_kernel(SDPBackend.MATH))
        self.begins.append(self.now())

    def on_step_end(self, args, state, control, **kwargs):
        self.ends.append(self.now())
        if len(self.ends) - 1 == self.counted_step:
            self.counting.close()
            self.macs = self.counter.get_total_flops() // 2

    def seconds(self) -> float:
        after = self.ends[self.counted_step :]
        return median(end - before for before, end in zip(after, after[1:], strict=False))

    def computing_seconds(self) -> float:
        after = slice(self.counted_step + 1, None)
        return median(end - begin for begin, end in zip(self.begins[after], self.ends[after], strict=True))


def arguments_of(stage: str, base: Path, size: str, device: str, steps: int, output: Path) -> list[str]:
    """The command line of the stage's recipe."""
    options = {
        "config": CONFIGS / f"{stage}.yaml",
        "model_name_or_path": base / "model",
        "scenes": base / "scenes",
        "output_dir": output,
        "max_steps": steps,
        "logging_steps": 1,
        "save_strategy": "no",
    }
    if stage == "distill_2b":
        options |= {"teacher": base / "teacher", "frozen_tower_steps": steps // 2, "statistics_frames": 4}
        options |= {"train_visual_tokens": SIZES[size].budgets[0]}
    if device == "cpu":
        options |= {"use_cpu": "true", "bf16": "false", "fp16": "false", "dtype": "float32"}
        options |= {"dataloader_num_workers": 0}
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def run_stage(stage: str, base: Path, size: str, device: str, steps: int, output: Path) -> StageResult:
    """Train in this process.

    Args:
        steps: at least 4: half of them warm up, one is counted, the others are timed.
    """
    module, config_class = RECIPES[stage]
    recipe = importlib.import_module(module)
    parser = TrlParser((recipe.DataArguments, config_class, ModelConfig))
    arguments = parser.parse_args_and_config(args=arguments_of(stage, base, size, device, steps, output))
    trainer, _ = recipe.load(*arguments)
    clock = StepClock(device, counted_step=steps // 2)
    trainer.add_callback(clock)
    trainer.train()
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else peak_resident_bytes()
    dtype = trainer.args.activation_dtype
    products = matmul_flops(device, dtype, SIZES[size].tower_width)
    return StageResult(
        stage=stage,
        size=size,
        dtype=str(dtype).removeprefix("torch."),
        steps=steps,
        seconds=clock.seconds(),
        computing_seconds=clock.computing_seconds(),
        macs=clock.macs,
        matmul_flops=products,
        matmul_share=2 * clock.macs / products / clock.computing_seconds(),
        peak_bytes=peak,
        stated_bytes=stated_bytes(stage),
        losses=[entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
    )


def matmul_flops(device: str, dtype: torch.dtype, width: int) -> float:
    probe = LimitProbe(device, dtype, width, 4 * width)
    for _ in range(3):
        probe.probe()
    return probe.result().matmul_flops


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--stage", choices=tuple(RECIPES), required=True)
    parser.add_argument("--size", choices=tuple(SIZES), required=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), required=True)
    parser.add_argument("--steps", type=whole_number(4), default=20)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    output = options.base / options.stage
    result = run_stage(options.stage, options.base, options.size, options.device, options.steps, output)
    write_json(options.json, asdict(result))
    print(f"{options.stage}: {result.seconds:.3g} s per step, {result.peak_bytes / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
