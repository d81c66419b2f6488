"""A trainer resumes, and takes its best model, with every tensor of the checkpoint: also called from Python."""

import copy

import pytest
import torch
from fakes import dataset, frame, tiny_config, tiny_model, tiny_smolvlm
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from modeling_smoldriver import SmolDriverForConditionalGeneration
from modeling_smoldriver.distillation_smoldriver import (
    VisionDistillationConfig,
    VisionDistillationTrainer,
    VisionTeacher,
)
from modeling_smoldriver.trainer_smoldriver import SmolDriverSFTConfig, SmolDriverSFTTrainer

TOWERS = ("vit", "dinov2")  # transformers 5 saves them under other names than the model's own
OPTIONS = {
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
    "lr_scheduler_type": "constant",
    "learning_rate": 5e-2,
    "per_device_train_batch_size": 1,
    "max_steps": 3,
    "save_strategy": "steps",
    "save_steps": 1,
}


@pytest.fixture(params=TOWERS)
def make_trainer(request, tokenizer, processor, tmp_path):
    """Each call: a trainer of the same untrained model, in the same folder."""

    def make(**options):
        return SmolDriverSFTTrainer(
            tiny_model(tiny_config(tokenizer, request.param)),
            SmolDriverSFTConfig(output_dir=str(tmp_path / "run"), **{**OPTIONS, **options}),
            train_dataset=dataset([frame(0), frame(1)]),
            eval_dataset=dataset([frame(2)]),
            processing_class=processor,
        )

    return make


@pytest.fixture(params=TOWERS)
def make_distillation(request, tokenizer, processor, image_processor, tmp_path):
    """As `make_trainer`, for knowledge transfer."""
    tower = tiny_smolvlm(tokenizer).model.vision_model

    def make():
        return VisionDistillationTrainer(
            tiny_model(tiny_config(tokenizer, request.param)),
            VisionDistillationConfig(output_dir=str(tmp_path / "run"), **OPTIONS),
            teacher=VisionTeacher(tower, copy.copy(image_processor), "teacher"),
            train_dataset=dataset([frame(0), frame(1)]),
            processing_class=processor,
        )

    return make


class Stop(TrainerCallback):
    """Ends the training before its first step."""

    def on_step_begin(self, *args, **kwargs):
        raise KeyboardInterrupt


def resume_and_stop(trainer, checkpoint) -> None:
    trainer.add_callback(Stop())
    with pytest.raises(KeyboardInterrupt):
        trainer.train(resume_from_checkpoint=str(checkpoint))


def assert_equals_checkpoint(trainer, checkpoint) -> None:
    wanted = SmolDriverForConditionalGeneration.from_pretrained(checkpoint).state_dict()
    found = trainer.model.state_dict()
    different = [name for name in wanted if not torch.equal(found[name], wanted[name])]
    assert found.keys() == wanted.keys() and not different, f"{len(different)} of {len(wanted)} tensors differ"


@pytest.mark.contract
def test_best_model_at_the_end_is_its_checkpoint(make_trainer):
    trainer = make_trainer(load_best_model_at_end=True, eval_strategy="steps", eval_steps=1, learning_rate=1.0)
    trainer.train()
    best = trainer.state.best_model_checkpoint
    assert best.endswith("checkpoint-1")  # at that rate the loss rises
    assert_equals_checkpoint(trainer, best)


@pytest.mark.contract
def test_resuming_from_python_begins_with_the_checkpoint(make_trainer, tmp_path):
    make_trainer().train()
    trainer = make_trainer()
    resume_and_stop(trainer, tmp_path / "run" / "checkpoint-2")
    assert_equals_checkpoint(trainer, tmp_path / "run" / "checkpoint-2")


def test_distillation_resumed_from_python_begins_with_the_checkpoint(make_distillation, tmp_path):
    make_distillation().train()
    trainer = make_distillation()
    resume_and_stop(trainer, tmp_path / "run" / "checkpoint-2")
    assert_equals_checkpoint(trainer, tmp_path / "run" / "checkpoint-2")


def test_finished_run_resumed_from_python_takes_no_step_more(make_trainer, tmp_path):
    make_trainer().train()
    trainer = make_trainer()
    assert trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3")).global_step == 3
    assert_equals_checkpoint(trainer, tmp_path / "run" / "checkpoint-3")


def test_checkpoint_that_lacks_a_tensor_is_refused(make_trainer, tmp_path):
    make_trainer().train()
    path, lost = tmp_path / "run" / "checkpoint-2" / "model.safetensors", "lm_head.weight"
    weights = load_file(path)
    del weights[lost]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"missing: {lost}"):
        make_trainer().train(resume_from_checkpoint=str(path.parent))
