"""Merge a folder of adapters with the base they were trained on into one whole model folder for the Hub.

python recipes/merge_checkpoint.py --adapters outputs/smoldriver-2b-qlora --output-dir outputs/smoldriver-2b-merged

The vision model and the connector that were trained beside the adapters replace the base's. Each weight of the
language model is W + alpha / r * BA, added in float32 and rounded to --dtype once. A 4-bit W is de-quantised first:
the adapters were trained on that, not on the base's own weight. The merged folder then answers a test prompt beside
the adapters, and the difference is printed. It is rounding alone: beyond `TOLERANCE` nothing is written. Merging takes
4 bytes of memory per weight and the 4-bit copy: 10 GB for SmolDriver-2.2B.
"""

import argparse
import gc
from pathlib import Path

import recipes  # noqa: F401 - first, since it silences libraries while they are imported

# isort: split
import numpy as np
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from PIL import Image

from recipes.training.loading import (
    DTYPES,
    base_of_adapters,
    is_adapters,
    load_base,
    load_model,
    load_processor,
    put_adapters,
)
from recipes.training.manifest import TrainingManifest
from smoldriver_common.command_line import errors_in_one_line
from smoldriver_common.whole_files import folder_written_whole

# Measured on models of two layers: 1.3e-6, 5e-3, 2.4e-2; rounding adds up over layers.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest difference of a logit as a share of the largest; of the dtypes trained in and written, the wider counts."""


def merge(adapters: Path, dtype: torch.dtype):
    """The whole model in `dtype`, on the CPU."""
    base, quantization, trained_in = base_of_adapters(adapters)
    model = load_base(base, trained_in).float()
    if quantization is not None:
        for name, module in load_base(base, trained_in, quantization).named_modules():
            if isinstance(module, Linear4bit):
                weight = dequantize_4bit(module.weight.data, module.weight.quant_state)
                model.get_submodule(name).weight.data = weight.float().cpu()
    return put_adapters(model, adapters, torch.float32).merge_and_unload().to(dtype)


@torch.inference_mode()
def prompt_logits(folder: Path) -> torch.Tensor:
    """Logits `(prompt tokens, vocabulary)` of a question behind fixed pictures of every camera, in float32."""
    model, processor = load_model(folder)
    draw = np.random.default_rng(0)
    images = {
        camera: Image.fromarray(draw.integers(0, 256, (9, 16, 3), dtype=np.uint8)).resize((800, 450))
        for camera in processor.cameras
    }
    messages = processor.scene_messages(images, "Are there cars to the front of the ego car?")
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    inputs = processor(images=images, text=text, return_tensors="pt").to(model.device)
    return model(**inputs).logits[0].float().cpu()


def difference(merged: torch.Tensor, unmerged: torch.Tensor) -> tuple[float, float]:
    """-> (largest difference as a share of the largest logit, share of positions with the same next token)"""
    largest = ((merged - unmerged).abs().max() / unmerged.abs().max()).item()
    return largest, (merged.argmax(-1) == unmerged.argmax(-1)).float().mean().item()


def merge_checkpoint(adapters: Path, output_dir: Path, dtype: torch.dtype) -> str:
    """Write the merged folder, whole or not at all -> one line on how much it differs from the adapters.

    Raises:
        FileNotFoundError: no such folder, or its base is gone.
        ValueError: no adapters, adapters that do not fit, or a merged model beyond the tolerance.
        FileExistsError: the output folder exists.
    """
    if not adapters.is_dir():
        raise FileNotFoundError(f"there is no folder of adapters {adapters}")
    if not is_adapters(adapters):
        raise ValueError(f"{adapters} holds no adapters (adapter_config.json): there is nothing to merge")
    if output_dir.exists():
        raise FileExistsError(f"{output_dir} exists: remove it or give another --output-dir")
    base, _, trained_in = base_of_adapters(adapters)
    unmerged = prompt_logits(adapters)
    gc.collect()  # PEFT's cycles hold the weights
    with folder_written_whole(output_dir) as aside:
        model = merge(adapters, dtype)
        model.save_pretrained(aside)
        load_processor(base).save_pretrained(aside)
        del model
        gc.collect()

        largest, same = difference(prompt_logits(aside), unmerged)
        tolerance = max(TOLERANCE[dtype], TOLERANCE[trained_in])
        before, after = (str(one).removeprefix("torch.") for one in (trained_in, dtype))
        measured = (
            f"logits differ by at most {largest:.2e} of the largest (tolerance {tolerance:.0e}: trained in {before},"
            f" written in {after}); the next token is the same at {100 * same:.1f}% of the test prompt"
        )
        if not largest <= tolerance:
            raise ValueError(f"the merged model is not the adapters': {measured}; try --dtype float32")
        manifest = TrainingManifest.from_folder(adapters)
        manifest.merged = {"dtype": after, "logit_difference": largest, "tolerance": tolerance}
        manifest.write(aside)
    return measured


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", required=True, type=Path, help="--output_dir of recipes/sft_qlora.py with PEFT")
    parser.add_argument("--output-dir", required=True, type=Path)
    parser.add_argument("--dtype", default="bfloat16", choices=tuple(DTYPES), help="of the merged weights")
    arguments = parser.parse_args()
    with errors_in_one_line("merge_checkpoint"):
        measured = merge_checkpoint(arguments.adapters, arguments.output_dir, DTYPES[arguments.dtype])
    print(measured)
    print(f"merged model in {arguments.output_dir}")


if __name__ == "__main__":
    main()
