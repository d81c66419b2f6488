"""Fine-tuning on questions and answers: scene rows, packed frames, a loss at answer tokens, an optional teacher."""

import json
import math
from collections import defaultdict
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel, TrainerCallback

from smoldriver_common.whole_files import write_json

from .collator_smoldriver import SmolDriverCollator, check_row_cameras, group_questions, pictures_of
from .inputs_smoldriver import CAMERAS
from .packing_smoldriver import PACKED_ATTENTION, forward_at_answers
from .processing_smoldriver import SmolDriverProcessor
from .training_smoldriver import (
    SmolDriverTrainer,
    SmolDriverTrainingConfig,
    check_model,
    check_one_dataset,
    check_range,
    train_parts,
)

LOSS_MODES = ("question", "token")
PACKED_ATTENTIONS = ("blocks", "mask")
LEAST = {"questions_per_scene": 1, "max_pack_length": 1, "sample_steps": 0, "sample_questions": 1}


@dataclass
class SmolDriverSFTConfig(SmolDriverTrainingConfig):
    """SmolDriverTrainingConfig plus how frames become sequences and which parts of the model train.

    Raises:
        ValueError: a value out of range, or a teacher without a weight in the loss.
    """

    # What trains (with PEFT: the language model's adapters train whatever train_language_model says)
    train_vision: bool = field(default=True, metadata={"help": "Train tower, projection and resamplers."})
    train_connector: bool = field(default=True, metadata={"help": "Train the connector."})
    train_language_model: bool = field(default=True, metadata={"help": "Train text model and lm_head."})
    # Sequences
    scene_packing: bool = field(default=False, metadata={"help": "Pack a frame's questions behind its pictures."})
    questions_per_scene: int = field(
        default=16, metadata={"help": "With scene_packing: questions of a frame that share a pack."}
    )
    most_views: int = field(
        default=0,
        metadata={
            "help": "Ask only the questions about one direction, behind one to most_views pictures, that camera's"
            " included: a first stage for a language model that has yet to learn to look. 0: all, behind all."
        },
    )
    max_pack_length: int | None = field(
        default=None,
        metadata={
            "help": "Most tokens of a sequence; longer packs are split, longer questions dropped. A batch that loses"
            " all its questions, as happens easily without scene_packing, ends the run."
        },
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
    # A teacher VLM, whose logits at answer tokens are learned beside the answers
    teacher_model: str | None = field(
        default=None, metadata={"help": "SmolVLM or SmolDriver with the same tokenizer: folder, adapters or Hub id."}
    )
    distillation_weight: float = field(
        default=0.0, metadata={"help": "Share w of the teacher: (1 - w) CE + w T^2 KL(teacher || student)."}
    )
    distillation_temperature: float = field(
        default=1.0, metadata={"help": "T, which divides both models' logits in the teacher's term."}
    )
    # Samples
    sample_steps: int = field(default=0, metadata={"help": "Steps between tables of sample answers; 0: none."})
    sample_questions: int = field(default=6, metadata={"help": "Questions in a sample table."})

    def __post_init__(self):
        super().__post_init__()
        if self.loss_mode not in LOSS_MODES:
            raise ValueError(f"loss_mode={self.loss_mode!r} is unknown; use one of {LOSS_MODES}")
        if self.packed_attention not in PACKED_ATTENTIONS:
            raise ValueError(f"packed_attention={self.packed_attention!r} is unknown; use one of {PACKED_ATTENTIONS}")
        for name, least in LEAST.items():
            check_range(name, getattr(self, name), least)
        if not 0 <= self.most_views <= len(CAMERAS):
            raise ValueError(f"most_views={self.most_views} must be 0 .. {len(CAMERAS)}")
        if not 0 <= self.distillation_weight <= 1:
            raise ValueError(f"distillation_weight={self.distillation_weight} must be between 0 and 1")
        if not 0 < self.distillation_temperature < math.inf:
            raise ValueError(f"distillation_temperature={self.distillation_temperature} must be above 0")
        if bool(self.teacher_model) != (self.distillation_weight > 0):
            raise ValueError(
                f"teacher_model={self.teacher_model!r} and distillation_weight={self.distillation_weight}: give a"
                " teacher and a weight above 0, or neither"
            )


def modules_to_save(args: SmolDriverSFTConfig) -> list[str]:
    """Parts that train in full beside LoRA adapters and are saved with them."""
    return [
        name for name, trains in (("vision_model", args.train_vision), ("connector", args.train_connector)) if trains
    ]


def check_teacher(model, processor: SmolDriverProcessor, teacher, teacher_processor: SmolDriverProcessor) -> None:
    """Refuse a teacher whose logits would not be about the student's tokens.

    Raises:
        ValueError: another tokenizer, another width of the logits, or a camera that the teacher does not know.
    """
    name = teacher.config._name_or_path
    own, other = (set(one.tokenizer.get_vocab().items()) for one in (processor, teacher_processor))
    if own != other:
        raise ValueError(
            f"the teacher {name} has another tokenizer: {len(own - other)} of {len(own)} tokens differ; choose a"
            " teacher_model of the same family"
        )
    sizes = [one.config.text_config.vocab_size for one in (model, teacher)]
    if sizes[0] != sizes[1]:
        raise ValueError(f"the teacher {name} gives {sizes[1]} logits per token, the student {sizes[0]}")
    unknown = [camera for camera in processor.cameras if camera not in teacher_processor.cameras]
    if unknown:
        raise ValueError(f"the teacher {name} does not know the cameras {', '.join(unknown)}")


def make_collator(
    model, args: SmolDriverSFTConfig, processor: SmolDriverProcessor, teacher_model, teacher_processor
) -> SmolDriverCollator:
    """The trainer's collator; with a teacher it makes the teacher's batch of the same questions too."""
    teacher = None
    if teacher_model is not None:
        teacher = SmolDriverCollator(
            teacher_processor,
            context_length=teacher_model.config.text_config.max_position_embeddings,
            use_scene_description=args.use_scene_description,
        )
    return SmolDriverCollator(
        processor,
        scene_packing=args.scene_packing,
        max_pack_length=args.max_pack_length,
        context_length=model.config.text_config.max_position_embeddings,
        visual_tokens=args.train_visual_tokens,
        use_scene_description=args.use_scene_description,
        seed=args.seed,
        teacher=teacher,
    )


class SmolDriverSFTTrainer(SmolDriverTrainer):
    """Trains on scene rows (see `data_scripts/schema.py`); for SmolDriver and for SmolVLM.

    What it adds to [`SmolDriverTrainer`], and why: rows are split into groups of questions and batched by
    [`SmolDriverCollator`], since TRL does not pack vision data; the loss is computed at answer tokens alone and can
    weigh questions equally; a teacher VLM, which reads the same questions behind pictures of its own, can add the
    divergence from its logits to the loss; an evaluation's numbers do not depend on how its rows are batched.

    Args:
        model: [`SmolDriverForConditionalGeneration`] or `baseline_smoldriver.SmolVLMForScenes`, loaded.
        teacher (`tuple`, *optional*): model and processor that `args.teacher_model` names; frozen here, never saved.

    Raises:
        ValueError: see [`check_model`], [`check_row_cameras`] and [`check_one_dataset`]; a teacher with another
            tokenizer, or `sample_steps` with FSDP or DeepSpeed.
    """

    def __init__(
        self,
        model,
        args: SmolDriverSFTConfig,
        train_dataset,
        eval_dataset=None,
        processing_class=None,
        teacher: tuple[PreTrainedModel, SmolDriverProcessor] | None = None,
        peft_config=None,
        **kwargs,
    ):
        check_model(model, args, processing_class)
        self.teacher_model, teacher_processor = teacher or (None, None)
        if teacher is not None:
            check_teacher(model, processing_class, self.teacher_model, teacher_processor)
            self.teacher_model.eval().requires_grad_(False)
        if peft_config is None:
            train_parts(model, args.train_vision, args.train_connector, args.train_language_model)
        check_row_cameras(train_dataset, processing_class.cameras)
        if eval_dataset is not None:
            check_one_dataset(eval_dataset)
            check_row_cameras(eval_dataset, processing_class.cameras)
        group = partial(
            group_questions,
            questions_per_scene=args.questions_per_scene if args.scene_packing else 1,
            seed=args.seed,
            most_views=args.most_views,
            cameras=processing_class.cameras,
        )
        super().__init__(
            model,
            args=args,
            data_collator=make_collator(model, args, processing_class, self.teacher_model, teacher_processor),
            train_dataset=group(train_dataset),
            eval_dataset=None if eval_dataset is None else group(eval_dataset),
            processing_class=processing_class,
            peft_config=peft_config,
            **kwargs,
        )
        self._text_config = model.model.text_model.config
        if self.teacher_model is not None:
            self.teacher_model.to(self.args.device)
        if args.scene_packing and args.packed_attention == "blocks":
            for packed in (model, self.teacher_model):
                if packed is not None:
                    packed.model.text_model.config._attn_implementation = PACKED_ATTENTION
        self._questions_seen = 0
        self._evaluated = defaultdict(float)  # sums over an evaluation's rows so far
        if args.sample_steps:
            self._need_whole_weights("the tables of sample_steps")  # the main process alone generates
            self.add_callback(SampleTableCallback(self, eval_dataset if eval_dataset is not None else train_dataset))

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        mode = "train" if self.model.training else "eval"
        inputs = dict(inputs)
        labels, weights = inputs.pop("labels"), inputs.pop("loss_weights")
        frame_tokens, teacher_inputs = inputs.pop("frame_tokens"), inputs.pop("teacher", None)
        row_index = inputs.pop("row_index")
        tokens = (inputs["segment_ids"] >= 0 if "segment_ids" in inputs else inputs["attention_mask"]).sum()

        # Only positions that predict an answer token go through lm_head.
        answers = labels[:, 1:] != -100
        targets, weights = labels[:, 1:][answers], weights[:, 1:][answers]
        outputs = self._forward(model, self._text_config, inputs, answers)
        logits = outputs.logits[0]
        losses = F.cross_entropy(logits.float(), targets, reduction="none")
        if teacher_inputs is not None:
            divergence = self._divergence(logits, teacher_inputs)
            share = self.args.distillation_weight
            losses = (1 - share) * losses + share * divergence
        shares = weights if self.args.loss_mode == "question" else torch.ones_like(weights)
        loss = self._mean_loss((losses * shares).sum(), shares.sum(), num_items_in_batch, frame_tokens)

        correct = logits.argmax(-1) == targets
        if mode == "eval":
            values = {"items": shares, "loss": losses.detach() * shares, "tokens": torch.ones_like(shares)}
            values["mean_token_accuracy"] = correct.float()
            if teacher_inputs is not None:
                values["teacher_divergence"] = divergence
            self._add_to_evaluation(values, row_index[answers.nonzero()[:, 0]])
            return (loss, outputs) if return_outputs else loss
        if teacher_inputs is not None:
            self._metrics[mode]["teacher_divergence"].append(self.accelerator.gather(divergence.mean()).mean().item())
        counts = torch.stack([correct.sum(), answers.sum(), tokens, weights.sum().round().long()])
        counts = self.accelerator.gather(counts.unsqueeze(0)).sum(0).tolist()
        self._metrics[mode]["mean_token_accuracy"].append(counts[0] / max(1, counts[1]))
        self._total_train_tokens += counts[2]
        self._questions_seen += counts[3]
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]
        self._metrics[mode]["num_questions"] = [self._questions_seen]
        return (loss, outputs) if return_outputs else loss

    def _add_to_evaluation(self, values: dict[str, torch.Tensor], rows: torch.Tensor) -> None:
        """Add up values of answer tokens, `(answer tokens,)` each, and keep the means over the evaluation so far.

        They are summed by row: where the processes share a dataset unevenly, the last batch repeats rows that
        `gather_for_metrics` leaves out.

        Args:
            rows (`torch.LongTensor` of shape `(answer tokens,)`): each token's row in its batch.
        """
        values_of_tokens = torch.stack(list(values.values()), dim=1).float()
        sums = values_of_tokens.new_zeros(self.args.eval_batch_size, len(values)).index_add(0, rows, values_of_tokens)
        sums = self.accelerator.gather_for_metrics(sums).double().sum(0).tolist()
        for name, value in zip(values, sums, strict=True):
            self._evaluated[name] += value
        for name in values.keys() & {"mean_token_accuracy", "teacher_divergence"}:
            self._metrics["eval"][name] = [self._evaluated[name] / max(1, self._evaluated["tokens"])]
        self._metrics["eval"]["num_tokens"] = [self._total_train_tokens]
        self._metrics["eval"]["num_questions"] = [self._questions_seen]

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs):
        """As in transformers, whose loss is a mean over batches; this one is a mean over questions or tokens."""
        self._evaluated.clear()
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        if self._evaluated["items"]:
            output.metrics[f"{metric_key_prefix}_loss"] = self._evaluated["loss"] / self._evaluated["items"]
        return output

    def get_eval_dataloader(self, *args, **kwargs):
        """Every row, also with `dataloader_drop_last`, and all at one budget: the largest that is trained."""
        collator, drop_last = self.data_collator, self.args.dataloader_drop_last
        budgets = collator.visual_tokens and [max(collator.visual_tokens)]
        self.data_collator, self.args.dataloader_drop_last = replace(collator, visual_tokens=budgets), False
        try:
            return super().get_eval_dataloader(*args, **kwargs)
        finally:
            self.data_collator, self.args.dataloader_drop_last = collator, drop_last

    def _forward(self, model, text_config, inputs: dict, answers: torch.Tensor):
        attention, dtype = self.args.packed_attention, self.args.activation_dtype
        return forward_at_answers(model, text_config, inputs, answers, attention, dtype)

    def _divergence(self, logits: torch.Tensor, teacher_inputs: dict) -> torch.Tensor:
        """`T^2 KL(teacher || student)` at each answer token, `(answer tokens,)`."""
        inputs = dict(teacher_inputs)
        answers = inputs.pop("labels")[:, 1:] != -100
        del inputs["loss_weights"]
        text_config = self.teacher_model.model.text_model.config
        with torch.no_grad():
            wanted = self._forward(self.teacher_model, text_config, inputs, answers).logits[0]
        temperature = self.args.distillation_temperature
        given, wanted = (F.log_softmax(values.float() / temperature, dim=-1) for values in (logits, wanted))
        return temperature**2 * F.kl_div(given, wanted, reduction="none", log_target=True).sum(-1)

    def _items(self, batch: dict) -> torch.Tensor:
        if self.args.loss_mode == "question":
            return batch["loss_weights"].sum()  # 1 per question
        return (batch["labels"][:, 1:] != -100).sum()


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
            images = pictures_of(self.row, processor.cameras)
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
        write_json(path, tables, ensure_ascii=False)
