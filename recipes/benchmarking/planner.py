"""Time a guided planner beside SmolDriver's own answer to what the ego should do, with vision models of three sizes.

    python recipes/benchmarking/planner.py --json outputs/planner_speed.json

Weights are random and the six pictures are noise, as large as the synthetic world's for the tiny size (160 x 90) and
as nuScenes' for the others (1600 x 900). A planner's time is that of `planner.plan`. An answer's is that of
`encode_scene` and `answer`, 20 tokens long, once at the planner's budget of visual tokens and once at the full one.
All times include resizing the pictures; how long the planner's take is a column of its own. On one thread of a CPU
times are processor time, which other programs hardly lengthen; else they are those of the clock on the wall.
Contestants take turns, `--repeats` times after one run to warm up; the table shows medians. Work is what torch counts
in one run, and its share is of the fastest matrix product measured in the same run. The planner is also saved, and
the header of its file read: how many of its weights belong to a language model?
"""

import argparse
import platform
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import transformers
from safetensors import safe_open

from modeling_smoldriver import SmolDriverForTrajectoryPrediction
from recipes.benchmarking.counts import LimitProbe, Phase, counted_macs, device_name, free_bytes, gigabytes
from recipes.benchmarking.inference import Contestant, take_turns
from recipes.benchmarking.inputs import pictures
from recipes.benchmarking.models import SIZES, Size, make_processor, make_smoldriver
from recipes.planning.building import fresh_planner
from smoldriver_common.command_line import stopped_in_one_line, whole_number
from smoldriver_common.precision import bfloat16_is_fast
from smoldriver_common.whole_files import write_json

QUESTION = "What should the ego do?"
NEW_TOKENS = 20
COMMAND, SPEED = "go straight", 5.0  # m/s
TINY_HEAD = {"visual_tokens": 9}
WORLD_PICTURES, NUSCENES_PICTURES = (160, 90), (1600, 900)  # width, height in pixels
PAPER_HEAD = {  # as in recipes/configs/paper/planner_2b.yaml
    "visual_tokens": 9,
    "hidden_size": 1024,
    "num_attention_heads": 8,
    "num_decoder_layers": 2,
    "num_proposals": 6,
}
LANGUAGE_MODEL = ("text_model", "lm_head", "embed_tokens")  # in the names of its weights


@dataclass(frozen=True)
class PlannerFolder:
    """What the weight file of a saved planner holds."""

    weights: int
    language_model_weights: int


def weights_of_folder(planner: SmolDriverForTrajectoryPrediction) -> PlannerFolder:
    """Save a planner and read the headers of its files."""
    weights = language = 0
    with tempfile.TemporaryDirectory() as folder:
        planner.save_pretrained(folder)
        for path in Path(folder).glob("*.safetensors"):
            with safe_open(path, "pt") as file:
                for name in file.keys():
                    count = torch.Size(file.get_slice(name).get_shape()).numel()
                    weights += count
                    language += count if any(part in name for part in LANGUAGE_MODEL) else 0
    return PlannerFolder(weights, language)


def contestants(name: str, size: Size, device: str, dtype: torch.dtype) -> list[Contestant]:
    """The planner, its pictures alone, and SmolDriver's answers; each has run once."""
    processor, config, _ = make_processor(size)
    smoldriver = make_smoldriver(config, device, dtype)
    head = TINY_HEAD if name == "tiny" else PAPER_HEAD
    planner = fresh_planner(config, processor, head, dtype).to(device).eval()
    for model in (smoldriver, planner):
        model.requires_grad_(False)
    views = pictures(*(WORLD_PICTURES if name == "tiny" else NUSCENES_PICTURES))
    tokens = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False}

    def plan():
        return planner.plan(views, COMMAND, SPEED)

    def answer(budget: int):
        scene = smoldriver.encode_scene(**processor.encode_scene(views, visual_tokens=budget))
        smoldriver.answer(scene, processor, [QUESTION], **tokens)

    def contestant(what: str, budget: int, weights: int, run, **more) -> Contestant:
        row = {"part": f"planner, {name}", "size": name, "what": what, "budget": budget, "weights": weights, **more}
        return Contestant(row, run, [Phase(counted_macs(run))])

    tokens_read = head["visual_tokens"]
    return [
        contestant("planner", tokens_read, planner.num_parameters(), plan, folder=asdict(weights_of_folder(planner))),
        contestant("its pictures", tokens_read, 0, lambda: planner.processor(views, COMMAND, SPEED)),
        *(
            contestant("answer", budget, smoldriver.num_parameters(), lambda budget=budget: answer(budget))
            for budget in dict.fromkeys((tokens_read, size.budgets[0]))
        ),
    ]


def measure(name: str, device: str, dtype: torch.dtype, repeats: int) -> list[dict]:
    """The rows of one size."""
    size = SIZES[name]
    on_one_thread = device == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if on_one_thread else time.perf_counter
    probe = LimitProbe(device, dtype, size.tower_width, 4 * size.tower_width, clock)
    rows = take_turns(contestants(name, size, device, dtype), repeats, probe)
    products = probe.result().matmul_flops
    planner = rows[0]
    for row in rows:
        del row["phases"]
        row["dtype"], row["matmul_flops"] = str(dtype).removeprefix("torch."), products
        row["matmul_share"] = 2 * row["macs"] / products / row["seconds"]
        row["times_the_planner"] = row["seconds"] / planner["seconds"]
    planner["pictures_seconds"] = rows.pop(1)["seconds"]
    return rows


def table(rows: list[dict]) -> str:
    """The rows in Markdown."""
    lines = [
        "| vision size, dtype | what | tokens per camera | weights, M | GFLOP | ms (fastest, slowest) | its pictures |"
        " per second | share of matrix products | times the planner |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        pictures_ms = f"{1e3 * row['pictures_seconds']:.1f}" if "pictures_seconds" in row else ""
        cells = (
            f"{row['size']}, {row['dtype']}",
            row["what"],
            row["budget"],
            f"{row['weights'] / 1e6:,.1f}",
            f"{2 * row['macs'] / 1e9:,.1f}",
            f"{1e3 * row['seconds']:,.1f} ({1e3 * row['seconds_min']:,.1f}, {1e3 * row['seconds_max']:,.1f})",
            pictures_ms,
            f"{1 / row['seconds']:.3g}",
            f"{row['matmul_share']:.0%}",
            f"{row['times_the_planner']:.1f}",
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=("tiny", "256m", "2.2b"), choices=tuple(SIZES))
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), help="default: what is faster on the device")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=whole_number(), default=1, help="of the CPU")
    parser.add_argument("--repeats", type=whole_number(), default=5)
    parser.add_argument("--json", type=Path, help="file for the numbers")
    return parser.parse_args(arguments)


@torch.no_grad()
def main(arguments: list[str] | None = None):
    options = parse_arguments(arguments)
    torch.set_num_threads(options.threads)
    dtype = getattr(torch, options.dtype or ("bfloat16" if bfloat16_is_fast(options.device == "cuda") else "float32"))
    rows, left_out = [], []
    for name in options.sizes:
        needed = 2 * dtype.itemsize * make_smoldriver(make_processor(SIZES[name])[1], "meta", dtype).num_parameters()
        free = free_bytes(options.device)
        if needed >= free:
            left_out.append(f"{name}: about {gigabytes(needed)} of memory needed, {gigabytes(free)} free")
            continue
        rows += measure(name, options.device, dtype, options.repeats)
    print(table(rows))
    for row in (row for row in rows if row["what"] == "planner"):
        products = f"matrix products at {row['matmul_flops'] / 1e9:,.0f} GFLOP/s"
        of_text = f"{row['folder']['language_model_weights']:,} of {row['folder']['weights']:,} weights in its folder"
        print(f"{row['size']}: {products}; {of_text} are of a language model")
    for reason in left_out:
        print(f"left out: {reason}")
    if options.json:
        machine = {
            "device": device_name(options.device),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }
        write_json(options.json, {"machine": machine, "rows": rows, "left_out": left_out})


if __name__ == "__main__":
    with stopped_in_one_line("planner"):
        main()
