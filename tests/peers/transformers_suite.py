"""transformers' common tests of models, generation, exports and processors, on tiny SmolDrivers.

Each class below is one run of a mixin. `LEGITIMATE` names the tests that cannot hold for it, with the reason.
"""

import copy
import sys
import unittest
import unittest.mock
from pathlib import Path

import torch
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)

sys.path.insert(0, str(Path(__file__).parents[1]))  # fakes

from fakes import QUESTIONS, inputs_of, picture, pil_image_processor, tiny_config, tiny_processor, tiny_tokenizer

from modeling_smoldriver import (
    CAMERAS,
    SmolDriverForConditionalGeneration,
    SmolDriverModel,
    SmolDriverProcessor,
)
from modeling_smoldriver.modeling_smoldriver import SmolDriverVisionModel
from tests.peers.sources import transformers_tests

transformers_tests()

from transformers_tests.generation.test_utils import GenerationTesterMixin  # noqa: E402
from transformers_tests.test_modeling_common import ModelTesterMixin  # noqa: E402
from transformers_tests.test_processing_common import ProcessorTesterMixin  # noqa: E402

# As transformers' own models stand there: the tests read by name which classes have a loss.
MODEL_MAPPING_NAMES |= {"smoldriver": "SmolDriverModel", "smoldriver_vision": "SmolDriverVisionModel"}
MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES["smoldriver"] = "SmolDriverForConditionalGeneration"

STRICT = "it loads a checkpoint that lacks weights; SmolDriver's loading is strict and names them"
LEGITIMATE: dict[str, dict[str, str]] = {
    "TestModel": {
        "test_base_model_prefix_loads_base_weights": STRICT,
        "test_correct_missing_keys": STRICT,
        "test_model_weights_reload_no_missing_tied_weights": STRICT,
    },
    "TestVisionModel": {
        "test_model_weights_reload_no_missing_tied_weights": STRICT,
        "test_model_get_set_embeddings": "a vision model embeds patches, not tokens of an nn.Embedding",
    },
    "TestProcessor": {
        **dict.fromkeys(
            ("test_apply_chat_template_image_0", "test_apply_chat_template_image_1"),
            "it gives options of videos; an option that no part takes is refused by name",
        ),
        "test_get_num_multimodal_tokens_matches_processor_call": (
            "it puts two pictures without camera names in a prompt: nobody knows which of six cameras they are of"
        ),
    },
}
"""Class of this file -> test -> why it cannot pass."""


class ModelTester:
    """Two frames of six views with the questions' prompts."""

    batch_size, is_training = 2, True
    num_hidden_layers, hidden_size, num_attention_heads = 2, 48, 4

    def __init__(self):
        self.config = tiny_config(tiny_tokenizer())
        frames = [{camera: picture(10 * row + seed) for seed, camera in enumerate(CAMERAS)} for row in range(2)]
        inputs = inputs_of(tiny_processor(), frames, [QUESTIONS[0]] * 2)
        self.inputs = {name: inputs[name] for name in ("input_ids", "attention_mask", "pixel_values", "camera_ids")}
        self.seq_length = inputs["input_ids"].shape[1]
        self.vision_config = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2}
        self.text_config = {"num_hidden_layers": 2}

    def get_config(self):
        return copy.deepcopy(self.config)

    def prepare_config_and_inputs_for_common(self):
        return self.get_config(), {name: value.clone() for name, value in self.inputs.items()}


class TextTester(ModelTester):
    """Rows of text alone, for tests that draw token ids at random: an `<image>` without a picture is refused."""

    def __init__(self):
        super().__init__()
        self.config.image_token_id = self.config.text_config.vocab_size  # never drawn
        self.inputs = {name: self.inputs[name] for name in ("input_ids", "attention_mask")}


class TestModel(ModelTesterMixin, GenerationTesterMixin, unittest.TestCase):
    all_model_classes = (SmolDriverModel, SmolDriverForConditionalGeneration)
    _is_composite = True

    def setUp(self):
        draws_ids = any(name in self.id() for name in ("eager_matches_sdpa", "rope_scaling_from_config"))
        self.model_tester = TextTester() if draws_ids else ModelTester()

    def _image_features_prepare_config_and_inputs(self):
        """One view per frame: the tests count a picture per row."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        return config, {name: inputs[name][:, :1] for name in ("pixel_values", "camera_ids")}


class VisionModelTester(ModelTester):
    """Twelve views; the sequence is the tower's, a token per patch and a class token."""

    batch_size, hidden_size, num_attention_heads, seq_length = 12, 32, 2, 37

    def __init__(self):
        super().__init__()
        self.config = self.config.vision_config
        self.inputs = {name: self.inputs[name].flatten(0, 1) for name in ("pixel_values", "camera_ids")}
        self.seq_length = 37


class TestVisionModel(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (SmolDriverVisionModel,)
    additional_model_inputs = ("camera_ids",)
    test_resize_embeddings = False

    def setUp(self):
        self.model_tester = VisionModelTester()


class TestProcessor(ProcessorTesterMixin, unittest.TestCase):
    """Also the rest of two tests that are refused above, without what is refused."""

    processor_class = SmolDriverProcessor

    def test_apply_chat_template_image_without_options_of_videos(self):
        template = SmolDriverProcessor.apply_chat_template

        def without_video(processor, *args, processor_kwargs=None, **kwargs):
            options = {name: value for name, value in (processor_kwargs or {}).items() if name != "num_frames"}
            return template(processor, *args, processor_kwargs=options, **kwargs)

        files = [f"{self.tmpdirname}/{seed}.png" for seed in (1, 2)]  # the peer's are on the Hub
        for seed, file in enumerate(files):
            picture(seed).save(file)
        with unittest.mock.patch.object(SmolDriverProcessor, "apply_chat_template", without_video):
            for size in (1, 2):
                self._test_apply_chat_template(
                    "image", size, "pt", "images_input_name", "image_processor", files[:size]
                )

    def test_replacement_offsets_of_a_named_picture(self):
        self.image_token = "CAM_FRONT:<image>"
        returned = unittest.mock.Mock(return_value=True)
        with unittest.mock.patch.object(type(self), "does_processor_return_mm_offsets", returned):
            self.test_replacement_offsets()

    @classmethod
    def _setup_tokenizer(cls):
        return tiny_tokenizer()

    @classmethod
    def _setup_image_processor(cls):
        processor = pil_image_processor()
        processor.size = {"height": 48, "width": 48}
        return processor

    @staticmethod
    def prepare_processor_dict():
        return {"grid_size": 6, "scale_factor": 2}


torch.set_num_threads(1)
