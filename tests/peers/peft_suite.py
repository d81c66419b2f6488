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
LANGUAGE = r".*text_model.*\.(q_proj|v_proj)"  # the usual names mean the ViT's layers too
FOLDER = tempfile.TemporaryDirectory()
MODEL = FOLDER.name
LEGITIMATE: dict[str, dict[str, str]] = {
    "TestPeft": {
        "test_generate_pos_args": "it gives the ids of a prompt with pictures without its pictures, which is refused",
        "test_mixed_adapter_batches": (
            "by the usual names LoRA adapts the ViT too, whose rows are views: more than the names of adapters; those"
            " of the language model alone mix (test_mixed_adapters_of_the_language_model)"
        ),
        "test_prompt_learning_with_gradient_checkpointing": "it trains on a data set of the Hub",
        "test_training_decoders_layer_indexing": (
            "aLoRA needs a pattern that leaves the ViT out, and PEFT takes no layers_to_transform beside a pattern"
        ),
        "test_generate_with_mixed_adapter_batches": "it allows 15 tokens, fewer than a prompt with pictures has",
    }
}


def on_smoldriver(config_cls, options: dict) -> tuple:
    """PEFT's configuration of a test with the names of SmolDriver's layers."""
    if issubclass(config_cls, peers.IA3Config):
        return config_cls, {**options, **IA3_TARGETS}
    if "alora_invocation_tokens" in options:  # it looks for them in the rows of a layer's input: a ViT's are views
        return config_cls, {**options, "target_modules": LANGUAGE}
    return config_cls, {**options, **(TARGETS if "target_modules" in options else {})}


CONFIGS = [on_smoldriver(*config) for config in peers.ALL_CONFIGS if issubclass(config[0], METHODS)]
ARGUMENTS = {"model_id": [MODEL], "config_cls,config_kwargs": CONFIGS}


class TestPeft(peers.PeftCommonTester):
    """The tests of PEFT's `TestDecoderModels` that take any model and any configuration."""

    transformers_class = SmolDriverForConditionalGeneration

    @classmethod
    def setup_class(cls):
        processor = tiny_processor()
        config = tiny_config(tiny_tokenizer())
        image = config.image_token_id
        config.image_token_id = config.text_config.vocab_size - 1  # PEFT's tests draw small ids
        tiny_model(config).save_pretrained(MODEL)
        processor.save_pretrained(MODEL)  # some methods begin with the tokens of a text
        frames = [{camera: picture(10 * row + seed) for seed, camera in enumerate(CAMERAS)} for row in range(2)]
        inputs = inputs_of(processor, frames, [QUESTIONS[0]] * 2)
        ids = inputs["input_ids"]
        inputs["input_ids"] = torch.where(
            ids == image, config.image_token_id, ids.clamp(max=config.image_token_id - 1)
        )
        cls.inputs = {name: inputs[name] for name in ("input_ids", "attention_mask", "pixel_values", "camera_ids")}

    def test_mixed_adapters_of_the_language_model(self):
        targets = {"target_modules": LANGUAGE, "r": 8, "init_lora_weights": False}
        self._test_mixed_adapter_batches(MODEL, peers.LoraConfig, targets)

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
