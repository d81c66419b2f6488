"""One frame, many questions: the shared part of the prompt is encoded once, and every question reads it.

Each question with its answer is one row of a batch and has a small cache of its own. Attention joins that cache with
the frame's, which is never copied. Greedy search, sampling and beam search are transformers' own `generate`.
"""

from collections import defaultdict
from collections.abc import Iterator
from functools import cache

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel, RepetitionPenaltyLogitsProcessor
from transformers.cache_utils import DynamicCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

SCENE_ATTENTION = "smoldriver_scene"

NOT_OFFERED = {
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1,
    "guidance_scale": 1,
    "prompt_lookup_num_tokens": None,
    "assistant_model": None,
    "num_return_sequences": 1,
    "return_dict_in_generate": False,
}
"""Options of `generate` that would see a question without its frame, or would not return one answer per question; each
with the value that turns it off."""


class SceneCache:
    """Keys and values of one encoded frame, one pair per layer; made by `model.encode_scene`."""

    def __init__(self, layers: list[tuple[torch.Tensor, torch.Tensor]], token_ids: torch.Tensor, weights: int):
        self.layers = layers  # [(keys, values)], each (key/value heads, length, head_dim)
        self.token_ids = token_ids  # (length,)
        self.weights = weights
        self.length = layers[0][0].shape[1]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for layer in self.layers for tensor in layer)

    def free(self):
        """Free the memory. The frame cannot be asked any more."""
        self.layers = []


def shared_attention(query, shared_key, shared_value, key, value, own_bias, shared_bias=None) -> torch.Tensor:
    """Attention of branches to their frame's keys and to their own, under one softmax, without copying the frame's.

    Args:
        query (`torch.Tensor` of shape `(scenes, groups, branches, heads per group, queries, head_dim)`): scaled.
        shared_key, shared_value (`torch.Tensor` of shape `(scenes, groups, shared keys, head_dim)`).
        key, value (`torch.Tensor` of shape `(scenes, groups, branches, own keys, head_dim)`).
        own_bias (`torch.Tensor`, broadcast to `(scenes, groups, branches, heads per group, queries, own keys)`): added
            to the own scores.
        shared_bias (`torch.Tensor`, *optional*, broadcast to `(..., shared keys)`): added to the shared scores.

    Returns:
        `torch.Tensor` of the query's shape.
    """
    scenes, groups, branches, heads, queries, head_dim = query.shape
    shared = torch.matmul(query.reshape(scenes, groups, -1, head_dim), shared_key.transpose(-1, -2))
    shared = shared.view(*query.shape[:-1], -1)
    if shared_bias is not None:
        shared = shared + shared_bias
    own = torch.matmul(query.reshape(scenes, groups, branches, -1, head_dim), key.transpose(-1, -2))
    own = own.view(*query.shape[:-1], -1) + own_bias
    # softmax sums in float32 for every dtype; autocast may widen its result.
    weights = torch.cat([shared, own], dim=-1).softmax(dim=-1).to(value.dtype)
    shared, own = weights.split([shared_key.shape[-2], key.shape[-2]], dim=-1)
    output = torch.matmul(shared.reshape(scenes, groups, branches * heads * queries, -1), shared_value).view(
        query.shape
    )
    return output + torch.matmul(own.reshape(scenes, groups, branches, heads * queries, -1), value).view(query.shape)


def scene_attention_forward(module, query, key, value, attention_mask, scaling, dropout=0.0, scene=None, **kwargs):
    """Attention of each row's tokens to the scene's shared cache and to the row's own keys.

    Shapes: `query` `(rows, heads, queries, head_dim)`, `key` and `value` `(rows, key/value heads, keys, head_dim)`,
    `attention_mask` `(rows, 1, queries, keys)`, added to the own scores. Returns `(rows, queries, heads, head_dim)`.
    """
    scene_key, scene_value = scene.layers[module.layer_idx]
    rows, heads, queries, head_dim = query.shape
    groups = key.shape[1]
    query = (query * scaling).view(rows, groups, heads // groups, queries, head_dim).transpose(0, 1)
    output = shared_attention(
        query.unsqueeze(0),
        scene_key.unsqueeze(0),
        scene_value.unsqueeze(0),
        key.transpose(0, 1).unsqueeze(0),
        value.transpose(0, 1).unsqueeze(0),
        own_bias=attention_mask.unsqueeze(1).transpose(0, 1).unsqueeze(0),
    )
    output = output[0].transpose(0, 1).reshape(rows, heads, queries, head_dim)
    return output.transpose(1, 2), None


ALL_ATTENTION_FUNCTIONS.register(SCENE_ATTENTION, scene_attention_forward)


class SceneConfig:
    """A layer's config, with another attention."""

    _attn_implementation = SCENE_ATTENTION

    def __init__(self, config):
        self._config = config

    def __getattr__(self, name):
        return getattr(self._config, name)


class SceneAttention:
    """Mixed into the attention layers of a text model: a call with a scene attends to it, other calls are unchanged.

    transformers chooses the attention by a name in the config, which all calls share. A call with a scene therefore
    runs on a shallow copy of the layer that has a config of its own: calls in other threads see no change. Only the
    layer's dictionary is copied: this happens at every token.
    """

    def forward(self, *args, scene: SceneCache | None = None, **kwargs):
        if scene is None:
            return super().forward(*args, **kwargs)
        layer = object.__new__(type(self))
        layer.__dict__ = {**self.__dict__, "config": SceneConfig(self.config)}
        return super(SceneAttention, layer).forward(*args, scene=scene, **kwargs)

    def __reduce__(self):
        return _new_scene_layer, (type(self).__mro__[2],), self.__dict__


@cache
def _with_scene_attention(layer_class: type) -> type:
    return type(layer_class.__name__, (SceneAttention, layer_class), {})


def _new_scene_layer(layer_class: type) -> SceneAttention:
    """A layer without its attributes, for copies and pickles: they cannot find a class that is made at run time."""
    layer_class = _with_scene_attention(layer_class)
    return layer_class.__new__(layer_class)


def attend_to_scenes(text_model: PreTrainedModel) -> None:
    """Give the attention layers of a transformers language model [`SceneAttention`]."""
    for module in text_model.modules():
        if hasattr(module, "layer_idx") and hasattr(module, "is_causal"):
            module.__class__ = _with_scene_attention(type(module))


class ScenePenalty(LogitsProcessor):
    """transformers' repetition penalty over the scene's tokens and a question's."""

    def __init__(self, penalty: float, token_ids: torch.Tensor, pad_token_id: int):
        self.penalise = RepetitionPenaltyLogitsProcessor(penalty)
        self.token_ids, self.pad_token_id = token_ids, pad_token_id

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        # A short question is padded here, but not when it is asked alone: padding counts as a token of the scene.
        token_ids = self.token_ids.to(input_ids.device)
        seen = input_ids.where(input_ids != self.pad_token_id, token_ids[0])
        return self.penalise(torch.cat([token_ids.expand(len(seen), -1), seen], dim=1), scores)


class SceneAnswerMixin:
    """`encode_scene` and `answer`, for one frame and for several; the model has `model.text_model` and `generate`."""

    def prepare_inputs_for_generation(
        self,
        input_ids,
        past_key_values=None,
        inputs_embeds=None,
        use_cache=None,
        mm_encoder_outputs=None,
        **kwargs,
    ):
        inputs = super().prepare_inputs_for_generation(
            input_ids, past_key_values=past_key_values, inputs_embeds=inputs_embeds, use_cache=use_cache, **kwargs
        )
        seen = 0 if past_key_values is None else past_key_values.get_seq_length()
        limit = self.config.text_config.max_position_embeddings
        length = max(input_ids.shape[1], 0 if inputs_embeds is None else inputs_embeds.shape[1])
        if seen == 0 and length >= limit:
            raise ValueError(
                f"the prompt takes {length} tokens, the model's context is {limit}: choose fewer"
                " visual_tokens or a shorter text"
            )
        if seen > 0:
            inputs["pixel_values"] = inputs["camera_ids"] = None  # the pictures are in the cache
        elif mm_encoder_outputs is not None:
            inputs["mm_encoder_outputs"] = mm_encoder_outputs
        if inputs.get("scene") is not None:  # a row's positions continue from the scene
            inputs["position_ids"] = inputs["position_ids"] + inputs["scene"].length
        return inputs

    def encode_scene(self, input_ids, attention_mask, pixel_values=None, camera_ids=None) -> SceneCache:
        """Encode one frame once, to be asked many times.

        Args: the tensors of `processor.encode_scene`, one row; a frame without pictures (a text-only control) has
            neither `pixel_values` nor `camera_ids`.

        Raises:
            ValueError: several rows, or a frame that fills the model's context.

        Example (a tiny model: six pictures, 9 visual tokens per camera, two layers with two key/value heads of 12):

        ```python
        >>> scene = model.encode_scene(**processor.encode_scene(images))
        >>> scene.length, len(scene.layers), tuple(scene.layers[0][0].shape)
        (156, 2, (2, 156, 12))
        ```
        """
        if len(input_ids) != 1:
            raise ValueError(
                f"encode_scene takes one frame, got {len(input_ids)} rows;"
                " encode_scenes takes several and returns a list"
            )
        return self.encode_scenes(input_ids, attention_mask, pixel_values, camera_ids)[0]

    @torch.no_grad()
    def encode_scenes(self, input_ids, attention_mask, pixel_values=None, camera_ids=None) -> list[SceneCache]:
        """Encode several frames, each to be asked many times.

        Args: the tensors of `processor.encode_scenes`, padded on the right.

        Returns:
            One [`SceneCache`] per frame, each with memory of its own.

        Raises:
            ValueError: a frame that fills the model's context, or a batch padded on the left.
        """
        limit = self.config.text_config.max_position_embeddings
        if input_ids.shape[1] >= limit:
            raise ValueError(
                f"the scene takes {input_ids.shape[1]} tokens, the model's context is {limit}:"
                " choose fewer visual_tokens"
            )
        if not attention_mask[:, 0].all():
            raise ValueError("a batch of scenes must be padded on the right; the attention_mask begins with 0")
        outputs = self(  # and not self.model: FSDP gathers weights only for a call of the whole
            input_ids=self._moved(input_ids),
            attention_mask=self._moved(attention_mask),
            pixel_values=None if pixel_values is None else self._moved(pixel_values),
            camera_ids=None if camera_ids is None else self._moved(camera_ids),
            past_key_values=DynamicCache(),
            use_cache=True,
            logits_to_keep=torch.empty(0, dtype=torch.long),  # none: the head has nothing to do
            return_dict=True,
        )
        weights = weights_fingerprint(self)
        layers = [(layer.keys, layer.values) for layer in outputs.past_key_values.layers]
        if len(input_ids) == 1:
            return [SceneCache([(keys[0], values[0]) for keys, values in layers], input_ids[0], weights)]
        return [
            SceneCache(
                [(keys[row, :, :length].clone(), values[row, :, :length].clone()) for keys, values in layers],
                input_ids[row, :length],
                weights,
            )
            for row, length in enumerate(attention_mask.sum(-1).tolist())
        ]

    def _moved(self, tensor: torch.Tensor) -> torch.Tensor:
        """On the model's device. A model with offloaded weights has none: its hooks move what they are given."""
        return tensor if self.device.type == "meta" else tensor.to(self.device)

    def answer(self, scene: SceneCache, processor, questions: list[str], batch_size: int = 64, **generate_kwargs):
        """Answers to questions about an encoded frame, equal to those of `generate` on each question alone.

        Args: see `answer_tokens`.

        Returns:
            `list[str]`: one answer per question, in order, without special tokens.

        Raises:
            ValueError: see `answer_tokens`.

        Example (a tiny model that has memorised this frame):

        ```python
        >>> scene = model.encode_scene(**processor.encode_scene(images))
        >>> model.answer(
        ...     scene,
        ...     processor,
        ...     [
        ...         "Are there cars to the front of the ego car?",
        ...         "What is the status of the car that is to the front of the ego car?",
        ...     ],
        ... )
        ['Yes.', 'The car is moving.']
        ```
        """
        tokens = self.answer_tokens(scene, processor, questions, batch_size, **generate_kwargs)
        return [text.strip() for text in processor.batch_decode(tokens, skip_special_tokens=True)]

    def answer_scenes(
        self,
        scenes: list[SceneCache],
        processor,
        questions: list[list[str]],
        batch_size: int = 64,
        **generate_kwargs,
    ) -> list[list[str]]:
        """`answer` for several encoded frames: one list of questions per frame, one list of answers per frame.

        Raises:
            ValueError: another number of lists than of scenes, and see `answer_tokens`.
        """
        if len(questions) != len(scenes):
            raise ValueError(f"{len(questions)} lists of questions for {len(scenes)} scenes; give one list per scene")
        return [
            self.answer(scene, processor, asked, batch_size, **generate_kwargs)
            for scene, asked in zip(scenes, questions, strict=True)
        ]

    @torch.no_grad()
    def answer_tokens(
        self, scene: SceneCache, processor, questions: list[str], batch_size: int = 64, **generate_kwargs
    ) -> list[list[int]]:
        """Token ids of the answers to questions about an encoded frame, as `generate` writes them for each alone.

        Args:
            scene ([`SceneCache`]): of `encode_scene`.
            processor: the model's processor.
            questions (`list[str]`): at least one.
            batch_size (`int`): questions decoded at a time; similar lengths go together.
            generate_kwargs: for `generate` (`max_new_tokens`, default 32, `num_beams`, `do_sample`, default False,
                `repetition_penalty`, which counts the scene's tokens too, ...); values of a `generation_config`
                replace the defaults.

        Returns:
            The new token ids of each answer in the order of the questions, up to and including its end token. An
            answer that was cut at `max_new_tokens` has that many tokens and no end.

        Raises:
            ValueError: no question, a question that fills the model's context, a freed scene, a scene of a model that
                was changed or moved since, or an option of `generate` that would need the scene's tokens
                (`NOT_OFFERED`).
        """
        if not isinstance(scene, SceneCache):
            raise ValueError(f"answer takes one scene of encode_scene, got {type(scene)}; answer_scenes takes a list")
        if isinstance(questions, str) or not questions:
            raise ValueError(f"questions must be a list with at least one question, got {questions!r}")
        if not scene.layers:
            raise ValueError("the scene was freed; encode it again")
        if scene.weights != weights_fingerprint(self):
            raise ValueError(
                "the model was changed or moved after the scene was encoded; encode the scene again (other active"
                " adapters count as a change)"
            )
        encoded = processor.encode_questions(questions)
        limit = self.config.text_config.max_position_embeddings
        for question, tokens in zip(questions, encoded, strict=True):
            if scene.length + len(tokens) >= limit:
                raise ValueError(
                    f"the scene takes {scene.length} tokens and the question {question[:80]!r} {len(tokens)}, which"
                    f" leaves no room for an answer: the model's context is {limit}; ask a shorter question"
                )
        order = sorted(range(len(encoded)), key=lambda index: len(encoded[index]))
        answers: list[list[int]] = [[]] * len(encoded)
        ends = self._end_tokens(generate_kwargs)
        generate_kwargs = self._generate_arguments(scene, processor.tokenizer.pad_token_id, generate_kwargs)
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            rows = processor.tokenizer.pad(
                {"input_ids": [encoded[index] for index in batch]},
                padding=True,
                padding_side="left",
                return_tensors="pt",
            )
            generated = self.generate(
                input_ids=self._moved(rows["input_ids"]),
                attention_mask=self._moved(rows["attention_mask"]),
                scene=scene,
                **generate_kwargs,
            )
            for index, tokens in zip(batch, generated[:, rows["input_ids"].shape[1] :].tolist(), strict=True):
                answers[index] = up_to_end(tokens, ends)
        return answers

    def _end_tokens(self, given: dict) -> set[int]:
        """The ids at which `generate` ends an answer, given these arguments."""
        settings = given.get("generation_config") or self.generation_config
        ends = given.get("eos_token_id", settings.eos_token_id)
        if ends is None:
            ends = self.generation_config.eos_token_id  # as `generate` fills in a generation_config without one
        if ends is None:
            return set()
        return set(torch.as_tensor(ends).flatten().tolist())

    def _generate_arguments(self, scene: SceneCache, pad_token_id: int, given: dict) -> dict:
        settings = given.get("generation_config") or self.generation_config
        for name, nothing in NOT_OFFERED.items():
            value = given.get(name, getattr(settings, name, None))
            if value is not None and value != nothing:
                raise ValueError(f"{name}={value!r} is not offered by answer; use generate on each question alone")
        defaults = {} if given.get("generation_config") else {"max_new_tokens": 32, "do_sample": False}
        arguments = {**defaults, **given}
        penalty = given.get("repetition_penalty", settings.repetition_penalty)
        if penalty is not None and penalty != 1:
            own = ScenePenalty(penalty, scene.token_ids, pad_token_id)
            arguments["logits_processor"] = LogitsProcessorList([*(given.get("logits_processor") or []), own])
            arguments["repetition_penalty"] = 1.0
        return arguments


def up_to_end(tokens: list[int], ends: set[int]) -> list[int]:
    """The tokens up to and including the first end; all of them where there is none."""
    length = next((place + 1 for place, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[:length]


def weights_fingerprint(module: nn.Module) -> int:
    """Changes when a weight is moved, replaced or written to, and when other adapters become active.

    Fused optimizers write without counting a new version, and a tensor made under `torch.inference_mode` counts none,
    so about eight values of each tensor are looked at too. Offloaded weights (`meta`) cannot be looked at.
    """
    weights = [tensor.detach() for weight in module.parameters() for tensor in plain_tensors(weight)]
    samples = defaultdict(list)
    for weight in weights:
        samples[weight.device].append(weight.flatten()[:: max(1, weight.numel() // 8)].float())
    values = tuple(torch.cat(parts).cpu().numpy().tobytes() for parts in samples.values())  # one wait per device
    states = tuple(
        (weight.data_ptr(), 0 if weight.is_inference() else weight._version, weight.dtype) for weight in weights
    )
    return hash((states, values, tuple(layer_states(module))))


def plain_tensors(weight: torch.Tensor) -> Iterator[torch.Tensor]:
    """What a weight stores on this device: itself, or the tensors inside a DTensor (FSDP2) or a torchao tensor."""
    if is_traceable_wrapper_subclass(weight):
        parts = (getattr(weight, name) for name in weight.__tensor_flatten__()[0])
        for part in parts:
            if isinstance(part, torch.Tensor):  # a DTensor also lists its device mesh
                yield from plain_tensors(part)
    elif not weight.is_meta:
        yield weight


def layer_states(module: nn.Module) -> Iterator[tuple]:
    """What layers keep beside their weights: those with PEFT's adapters which are active, whether they are switched
    off and how they scale; torch's int8 layers their packed weight, which is replaced, never written to."""
    for place, part in enumerate(module.modules()):
        if "_active_adapter" in part.__dict__ or hasattr(type(part), "_active_adapter"):
            yield place, str(part._active_adapter), part._disable_adapters, str(getattr(part, "scaling", None))
        if "_packed_params" in part.__dict__ or "_packed_params" in part._modules:
            yield place, id(part._packed_params)
