"""SmolDriver's trainer: TRL's SFTTrainer over scene rows, with packed frames."""

import json
import math
import os
import time
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate.utils import gather_object
from transformers import PreTrainedModel, TrainerCallback
from trl import SFTConfig, SFTTrainer

from .collator_smoldriver import SmolDriverCollator, group_questions
from .inputs_smoldriver import CAMERAS
from .optimizer_smoldriver import MuonAdamW, hidden_matrices
from .packing_smoldriver import PACKED_ATTENTION, PackedLayout, packed_mask
from .processing_smoldriver import SmolDriverProcessor

LOSS_MODES = ("question", "token")
PACKED_ATTENTIONS = ("blocks", "mask")


@dataclass
class SmolDriverSFTConfig(SFTConfig):
    """SFTConfig plus how scenes become sequences and which parts of the model train.

    `bf16` is by default what is faster on the machine, see [`bfloat16_is_fast`].
    """

    # What trains (with PEFT: the language model's adapters train whatever train_language_model says)
    train_vision: bool = field(default=True, metadata={"help": "Train tower, projection and resamplers."})
    train_tower: bool = field(default=True, metadata={"help": "With train_vision: the tower too, not the rest alone."})
    train_connector: bool = field(default=True, metadata={"help": "Train the connector."})
    train_language_model: bool = field(default=True, metadata={"help": "Train text model and lm_head."})
    tower_learning_rate: float = field(
        default=0.0,
        metadata={
            "help": "Learning rate of the tower, always with AdamW; 0: as the rest. A pretrained tower forgets at the"
            " rates that fresh weights learn at."
        },
    )
    muon_learning_rate: float = field(
        default=0.0,
        metadata={
            "help": "Train the matrices of hidden layers with Muon at this rate, all else with AdamW at learning_rate;"
            " 0: AdamW alone. What starts from random weights learns faster with Muon."
        },
    )
    # Sequences
    scene_packing: bool = field(default=False, metadata={"help": "Pack a frame's questions behind its pictures."})
    questions_per_scene: int = field(
        default=16, metadata={"help": "Questions of a frame that a step takes together, with scene_packing."}
    )
    most_views: int = field(
        default=0,
        metadata={
            "help": "Ask only the questions about one direction, behind one to most_views pictures, that camera's"
            " among them: a first stage for a language model that has yet to learn to look. 0: all, behind all."
        },
    )
    max_pack_length: int | None = field(
        default=None,
        metadata={
            "help": "Most tokens a sequence may have; longer packs are split, longer questions dropped. A batch that"
            " loses all its questions, as one question a sequence easily does, ends the run."
        },
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
        # Images are read by the collator, and truncation would cut image tokens.
        self.remove_unused_columns = False
        self.max_length = None
        self.dataset_kwargs = {**(self.dataset_kwargs or {}), "skip_prepare_dataset": True}
        if self.bf16 is None:
            on_gpu = torch.cuda.is_available() and not self.use_cpu
            self.bf16 = not self.fp16 and bfloat16_is_fast(on_gpu)
        super().__post_init__()
        if self.loss_mode not in LOSS_MODES:
            raise ValueError(f"loss_mode={self.loss_mode!r} is unknown; use one of {LOSS_MODES}")
        if self.packed_attention not in PACKED_ATTENTIONS:
            raise ValueError(f"packed_attention={self.packed_attention!r} is unknown; use one of {PACKED_ATTENTIONS}")
        if self.questions_per_scene < 1:
            raise ValueError(f"questions_per_scene={self.questions_per_scene} must be at least 1")
        if not 0 <= self.most_views <= len(CAMERAS):
            raise ValueError(f"most_views={self.most_views} must be 0 .. {len(CAMERAS)}")
        for name in ("tower_learning_rate", "muon_learning_rate"):
            rate = getattr(self, name)
            if not 0 <= rate < math.inf:
                raise ValueError(f"{name}={rate} must be 0 or above")
            if rate and not str(self.optim.value).startswith("adamw_torch"):
                raise ValueError(f"{name} goes with optim='adamw_torch', not {self.optim.value!r}")
        if not 0 <= self.distillation_weight <= 1:
            raise ValueError(f"distillation_weight={self.distillation_weight} must be between 0 and 1")
        if not 0 < self.distillation_temperature < math.inf:
            raise ValueError(f"distillation_temperature={self.distillation_temperature} must be above 0")
        if bool(self.teacher_model) != (self.distillation_weight > 0):
            raise ValueError(
                f"teacher_model={self.teacher_model!r} and distillation_weight={self.distillation_weight}: give a"
                " teacher and a weight above 0, or neither"
            )


@cache
def bfloat16_is_fast(on_gpu: bool) -> bool:
    """Whether matrix products are faster in bfloat16 than in float32: GPUs since Ampere, CPUs with its instructions.

    Other CPUs emulate them, up to fifty times slower, so that on a CPU it is tried.
    """
    if on_gpu:
        return torch.cuda.is_bf16_supported(including_emulation=False)
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.ones(256, 256, dtype=dtype)
        times = []
        for _ in range(4):  # the first warms up
            started = time.perf_counter()
            torch.matmul(matrix, matrix)
            times.append(time.perf_counter() - started)
        seconds[dtype] = min(times[1:])
    return seconds[torch.bfloat16] < seconds[torch.float32]


def activation_dtype(args: SmolDriverSFTConfig) -> torch.dtype:
    """What the model computes in, and a teacher is loaded in."""
    return torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32


def freeze_parts(model: PreTrainedModel, args: SmolDriverSFTConfig) -> None:
    """Set which parameters train, by `train_vision`, `train_connector` and `train_language_model`."""
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
    if not args.train_tower:
        tower_of(model).requires_grad_(False)


def tower_of(model) -> torch.nn.Module:
    """What turns pictures into patch features: part of SmolDriver's vision model, all of SmolVLM's."""
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    vision = model.model.vision_model
    return getattr(vision, "tower", vision)


def modules_to_save(args: SmolDriverSFTConfig) -> list[str]:
    """Parts that train in full beside LoRA adapters, and are saved with them."""
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
        raise ValueError(f"the teacher {name} gives {sizes[1]} logits a token, the student {sizes[0]}")
    unknown = [camera for camera in processor.cameras if camera not in teacher_processor.cameras]
    if unknown:
        raise ValueError(f"the teacher {name} does not know the cameras {', '.join(unknown)}")


class SmolDriverSFTTrainer(SFTTrainer):
    """SFTTrainer whose datasets are scene rows (see `data_scripts/schema.py`); for SmolDriver and for SmolVLM.

    What it changes, and why: datasets are split into groups of questions and batched by [`SmolDriverCollator`], since
    TRL does not pack vision data; the loss is computed at answer tokens alone and can weigh questions equally;
    trainable weights stay in float32 under QLoRA, where bfloat16 would round small updates away; a teacher VLM, which
    reads the same questions behind pictures of its own, can add the divergence from its logits to the loss; a loss or
    weights that are no numbers end the training, before they are saved over good ones.

    Args:
        model: [`SmolDriverForConditionalGeneration`] or `baseline_smoldriver.SmolVLMForScenes`, loaded.
        teacher (`tuple`, *optional*): model and processor that `args.teacher_model` names; frozen here, never saved.

    Raises:
        ValueError: a budget that the processor does not have, a teacher with another tokenizer, or `sample_steps` with
            FSDP or DeepSpeed.
    """

    def __init__(
        self,
        model,
        args: SmolDriverSFTConfig,
        train_dataset,
        eval_dataset=None,
        processing_class=None,
        teacher: tuple[PreTrainedModel, SmolDriverProcessor] | None = None,
        **kwargs,
    ):
        if not isinstance(model, PreTrainedModel):
            raise ValueError("give a loaded model: SmolDriverForConditionalGeneration.from_pretrained(...)")
        for budget in args.train_visual_tokens or ():
            processing_class._check_budget(budget)
        if kwargs.get("peft_config") is None:
            freeze_parts(model, args)
        questions = args.questions_per_scene if args.scene_packing else 1
        collator = SmolDriverCollator(
            processing_class,
            scene_packing=args.scene_packing,
            max_pack_length=args.max_pack_length,
            context_length=model.config.text_config.max_position_embeddings,
            visual_tokens=args.train_visual_tokens,
            use_scene_description=args.use_scene_description,
            seed=args.seed,
        )
        self.teacher_model = None
        if teacher is not None:
            self.teacher_model, teacher_processor = teacher
            check_teacher(model, processing_class, self.teacher_model, teacher_processor)
            self.teacher_model.eval().requires_grad_(False)
            collator.teacher = SmolDriverCollator(
                teacher_processor,
                context_length=self.teacher_model.config.text_config.max_position_embeddings,
                use_scene_description=args.use_scene_description,
            )
        self._text_config = model.model.text_model.config
        if args.scene_packing and args.packed_attention == "blocks":
            for packed in (model, self.teacher_model):
                if packed is not None:
                    packed.model.text_model.config._attn_implementation = PACKED_ATTENTION
        group = partial(group_questions, questions_per_scene=questions, seed=args.seed, most_views=args.most_views)
        super().__init__(
            model,
            args=args,
            data_collator=collator,
            train_dataset=group(train_dataset),
            eval_dataset=None if eval_dataset is None else group(eval_dataset),
            processing_class=processing_class,
            **kwargs,
        )
        if kwargs.get("peft_config") is not None and not args.train_tower:
            tower_of(self.model).requires_grad_(False)
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        if self.teacher_model is not None:
            self.teacher_model.to(self.args.device)
        self._questions_seen = 0
        if args.sample_steps:
            self._need_whole_weights("the tables of sample_steps")  # the main process alone generates
            self.add_callback(SampleTableCallback(self, eval_dataset if eval_dataset is not None else train_dataset))

    def create_optimizer(self, *args):
        given = self.args
        if self.optimizer is not None or not (given.tower_learning_rate or given.muon_learning_rate):
            return super().create_optimizer(*args)
        self._need_whole_weights("tower_learning_rate and muon_learning_rate")
        rates = {
            "tower": given.tower_learning_rate,
            "muon": given.muon_learning_rate,
            "rest": given.learning_rate,
        }
        kinds = dict.fromkeys(map(id, self.model.parameters()), "rest")
        if given.muon_learning_rate:
            kinds |= dict.fromkeys(map(id, hidden_matrices(self.model)), "muon")
        if given.tower_learning_rate:
            kinds |= dict.fromkeys(map(id, tower_of(self.model).parameters()), "tower")
        decaying = set(self.get_decay_parameter_names(self.model))
        groups = defaultdict(list)
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                groups[kinds[id(parameter)], name in decaying].append(parameter)
        self.optimizer = MuonAdamW(
            [
                {
                    "params": parameters,
                    "lr": rates[kind],
                    "weight_decay": given.weight_decay if decays else 0.0,
                    "muon": kind == "muon",
                }
                for (kind, decays), parameters in groups.items()
            ],
            dtype=self._activation_dtype(),
            lr=given.learning_rate,
            betas=(given.adam_beta1, given.adam_beta2),
            eps=given.adam_epsilon,
        )
        return self.optimizer

    def _need_whole_weights(self, options: str) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError(f"{options} need whole weights on each device: leave them out with FSDP and DeepSpeed")

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        mode = "train" if self.model.training else "eval"
        inputs = dict(inputs)
        labels, weights = inputs.pop("labels"), inputs.pop("loss_weights")
        frame_tokens, teacher_inputs = inputs.pop("frame_tokens"), inputs.pop("teacher", None)
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
            self._metrics[mode]["teacher_divergence"].append(self.accelerator.gather(divergence.mean()).mean().item())
        if self.args.loss_mode == "question":
            total, count = (losses * weights).sum(), weights.sum()
        else:
            total, count = losses.sum(), len(targets)
        loss = total / (count if num_items_in_batch is None else num_items_in_batch)
        self._check_loss(loss, frame_tokens)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # DDP averages what was divided by the count of all processes

        correct = (logits.argmax(-1) == targets).sum()
        counts = torch.stack([correct, answers.sum(), tokens, weights.sum().round().long()])
        counts = self.accelerator.gather(counts.unsqueeze(0)).sum(0).tolist()
        self._metrics[mode]["mean_token_accuracy"].append(counts[0] / max(1, counts[1]))
        if mode == "train":
            self._total_train_tokens += counts[2]
            self._questions_seen += counts[3]
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]
        self._metrics[mode]["num_questions"] = [self._questions_seen]
        return (loss, outputs) if return_outputs else loss

    def _forward(self, model, text_config, inputs: dict, answers: torch.Tensor):
        """A model's output for a batch of the collator, logits `(1, answer tokens, vocabulary)`.

        Args:
            text_config: that its text model reads.
            inputs: what the model takes, with `segment_ids` for packed sequences.
            answers (bool of shape `(sequences, length - 1)`): the positions that predict an answer token.
        """
        inputs = dict(inputs)
        if "segment_ids" in inputs:
            segment_ids = inputs.pop("segment_ids")
            if self.args.packed_attention == "blocks":
                inputs["packing"] = PackedLayout.from_segments(segment_ids, self._activation_dtype())
                inputs["attention_mask"] = segment_ids.new_ones(
                    1, 1, 1, 1, dtype=torch.bool
                )  # keeps others from making one
            else:
                inputs["attention_mask"] = packed_mask(segment_ids, text_config._attn_implementation)
        return model(**inputs, use_cache=False, logits_to_keep=F.pad(answers, (0, 1)))

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

    def save_model(self, *args, **kwargs):
        self._check_weights()
        super().save_model(*args, **kwargs)

    def _check_loss(self, loss: torch.Tensor, frame_tokens: list[str]) -> None:
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss.item()} at step {self.state.global_step} for the frames {', '.join(frame_tokens)}:"
                " lower the learning rate or look at the data"
            )

    def _check_weights(self) -> None:
        """Refuse to save broken weights, which may take the place of the last good ones.

        Raises:
            FloatingPointError: names a parameter that is not finite; in every process, whichever holds it.
        """
        broken = [
            name
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad and not _of_this_process(parameter).isfinite().all()
        ]
        broken = gather_object(broken)
        if broken:
            raise FloatingPointError(
                f"{broken[0]} is not finite at step {self.state.global_step}, so that nothing was saved: lower the"
                " learning rate or look at the data"
            )

    def _activation_dtype(self) -> torch.dtype:
        return activation_dtype(self.args)

    def _get_num_items_in_batch(self, batch_samples, device):
        if self.args.loss_mode == "token":
            return super()._get_num_items_in_batch(batch_samples, device)
        # transformers 4.57 asks for no batch at all at the end of an epoch that a run went on in
        questions = sum((batch["loss_weights"].sum() for batch in batch_samples), torch.zeros(())).to(device)
        if self.args.average_tokens_across_devices:
            questions = self.accelerator.gather(questions.reshape(1)).sum()
        return questions


def _of_this_process(parameter: torch.Tensor) -> torch.Tensor:
    """The part of a parameter that this process holds: all of it, but where FSDP has made it a `DTensor`."""
    return parameter.to_local() if hasattr(parameter, "to_local") else parameter


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
