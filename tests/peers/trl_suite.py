"""TRL's tests of trainers with pictures, run on a tiny SmolDriver and frames of its six cameras; and its script.

A test's body is TRL's. Its data set and its model, which are on the Hub, are replaced: rows by name below, with one
picture of the front camera or with a frame's six, and the folder of a tiny SmolDriver.
"""

import inspect
import subprocess
import sys
import tempfile

import pytest
from datasets import Dataset, DatasetDict, Image, List
from fakes import picture, tiny_config, tiny_model, tiny_processor, tiny_tokenizer

from modeling_smoldriver import CAMERAS
from tests.peers.sources import FOLDER, trl_tests

FOUND = trl_tests()

from trl_tests import test_dpo_trainer, test_grpo_trainer, test_rloo_trainer, test_sft_trainer  # noqa: E402
from trl_tests.conftest import force_use_cpu_without_accelerator  # noqa: E402, F401 - a fixture of every test
from trl_tests.testing_utils import TrlTestCase  # noqa: E402

MODEL = tempfile.TemporaryDirectory()
QUESTIONS = ["Are there cars?", "What is the status of the car?", "Why?", "Predict the behavior.", "Is it dark?"] * 2
ANSWERS = [" Yes.", " Parked.", " A stop sign.", " The ego vehicle is going straight.", " No."] * 2
LIMIT = (
    "TRL gives the loss a fixed list of inputs, without camera_ids, and refuses others; FramePromptsMixin carries them"
    " (the class with CameraIds runs the same test with it)"
)
VISION = "text alone trains no vision; TRL leaves out what begins with model.visual, the name that Qwen gives it"
LEGITIMATE: dict[str, dict[str, str]] = {
    "TestSFT": {"test_train_vlm_text_only_data": VISION},
    "TestDPO": {"test_train_vlm_text_only_data": VISION},
    "TestGRPO": dict.fromkeys(
        ("test_train_vlm_beta_non_zero", "test_train_vlm_and_importance_sampling", "test_train_vlm_multi_image"), LIMIT
    ),
    "TestRLOO": dict.fromkeys(
        ("test_train_vlm", "test_train_vlm_beta_non_zero", "test_train_vlm_peft", "test_train_vlm_multi_image"), LIMIT
    ),
}


@pytest.fixture(scope="module", autouse=True)
def saved_model():
    tiny_model(tiny_config(tiny_tokenizer())).save_pretrained(MODEL.name)
    tiny_processor().save_pretrained(MODEL.name)


def turn(role: str, text: str, pictures: int | None = None) -> list[dict]:
    if pictures is None:
        return [{"role": role, "content": text}]
    return [{"role": role, "content": [*[{"type": "image"}] * pictures, {"type": "text", "text": text}]}]


def rows(kind: str, pictures: list[int]) -> Dataset:
    """Ten rows of a kind of TRL's (`conversational_prompt_only`), the numbers of pictures in turn; 0: text alone."""
    columns = {}
    counts = (pictures * 10)[:10]
    placed = counts if len(set(counts)) > 1 else [None] * 10  # None: TRL puts them there itself
    prompts = [turn("user", *pair) for pair in zip(QUESTIONS, placed, strict=True)]
    answers = [
        turn("assistant", text, None if place is None else 0) for text, place in zip(ANSWERS, placed, strict=True)
    ]
    if kind.startswith("standard"):
        prompts, answers = QUESTIONS, ANSWERS
    if kind.endswith("language_modeling"):
        whole = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
        columns["text" if kind.startswith("standard") else "messages"] = whole
    elif kind.endswith("prompt_only"):
        columns["prompt"] = prompts
    elif kind.endswith("prompt_completion"):
        columns |= {"prompt": prompts, "completion": answers}
    else:
        columns |= {"prompt": prompts, "chosen": answers, "rejected": answers[::-1]}
    if not any(counts):
        return Dataset.from_dict(columns)
    columns["images"] = [[picture(seed) for seed in range(count)] for count in counts]
    return Dataset.from_dict(columns).cast_column("images", List(Image()))


PICTURES = {"zen": [0], "zen-image": [len(CAMERAS)], "zen-multi-image": [1, 3, 0, len(CAMERAS)]}
"""TRL's data set -> how many pictures its rows get."""


def local_rows(name: str, kind: str, split: str | None = None):
    found = rows(kind, PICTURES[name.removeprefix("trl-internal-testing/")])
    return found if split else DatasetDict({"train": found, "test": found})


def bodies(module, peer: type, names: list[str], with_camera_ids: str | None = None) -> type:
    """A test class of the peer's tests with these names: its model is ours, and its data set.

    Args:
        with_camera_ids: name of the trainer that gets SmolDriver's mixin before it.
    """

    def setup(self, monkeypatch):
        monkeypatch.setattr(module, "load_dataset", local_rows)
        if with_camera_ids:
            mixin = pytest.importorskip("modeling_smoldriver.grpo_smoldriver").FramePromptsMixin
            trainer = type(with_camera_ids, (mixin, getattr(module, with_camera_ids)), {})
            monkeypatch.setattr(module, with_camera_ids, trainer)

    members = {"replace_data": pytest.fixture(autouse=True)(setup)}
    for name in names:
        test = getattr(peer, name)
        free = [argument for argument in inspect.signature(test).parameters if argument not in ("self", "model_id")]

        def body(self, test=test, **arguments):
            if "model_id" in inspect.signature(test).parameters:
                arguments["model_id"] = MODEL.name
            test(self, **arguments)

        body.__signature__ = inspect.Signature(
            [inspect.Parameter(argument, inspect.Parameter.POSITIONAL_OR_KEYWORD) for argument in ("self", *free)]
        )
        for mark in getattr(test, "pytestmark", []):
            if mark.name == "parametrize" and mark.args[0] != "model_id":
                body = pytest.mark.parametrize(*mark.args, **mark.kwargs)(body)
        members[name] = body
    return type(peer.__name__, (TrlTestCase,), members)


REINFORCED = ["test_train_vlm", "test_train_vlm_beta_non_zero", "test_train_vlm_peft", "test_train_vlm_multi_image"]
GRPO = test_grpo_trainer, test_grpo_trainer.TestGRPOTrainerVLM, [*REINFORCED, "test_train_vlm_and_importance_sampling"]
RLOO = test_rloo_trainer, test_rloo_trainer.TestRLOOTrainerVLM, REINFORCED
TestSFT = bodies(
    test_sft_trainer,
    test_sft_trainer.TestSFTTrainer,
    [
        *("test_train_vlm", "test_train_vlm_multi_image", "test_train_vlm_prompt_completion"),
        *("test_train_nll_loss_vlm", "test_train_vlm_text_only_data"),
    ],
)
TestGRPO, TestRLOO = bodies(*GRPO), bodies(*RLOO)
TestGRPOWithCameraIds = bodies(*GRPO, with_camera_ids="GRPOTrainer")
TestRLOOWithCameraIds = bodies(*RLOO, with_camera_ids="RLOOTrainer")
TestDPO = bodies(
    test_dpo_trainer,
    test_dpo_trainer.TestDPOTrainerVLM,
    ["test_train_vlm", "test_train_vlm_multi_image", "test_train_vlm_text_only_data"],
)


class TestScript:
    """`examples/scripts/sft_vlm.py` as its documentation calls it, with `import modeling_smoldriver` before it."""

    def test_sft_vlm_with_lora(self, tmp_path):
        local_rows("zen-image", "conversational_language_modeling").save_to_disk(tmp_path / "rows")
        script = FOLDER / f"trl-{FOUND.version}" / "examples" / "scripts" / "sft_vlm.py"
        start = (
            "import datasets, runpy, sys, modeling_smoldriver; del sys.argv[0];"
            " datasets.load_dataset = lambda path, name: datasets.load_from_disk(path);"
            " runpy.run_path(sys.argv[0], run_name='__main__')"
        )
        options = (
            f"--dataset_name {tmp_path / 'rows'} --model_name_or_path {MODEL.name} --per_device_train_batch_size 1"
            f" --gradient_accumulation_steps 1 --output_dir {tmp_path / 'out'} --dtype bfloat16 --use_peft"
            " --lora_target_modules q_proj v_proj --max_steps 2 --report_to none --use_cpu"
        )
        command = [sys.executable, "-c", start, str(script), *options.split()]
        done = subprocess.run(command, capture_output=True, text=True, cwd=FOLDER.parent, timeout=600)
        assert done.returncode == 0, done.stderr[-2000:]
        assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
