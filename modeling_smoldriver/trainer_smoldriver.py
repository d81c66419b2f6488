"""SmolDriver's trainer: TRL's SFTTrainer over scene rows, with packed frames."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel, TrainerCallback
from trl import SFTConfig, SFTTrainer

from .collator_smoldriver import SmolDriverCollator, group_questions
from .packing_smoldriver import PACKED_ATTENTION, PackedLayout, block_mask

LOSS_MODES = ("question", "token")
PACKED_ATTENTIONS = ("blocks", "mask")


@dataclass
class SmolDriverSFTConfig(SFTConfig):
    """SFTConfig plus how scenes become sequences and which parts of the model train."""

    # What trains (with PEFT: the language model's adapters train whatever train_language_model says)
    train_vision: bool = field(default=True, metadata={"help": "Train tower, projection and resamplers."})
    train_connector: bool = field(default=True, metadata={"help": "Train the connector."})
    train_language_model: bool = field(default=True, metadata={"help": "Train text model and lm_head."})
    # Sequences
    scene_packing: bool = field(default=False, metadata={"help": "Pack a frame's questions behind its pictures."})
    questions_per_scene: int = field(
        default=16, metadata={"help": "Questions of a frame that a step takes together, with scene_packing."}
    )
    max_pack_length: int | None = field(
        default=None,
        metadata={"help": "Most tokens a sequence may have; longer packs are split, longer questions dropped."},
    )
    train_visual_tokens: list[int] | None = field(
        default=None, metadata={"help": "Budgets of tokens a camera to draw from, one a batch; default: the full one."}
    )
    use_scene_description: bool = field(
        default=False, metadata={"help": "Put DriveLM's human summary of the clip into the prompt."}
    )
    packed_attention: str = field(
        default="blocks",
        metadata={
            "help": "'blocks': the allowed blocks alone; 'mask': a dense mask for the model's attn_implementation."
        },
    )
    loss_mode: str = field(
        default="question",
        metadata={
            "help": "'question': mean over questions of their mean token loss; 'token': mean over answer tokens."
        },
    )
    # Samples
    sample_steps: int = field(default=0, metadata={"help": "Steps between tables of sample answers; 0: none."})
    sample_questions: int = field(default=6, metadata={"help": "Questions in a sample table."})

    def __post_init__(self):
        # Images are read by the collator, and truncation would cut image tokens.
        self.remove_unused_columns = False
        self.max_length = None
        self.dataset_kwargs = {**(self.dataset_kwargs or {}), "skip_prepare_dataset": True}
        super().__post_init__()
        if self.loss_mode not in LOSS_MODES:
            raise ValueError(f"loss_mode={self.loss_mode!r} is unknown; use one of {LOSS_MODES}")
        if self.packed_attention not in PACKED_ATTENTIONS:
            raise ValueError(f"packed_attention={self.packed_attention!r} is unknown; use one of {PACKED_ATTENTIONS}")
        if self.questions_per_scene < 1:
            raise ValueError(f"questions_per_scene={self.questions_per_scene} must be at least 1")


def freeze_parts(model: PreTrainedModel, args: SmolDriverSFTConfig) -> None:
    """Set which parameters of a SmolDriver train, by `train_vision`, `train_connector` and `train_language_model`."""
    parts = {
        model.model.vision_model: args.train_vision,
        model.model.connector: args.train_connector,
        model.model.text_model: args.train_language_model,
        model.lm_head: args.train_language_model,
    }
    for part, trains in parts.items():
        for name, parameter in part.named_parameters():
            if parameter.is_floating_point() and not name.endswith("mask_token"):
                parameter.requires_grad_(trains)


def modules_to_save(args: SmolDriverSFTConfig) -> list[str]:
    """Parts that train in full beside LoRA adapters, and are saved with them."""
    return [
        name for name, trains in (("vision_model", args.train_vision), ("connector", args.train_connector)) if trains
    ]


class SmolDriverSFTTrainer(SFTTrainer):
    """SFTTrainer whose datasets are scene rows (see `data_scripts/schema.py`).

    What it changes, and why: datasets are split into groups of questions and batched by [`SmolDriverCollator`], since
    TRL does not pack vision data; the loss is computed at answer tokens alone and can weigh questions equally;
    trainable weights stay in float32 under QLoRA, where bfloat16 would round small updates away.
    """

    def __init__(
        self, model, args: SmolDriverSFTConfig, train_dataset, eval_dataset=None, processing_class=None, **kwargs
    ):
        if not isinstance(model, PreTrainedModel):
            raise ValueError("give a loaded model: SmolDriverForConditionalGeneration.from_pretrained(...)")
        if kwargs.get("peft_config") is None:
            freeze_parts(model, args)
        if args.scene_packing and args.packed_attention == "blocks":
            model.model.text_model.config._attn_implementation = PACKED_ATTENTION
        questions = args.questions_per_scene if args.scene_packing else 1
        collator = SmolDriverCollator(
            processing_class,
            scene_packing=args.scene_packing,
            max_pack_length=args.max_pack_length,
            visual_tokens=args.train_visual_tokens,
            use_scene_description=args.use_scene_description,
            seed=args.seed,
        )
        super().__init__(
            model,
            args=args,
            data_collator=collator,
            train_dataset=group_questions(train_dataset, questions, args.seed),
            eval_dataset=None if eval_dataset is None else group_questions(eval_dataset, questions, args.seed),
            processing_class=processing_class,
            **kwargs,
        )
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        self._questions_seen = 0
        if args.sample_steps:
            self.add_callback(SampleTableCallback(self, eval_dataset if eval_dataset is not None else train_dataset))

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        mode = "train" if self.model.training else "eval"
        inputs = dict(inputs)
        labels, weights = inputs.pop("labels"), inputs.pop("loss_weights")
        frame_tokens = inputs.pop("frame_tokens")
        if "segment_ids" in inputs:
            segment_ids = inputs.pop("segment_ids")
            if self.args.packed_attention == "blocks":
                inputs["packing"] = PackedLayout.from_segments(segment_ids, self._activation_dtype())
                inputs["attention_mask"] = segment_ids.new_ones(
                    1, 1, 1, 1, dtype=torch.bool
                )  # keeps others from making one
            else:
                inputs["attention_mask"] = block_mask(segment_ids)
            tokens = (segment_ids >= 0).sum()
        else:
            tokens = inputs["attention_mask"].sum()

        # Only positions that predict an answer token, in any row, go through lm_head.
        positions = (labels[:, 1:] != -100).any(0).nonzero().flatten()
        outputs = model(**inputs, use_cache=False, logits_to_keep=positions)
        targets, weights = labels[:, positions + 1], weights[:, positions + 1]
        losses = F.cross_entropy(outputs.logits.float().flatten(0, 1), targets.flatten(), reduction="none").view_as(
            weights
        )
        answer_tokens = targets != -100
        if self.args.loss_mode == "question":
            total, count = (losses * weights).sum(), weights.sum()
        else:
            total, count = losses.sum(), answer_tokens.sum()
        loss = total / (count if num_items_in_batch is None else num_items_in_batch)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss.item()} at step {self.state.global_step} for the frames {', '.join(frame_tokens)};"
                f" the last checkpoint in {self.args.output_dir} is good. Lower the learning rate or look at the data."
            )
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # DDP averages what was divided by the count of all processes

        correct = ((outputs.logits.argmax(-1) == targets) & answer_tokens).sum()
        counts = torch.stack([correct, answer_tokens.sum(), tokens, weights.sum().round().long()])
        counts = self.accelerator.gather(counts.unsqueeze(0)).sum(0).tolist()
        self._metrics[mode]["mean_token_accuracy"].append(counts[0] / max(1, counts[1]))
        if mode == "train":
            self._total_train_tokens += counts[2]
            self._questions_seen += counts[3]
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]
        self._metrics[mode]["num_questions"] = [self._questions_seen]
        return (loss, outputs) if return_outputs else loss

    def _activation_dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.args.bf16 else torch.float16 if self.args.fp16 else torch.float32

    def _get_num_items_in_batch(self, batch_samples, device):
        if self.args.loss_mode == "token":
            return super()._get_num_items_in_batch(batch_samples, device)
        questions = sum(batch["loss_weights"].sum() for batch in batch_samples).to(device)
        if self.args.average_tokens_across_devices:
            questions = self.accelerator.gather(questions.reshape(1)).sum()
        return questions


class SampleTableCallback(TrainerCallback):
    """Every `sample_steps` steps: question, target and prediction of a few fixed questions, printed and kept.

    The tables go to `<output_dir>/samples.json`: `{"step": [{"question", "target", "prediction"}]}`.
    """

    def __init__(self, trainer: SmolDriverSFTTrainer, scenes):
        self.trainer = trainer
        self.row = next(iter(scenes))
        count = trainer.args.sample_questions
        stride = max(1, len(self.row["qa"]) // count)
        self.samples = self.row["qa"][::stride][:count]

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % args.sample_steps or not state.is_world_process_zero:
            return
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        model = model.get_base_model() if hasattr(model, "get_base_model") else model
        processor = self.trainer.processing_class
        training = model.training
        model.eval()
        try:
            images = {camera: self.row[camera] for camera in processor.cameras}
            description = self.row["scene_description"] if args.use_scene_description else None
            with self.trainer.compute_loss_context_manager():
                scene = model.encode_scene(**processor.encode_scene(images, description))
                predictions = model.answer(scene, processor, [sample["question"] for sample in self.samples])
        finally:
            model.train(training)
        table = [
            {"question": sample["question"], "target": sample["answer"], "prediction": prediction}
            for sample, prediction in zip(self.samples, predictions, strict=True)
        ]
        self._keep(Path(args.output_dir), state.global_step, table)
        lines = [f"samples at step {state.global_step}"]
        for line in table:
            lines += [
                f"  Q {line['question']}",
                f"    target     {line['target']}",
                f"    prediction {line['prediction']}",
            ]
        self.trainer.accelerator.print("\n".join(lines))

    @staticmethod
    def _keep(folder: Path, step: int, table: list[dict]):
        path = folder / "samples.json"
        tables = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        tables[str(step)] = table
        folder.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".tmp").write_text(json.dumps(tables, indent=1, ensure_ascii=False), encoding="utf-8")
        os.replace(path.with_suffix(".tmp"), path)
