"""What a DataLoader's worker gets where processes are not forked: macOS, Windows, Python 3.14."""

import io
import pickle

import pytest
import torch
from datasets import Dataset
from fakes import dataset, frame, tiny_smolvlm
from safetensors.torch import save_file
from torch.utils.data import DataLoader

from modeling_smoldriver import SmolDriverPlannerConfig, SmolDriverPlannerProcessor
from modeling_smoldriver.collator_smoldriver import SmolDriverCollator, group_questions
from modeling_smoldriver.distillation_smoldriver import VisionDistillationCollator, VisionTeacher
from modeling_smoldriver.guidance_smoldriver import (
    EncodedFrames,
    PictureCollator,
    PlannerReading,
    joined,
    stack_frames,
)
from modeling_smoldriver.processing_smoldriver import SmolDriverProcessor
from recipes.training.teacher_cache import TeacherCache

DIRECTIONS = [
    ("Are there cars to the front of the ego car?", "Yes."),
    ("Are there cars to the back of the ego car?", "No."),
]
DRIVEN = {
    "command": "go straight",
    "speed": 2.0,
    "ego_history": [[-1.0, 0.0, 0.0]] * 4,
    "ego_history_mask": [True] * 4,
    "ego_future": [[1.0, 0.0, 0.0]] * 6,
    "ego_future_mask": [True] * 6,
    "scenario": None,
}


class WithoutWeights(pickle.Pickler):
    """Refuses models: a worker would get a copy of each, on a GPU one on the GPU."""

    def persistent_id(self, value):
        assert not isinstance(value, torch.nn.Module), f"a {type(value).__name__} goes to the worker"
        return None


def sent(value):
    """As a worker gets it."""
    file = io.BytesIO()
    WithoutWeights(file).dump(value)
    return pickle.loads(file.getvalue())


def same(one, other) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


@pytest.fixture(scope="module")
def rows():
    return dataset([frame(0), frame(1, missing=("CAM_BACK",)), frame(2, DIRECTIONS)])


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache of features that is read like a finished one."""
    folder = tmp_path_factory.mktemp("cache")
    views = {f"frame0/{camera}": torch.full((4, 8), float(place)) for place, camera in enumerate(frame(0))}
    save_file(views, folder / "shard.safetensors")
    cache = TeacherCache.__new__(TeacherCache)
    cache.folder, cache.shard_of = folder, dict.fromkeys(views, folder / "shard.safetensors")
    return cache


def collators(processor: SmolDriverProcessor, tokenizer, cache):
    teacher = VisionTeacher(tiny_smolvlm(tokenizer).model.vision_model, processor.image_processor, "teacher")
    planner = PlannerReading(
        SmolDriverPlannerConfig(),
        SmolDriverPlannerProcessor(processor.image_processor, grid_size=6, scale_factor=2, visual_tokens=4),
    )
    packs = SmolDriverCollator(processor, scene_packing=True, context_length=900, visual_tokens=[9, 4])
    return {
        "questions": packs,
        "a teacher's questions": SmolDriverCollator(processor, teacher=SmolDriverCollator(processor)),
        "a tower's features": VisionDistillationCollator(processor, teacher.pictures, [9, 4]),
        "cached features": VisionDistillationCollator(processor, teacher.pictures, [9], cached_features=cache),
        "a planner's pictures": PictureCollator(planner, packs, leave_out="cut_in"),
    }


def test_every_collator_reaches_a_worker_without_weights(processor, tokenizer, rows, cache):
    batch = [rows[0] | DRIVEN]
    for what, collator in collators(processor, tokenizer, cache).items():
        assert same(sent(collator)(batch), collator(batch)), what
    frames = EncodedFrames([{"view_tokens": torch.rand(2, 3)}], {"speed": torch.rand(2)}, ["a", "b"], [1, 0])
    assert same(sent(stack_frames)([sent(frames)[0]]), stack_frames([frames[0]]))


def test_a_column_of_a_data_set_is_read_once():
    tokens = Dataset.from_dict({"frame_token": ["a", "b"]})["frame_token"]
    frames = EncodedFrames([{"view_tokens": torch.rand(2, 3)}], {}, tokens, [1, 0])
    assert isinstance(frames.frame_tokens, list) and [frame["frame_token"] for frame in frames] == ["b", "a"]


@pytest.mark.parametrize("most_views", [0, 2])
@pytest.mark.parametrize("streaming", [False, True])
def test_every_set_of_rows_reaches_a_worker(rows, streaming, most_views):
    source = rows.to_iterable_dataset() if streaming else rows
    groups = group_questions(source, 2, seed=0, most_views=most_views)
    arrived = sent(groups)
    assert list(arrived) == list(groups)
    if not streaming:
        assert list(sent(joined([groups, groups]))) == 2 * list(groups)


def test_a_worker_that_is_not_forked_makes_the_same_batches(processor, rows):
    groups = group_questions(rows, 2, seed=0)
    options = {"batch_size": 2, "collate_fn": SmolDriverCollator(processor, scene_packing=True)}
    here = list(DataLoader(groups, **options))
    there = list(DataLoader(groups, **options, num_workers=1, multiprocessing_context="spawn"))
    assert len(here) == len(there) > 2
    assert all(same(one, other) for one, other in zip(here, there, strict=True))
