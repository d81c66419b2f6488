"""Answers of an exported SmolDriver: onnxruntime or OpenVINO multiply, numpy does the rest, torch holds no weight.

```python
>>> model = ExportedModel("outputs/export/onnx-int8")
>>> scene = model.encode_scene(**model.processor.encode_scene(images))
>>> model.answer(scene, model.processor, ["Are there cars to the front of the ego car?"])
['Yes.']
```

`encode_scene` and `answer` are those of the model that was exported; answers are greedy.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file
from transformers import GenerationConfig

from modeling_smoldriver import SmolDriverProcessor
from modeling_smoldriver.scene_smoldriver import up_to_end

FORMATS = ("onnx", "openvino")
PRECISIONS = ("float32", "int8")
SETTINGS, EMBEDDINGS = "exported.json", "embeddings.safetensors"


@dataclass(frozen=True)
class ExportSettings:
    """What a folder of graphs holds: its `exported.json`."""

    format: str  # of FORMATS
    precision: str  # of PRECISIONS
    visual_tokens: int  # per camera
    image_token_id: int
    end_tokens: list[int]
    context: int  # tokens
    cache: list[int]  # key and value tensors, key/value heads, head_dim
    weights_sha256: str | None  # of the model that was exported

    @classmethod
    def from_folder(cls, folder: Path) -> "ExportSettings":
        """Raises FileNotFoundError or ValueError for a folder that is not an export."""
        path = Path(folder) / SETTINGS
        if not path.is_file():
            raise FileNotFoundError(f"{folder} is not an exported model: it has no {SETTINGS}")
        try:
            settings = cls(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error}): export the model again") from None
        if settings.format not in FORMATS:
            raise ValueError(f"{path}: format {settings.format!r} is unknown; the formats are {', '.join(FORMATS)}")
        return settings


def is_written(folder: Path, settings: ExportSettings) -> bool:
    """Whether an earlier run wrote this export.

    Raises:
        FileExistsError: the folder holds something else.
    """
    if not folder.exists():
        return False
    try:
        found = ExportSettings.from_folder(folder)
    except (OSError, ValueError):
        raise FileExistsError(f"{folder} exists and is not an export: give another --output-dir") from None
    differs = [name for name, value in asdict(settings).items() if getattr(found, name) != value]
    if differs:
        raise FileExistsError(f"{folder} is an export with other {', '.join(differs)}: give another --output-dir")
    return True


@dataclass(frozen=True)
class ExportedScene:
    """One encoded frame: keys and values, `(heads, length, head_dim)` each, of layer 0, then of layer 1, ..."""

    states: list[np.ndarray]

    @property
    def length(self) -> int:
        return self.states[0].shape[1]


class OnnxGraph:
    """A graph on onnxruntime: called with arrays by name, gives arrays by name."""

    def __init__(self, folder: Path, name: str, threads: int | None):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(folder / f"{name}.onnx", options, ["CPUExecutionProvider"])
        self.outputs = [output.name for output in self.session.get_outputs()]

    def __call__(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(self.outputs, self.session.run(self.outputs, inputs), strict=True))


class OpenVinoGraph:
    """A graph on OpenVINO: called with arrays by name, gives arrays by name."""

    def __init__(self, folder: Path, name: str, threads: int | None):
        import openvino

        # of float32 graphs too: newer CPUs would multiply in bfloat16
        options = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        options |= {"INFERENCE_NUM_THREADS": threads} if threads else {}
        self.compiled = openvino.Core().compile_model(folder / f"{name}.xml", "CPU", options)

    def __call__(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = self.compiled.create_infer_request().infer(inputs)
        return {output.get_any_name(): found[output] for output in self.compiled.outputs}


GRAPHS = {"onnx": OnnxGraph, "openvino": OpenVinoGraph}


class ExportedModel:
    """A folder of recipes/export_model.py, with the methods of the model by which it is asked.

    Args:
        folder: has `exported.json`.
        threads (`int`, *optional*): of the runtime; default: all cores.

    Raises:
        FileNotFoundError, ValueError: the folder is not an export, or is damaged.
    """

    def __init__(self, folder: str | Path, threads: int | None = None):
        folder = Path(folder)
        self.settings = ExportSettings.from_folder(folder)
        graph = GRAPHS[self.settings.format]
        self.vision, self.language = graph(folder, "vision", threads), graph(folder, "language", threads)
        self.embeddings = load_file(folder / EMBEDDINGS)["weight"]  # (vocabulary, D)
        self.processor = SmolDriverProcessor.from_pretrained(folder)
        self.generation_config = GenerationConfig(eos_token_id=self.settings.end_tokens)

    def encode_scene(self, input_ids, attention_mask, pixel_values=None, camera_ids=None) -> ExportedScene:
        """Encode one frame once, to be asked many times; the arguments are those of `processor.encode_scene`.

        Raises:
            ValueError: several frames, another budget than the exported one, or a frame that fills the context.
        """
        token_ids = np.asarray(input_ids)
        if len(token_ids) != 1 or token_ids.shape[1] >= self.settings.context:
            raise ValueError(
                f"encode_scene takes one frame of fewer than {self.settings.context} tokens, got {token_ids.shape}"
            )
        embeds = self.embeddings[token_ids]
        if pixel_values is not None:
            views = {"pixel_values": np.asarray(pixel_values)[0], "camera_ids": np.asarray(camera_ids)[0]}
            visual = self.vision(views)["visual"].reshape(-1, embeds.shape[-1])
            places = token_ids == self.settings.image_token_id
            if places.sum() != len(visual):
                raise ValueError(
                    f"the prompt holds {places.sum()} <image> tokens, the pictures give {len(visual)}: this export"
                    f" has visual_tokens={self.settings.visual_tokens}"
                )
            embeds[places] = visual
        tensors, heads, head_dim = self.settings.cache
        nothing = ExportedScene([np.zeros((heads, 0, head_dim), np.float32)] * tensors)
        present = self._step(nothing, embeds, np.ones_like(token_ids), self._no_past(1))[1]
        return ExportedScene([states[0] for states in present])

    def answer(
        self, scene: ExportedScene, processor, questions: list[str], batch_size: int = 64, max_new_tokens: int = 32
    ) -> list[str]:
        """One answer per question, in order, without special tokens."""
        tokens = self.answer_tokens(scene, processor, questions, batch_size, max_new_tokens)
        return [text.strip() for text in processor.batch_decode(tokens, skip_special_tokens=True)]

    def answer_tokens(
        self, scene: ExportedScene, processor, questions: list[str], batch_size: int = 64, max_new_tokens: int = 32
    ) -> list[list[int]]:
        """Token ids of the answers, each up to and including its end token.

        Raises:
            ValueError: no question, or one that fills the model's context.
        """
        if isinstance(questions, str) or not questions:
            raise ValueError(f"questions must be a list with at least one question, got {questions!r}")
        encoded = processor.encode_questions(questions)
        for question, tokens in zip(questions, encoded, strict=True):
            if scene.length + len(tokens) + max_new_tokens > self.settings.context:
                raise ValueError(
                    f"the scene takes {scene.length} tokens and the question {question[:80]!r} {len(tokens)}: with"
                    f" {max_new_tokens} for the answer more than the model's context of {self.settings.context}"
                )
        order = sorted(range(len(encoded)), key=lambda index: len(encoded[index]))
        answers: list[list[int]] = [[]] * len(encoded)
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            rows = processor.tokenizer.pad(
                {"input_ids": [encoded[index] for index in batch]}, padding_side="left", return_tensors="np"
            )
            written = self._write(scene, rows["input_ids"], rows["attention_mask"], max_new_tokens)
            for index, tokens in zip(batch, written, strict=True):
                answers[index] = tokens
        return answers

    def _write(self, scene: ExportedScene, token_ids, mask, max_new_tokens: int) -> list[list[int]]:
        """Greedy answers to questions `(rows, length)`, padded on the left."""
        past, written = self._no_past(len(token_ids)), []
        ended = np.zeros(len(token_ids), bool)
        for _ in range(max_new_tokens):
            logits, past = self._step(scene, self.embeddings[token_ids], mask, past)
            token_ids = logits.argmax(-1)[:, None]
            written.append(token_ids)
            ended |= np.isin(token_ids[:, 0], self.settings.end_tokens)
            if ended.all():
                break
            mask = np.concatenate([mask, np.ones_like(mask[:, :1])], axis=1)
        tokens = np.concatenate(written, axis=1).tolist()
        return [up_to_end(row, set(self.settings.end_tokens)) for row in tokens]

    def _step(self, scene: ExportedScene, embeds, mask, past: list[np.ndarray]) -> tuple[np.ndarray, list]:
        """-> (logits of the last token `(rows, vocabulary)`, the rows' own keys and values)"""
        positions = scene.length + (mask.cumsum(axis=1) - 1).clip(0)
        inputs = {
            "inputs_embeds": embeds,
            "attention_mask": mask.astype(np.int64),
            "position_ids": positions[:, -embeds.shape[1] :].astype(np.int64),
            **{f"scene.{number}": states for number, states in enumerate(scene.states)},
            **{f"past.{number}": states for number, states in enumerate(past)},
        }
        outputs = self.language(inputs)
        return outputs["logits"], [outputs[f"present.{number}"] for number in range(len(past))]

    def _no_past(self, rows: int) -> list[np.ndarray]:
        tensors, heads, head_dim = self.settings.cache
        return [np.zeros((rows, heads, 0, head_dim), np.float32)] * tensors
