"""Reinforcement learning on questions with TRL's GRPO: of several answers to one, the better ones become likelier.

For training only. The reward is a function of the text, see `recipes/training/rewards.py`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel
from trl import GRPOConfig, GRPOTrainer
from trl.data_utils import prepare_multimodal_messages

from .fitting_smoldriver import check_fit, record_processor
from .training_smoldriver import CarefulTrainerMixin, bfloat16_is_fast, train_parts

SHOWN = ("frame_pixels", "frame_cameras", "frame_index")
"""What a batch of answers keeps of the frames that they are about, one entry per answer."""


@dataclass
class SmolDriverGRPOConfig(GRPOConfig):
    """GRPOConfig whose `bf16` is by default what is faster on the machine, see [`bfloat16_is_fast`]."""

    def __post_init__(self):
        if self.bf16 is None:
            on_gpu = torch.cuda.is_available() and not self.use_cpu
            self.bf16 = not self.fp16 and bfloat16_is_fast(on_gpu)
        super().__post_init__()

    @property
    def activation_dtype(self) -> torch.dtype:
        """The dtype that the model computes the loss in."""
        return torch.bfloat16 if self.bf16 else torch.float16 if self.fp16 else torch.float32


def distinct_neighbours(prompts: list) -> tuple[list, torch.LongTensor]:
    """The prompts without those that equal the one before, and for each prompt its place among the rest."""
    kept, places = [], []
    for prompt in prompts:
        if not kept or prompt != kept[-1]:
            kept.append(prompt)
        places.append(len(kept) - 1)
    return kept, torch.tensor(places)


class FramePromptsMixin:
    """Frames in the prompts of TRL's GRPOTrainer or RLOOTrainer; stands before it among the parents.

    What it changes, and why:
    - TRL hands a fixed list of picture inputs to the loss. Here each row also keeps its `camera_ids`, so that pictures
      in any order, and some of a frame's, go to their own cameras;
    - all answers to one prompt show one frame: it is processed once, and goes through the vision model once per pass.

    Pictures stand in the prompts (`processor.scene_messages`) or in a column `images`, without names in the order of
    the processor's cameras.
    """

    _shown: dict[str, torch.Tensor]  # of the rows at hand, see `_tokenize_prompts`

    def _generate_and_score_completions(self, inputs: list[dict]) -> dict:
        inputs = [_with_pictures_inside(row) for row in inputs]
        return super()._generate_and_score_completions(inputs) | self._shown

    def _tokenize_prompts(self, prompts: list) -> tuple[list, None, dict[str, torch.Tensor]]:
        """As in TRL, but the pictures are reported as inputs alone, or TRL would process them again without names.

        Keeps, of `SHOWN`, `(rows, views, 3, S, S)`, `(rows, views)` and `(rows,)`, which is alike for rows that show
        the same frame; nothing for prompts without pictures.
        """
        distinct, places = distinct_neighbours(prompts)
        prompt_ids, _, fields = super()._tokenize_prompts(distinct)
        self._shown = {}
        if "pixel_values" in fields:
            pixels, cameras = (torch.as_tensor(fields[name])[places] for name in ("pixel_values", "camera_ids"))
            kept = (value.to(self.accelerator.device) for value in (pixels, cameras, places))
            self._shown = dict(zip(SHOWN, kept, strict=True))
        return [prompt_ids[place] for place in places], None, self._pictures(slice(None))

    def _pictures(self, rows: slice) -> dict[str, torch.Tensor]:
        """Model inputs of some of the rows at hand, each frame once."""
        if not self._shown:
            return {}
        pixels, cameras, places = (self._shown[name][rows] for name in SHOWN)
        frames, index = places.unique(return_inverse=True)
        first = torch.stack([(places == frame).nonzero()[0, 0] for frame in frames])
        return {"pixel_values": pixels[first], "camera_ids": cameras[first], "frame_index": index}

    def _compute_loss(self, model, inputs: dict) -> torch.Tensor:
        self._shown = {name: inputs[name] for name in SHOWN if name in inputs}
        return super()._compute_loss(model, inputs)

    def _get_per_token_logps_and_entropies(
        self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, **kwargs
    ):
        chunks = self._chunks(len(input_ids), batch_size or len(input_ids))

        def model_of_frames(**inputs):  # TRL calls it once per chunk, in their order
            return model(**inputs, **next(chunks))

        return super()._get_per_token_logps_and_entropies(
            model_of_frames, input_ids, attention_mask, logits_to_keep, batch_size, **kwargs
        )

    def _chunks(self, rows: int, size: int) -> Iterator[dict[str, torch.Tensor]]:
        for start in range(0, rows, size):
            yield self._pictures(slice(start, start + size))


def _with_pictures_inside(row: dict) -> dict:
    """A row whose pictures of a column `images` stand in its prompt."""
    if not row.get("images"):
        return row
    rest = {name: value for name, value in row.items() if name != "images"}
    return rest | {"prompt": prepare_multimodal_messages(row["prompt"], images=row["images"])}


class SmolDriverGRPOTrainer(FramePromptsMixin, CarefulTrainerMixin, GRPOTrainer):
    """GRPOTrainer for SmolDriver; see its two other parents for what they change.

    Without a `peft_config` the language model trains in full. Vision model and connector stay as they are.

    Args:
        model: a loaded SmolDriver; `kwargs` as in GRPOTrainer.

    Raises:
        ValueError: a processor that is not the model's own (see [`check_fit`]), or fewer rows than the prompts of one
            batch of answers.
        FloatingPointError: a loss that is not finite.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: SmolDriverGRPOConfig,
        train_dataset,
        processing_class,
        peft_config=None,
        **kwargs,
    ):
        check_fit(model, processing_class)
        prompts = args.generation_batch_size // args.num_generations
        if len(train_dataset) < prompts:
            raise ValueError(
                f"{len(train_dataset)} questions are fewer than the {prompts} that one batch of answers is about:"
                " lower per_device_train_batch_size or gradient_accumulation_steps"
            )
        if peft_config is None:
            train_parts(model, vision=False, connector=False, language_model=True)
        super().__init__(
            model,
            args=args,
            train_dataset=train_dataset,
            processing_class=processing_class,
            peft_config=peft_config,
            **kwargs,
        )
        record_processor(model, processing_class)

    def compute_loss(self, *args, **kwargs) -> torch.Tensor:
        loss = super().compute_loss(*args, **kwargs)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss.item()} at step {self.state.global_step}: lower the learning rate"
            )
        return loss
