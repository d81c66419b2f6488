"""One scene, many questions: the shared part of the prompt is encoded once, and every question reads it where it lies.

Question and answer of each question form a row of a batch with a small cache of its own; attention joins that cache
with the scene's, which is never copied. Greedy, sampling and beam search are transformers' own `generate`.
"""

from contextlib import contextmanager

import torch
from transformers.cache_utils import DynamicCache
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

SCENE_ATTENTION = "smoldriver_scene"


class SceneCache:
    """Keys and values of one encoded scene, one pair a layer; made by `model.encode_scene`."""

    def __init__(self, layers: list[tuple[torch.Tensor, torch.Tensor]], weights: int):
        self.layers = layers  # [(keys, values)], each (key/value heads, length, head_dim)
        self.weights = weights
        self.length = layers[0][0].shape[1]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for layer in self.layers for tensor in layer)

    def free(self):
        """Let go of the memory; the scene cannot be asked any more."""
        self.layers = []


def scene_attention_forward(module, query, key, value, attention_mask, scaling, dropout=0.0, scene=None, **kwargs):
    """Attention of each row's tokens to the scene's shared cache and to the row's own keys, under one softmax.

    Shapes: `query` `(rows, heads, queries, head_dim)`, `key` and `value` `(rows, key/value heads, keys, head_dim)`,
    `attention_mask` additive over the row's own keys. Returns `(rows, queries, heads, head_dim)`.
    """
    scene_key, scene_value = scene.layers[module.layer_idx]
    rows, heads, queries, head_dim = query.shape
    groups, length = scene_key.shape[:2]
    query = query.view(rows, groups, heads // groups, queries, head_dim) * scaling
    own = torch.matmul(query, key.transpose(2, 3).unsqueeze(2))  # (row, group, head, query, own key)
    own = own + attention_mask[:, :, None, :, : key.shape[2]]
    flat = query.transpose(0, 1).reshape(groups, -1, head_dim)
    shared = torch.matmul(flat, scene_key.transpose(1, 2))  # (group, row * head * query, scene key)
    shared = shared.view(groups, rows, heads // groups, queries, length).transpose(0, 1)
    weights = torch.cat([shared, own], dim=-1).softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    shared, own = weights.split([length, key.shape[2]], dim=-1)
    output = torch.matmul(own, value.unsqueeze(2))
    flat = shared.transpose(0, 1).reshape(groups, -1, length)
    output = output + torch.matmul(flat, scene_value).view(groups, rows, *output.shape[2:]).transpose(0, 1)
    return output.reshape(rows, heads, queries, head_dim).transpose(1, 2), None


ALL_ATTENTION_FUNCTIONS.register(SCENE_ATTENTION, scene_attention_forward)
ALL_MASK_ATTENTION_FUNCTIONS.register(SCENE_ATTENTION, eager_mask)


class SceneAnswerMixin:
    """`encode_scene` and `answer` for a model with `model.text_model` and `generate`."""

    @torch.no_grad()
    def encode_scene(self, input_ids, attention_mask, pixel_values, camera_ids) -> list[SceneCache]:
        """Encode scenes once, to be asked many times.

        Args: the tensors of `processor.encode_scene`; a batch of scenes is padded on the right.

        Returns:
            One [`SceneCache`] a scene.

        Raises:
            ValueError: if a scene fills the model's context.
        """
        limit = self.config.text_config.max_position_embeddings
        if input_ids.shape[1] >= limit:
            raise ValueError(
                f"the scene takes {input_ids.shape[1]} tokens, the model's context is {limit}: choose fewer visual_tokens"
            )
        outputs = self.model(
            input_ids=input_ids.to(self.device),
            attention_mask=attention_mask.to(self.device),
            pixel_values=pixel_values.to(self.device),
            camera_ids=camera_ids.to(self.device),
            past_key_values=DynamicCache(),
            use_cache=True,
        )
        weights = self._weights_fingerprint()
        lengths = attention_mask.sum(-1).tolist()
        layers = [(layer.keys, layer.values) for layer in outputs.past_key_values.layers]
        return [
            SceneCache([(keys[row, :, :length], values[row, :, :length]) for keys, values in layers], weights)
            for row, length in enumerate(lengths)
        ]

    @torch.no_grad()
    def answer(self, scene, processor, questions: list[str], batch_size: int = 64, **generate_kwargs) -> list:
        """Answers to questions about an encoded scene, equal to those of `generate` on each question alone.

        Args:
            scene: a [`SceneCache`], or the list of them that `encode_scene` returns.
            processor: the model's processor.
            questions (`list[str]`): for a list of several scenes, a list of lists.
            batch_size (`int`): questions decoded at a time; similar lengths go together.
            generate_kwargs: for `generate` (`max_new_tokens`, default 32, `num_beams`, `do_sample`, ...).

        Raises:
            ValueError: no question, a freed scene, or a scene of a model that was changed or moved since.
        """
        if not isinstance(scene, SceneCache):
            if len(scene) > 1:
                return [
                    self.answer(one, processor, asked, batch_size, **generate_kwargs)
                    for one, asked in zip(scene, questions, strict=True)
                ]
            scene = scene[0]
        if isinstance(questions, str) or not questions:
            raise ValueError(f"questions must be a list with at least one question, got {questions!r}")
        if not scene.layers:
            raise ValueError("the scene was freed; encode it again")
        if scene.weights != self._weights_fingerprint():
            raise ValueError("the model was changed or moved after the scene was encoded; encode the scene again")
        prompts = [processor.question_prompt(question) for question in questions]
        encoded = [processor.tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
        order = sorted(range(len(prompts)), key=lambda index: len(encoded[index]))
        answers: list[str] = [""] * len(prompts)
        generate_kwargs = {"max_new_tokens": 32, "do_sample": False, **generate_kwargs}
        with self._scene_attention():
            for start in range(0, len(order), batch_size):
                batch = order[start : start + batch_size]
                rows = processor.tokenizer.pad(
                    {"input_ids": [encoded[index] for index in batch]},
                    padding=True,
                    padding_side="left",
                    return_tensors="pt",
                ).to(self.device)
                generated = self.generate(
                    input_ids=rows["input_ids"], attention_mask=rows["attention_mask"], scene=scene, **generate_kwargs
                )
                texts = processor.batch_decode(generated[:, rows["input_ids"].shape[1] :], skip_special_tokens=True)
                for index, text in zip(batch, texts, strict=True):
                    answers[index] = text.strip()
        return answers

    @contextmanager
    def _scene_attention(self):
        config = self.model.text_model.config
        before = config._attn_implementation
        config._attn_implementation = SCENE_ATTENTION
        try:
            yield
        finally:
            config._attn_implementation = before

    def _weights_fingerprint(self) -> int:
        """Changes when a weight is moved, replaced or written to."""
        return hash(tuple((tensor.data_ptr(), tensor._version, tensor.dtype) for tensor in self.parameters()))
