"""Size of a SmolDriver or SmolVLM by part, the memory that training it takes, and, on request, a run of a SmolDriver.

python recipes/model_report.py
python recipes/model_report.py --smolvlm
python recipes/model_report.py --run --dtype bfloat16

Without `--model` the dimensions are SmolVLM2-2.2B's, for SmolDriver with ViT-B/16 at 432 pixels. Memory is computed,
not measured. `--run` is on random weights; SmolVLM's times beside SmolDriver's are those of recipes/benchmark.py.
"""

import argparse
import time

import torch
from accelerate import init_empty_weights
from transformers import AutoConfig, PreTrainedModel, SmolVLMConfig

from modeling_smoldriver import SmolDriverConfig, SmolDriverForConditionalGeneration
from recipes.training.loading import CLASSES
from recipes.training.manifest import check_source
from recipes.training.memory import TEXT_TOKENS, memory_table, qlora_checkpoint_bytes, training_memory
from recipes.training.weights import parameter_table, weights_table
from smoldriver_common.command_line import errors_in_one_line, stopped_in_one_line, whole_number
from smoldriver_common.processes import peak_resident_bytes

SIGLIP = {  # SmolVLM2-2.2B's tower
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
}


def smolvlm_config() -> SmolVLMConfig:
    """SmolVLM2-2.2B's, whose language model is that of SmolDriver's defaults."""
    text_config = SmolDriverConfig().text_config.to_dict()
    return SmolVLMConfig(
        vision_config=SIGLIP, text_config=text_config, scale_factor=3, image_token_id=49190, tie_word_embeddings=False
    )


def smolvlm_table(model: PreTrainedModel) -> str:
    """As `parameter_table`."""
    parts = {"tower": model.model.vision_model, "connector": model.model.connector}
    parts |= {"text model": model.model.text_model, "whole model": model}
    return weights_table(parts)


def run(config: SmolDriverConfig, dtype: torch.dtype) -> str:
    """One forward pass of six views and a question, and one answer of 16 tokens, on random weights on the CPU."""
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    model = SmolDriverForConditionalGeneration(config).to(dtype).eval()  # a part's own config may name another
    torch.set_default_dtype(torch.float32)
    vision = config.vision_config
    views, budget, size = len(vision.cameras), config.visual_token_budgets[0], vision.tower_image_size
    word = config.text_config.vocab_size // 2  # any token but <image>
    pictures = ([config.image_token_id] * budget + [word]) * views
    inputs = {
        "input_ids": torch.tensor([pictures + [word] * (TEXT_TOKENS - views)]),
        "pixel_values": torch.randn(1, views, 3, size, size, dtype=dtype),
        "camera_ids": torch.arange(views)[None],
    }
    lines = []
    with torch.inference_mode():
        started = time.perf_counter()
        model(**inputs, logits_to_keep=1)
        seconds = time.perf_counter() - started
        lines.append(f"  forward of {views} views, {inputs['input_ids'].shape[1]} tokens: {seconds:.1f} s")
        started = time.perf_counter()
        answer = model.generate(**inputs, max_new_tokens=16, min_new_tokens=16, do_sample=False)
        new = answer.shape[1] - inputs["input_ids"].shape[1]
        lines.append(f"  answer of {new} tokens: {time.perf_counter() - started:.1f} s")
    return "\n".join([*lines, f"  peak memory of the process: {peak_resident_bytes() / 1e9:.1f} GB"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or Hub id whose configuration to take")
    parser.add_argument("--smolvlm", action="store_true", help="without --model: SmolVLM2-2.2B's dimensions")
    parser.add_argument("--tokens", type=whole_number(), default=1024, help="tokens of a training sequence")
    parser.add_argument("--run", action="store_true", help="run a forward pass and an answer on random weights")
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"))
    arguments = parser.parse_args()
    with errors_in_one_line("model_report"):
        config = smolvlm_config() if arguments.smolvlm else SmolDriverConfig()
        if arguments.model:
            check_source(arguments.model)
            config = AutoConfig.from_pretrained(arguments.model, trust_remote_code=False)
        if config.model_type not in CLASSES:
            raise ValueError(f"{arguments.model} is a {config.model_type!r}; the report knows {', '.join(CLASSES)}")
        ours = isinstance(config, SmolDriverConfig)
        if arguments.run and not ours:
            raise ValueError("--run is for SmolDriver: recipes/benchmark.py times SmolVLM beside it")
    with init_empty_weights():
        model = CLASSES[config.model_type][0](config)
    print(f"parameters\n{parameter_table(model) if ours else smolvlm_table(model)}")
    memory = memory_table(training_memory(model, arguments.tokens))
    print(f"memory for training on {arguments.tokens} tokens per step\n{memory}")
    print(f"what QLoRA saves, adapters and vision model: {qlora_checkpoint_bytes(model) / 1e6:.1f} MB")
    if arguments.run:
        print(f"random weights in {arguments.dtype}\n{run(config, getattr(torch, arguments.dtype))}")


if __name__ == "__main__":
    with stopped_in_one_line("model_report"):
        main()
