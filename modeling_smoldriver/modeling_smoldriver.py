"""SmolDriver: six driving cameras -> one vision tower -> one resampler per camera -> SmolVLM's connector -> SmolLM2.

Shapes (B frames, V views per frame, N views that are not padding, S pixels, P patches, G the side of the query grid, s
the connector's scale factor, k * k visual tokens per view, C the vision width, D the language model's width):

```
pixel_values (B, V, 3, S, S), camera_ids (B, V), -1 = padding
  -> tower, one call for all views                    (N, P, tower width)    tower_features
  -> projection to the vision width                   (N, P, C)
  -> resampler of each view's camera                  (N, (s k)^2, C)        SmolDriverVisionModel
  -> connector: pixel shuffle by s, one linear layer  (N, k^2, D)            get_image_features
  -> put in the places of the <image> tokens          (B, length, D)         SmolDriverModel
  -> text_model -> lm_head                            (B, length, vocabulary)
```

Words, the same in the whole project:

- scene: nuScenes' clip of 20 seconds. (`encode_scene` and `SceneCache` have its name; they hold one frame.)
- frame: one key frame of a scene, with up to six pictures.
- view: one camera's picture in a frame.
- row: a frame as it is stored, with its questions and answers; in a batch, one sequence.
- pack: one training sequence that holds a frame's pictures once and many questions behind them.
- branch: one question with its answer in a pack; branches do not see each other.
- budget: the number of visual tokens per camera, k * k for k = 1 .. G / s.

Weight names follow SmolVLM's where the part is SmolVLM's (`model.connector.*`, `model.text_model.*`, `lm_head.*`).
"""

import copy
import inspect
import math
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModel, GenerationMixin, LlamaForCausalLM, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPooling, ModelOutput
from transformers.quantizers import AutoQuantizationConfig
from transformers.utils import can_return_tuple

from .configuration_smoldriver import SmolDriverConfig, SmolDriverVisionConfig
from .resampler_smoldriver import FORMER_KEYS, CameraLayerNorm, CameraLinear, SmolDriverResampler
from .scene_smoldriver import SceneAnswerMixin, SceneCache, attend_to_scenes

UNQUANTIZED = ["model.vision_model", "model.connector", "vision_model", "connector", "lm_head"]
"""What a quantisation leaves as it is unless it says otherwise; the base model's names have no `model.`."""

SKIP_OPTIONS = ("llm_int8_skip_modules", "modules_to_not_convert", "skip_modules")
"""The names under which transformers' quantisation configs list such modules."""


def quantize_language_model_only(quantization_config):
    """A copy of a quantisation config (object or dict) that leaves `UNQUANTIZED` as it is, unless it has a list."""
    if quantization_config is None:
        return None
    if isinstance(quantization_config, dict):
        quantization_config = AutoQuantizationConfig.from_dict(dict(quantization_config))
    quantization_config = copy.copy(quantization_config)
    for name in SKIP_OPTIONS:
        if hasattr(quantization_config, name) and getattr(quantization_config, name) is None:
            setattr(quantization_config, name, list(UNQUANTIZED))
    return quantization_config


def compute_dtype(layer: nn.Linear, otherwise: torch.dtype) -> torch.dtype:
    """The dtype for a layer's input: its weight's, or `otherwise` if the weight is quantised (and stored as uint8).

    `torch.ao.quantization.quantize_dynamic` makes `weight` a method.
    """
    dtype = getattr(layer.weight, "dtype", None)
    return dtype if dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16) else otherwise


def view_indices(camera_ids: torch.LongTensor) -> torch.LongTensor:
    """`(frames, views)`: the index of each view among those that are not padding; -1 for padding."""
    real = camera_ids >= 0
    return torch.where(real, real.flatten().cumsum(0).view_as(real) - 1, -1)


def padding_last(indices: torch.LongTensor) -> torch.LongTensor:
    """`(n,)`: an order of `indices` with those below 0 (padding) behind the others, which keep their order.

    Its shape does not depend on values, as that of `indices >= 0` used as an index would: for compiled graphs.
    """
    real = indices >= 0
    place = torch.where(real, real.cumsum(0) - 1, real.sum() + (~real).cumsum(0) - 1)
    return torch.zeros_like(place).scatter(0, place, torch.arange(place.shape[0], device=place.device))


def added_mask(allowed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A bool mask in the form that eager attention takes: values that are added to the scores."""
    return torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)


def own_mask(attention_mask: torch.Tensor | None, tokens: torch.Tensor, seen: int, dtype: torch.dtype) -> torch.Tensor:
    """The mask over the rows' own keys behind a scene, of which all of them see everything.

    Args:
        attention_mask (`torch.Tensor` of shape `(rows, seen + queries)`, *optional*): 0 for padding.
        tokens (`torch.LongTensor` of shape `(rows, queries)`): the last tokens of the rows.
        seen (`int`): tokens of each row that came before.

    Returns:
        `(rows, 1, queries, seen + queries)`, added to the scores: a token sees what is before it, and no padding.
    """
    rows, queries = tokens.shape
    if attention_mask is None:
        attention_mask = tokens.new_ones(rows, seen + queries)
    place = torch.arange(seen + queries, device=tokens.device)
    allowed = attention_mask[:, None, None].bool() & (place <= place[seen:, None])
    return added_mask(allowed, dtype)


class SmolDriverConnector(nn.Module):
    """SmolVLM's connector: pixel shuffle by `scale_factor`, then one linear layer.

    Args:
        vision_width (`int`): width C of the vision model's tokens.
        scale_factor (`int`): side s of the pixel shuffle.
        text_width (`int`): width D of the language model.
    """

    def __init__(self, vision_width: int, scale_factor: int, text_width: int):
        super().__init__()
        self.scale_factor = scale_factor
        self.modality_projection = nn.Module()
        self.modality_projection.proj = nn.Linear(vision_width * scale_factor**2, text_width, bias=False)

    def forward(self, visual: torch.Tensor) -> torch.Tensor:
        """`(views, (s k)^2, C)` in raster order -> `(views, k^2, D)`."""
        views, tokens, width = visual.shape
        scale, k = self.scale_factor, math.isqrt(tokens) // self.scale_factor
        blocks = visual.view(views, k, scale, k, scale, width).transpose(2, 3)  # (view, row, column, s, s, channel)
        return self.modality_projection.proj(blocks.reshape(views, k * k, scale * scale * width))


class SmolDriverPreTrainedModel(PreTrainedModel):
    """Loading is strict: a checkpoint is refused if a tensor is missing, unknown or of another shape."""

    config_class = SmolDriverConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["SmolDriverResampler", "ViTLayer", "Dinov2Layer", "SiglipEncoderLayer", "LlamaDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _unread_weights: tuple[str, ...] = ()  # beginnings of names that a checkpoint may hold for another class

    @torch.no_grad()
    def _init_weights(self, module):
        std = getattr(self.config, "initializer_range", None) or self.config.get_text_config().initializer_range
        if isinstance(module, SmolDriverResampler):
            nn.init.normal_(module.query, std=std)
        elif isinstance(module, CameraLayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, CameraLinear):
            nn.init.normal_(module.weight, std=module.weight.shape[-1] ** -0.5)
            nn.init.zeros_(module.bias)
        else:
            super()._init_weights(module)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, output_loading_info: bool = False, **kwargs):
        """As in transformers, but strict, and a `quantization_config` without a list of modules to skip is that of
        the language model alone: 4 bits cost most where the pictures are read. Weights of older checkpoints get their
        present names.

        Raises:
            ValueError: names every tensor that is missing, unknown or of another shape.
        """
        kwargs["quantization_config"] = quantize_language_model_only(kwargs.get("quantization_config"))
        kwargs["ignore_mismatched_sizes"] = True  # transformers would raise without saying which
        kwargs["key_mapping"] = {**FORMER_KEYS, **(kwargs.get("key_mapping") or {})}
        model, info = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        # transformers 4.57 lists names, 5.x tuples of name and shapes
        misshapen = {key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]}
        found = {
            "missing": set(info["missing_keys"]) - misshapen,
            "unexpected": {key for key in info["unexpected_keys"] if not key.startswith(cls._unread_weights)},
            "wrongly shaped": misshapen,
        }
        problems = [f"{what}: {', '.join(sorted(names))}" for what, names in found.items() if names]
        if problems:
            raise ValueError(
                f"the checkpoint {str(pretrained_model_name_or_path)!r} does not fit {cls.__name__}; "
                + "; ".join(problems)
            )
        model.freeze_unread()
        model._forget_former_names()
        return (model, info) if output_loading_info else model

    def _forget_former_names(self):
        """Save under present names: transformers 5 would give the weights back the names that they were loaded by."""
        kept = getattr(self, "_weight_conversions", None) or []
        self._weight_conversions = [one for one in kept if not set(one.source_patterns) & FORMER_KEYS.keys()]

    def freeze_unread(self):
        """Freeze DINOv2's mask token: its pre-training used it, nothing reads it here."""
        for name, parameter in self.named_parameters():
            if name.endswith("mask_token"):
                parameter.requires_grad_(False)


class SmolDriverVisionModel(SmolDriverPreTrainedModel):
    """Tower, projection and resamplers: views -> one grid of visual tokens per view."""

    config_class = SmolDriverVisionConfig
    main_input_name = "pixel_values"

    def __init__(self, config: SmolDriverVisionConfig):
        super().__init__(config)
        if config.tower_config.model_type == "siglip_vision_model":
            config.tower_config.vision_use_head = False
        self.tower = AutoModel.from_config(config.tower_config)
        # Only patch tokens are read: a pooler would be a set of weights that never trains.
        if getattr(self.tower, "pooler", None) is not None:
            self.tower.pooler = None
        self.projection = nn.Linear(config.tower_config.hidden_size, config.hidden_size)
        self.resampler = SmolDriverResampler(config)
        self._tower_interpolates = "interpolate_pos_encoding" in inspect.signature(self.tower.forward).parameters
        self.post_init()
        self.freeze_unread()

    def get_input_embeddings(self):
        return self.tower.get_input_embeddings()

    def tower_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """`(views, 3, S, S)` -> patch features `(views, side, side, tower channels)`, without CLS or registers.

        Raises:
            ValueError: see `tower_outputs`.
        """
        return self._patches(self.tower_outputs(pixel_values), pixel_values)

    def tower_outputs(self, pixel_values: torch.Tensor, **kwargs) -> BaseModelOutput:
        """What the tower gives for pictures `(views, 3, S, S)`; `kwargs` are the tower's.

        Raises:
            ValueError: if S is not a multiple of the tower's patch size, or the tower gives fewer tokens than patches.
        """
        patch_size, size = self.config.tower_config.patch_size, pixel_values.shape[-1]
        if size % patch_size or pixel_values.shape[-2] != size:
            raise ValueError(
                f"pictures of {tuple(pixel_values.shape[-2:])} pixels do not tile into square patches of {patch_size}"
            )
        side = size // patch_size
        if size != self.config.tower_config.image_size and self._tower_interpolates:
            kwargs["interpolate_pos_encoding"] = True
        outputs = self.tower(pixel_values.to(self.dtype), return_dict=True, **kwargs)
        hidden = outputs.last_hidden_state
        if hidden.ndim != 3 or hidden.shape[1] < side * side:
            kind, given = self.config.tower_config.model_type, tuple(hidden.shape[1:])
            raise ValueError(
                f"the tower, a {kind!r}, gives {given} for a picture of {side}x{side} patches, not one token per"
                " patch: choose a ViT, DINOv2 or SigLIP"
            )
        return outputs

    def _patches(self, outputs: BaseModelOutput, pixel_values: torch.Tensor) -> torch.Tensor:
        side = pixel_values.shape[-1] // self.config.tower_config.patch_size
        return outputs.last_hidden_state[:, -side * side :].unflatten(1, (side, side))

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        camera_ids: torch.Tensor,
        side: int | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs,
    ) -> BaseModelOutput:
        """
        Args:
            pixel_values (`torch.FloatTensor` of shape `(views, 3, S, S)`): normalised pictures.
            camera_ids (`torch.LongTensor` of shape `(views,)`): 0 .. cameras - 1.
            side (`int`, *optional*): side of the output grid; default `config.grid_size`.
            output_hidden_states, output_attentions (`bool`, *optional*): default: as the config says.

        Returns:
            `last_hidden_state` `(views, side * side, hidden_size)`; `hidden_states` and `attentions` are the tower's.
        """
        asked = {"output_hidden_states": output_hidden_states, "output_attentions": output_attentions}
        asked = {name: getattr(self.config, name) if value is None else value for name, value in asked.items()}
        tower = self.tower_outputs(pixel_values, **{name: value for name, value in asked.items() if value})
        patches = self._patches(tower, pixel_values)
        # 8-bit layers of bitsandbytes take three axes
        features = self.projection(patches.flatten(1, 2)).unflatten(1, patches.shape[1:3])
        return BaseModelOutput(
            last_hidden_state=self.resampler(features, camera_ids, side or self.config.grid_size),
            hidden_states=tower.hidden_states,
            attentions=tower.attentions,
        )


@dataclass
class SmolDriverModelOutputWithPast(ModelOutput):
    """`image_hidden_states`: visual tokens `(views, k^2, D)` as they entered the language model."""

    last_hidden_state: torch.FloatTensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    image_hidden_states: torch.FloatTensor | None = None


@dataclass
class SmolDriverCausalLMOutputWithPast(ModelOutput):
    """`loss`: mean next-token cross-entropy over the labels; `logits`: `(batch, length, vocabulary)`."""

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    image_hidden_states: torch.FloatTensor | None = None


@dataclass
class SmolDriverPlacedPictures(ModelOutput):
    """What `generate` encodes once for all its steps and beams.

    `pooler_output` `(1, tokens, D)`: the visual tokens of all rows, in the order of their `<image>` tokens. The inputs
    that they were made of stay beside them, for a draft model with a vision model of its own.
    """

    pooler_output: torch.FloatTensor | None = None
    pixel_values: torch.FloatTensor | None = None
    camera_ids: torch.LongTensor | None = None
    frame_index: torch.LongTensor | None = None
    encoder: int | None = None  # id of the model that made them


def image_places(
    model: PreTrainedModel, input_ids: torch.LongTensor | None, inputs_embeds: torch.FloatTensor | None
) -> torch.BoolTensor:
    """`(batch, length)`: True where an `<image>` token stands, or its embedding if there are no ids."""
    if input_ids is not None and input_ids.numel():
        return input_ids == model.config.image_token_id
    image = torch.tensor(model.config.image_token_id, device=inputs_embeds.device)
    return (inputs_embeds == model.get_input_embeddings()(image).to(inputs_embeds)).all(-1)


def visual_tokens_of(encoded: ModelOutput, places: torch.BoolTensor) -> torch.Tensor:
    """`(tokens, D)` of pictures that were encoded before, for the places `(batch, length)` of `<image>` tokens.

    Raises:
        ValueError: if there are more or fewer tokens than places; unless compiled.
    """
    pooled = encoded.pooler_output  # a list in SmolVLM's own
    tokens = pooled.flatten(0, -2) if torch.is_tensor(pooled) else torch.cat([one.flatten(0, -2) for one in pooled])
    if not torch.compiler.is_compiling() and int(places.sum()) != len(tokens):
        raise ValueError(
            f"image tokens and pictures do not match: the rows hold {int(places.sum())} <image> tokens, the encoded"
            f" pictures give {len(tokens)}"
        )
    return tokens


class SmolDriverModel(SmolDriverPreTrainedModel):
    """Vision model, connector and text model; without a language-modelling head."""

    _unread_weights = ("lm_head.",)

    def __init__(self, config: SmolDriverConfig):
        super().__init__(config)
        self.vision_model = SmolDriverVisionModel._from_config(config.vision_config)
        self.connector = SmolDriverConnector(
            config.vision_config.hidden_size, config.scale_factor, config.text_config.hidden_size
        )
        self.text_model = AutoModel.from_config(config.text_config)
        attend_to_scenes(self.text_model)
        self.post_init()

    def get_input_embeddings(self):
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.text_model.set_input_embeddings(value)

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.FloatTensor,
        camera_ids: torch.LongTensor,
        visual_tokens: int | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch, views, 3, S, S)`): normalised pictures.
            camera_ids (`torch.LongTensor` of shape `(batch, views)`): each view's camera, -1 for padding.
            visual_tokens (`int`, *optional*): tokens per view, of `config.visual_token_budgets`; default the largest.
            kwargs: `output_hidden_states` and `output_attentions` of the tower.

        Returns:
            One entry per view that is not padding, in order: `last_hidden_state` `(views, (s k)^2, C)` before and
            `pooler_output` `(views, k^2, D)` after the connector. Compiled or exported, with shapes that may not
            depend on values, as many entries as `camera_ids` has: padding comes last and means nothing.

        Raises:
            ValueError: for shapes that disagree, or a budget that the model does not have; unless compiled, also for a
                camera id that it does not have.
        """
        budgets = self.config.visual_token_budgets
        visual_tokens = budgets[0] if visual_tokens is None else visual_tokens
        if visual_tokens not in budgets:
            raise ValueError(f"{visual_tokens} image tokens per view is not a budget of this model; it has {budgets}")
        if pixel_values.ndim != 5 or pixel_values.shape[:2] != camera_ids.shape:
            raise ValueError(
                "pixel_values must be (batch, views, 3, S, S) and camera_ids (batch, views);"
                f" got {tuple(pixel_values.shape)} and {tuple(camera_ids.shape)}"
            )
        if torch.compiler.is_compiling():
            order = padding_last(camera_ids.flatten())
            pixels, cameras = pixel_values.flatten(0, 1)[order], camera_ids.flatten()[order].clamp(min=0)
        else:
            self._check_cameras(camera_ids)
            real = camera_ids >= 0
            pixels, cameras = pixel_values[real], camera_ids[real]
        # by its place in the list: a compiled graph cannot take a root
        side = self.config.scale_factor * (len(budgets) - budgets.index(visual_tokens))
        outputs = self.vision_model(pixels, cameras, side, return_dict=True, **kwargs)
        hidden = outputs.last_hidden_state
        # A trained vision model may have a wider dtype than a frozen connector.
        dtype = compute_dtype(self.connector.modality_projection.proj, self.get_input_embeddings().weight.dtype)
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden,
            pooler_output=self.connector(hidden.to(dtype)),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def cameras_in_order(self, pixel_values: torch.Tensor) -> torch.LongTensor:
        """`camera_ids` `(batch, views)` of frames `(batch, views, 3, S, S)` with every camera in the config's order.

        For callers that know no `camera_ids`, such as TRL's trainers for reinforcement learning.

        Raises:
            ValueError: the frames have fewer or more views than there are cameras.
        """
        cameras = self.config.vision_config.cameras
        if pixel_values.ndim != 5 or pixel_values.shape[1] != len(cameras):
            raise ValueError(
                f"pixel_values of shape {tuple(pixel_values.shape)} need camera_ids; without them a frame has one view"
                f" per camera, in the order {', '.join(cameras)}"
            )
        return torch.arange(len(cameras), device=pixel_values.device).expand(len(pixel_values), -1)

    def _check_cameras(self, camera_ids: torch.Tensor) -> None:
        cameras = self.config.vision_config.cameras
        if camera_ids.numel() and not -1 <= int(camera_ids.min()) <= int(camera_ids.max()) < len(cameras):
            raise ValueError(
                f"camera_ids must be -1 (padding) or 0 .. {len(cameras) - 1} ({', '.join(cameras)});"
                f" got {sorted(set(camera_ids.flatten().tolist()))}"
            )

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        camera_ids: torch.LongTensor | None = None,
        frame_index: torch.LongTensor | None = None,
        visual_tokens: int | None = None,
        mm_encoder_outputs: dict | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> SmolDriverModelOutputWithPast:
        """
        Args:
            input_ids (`torch.LongTensor` of shape `(batch, length)`):
                Token ids. `<image>` tokens mark the places of visual tokens, k^2 per view: their number sets the
                budget.
            inputs_embeds (`torch.FloatTensor` of shape `(batch, length, D)`, *optional*):
                Instead of `input_ids`; a place of a visual token holds the embedding of `<image>`.
            attention_mask (`torch.Tensor` of shape `(batch, length)` or bool `(batch, 1, length, keys)`, *optional*):
                1 or True where a token may be attended to. The 4-D form is used unchanged (packs).
            position_ids (`torch.LongTensor` of shape `(batch, length)`, *optional*): rotary positions.
            pixel_values (`torch.FloatTensor` of shape `(batch, views, 3, S, S)`, *optional*): normalised pictures.
            camera_ids (`torch.LongTensor` of shape `(batch, views)`, *optional*): each view's camera, -1 for padding;
                default for as many views as cameras: the configuration's order.
            frame_index (`torch.LongTensor` of shape `(batch,)`, *optional*): for rows that share their pictures, the
                frame that each row shows; `pixel_values` and `camera_ids` then hold one entry per frame.
            visual_tokens (`int`, *optional*): the budget, for a compiled graph, which cannot count `<image>` tokens;
                default there: the largest.
            mm_encoder_outputs (`dict`, *optional*): `{"image": get_image_features(...)}` instead of `pixel_values`:
                the pictures' tokens in the order of the `<image>` tokens.

        Raises:
            ValueError: if pictures and `<image>` tokens do not match.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        visual = None
        if pixel_values is not None or mm_encoder_outputs:
            if pixel_values is not None and mm_encoder_outputs:
                raise ValueError("give pixel_values or mm_encoder_outputs, not both")
            if pixel_values is not None and camera_ids is None:
                camera_ids = self.cameras_in_order(pixel_values)
            places = image_places(self, input_ids, inputs_embeds)
            if mm_encoder_outputs:
                placed = visual = visual_tokens_of(mm_encoder_outputs["image"], places)
            else:
                placed, visual = self.placed_pictures(places, pixel_values, camera_ids, frame_index, visual_tokens)
            placed = placed.to(inputs_embeds.device, inputs_embeds.dtype)
            inputs_embeds = inputs_embeds.masked_scatter(places.unsqueeze(-1), placed)
        elif input_ids is not None and not torch.compiler.is_compiling():
            begins = past_key_values is None or past_key_values.get_seq_length() == 0
            placeholders = int((input_ids == self.config.image_token_id).sum()) if begins else 0
            if placeholders:
                raise ValueError(f"the prompt holds {placeholders} <image> tokens, but there are no pixel_values")

        packed = isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 4
        if packed and attention_mask.dtype == torch.bool and self.text_model.config._attn_implementation == "eager":
            attention_mask = added_mask(attention_mask, inputs_embeds.dtype)
        outputs = self.text_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            return_dict=True,
            **kwargs,
        )
        return SmolDriverModelOutputWithPast(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=visual,
        )

    def placed_pictures(
        self, places, pixel_values, camera_ids, frame_index=None, visual_tokens=None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Visual tokens `(pictures, k^2, D)` of the rows' pictures in order, and `(views, k^2, D)` of the frames'.

        Args:
            places (`torch.BoolTensor` of shape `(batch, length)`): of [`image_places`]; the others as in `forward`.

        Raises:
            ValueError: if pictures and `<image>` tokens do not match.
        """
        views = view_indices(camera_ids)
        if frame_index is not None:
            views = views[frame_index]
        visual_tokens = self._tokens_per_view(places, views, visual_tokens)
        visual = self.get_image_features(pixel_values, camera_ids, visual_tokens, return_dict=True).pooler_output
        if frame_index is None:
            return visual, visual
        if torch.compiler.is_compiling():
            views = views.flatten()
            return visual[views[padding_last(views)].clamp(min=0)], visual
        return visual[views[views >= 0]], visual

    def _tokens_per_view(self, places: torch.Tensor, row_views: torch.Tensor, given: int | None) -> int:
        """The budget that the prompt asks for; `row_views` `(batch, views)` is below 0 where a row has no view."""
        tokens, views = places.sum(-1), (row_views >= 0).sum(-1)
        if torch.compiler.is_compiling():
            per_view = given or self.config.visual_token_budgets[0]
            torch._assert_async((tokens == per_view * views).all(), "image tokens and pictures do not match")
            return per_view
        runs = places.diff(dim=-1, prepend=places.new_zeros(len(places), 1)).logical_and(places).sum(-1).tolist()
        tokens, views = tokens.tolist(), views.tolist()
        per_view = sum(tokens) // max(1, sum(views))
        whole = tokens == [per_view * count for count in views] and runs == views  # a cut prompt has fewer runs
        if not per_view or not whole or (given or per_view) != per_view:
            raise ValueError(
                f"image tokens and pictures do not match: the rows hold {tokens} <image> tokens for {views} pictures;"
                f" each picture of a batch takes the same number, one of {self.config.visual_token_budgets}"
            )
        return per_view


class SmolDriverHeadMixin(SceneAnswerMixin):
    """The forward pass of a model with `model` and `lm_head`, for SmolDriver and for its SmolVLM baseline."""

    _tp_plan = LlamaForCausalLM._tp_plan  # of lm_head, as the installed transformers spells it

    def _supports_mm_encoder_outputs(self) -> bool:
        """False: transformers 5 would encode the pictures itself, at the largest budget. The next method does it."""
        return False

    def _expand_inputs_for_generation(self, expand_size=1, is_encoder_decoder=False, input_ids=None, **model_kwargs):
        """As in transformers, which calls it before a search, but each picture is encoded once, not per beam."""
        pictures = self._pictures_encoded_once(input_ids, expand_size, model_kwargs)
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size, is_encoder_decoder, input_ids=input_ids, **model_kwargs
        )
        if pictures is not None:
            model_kwargs["mm_encoder_outputs"] = {"image": pictures}
        return input_ids, model_kwargs

    def _pictures_encoded_once(
        self, input_ids: torch.LongTensor | None, expand_size: int, model_kwargs: dict
    ) -> SmolDriverPlacedPictures | None:
        """The pictures of `model_kwargs`, which loses them, for rows that are repeated `expand_size` times.

        None if there are no pictures, or they are in the cache.
        """
        cache, given = model_kwargs.get("past_key_values"), model_kwargs.pop("mm_encoder_outputs", None)
        encoded = given["image"] if given else None
        inputs = model_kwargs
        if getattr(encoded, "encoder", None) not in (None, id(self)):  # this model drafts for the one that made them
            encoded, inputs = None, dict(encoded)
        inputs = {name: inputs.get(name) for name in ("pixel_values", "camera_ids", "frame_index")}
        if encoded is None and (inputs["pixel_values"] is None or inputs["camera_ids"] is None):
            return None
        for name in inputs:
            model_kwargs.pop(name, None)
        if cache is not None and cache.get_seq_length():
            return None
        places = image_places(self, input_ids, model_kwargs.get("inputs_embeds"))
        if encoded is None:
            inputs = {name: value if value is None else self._moved(value) for name, value in inputs.items()}
            tokens = self.model.placed_pictures(self._moved(places), **inputs)[0].flatten(0, -2)
        else:
            tokens = visual_tokens_of(encoded, places)
        if expand_size > 1:
            rows = tokens.split(places.sum(-1).tolist())
            tokens = torch.cat([row.repeat(expand_size, 1) for row in rows])
        return SmolDriverPlacedPictures(pooler_output=tokens.unsqueeze(0), encoder=id(self), **inputs)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        camera_ids: torch.LongTensor | None = None,
        frame_index: torch.LongTensor | None = None,
        mm_encoder_outputs: dict | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        scene: SceneCache | None = None,
        **kwargs,
    ) -> SmolDriverCausalLMOutputWithPast:
        """
        Args:
            labels (`torch.LongTensor` of shape `(batch, length)`, *optional*):
                Token ids to predict, -100 where there is no loss; shifted inside.
            logits_to_keep (`int` or `torch.Tensor`): the number of last positions to compute logits for (0: all), or
                their indices, or bool `(batch, length)`: then logits are `(1, positions of all rows, vocabulary)`.
            scene (`SceneCache`, *optional*): the encoded frame that the rows ask about; set by `answer`.

        The other arguments are those of [`SmolDriverModel.forward`].
        """
        if mm_encoder_outputs:
            kwargs["mm_encoder_outputs"] = mm_encoder_outputs
        if scene is not None:
            kwargs["scene"] = scene
            seen = 0 if past_key_values is None else past_key_values.get_seq_length()
            attention_mask = own_mask(attention_mask, input_ids, seen, self.get_input_embeddings().weight.dtype)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            pixel_values=pixel_values,
            camera_ids=camera_ids,
            frame_index=frame_index,
            use_cache=use_cache,
            return_dict=True,
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        if isinstance(logits_to_keep, torch.Tensor) and logits_to_keep.dtype == torch.bool:
            hidden = hidden[logits_to_keep].unsqueeze(0)
        else:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            hidden = hidden[:, kept].contiguous()  # for a strided slice torch would copy lm_head once per row
        logits = self.lm_head(hidden)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.text_config.vocab_size, **kwargs)
        return SmolDriverCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=outputs.image_hidden_states,
        )


class SmolDriverForConditionalGeneration(SmolDriverHeadMixin, SmolDriverPreTrainedModel, GenerationMixin):
    """SmolDriver with its language-modelling head: `forward`, `generate`, and `encode_scene` with `answer`."""

    _tied_weights_keys = {"lm_head.weight": "model.text_model.embed_tokens.weight"}

    def __init__(self, config: SmolDriverConfig):
        super().__init__(config)
        self.model = SmolDriverModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.model.set_input_embeddings(value)

    def get_image_features(self, pixel_values, camera_ids, visual_tokens=None, **kwargs) -> BaseModelOutputWithPooling:
        """See [`SmolDriverModel.get_image_features`]."""
        return self.model.get_image_features(pixel_values, camera_ids, visual_tokens, **kwargs)

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As in transformers; the folder also names the classes for every Auto class of transformers 4.57 and 5.x."""
        entry = f"modeling_smoldriver.{type(self).__name__}"
        auto_map = dict(getattr(self.config, "auto_map", None) or {})
        auto_map.update({"AutoModelForImageTextToText": entry, "AutoModelForVision2Seq": entry})
        auto_map["AutoModel"] = "modeling_smoldriver.SmolDriverModel"
        self.config.auto_map = auto_map
        super().save_pretrained(save_directory, *args, **kwargs)


SmolDriverConfig.register_for_auto_class("AutoConfig")
SmolDriverModel.register_for_auto_class("AutoModel")
SmolDriverForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")
