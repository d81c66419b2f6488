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
from transformers import AutoModel, GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPooling, ModelOutput
from transformers.quantizers import AutoQuantizationConfig

from .configuration_smoldriver import SmolDriverConfig, SmolDriverVisionConfig
from .resampler_smoldriver import CameraLayerNorm, CameraLinear, SmolDriverResampler
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
    """The dtype for a layer's input: its weight's, or `otherwise` if the weight is quantised (and stored as uint8)."""
    dtype = layer.weight.dtype
    return dtype if dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16) else otherwise


def view_indices(camera_ids: torch.LongTensor) -> torch.LongTensor:
    """`(frames, views)`: the index of each view among those that are not padding; -1 for padding."""
    real = camera_ids >= 0
    return torch.where(real, real.flatten().cumsum(0).view_as(real) - 1, -1)


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
        the language model alone: 4 bits cost most where the pictures are read.

        Raises:
            ValueError: names every tensor that is missing, unknown or of another shape.
        """
        kwargs["quantization_config"] = quantize_language_model_only(kwargs.get("quantization_config"))
        kwargs["ignore_mismatched_sizes"] = True  # transformers would raise without saying which
        model, info = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        # transformers 4.57 lists names, 5.x tuples of name and shapes
        misshapen = {key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]}
        found = {
            "missing": set(info["missing_keys"]) - misshapen,
            "unexpected": info["unexpected_keys"],
            "wrongly shaped": misshapen,
        }
        problems = [f"{what}: {', '.join(sorted(names))}" for what, names in found.items() if names]
        if problems:
            raise ValueError(
                f"the checkpoint {str(pretrained_model_name_or_path)!r} does not fit {cls.__name__}; "
                + "; ".join(problems)
            )
        model.freeze_unread()
        return (model, info) if output_loading_info else model

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
        self.post_init()
        self.freeze_unread()

    def get_input_embeddings(self):
        return self.tower.get_input_embeddings()

    def tower_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """`(views, 3, S, S)` -> patch features `(views, side, side, tower channels)`, without CLS or registers.

        Raises:
            ValueError: if S is not a multiple of the tower's patch size, or the tower gives fewer tokens than patches.
        """
        patch_size, size = self.config.tower_config.patch_size, pixel_values.shape[-1]
        if size % patch_size or pixel_values.shape[-2] != size:
            raise ValueError(
                f"pictures of {tuple(pixel_values.shape[-2:])} pixels do not tile into square patches of {patch_size}"
            )
        side = size // patch_size
        arguments = {}
        if size != self.config.tower_config.image_size:
            if "interpolate_pos_encoding" in inspect.signature(self.tower.forward).parameters:
                arguments["interpolate_pos_encoding"] = True
        hidden = self.tower(pixel_values.to(self.dtype), **arguments).last_hidden_state
        if hidden.ndim != 3 or hidden.shape[1] < side * side:
            kind, given = self.config.tower_config.model_type, tuple(hidden.shape[1:])
            raise ValueError(
                f"the tower, a {kind!r}, gives {given} for a picture of {side}x{side} patches, not one token per"
                " patch: choose a ViT, DINOv2 or SigLIP"
            )
        return hidden[:, -side * side :].unflatten(1, (side, side))

    def forward(
        self, pixel_values: torch.Tensor, camera_ids: torch.Tensor, side: int | None = None, **kwargs
    ) -> torch.Tensor:
        """
        Args:
            pixel_values (`torch.FloatTensor` of shape `(views, 3, S, S)`): normalised pictures.
            camera_ids (`torch.LongTensor` of shape `(views,)`): 0 .. cameras - 1.
            side (`int`, *optional*): side of the output grid; default `config.grid_size`.

        Returns:
            `torch.Tensor` of shape `(views, side * side, hidden_size)`.
        """
        features = self.projection(self.tower_features(pixel_values))
        return self.resampler(features, camera_ids, side or self.config.grid_size)


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


class SmolDriverModel(SmolDriverPreTrainedModel):
    """Vision model, connector and text model; without a language-modelling head."""

    _keys_to_ignore_on_load_unexpected = [r"^lm_head\."]

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

        Returns:
            One entry per view that is not padding, in order: `last_hidden_state` `(views, (s k)^2, C)` before and
            `pooler_output` `(views, k^2, D)` after the connector.

        Raises:
            ValueError: for shapes that disagree, or a camera id or budget that the model does not have.
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
        cameras = self.config.vision_config.cameras
        if camera_ids.numel() and not -1 <= int(camera_ids.min()) <= int(camera_ids.max()) < len(cameras):
            raise ValueError(
                f"camera_ids must be -1 (padding) or 0 .. {len(cameras) - 1} ({', '.join(cameras)});"
                f" got {sorted(set(camera_ids.flatten().tolist()))}"
            )
        real = camera_ids >= 0
        side = self.config.scale_factor * math.isqrt(visual_tokens)
        hidden = self.vision_model(pixel_values[real], camera_ids[real], side)
        # A trained vision model may have a wider dtype than a frozen connector.
        dtype = compute_dtype(self.connector.modality_projection.proj, self.get_input_embeddings().weight.dtype)
        tokens = self.connector(hidden.to(dtype))
        return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=tokens)

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
        use_cache: bool | None = None,
        **kwargs,
    ) -> SmolDriverModelOutputWithPast:
        """
        Args:
            input_ids (`torch.LongTensor` of shape `(batch, length)`):
                Token ids. `<image>` tokens mark the places of visual tokens, k^2 per view: their number sets the
                budget.
            attention_mask (`torch.Tensor` of shape `(batch, length)` or bool `(batch, 1, length, keys)`, *optional*):
                1 or True where a token may be attended to. The 4-D form is used unchanged (packs).
            position_ids (`torch.LongTensor` of shape `(batch, length)`, *optional*): rotary positions.
            pixel_values (`torch.FloatTensor` of shape `(batch, views, 3, S, S)`, *optional*): normalised pictures.
            camera_ids (`torch.LongTensor` of shape `(batch, views)`, *optional*): each view's camera, -1 for padding.
            frame_index (`torch.LongTensor` of shape `(batch,)`, *optional*): for rows that share their pictures, the
                frame that each row shows; `pixel_values` and `camera_ids` then hold one entry per frame.

        Raises:
            ValueError: if pictures and `<image>` tokens do not match.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        visual = None
        if pixel_values is not None:
            if input_ids is None or camera_ids is None:
                raise ValueError("pixel_values need input_ids (to find the <image> tokens) and camera_ids")
            inputs_embeds, visual = self._with_pictures(
                inputs_embeds, input_ids, pixel_values, camera_ids, frame_index
            )
        elif input_ids is not None and (past_key_values is None or past_key_values.get_seq_length() == 0):
            placeholders = int((input_ids == self.config.image_token_id).sum())
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
            **kwargs,
        )
        return SmolDriverModelOutputWithPast(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=visual,
        )

    def _with_pictures(
        self, inputs_embeds, input_ids, pixel_values, camera_ids, frame_index
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings with visual tokens in the places of `<image>`, and the visual tokens `(views, k^2, D)`."""
        placeholders = input_ids == self.config.image_token_id
        views = view_indices(camera_ids)
        if frame_index is not None:
            views = views[frame_index]
        visual_tokens = self._tokens_per_view(placeholders, views)
        visual = self.get_image_features(pixel_values, camera_ids, visual_tokens).pooler_output
        placed = visual if frame_index is None else visual[views[views >= 0]]
        return inputs_embeds.masked_scatter(placeholders.unsqueeze(-1), placed.to(inputs_embeds.dtype)), visual

    def _tokens_per_view(self, placeholders: torch.Tensor, row_views: torch.Tensor) -> int:
        """The budget that the prompt asks for; `row_views` `(batch, views)` is below 0 where a row has no view."""
        tokens, views = placeholders.sum(-1).tolist(), (row_views >= 0).sum(-1).tolist()
        per_view = sum(tokens) // max(1, sum(views))
        if not per_view or tokens != [per_view * count for count in views]:
            raise ValueError(
                f"image tokens and pictures do not match: the rows hold {tokens} <image> tokens for {views} pictures;"
                f" each picture of a batch takes the same number, one of {self.config.visual_token_budgets}"
            )
        return per_view


class SmolDriverHeadMixin(SceneAnswerMixin):
    """The forward pass of a model with `model` and `lm_head`, for SmolDriver and for its SmolVLM baseline."""

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
