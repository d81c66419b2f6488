"""Small things that several test files are made of: models, pictures, rows, folders."""

import copy
import io
import json
import resource
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from PIL import Image
from transformers import LlamaConfig, SmolVLMConfig, SmolVLMForConditionalGeneration, TrainerCallback

from data_scripts.schema import SCENE_FEATURES, open_shard, scene_table, shard_path, write_manifest
from modeling_smoldriver import CAMERAS, SmolDriverConfig, SmolDriverForConditionalGeneration, SmolDriverProcessor
from recipes import evaluate_drivelm
from recipes.tiny.tokenizer import train_tokenizer

ROOT = Path(__file__).parents[1]
SAMPLE = next(  # DriveLM's public frames, beside the project or downloaded into it
    (
        ROOT / folder
        for folder in ("../shared/data/drivelm_sample", "data/drivelm_sample")
        if (ROOT / folder / "train_sample.json").is_file()
    ),
    None,
)
NO_SAMPLE = "no real DriveLM sample: python data_scripts/download_drivelm_sample.py fetches it"
needs_sample = pytest.mark.skipif(SAMPLE is None, reason=NO_SAMPLE)

TOWERS = {
    "vit": {"model_type": "vit", "image_size": 32},
    "dinov2": {"model_type": "dinov2", "image_size": 32},
    "dinov2_with_registers": {"model_type": "dinov2_with_registers", "image_size": 32, "num_register_tokens": 3},
    "siglip": {"model_type": "siglip_vision_model", "image_size": 32},
}


QUESTIONS = [
    "Are there barriers to the front of the ego car?",
    "What are objects to the back left of the ego car?",
    "What is the status of the car that is to the front of the ego car?",
    "Predict the behavior of the ego vehicle.",
]


def tiny_tokenizer():
    answers = [" Yes.", " No.", " The ego vehicle is going straight."]
    return train_tokenizer([*(f"\nQuestion: {question}" for question in QUESTIONS), *answers] * 3, vocab_size=400)


def pil_image_processor():
    """The image processor that needs no torchvision, by its name in either transformers."""
    try:
        from transformers import ViTImageProcessorPil as ViTImageProcessor
    except ImportError:
        from transformers import ViTImageProcessor
    return ViTImageProcessor()


def tiny_processor() -> SmolDriverProcessor:
    tokenizer = tiny_tokenizer()
    return SmolDriverProcessor.from_config(tiny_config(tokenizer), pil_image_processor(), tokenizer)


def tiny_config(tokenizer, tower: str = "vit", **vision) -> SmolDriverConfig:
    """48-pixel views, a 6x6 query grid, pixel shuffle by 2: budgets of 9, 4 and 1 tokens per camera."""
    return SmolDriverConfig(
        vision_config={
            "tower_config": {
                "hidden_size": 32,
                "intermediate_size": 64,
                "mlp_ratio": 2,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "patch_size": 8,
                **TOWERS[tower],
            },
            "tower_image_size": 48,
            "hidden_size": 32,
            "grid_size": 6,
            "num_attention_heads": 4,
            **vision,
        },
        text_config={
            "model_type": "llama",
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 1024,
            "rope_theta": 5000.0,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )


def tiny_model(config: SmolDriverConfig, seed: int = 0) -> SmolDriverForConditionalGeneration:
    """Weights wide enough that different pictures and questions give different answers."""
    torch.manual_seed(seed)
    model = SmolDriverForConditionalGeneration(copy.deepcopy(config)).eval()  # which the model may change
    for name, parameter in model.named_parameters():
        if name.startswith(("lm_head", "model.text_model", "model.connector")) and parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.2)
    model.generation_config.eos_token_id = config.text_config.eos_token_id
    model.generation_config.pad_token_id = config.text_config.pad_token_id
    return model


def assert_same(actual: torch.Tensor, expected: torch.Tensor, name: str = ""):
    """Equal in float32: to 1e-5 of the largest value."""
    difference = (actual - expected).abs().max().item()
    limit = 1e-5 * max(1.0, expected.abs().max().item())
    assert actual.shape == expected.shape and difference <= limit, f"{name} differs by {difference}, more than {limit}"


@contextmanager
def small_files(size: int | None = None):
    """The system refuses to write files of more than `size` bytes, as it refuses all on a full disk.

    Without a size it only ends what is set inside, as by `FillDisk`.

    Leave it before the test ends: what pytest prints may itself go to a larger file.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class FillDisk(TrainerCallback):
    """From the first step on no file can grow beyond `size` bytes; use it inside `small_files()`."""

    def __init__(self, size: int):
        self.size = size

    def on_step_begin(self, *args, **kwargs):
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def picture(seed: int, size: tuple[int, int] = (64, 36)) -> Image.Image:
    """Coarse noise, so that pictures stay different after resizing; `size` is width, height in pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST)


def turned(upright, orientation, format):
    """A file that stores a picture as a camera does that was held in one of eight ways, and says so in its EXIF."""
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright if orientation == 1 else upright.transpose(undo[orientation])
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    stored.save(buffer, format, exif=exif)
    return buffer.getvalue()


ANSWERS = ["Yes.", "There is one car.", "The car is moving.", "The ego vehicle is going straight."]


LORA = {"use_peft": True, "lora_r": 4, "lora_alpha": 4, "lora_dropout": 0.0}


MODES = {
    "full": ({}, lambda name: True),
    "vision, language model frozen": (
        {"train_language_model": False},
        lambda name: name.startswith(("model.vision_model.", "model.connector.")),
    ),
    "language model, vision frozen": (
        {"train_vision": False, "train_connector": False},
        lambda name: name.startswith(("model.text_model.", "lm_head.")),
    ),
    "LoRA and vision": (
        {**LORA, "train_connector": False},
        lambda name: ".lora_" in name or ".vision_model.modules_to_save." in name,
    ),
    "QLoRA, vision and connector": (
        {**LORA, "load_in_4bit": True, "use_bnb_nested_quant": True, "dtype": "bfloat16"},
        lambda name: ".lora_" in name or ".modules_to_save." in name,
    ),
    "all but the tower": ({"train_tower": False}, lambda name: ".tower." not in name),
    "LoRA, vision without the tower and connector": (
        {**LORA, "train_tower": False},
        lambda name: ".lora_" in name or (".modules_to_save." in name and ".tower." not in name),
    ),
    "all with Muon": ({"muon_learning_rate": 1e-2}, lambda name: True),
    "LoRA and vision with Muon": (
        {**LORA, "train_connector": False, "muon_learning_rate": 1e-2},
        lambda name: ".lora_" in name or ".vision_model.modules_to_save." in name,
    ),
}


def scene_row(number: int, questions: int) -> dict:
    row = {"scene_token": f"scene{number // 2}", "frame_token": f"frame{number}", "scene_description": None}
    for index, camera in enumerate(CAMERAS):
        buffer = io.BytesIO()
        picture(10 * number + index).save(buffer, "PNG")
        row[camera] = {"bytes": buffer.getvalue(), "path": f"{camera}.png"}
    row["qa"] = [
        {"task": "perception", "question": QUESTIONS[index % 4], "answer": ANSWERS[(number + index) % 4], "tag": []}
        for index in range(questions)
    ]
    return row


def command_line(options: dict, *more: str) -> list[str]:
    """`--name value` of each option, a list as several words; `more` as it is."""
    values = ((name, value if isinstance(value, list) else [value]) for name, value in options.items())
    return [word for name, words in values for word in (f"--{name}", *map(str, words))] + list(more)


def logits_of(model, processor) -> torch.Tensor:
    images = {camera: picture(seed) for seed, camera in enumerate(CAMERAS)}
    prompt = processor.apply_chat_template(
        processor.scene_messages(images, QUESTIONS[0]), add_generation_prompt=True, tokenize=False
    )
    inputs = processor(images=images, text=prompt, return_tensors="pt")
    with torch.no_grad():
        return model.eval()(**inputs).logits


PREPROCESSING = {"image_processor_type": "SmolVLMImageProcessor", "image_mean": [0.4] * 3, "image_std": [0.6] * 3}


def tiny_smolvlm(tokenizer, image_size: int = 48, seed: int = 0) -> SmolVLMForConditionalGeneration:
    """48 pixels in 36 patches, pixel shuffle by 2: 9 tokens per view; language model as in `tiny_config`."""
    torch.manual_seed(seed)
    config = SmolVLMConfig(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": image_size,
            "patch_size": 8,
        },
        text_config=LlamaConfig(
            hidden_size=48,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=len(tokenizer),
            max_position_embeddings=1024,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ).to_dict(),
        scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        tie_word_embeddings=False,
    )
    model = SmolVLMForConditionalGeneration(config).eval()
    for name, parameter in model.named_parameters():
        if name.startswith(("lm_head", "model.text_model", "model.connector")) and parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def save_smolvlm(folder, tokenizer, **arguments):
    tiny_smolvlm(tokenizer, **arguments).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSING))
    return folder


def text_of(processor, images, question=QUESTIONS[0], **kwargs):
    """The prompt of one question about one frame, image tokens not expanded."""
    messages = processor.scene_messages(images, question)
    return processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False, **kwargs)


def inputs_of(processor, frames, questions, **kwargs):
    """Model inputs of one question each about frames given as {camera: picture}."""
    texts = [text_of(processor, frame, question) for frame, question in zip(frames, questions, strict=True)]
    return processor(images=frames, text=texts, return_tensors="pt", **kwargs)


def prompt_of(processor, images, question):
    """Model inputs of one question about one frame."""
    return inputs_of(processor, [images], [question])


def assert_same_inputs(one, other):
    assert set(one) == set(other)
    for name in one:
        assert torch.equal(torch.as_tensor(one[name]), torch.as_tensor(other[name])), name


def without(images, *cameras):
    """A frame without some of its cameras."""
    return {camera: image for camera, image in images.items() if camera not in cameras}


def write_scenes(folder: Path, frames: list[dict], test: tuple[dict, ...] = (), **options) -> Path:
    """A prepared folder with `frames` for training and others held out; `options` of its preparation."""
    counts = {}
    for split, rows in (("train", frames), ("test", list(test))):
        if rows:
            with open_shard(shard_path(folder, split, 0)) as writer:
                writer.write_table(scene_table(rows))
            count = {"scenes": len({row["scene_token"] for row in rows}), "frames": len(rows), "shards": 1}
            counts[split] = {**count, "questions": sum(len(row["qa"]) for row in rows)}
    write_manifest(folder, {"complete": True, "source": {}, "options": options, "splits": counts, "report": {}})
    return folder


def evaluate(monkeypatch, arguments: dict, *more: str) -> tuple[dict, list[dict]]:
    """metrics.json and the rows of predictions.parquet."""
    monkeypatch.setattr(sys, "argv", ["evaluate_drivelm.py", *command_line(arguments, *more)])
    evaluate_drivelm.main()
    return written(arguments["output-dir"])


def written(folder: Path) -> tuple[dict, list[dict]]:
    return json.loads((folder / "metrics.json").read_text()), pq.read_table(folder / "predictions.parquet").to_pylist()


QA = [
    ("Are there barriers to the front of the ego car?", "Yes."),
    ("Why?", "Because the ego vehicle is going straight and the road is wet."),
    ("What is the status of the car that is to the front of the ego car?", "No."),
    ("Predict the behavior of the ego vehicle.", "The ego vehicle is going straight. The ego vehicle is slow."),
    ("Is it <c1,CAM_FRONT,714.3,503.6>?", "7"),
]


def frame(number, qa=QA, missing=(), description="The ego vehicle waits at a crossing."):
    """A scene row as the recipes read it: decoded pictures, None where a camera is missing."""
    return {
        "scene_token": f"scene{number // 2}",
        "frame_token": f"frame{number}",
        "scene_description": description,
        **{
            camera: None if camera in missing else picture(10 * number + index) for index, camera in enumerate(CAMERAS)
        },
        "qa": [{"task": "perception", "question": question, "answer": answer, "tag": []} for question, answer in qa],
    }


def token_counts(processor, row):
    """(tokens of the prefix, tokens of each branch)."""
    present = [camera for camera in CAMERAS if row[camera] is not None]
    prefix = processor.tokenizer(processor.scene_prompt(present), add_special_tokens=False)["input_ids"]
    branches = [processor.question_prompt(qa["question"]) + processor.answer_text(qa["answer"]) for qa in row["qa"]]
    return len(prefix), [
        len(processor.tokenizer(branch, add_special_tokens=False)["input_ids"]) for branch in branches
    ]


def one_by_one(rows):
    return [{**row, "qa": [qa]} for row in rows for qa in row["qa"]]


def dataset(rows):
    def encoded(image):
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return {"bytes": buffer.getvalue(), "path": None}

    return Dataset.from_list(
        [{name: encoded(value) if hasattr(value, "save") else value for name, value in row.items()} for row in rows],
        features=SCENE_FEATURES,
    )


def loss_and_gradients(trainer, batches, num_items_in_batch=None):
    """Mean over the batches, as gradient accumulation has it; or their sum, where the number of items is given."""
    model = trainer.model
    model.train()
    model.zero_grad()
    total = 0.0
    for batch in batches:
        loss = trainer.compute_loss(model, batch, num_items_in_batch=num_items_in_batch)
        loss = loss / (len(batches) if num_items_in_batch is None else 1)
        loss.backward()
        total += loss.detach()
    return total, {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def assert_same_training(one, other):
    torch.testing.assert_close(one[0], other[0], rtol=1e-5, atol=0)
    assert one[1].keys() == other[1].keys()
    for name, gradient in one[1].items():
        # A bias of keys cancels in the softmax, its gradient is rounding noise: measured against its weight's.
        of_keys = name.endswith(("k_proj.bias", "key.bias"))
        scale = other[1][name.replace("bias", "weight") if of_keys else name].norm().item()
        difference = (gradient - other[1][name]).norm().item()
        assert 0 < scale and difference <= 1e-5 * scale, f"{name}: {difference} of {scale}"


CASES = {
    "ragged lengths": [frame(0)],
    "one question": [frame(0, QA[1:2])],
    "no description": [frame(0, description=None)],
    "missing cameras": [frame(0, missing=("CAM_FRONT", "CAM_BACK_LEFT"))],
    "a batch of frames": [frame(0, QA[:3]), frame(1, QA[2:], missing=CAMERAS[1:]), frame(2, QA[4:])],
    "a long frame of one question last": [frame(0, QA[:2], missing=CAMERAS[2:]), frame(1, QA[3:4])],
    "a long frame of one question first": [frame(0, QA[1:2]), frame(1, QA[:3], missing=CAMERAS[1:])],
    "frames of one question": [frame(0, QA[:1]), frame(1, QA[3:4], missing=("CAM_BACK",))],
}


LENGTH = 10  # new tokens


def generated(model, processor, images, question, description=None, visual_tokens=None, **kwargs):
    """Token ids that plain `generate` writes for one question."""
    prompt = processor.apply_chat_template(
        processor.scene_messages(images, question), add_generation_prompt=True, scene_description=description
    )
    inputs = processor(images=images, text=prompt, visual_tokens=visual_tokens, return_tensors="pt")
    options = {"max_new_tokens": LENGTH, "do_sample": False, **kwargs}
    ids = model.generate(**inputs, **options)[0, inputs["input_ids"].shape[1] :].tolist()
    return up_to_end(ids, model)


def up_to_end(ids, model):
    end = model.generation_config.eos_token_id
    return ids[: ids.index(end) + 1] if end in ids else ids


def write_shards(folder: Path, *shards: list[dict]) -> None:
    for number, rows in enumerate(shards):
        with open_shard(shard_path(folder, "train", number)) as writer:
            writer.write_table(scene_table(rows))
    rows = [row for shard in shards for row in shard]
    counts = {"scenes": len({row["scene_token"] for row in rows}), "frames": len(rows), "shards": len(shards)}
    counts["questions"] = sum(len(row["qa"]) for row in rows)
    splits = {"train": counts}
    write_manifest(folder, {"complete": True, "source": {}, "options": {}, "splits": splits, "report": {}})


ON_A_CPU = {
    "lr_scheduler_type": "constant",
    "gradient_checkpointing": False,
    "bf16": False,
    "use_cpu": True,
    "dataloader_pin_memory": False,
    "disable_tqdm": True,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
}
"""Options of a training recipe in a test: float32, nothing saved between, a loss for each step."""


def sft_options(base, scenes, output_dir) -> dict:
    """Of `recipes/sft_qlora.py`: one step of full fine-tuning on two packed frames."""
    return {
        "model_name_or_path": base,
        "dtype": "float32",
        "scenes": scenes,
        "scene_packing": True,
        "questions_per_scene": 2,
        "output_dir": output_dir,
        "max_steps": 1,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "weight_decay": 0.0,
        **ON_A_CPU,
    }
