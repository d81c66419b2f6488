"""A SmolDriver as ONNX or OpenVINO graphs, written by transformers' own exporters: what [`ExportedModel`] loads.

Two graphs, since one set of weights serves the prefill of a frame, its questions and every further token:

```
vision    pixel_values (views, 3, S, S), camera_ids (views,)                     -> visual (views, k^2, D)
language  inputs_embeds (rows, n, D), attention_mask (rows, seen + n), position_ids (rows, n),
          scene.0 .. (heads, scene length, head_dim), past.0 .. (rows, heads, seen, head_dim)
                                                            -> logits (rows, vocabulary), present.0 .. as past
```

`scene` and `past` hold keys and values of layer 0, then of layer 1, ... All rows attend to the one `scene`, which is
never copied; the prefill of a frame is one row without a scene. The table of the embeddings lies beside the graphs.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from modeling_smoldriver.modeling_smoldriver import own_mask
from modeling_smoldriver.scene_smoldriver import SceneCache
from recipes.serving.exported import EMBEDDINGS, SETTINGS, ExportSettings
from smoldriver_common.whole_files import folder_written_whole, write_json


class VisionGraph(nn.Module):
    """Pictures to visual tokens, at one budget."""

    def __init__(self, model: PreTrainedModel, visual_tokens: int):
        super().__init__()
        self.vision_model, self.connector = model.model.vision_model, model.model.connector
        self.side = model.config.scale_factor * round(visual_tokens**0.5)

    def forward(self, pixel_values: torch.Tensor, camera_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"visual": self.connector(self.vision_model(pixel_values, camera_ids, self.side).last_hidden_state)}


class LanguageGraph(nn.Module):
    """The language model with its head, behind an encoded frame."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.text_model, self.lm_head = model.model.text_model, model.lm_head

    def forward(self, inputs_embeds, attention_mask, position_ids, scene, past) -> dict:
        cache = DynamicCache()
        for layer in range(len(past) // 2):
            cache.update(past[2 * layer], past[2 * layer + 1], layer)
        outputs = self.text_model(
            inputs_embeds=inputs_embeds,
            attention_mask=own_mask(attention_mask, position_ids, past[0].shape[2], inputs_embeds.dtype),
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
            scene=SceneCache(list(zip(scene[::2], scene[1::2], strict=True)), position_ids, weights=0),
        )
        present = [states for layer in outputs.past_key_values.layers for states in (layer.keys, layer.values)]
        return {"logits": self.lm_head(outputs.last_hidden_state[:, -1]), "present": present}


def sample_inputs(model: PreTrainedModel) -> dict[str, dict]:
    """Inputs to trace each graph with. No two sizes that may differ are alike, and none is 1."""
    config = model.config.text_config
    size, cameras = model.config.vision_config.tower_image_size, len(model.config.vision_config.cameras)
    heads, head_dim = config.num_key_value_heads, config.head_dim
    rows, queries, seen, scene, layers = 3, 5, 7, 11, config.num_hidden_layers
    return {
        "vision": {"pixel_values": torch.zeros(cameras, 3, size, size), "camera_ids": torch.arange(cameras)},
        "language": {
            "inputs_embeds": torch.zeros(rows, queries, config.hidden_size),
            "attention_mask": torch.ones(rows, seen + queries, dtype=torch.long),
            "position_ids": torch.arange(queries).expand(rows, -1).contiguous(),
            "scene": [torch.zeros(heads, scene, head_dim) for _ in range(2 * layers)],
            "past": [torch.zeros(rows, heads, seen, head_dim) for _ in range(2 * layers)],
        },
    }


def dynamic_shapes(inputs: dict[str, dict]) -> dict[str, dict]:
    """Which axes of [`sample_inputs`] a caller chooses."""
    auto = torch.export.Dim.AUTO
    layers = len(inputs["language"]["past"])
    return {
        "vision": {"pixel_values": {0: auto}, "camera_ids": {0: auto}},
        "language": {
            "inputs_embeds": {0: auto, 1: auto},
            "attention_mask": {0: auto, 1: auto},
            "position_ids": {0: auto, 1: auto},
            "scene": [{1: auto}] * layers,
            "past": [{0: auto, 2: auto}] * layers,
        },
    }


def exporter_of(format: str, precision: str):
    """transformers' exporter for a format, and the options of its configuration."""
    if format == "onnx":
        from transformers.exporters import OnnxConfig, OnnxExporter, OnnxRuntimeDynamicConfig, OnnxRuntimeQuantizer

        # patch embeddings stay: onnxruntime multiplies int8 convolutions slower than float32 ones
        int8 = OnnxRuntimeDynamicConfig(op_types_to_quantize=["MatMul", "Gemm"], per_channel=True)
        quantizer = OnnxRuntimeQuantizer(int8) if precision == "int8" else None
        return OnnxExporter(), lambda shapes: OnnxConfig(dynamic_shapes=shapes, quantizer=quantizer)
    from transformers.exporters import (
        NNCFOpenVINOQuantizer,
        NNCFWeightCompressionConfig,
        OpenVINOConfig,
        OpenVINOExporter,
    )

    quantizer = NNCFOpenVINOQuantizer(NNCFWeightCompressionConfig()) if precision == "int8" else None
    return OpenVINOExporter(), lambda shapes: OpenVINOConfig(
        dynamic_shapes=shapes, quantizer=quantizer, stateful=False
    )


def write_export(model: PreTrainedModel, processor, folder: Path, settings: ExportSettings) -> None:
    """Write a float32 SmolDriver as graphs, whole or not at all, with its processor beside them."""
    exporter, configuration = exporter_of(settings.format, settings.precision)
    inputs = sample_inputs(model)
    shapes = dynamic_shapes(inputs)
    graphs = {"vision": VisionGraph(model, settings.visual_tokens), "language": LanguageGraph(model)}
    with folder_written_whole(folder) as aside, warnings_off():
        for name, graph in graphs.items():
            program = exporter.export(graph.eval(), inputs[name], configuration(shapes[name])).program
            exporter.save_program(program, aside / f"{name}{exporter.program_suffix}")
        save_file({"weight": model.get_input_embeddings().weight.detach().contiguous()}, aside / EMBEDDINGS)
        processor.save_pretrained(aside)
        write_json(aside / SETTINGS, asdict(settings))


@contextmanager
def warnings_off() -> Iterator[None]:
    """Exporters print a page of warnings about their own versions and torch's deprecations."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
