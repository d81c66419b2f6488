"""PEFT's common tests of language models, run on a tiny SmolDriver with pictures among its inputs."""

import copy
import inspect
import tempfile

import pytest
import torch
from fakes import QUESTIONS, inputs_of, picture, tiny_config, tiny_model, tiny_processor, tiny_tokenizer

from modeling_smoldriver import CAMERAS, SmolDriverForConditionalGeneration
from tests.peers.sources import peft_tests

peft_tests()

from peft_tests import test_decoder_models as peers  # noqa: E402

METHODS = (
    *(peers.LoraConfig, peers.AdaLoraConfig, peers.IA3Config, peers.OFTConfig, peers.VeraConfig),
    *(peers.PrefixTuningConfig, peers.PromptTuningConfig, peers.PromptEncoderConfig, peers.CPTConfig),
)
"""Those of PEFT's forty that change layers or prompts in a way of their own."""

TARGETS = {"target_modules": ["q_proj", "v_proj"]}  # PEFT knows these by itself for the model types of its own tables
IA3_TARGETS = {"target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]}
FOLDER = tempfile.TemporaryDirectory()
MODEL = FOLDER.name
LEGITIMATE: dict[str, dict[str, str]] = {"TestPeft": {}}


def on_smoldriver(config_cls, options: dict) -> tuple:
    """PEFT's configuration of a test with the names of SmolDriver's layers."""
    if issubclass(config_cls, peers.IA3Config):
        return config_cls, {**options, **IA3_TARGETS}
    return config_cls, {**options, **(TARGETS if "target_modules" in options else {})}


CONFIGS = [on_smoldriver(*config) for config in peers.ALL_CONFIGS if issubclass(config[0], METHODS)]
ARGUMENTS = {"model_id": [MODEL], "config_cls,config_kwargs": CONFIGS}


class TestPeft(peers.PeftCommonTester):
    """The tests of PEFT's `TestDecoderModels` that take any model and any configuration."""

    transformers_class = SmolDriverForConditionalGeneration

    @classmethod
    def setup_class(cls):
        processor = tiny_processor()
        tiny_model(tiny_config(tiny_tokenizer())).save_pretrained(MODEL)
        processor.save_pretrained(MODEL)
        frames = [{camera: picture(10 * row + seed) for seed, camera in enumerate(CAMERAS)} for row in range(2)]
        inputs = inputs_of(processor, frames, [QUESTIONS[0]] * 2)
        cls.inputs = {name: inputs[name] for name in ("input_ids", "attention_mask", "pixel_values", "camera_ids")}

    def prepare_inputs_for_testing(self) -> dict[str, torch.Tensor]:
        return copy.deepcopy(self.inputs)


for name, test in vars(peers.TestDecoderModels).items():
    marks = getattr(test, "pytestmark", [])
    if {mark.args[0] for mark in marks if mark.name == "parametrize"} >= ARGUMENTS.keys():

        def body(self, test=test, **arguments):
            test(self, **copy.deepcopy(arguments))

        body.__signature__ = inspect.signature(test)
        for mark in marks:
            given = (
                (mark.args[0], ARGUMENTS.get(mark.args[0], mark.args[1])) if mark.name == "parametrize" else mark.args
            )
            body = getattr(pytest.mark, mark.name)(*given, **mark.kwargs)(body)
        setattr(TestPeft, name, body)
