"""What every test may ask for; the small models, pictures and rows are in fakes.py."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the commands that tests run: two workers share two cores

import datasets
import pytest
import torch
import transformers
from fakes import (
    NO_SAMPLE,
    QUESTIONS,
    SAMPLE,
    dataset,
    frame,
    inputs_of,
    picture,
    pil_image_processor,
    tiny_config,
    tiny_model,
    tiny_tokenizer,
    without,
)

from modeling_smoldriver import CAMERAS, SmolDriverProcessor
from modeling_smoldriver.trainer_smoldriver import SmolDriverSFTConfig, SmolDriverSFTTrainer

transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(1)  # tiny tensors: more threads cost more than they bring


LONGEST = ("test_sample_run.py", "test_training.py", "test_benchmark.py", "test_push_to_hub.py")


def pytest_collection_modifyitems(items):
    """The longest files first: a worker that begins one last would keep the other waiting."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="session")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="session")
def config(tokenizer):
    return tiny_config(tokenizer)


@pytest.fixture(scope="session")
def image_processor():
    return pil_image_processor()


@pytest.fixture(scope="session")
def processor(config, image_processor, tokenizer):
    return SmolDriverProcessor.from_config(config, image_processor, tokenizer)


@pytest.fixture
def model(config):
    return tiny_model(config)


@pytest.fixture(scope="module")
def model_folder(config, processor, tmp_path_factory):
    """The tiny model and its processor, saved; each test file has a folder of its own."""
    folder = tmp_path_factory.mktemp("model")
    tiny_model(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def images():
    return {camera: picture(seed) for seed, camera in enumerate(CAMERAS)}


@pytest.fixture
def make_model(tokenizer):
    """A tiny model, and its processor, by tower and vision options."""

    def make(image_processor, tower="vit", **vision):
        config = tiny_config(tokenizer, tower, **vision)
        return tiny_model(config), SmolDriverProcessor.from_config(config, image_processor, tokenizer)

    return make


@pytest.fixture
def inputs(processor, images):
    """Model inputs of one question about a frame with every camera."""
    return inputs_of(processor, [images], QUESTIONS[:1])


@pytest.fixture
def frames():
    """Three frames with different cameras missing."""
    scenes = [{camera: picture(10 * frame + seed) for seed, camera in enumerate(CAMERAS)} for frame in range(3)]
    return [scenes[0], without(scenes[1], "CAM_FRONT", "CAM_BACK_RIGHT"), {"CAM_BACK": scenes[2]["CAM_BACK"]}]


@pytest.fixture(scope="session")
def drivelm_sample():
    """The folder of the real sample frames."""
    if SAMPLE is None:
        pytest.skip(NO_SAMPLE)
    return SAMPLE


@pytest.fixture
def own_datasets_cache(tmp_path, monkeypatch):
    """What `datasets` unpacks goes to the test's own folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets_cache")


@pytest.fixture
def make_trainer(config, processor, tmp_path):
    """Each call: the SFT trainer of a tiny model, with `rows` to train on."""

    def make(model=None, rows=(), **options):
        options = {
            "output_dir": str(tmp_path / "run"),
            "report_to": "none",
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "disable_tqdm": True,
            "logging_steps": 1,
            "save_strategy": "no",
            "lr_scheduler_type": "constant",
            **options,
        }
        return SmolDriverSFTTrainer(
            model or tiny_model(config),
            SmolDriverSFTConfig(**options),
            train_dataset=dataset(rows or [frame(0)]),
            processing_class=processor,
        )

    return make
