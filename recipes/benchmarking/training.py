"""The benchmark's training part: one question per step beside a frame's questions packed behind its pictures.

A step is the forward pass and loss of `SmolDriverSFTTrainer`, the backward pass and fused AdamW; vision and language
model both train, with float32 weights and, in bfloat16, autocast, as in the trainer, without gradient checkpointing.
Batches are made beforehand, as a data loader's workers make them.
"""

import multiprocessing
import tempfile

import torch
from datasets import Dataset

from modeling_smoldriver.collator_smoldriver import SmolDriverCollator
from modeling_smoldriver.packing_smoldriver import PackedLayout
from modeling_smoldriver.trainer_smoldriver import SmolDriverSFTConfig, SmolDriverSFTTrainer
from recipes.benchmarking.counts import Phase, WorkCounts
from recipes.benchmarking.inference import Contestant
from recipes.benchmarking.models import Size, make_processor, make_smoldriver, name_of, scene_row
from smoldriver_common.processes import peak_resident_bytes

KILLED = 9  # SIGKILL, as the kernel sends where memory runs out; Windows has no such name


class TrainingBench:
    """A model with float32 weights, its trainer and optimizer."""

    def __init__(self, size: Size, device: str, dtype: torch.dtype):
        self.size, self.device, self.dtype = size, device, dtype
        self.processor, self.config, self.smolvlm_config = make_processor(self.size)
        self.model = make_smoldriver(self.config, device, torch.float32)
        unread = {"frame_token": "frame", "qa": [{"question": "?", "answer": "!"}]} | dict.fromkeys(
            self.processor.cameras
        )
        with tempfile.TemporaryDirectory() as folder:
            self.trainer = SmolDriverSFTTrainer(
                self.model,
                SmolDriverSFTConfig(
                    output_dir=folder,
                    scene_packing=True,
                    gradient_checkpointing=False,
                    bf16=dtype == torch.bfloat16,
                    use_cpu=device == "cpu",
                    report_to="none",
                    disable_tqdm=True,
                ),
                train_dataset=Dataset.from_list([unread]),
                processing_class=self.processor,
            )
        self.model = self.trainer.model.train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, fused=True)

    def batch(self, questions: int, packs: int = 1) -> dict:
        """One frame with `questions` questions in `packs` sequences."""
        row = scene_row(questions)
        collate = SmolDriverCollator(self.processor, scene_packing=questions > 1)
        if packs > 1:
            whole = collate([row])
            prefix = int((whole["segment_ids"] == 0).sum())
            collate.max_pack_length = prefix - (prefix - whole["input_ids"].shape[1]) // packs
            while len(collate([row])["input_ids"]) > packs:  # questions do not divide evenly
                collate.max_pack_length += 1
        return collate([row])

    def contestant(self, questions: int, packs: int) -> Contestant:
        batch = self.batch(questions, packs)
        tokens, phases = self.counts(batch)
        row = {
            "part": "training",
            "what": "one question" if questions == 1 else f"packed in {packs}",
            "budget": self.size.budgets[0],
            "image_size": batch["pixel_values"].shape[-1],
            "questions": questions,
            "packs": packs,
            "tokens": tokens,
        }
        return Contestant(row, lambda: self.step(batch), phases)

    def step(self, batch: dict):
        batch = {name: value.to(self.device) if hasattr(value, "to") else value for name, value in batch.items()}
        with torch.autocast(self.device, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            loss = self.trainer.compute_loss(self.model, batch)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def counts(self, batch: dict) -> tuple[int, list[Phase]]:
        """Tokens through the language model, padding included, and the work of a step."""
        sequences, length = batch["input_ids"].shape
        if "segment_ids" in batch:
            layout = PackedLayout.from_segments(batch["segment_ids"], torch.float32)
            pairs = layout.prefix**2
            for group in layout.groups:
                pairs += group.branches * group.branch * (layout.prefix + group.branch)
        else:
            pairs = length**2
        counter = WorkCounts(self.config, self.smolvlm_config, item=4)
        phases = counter.training_phases(
            image_size=batch["pixel_values"].shape[-1],
            budget=self.size.budgets[0],
            frames=len(batch["pixel_values"]),
            tokens=sequences * length,
            pairs=sequences * pairs,
            heads=int((batch["labels"][:, 1:] != -100).sum()),  # positions that go through lm_head
            trained_weights=sum(parameter.numel() for parameter in self.model.parameters()),
        )
        return sequences * length, phases


def estimate_bytes(size: Size, questions: int, dtype: torch.dtype) -> int:
    """Memory of one training step: weights, gradients, two moments, autocast's copies and activations.

    Activations follow from what a layer keeps per token for its backward pass: about 20 widths in a tower, 12 widths
    and 5 MLP widths in the language model. A rough figure; the report shows it beside the measured peak.
    """
    processor, config, _ = make_processor(size)
    item = 2 if dtype == torch.bfloat16 else 4
    weights = make_smoldriver(config, "meta", torch.float32).num_parameters()
    vision, text = config.vision_config, config.text_config
    views = len(vision.cameras)
    patches = views * (vision.tower_image_size // vision.tower_config.patch_size) ** 2
    tower = patches * vision.tower_config.num_hidden_layers * vision.tower_config.hidden_size * 20
    resampler = views * vision.grid_size**2 * vision.hidden_size * 20
    batch = SmolDriverCollator(processor, scene_packing=questions > 1)([scene_row(questions)])
    answers = int((batch["labels"] != -100).sum())
    tokens = batch["input_ids"].numel()
    language = tokens * text.num_hidden_layers * (12 * text.hidden_size + 5 * text.intermediate_size)
    logits = answers * text.vocab_size * 3 * 4
    return weights * (16 + (2 if item == 2 else 0)) + item * (tower + resampler + language) + logits


def peak_of_step(size: Size, device: str, dtype: torch.dtype, questions: int, packs: int) -> int | None:
    """Peak memory in bytes of a step in a process of its own, everything included; None where memory ran out.

    Raises:
        RuntimeError: the process failed for another reason, which it has printed.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_peak, args=(sender, size, device, dtype, questions, packs))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        process.join()
        if process.exitcode == -KILLED:
            return None
        raise RuntimeError(
            f"training, {name_of(questions, packs)}: its process failed with exit status {process.exitcode}, its error"
            " stands above"
        ) from None
    finally:
        process.join()


def _send_peak(sender, size: Size, device: str, dtype: torch.dtype, questions: int, packs: int):
    try:
        bench = TrainingBench(size, device, dtype)
        for batch in (bench.batch(1), bench.batch(questions, packs)):  # the first step makes the optimizer's moments
            bench.step(batch)
    except torch.OutOfMemoryError:
        sender.send(None)
        return
    sender.send(torch.cuda.max_memory_allocated() if device == "cuda" else peak_resident_bytes())
