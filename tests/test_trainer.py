"""The SFT trainer from Python: what trains, what is saved, what is refused."""

import math
import re

import pytest
import torch
from fakes import ON_A_CPU, QA, dataset, frame, one_by_one, tiny_config, tiny_model

from modeling_smoldriver import CAMERAS, SmolDriverForConditionalGeneration
from modeling_smoldriver.collator_smoldriver import SmolDriverCollator
from modeling_smoldriver.trainer_smoldriver import SmolDriverSFTConfig, SmolDriverSFTTrainer


@pytest.mark.parametrize("vision, connector, language", [(1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0)])
def test_one_step_moves_what_the_config_trains_and_nothing_else(make_trainer, tokenizer, vision, connector, language):
    model = tiny_model(tiny_config(tokenizer, "dinov2"))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trainer = make_trainer(
        model,
        scene_packing=True,
        train_vision=bool(vision),
        train_connector=bool(connector),
        train_language_model=bool(language),
        max_steps=1,
        learning_rate=1e-2,
    )
    trainer.train()
    trains = {
        "model.vision_model": vision,
        "model.connector": connector,
        "model.text_model": language,
        "lm_head": language,
    }
    for name, parameter in model.named_parameters():
        part = next(part for part in trains if name.startswith(part))
        moved = not torch.equal(parameter, before[name])
        assert moved == (bool(trains[part]) and not name.endswith("mask_token")), name


def test_streamed_scenes_train(make_trainer, config, processor, tmp_path):
    scenes = dataset([frame(0), frame(1)]).to_iterable_dataset()
    args = SmolDriverSFTConfig(
        output_dir=str(tmp_path),
        scene_packing=True,
        max_steps=2,
        per_device_train_batch_size=1,
        report_to="none",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        save_strategy="no",
        logging_steps=1,
    )
    trainer = SmolDriverSFTTrainer(tiny_model(config), args, train_dataset=scenes, processing_class=processor)
    trainer.train()
    assert trainer._questions_seen == 10


def test_packed_model_saves_and_answers_as_any_other(make_trainer, processor, tmp_path):
    """The attention of packed frames is the trainer's affair: it must not go out with the model."""
    row = frame(0)
    images = {camera: row[camera] for camera in CAMERAS}
    trainer = make_trainer(None, [row], scene_packing=True, max_steps=1)
    trainer.train()
    model = trainer.model.eval()
    trainer.save_model(str(tmp_path / "saved"))
    assert "smoldriver_packed" not in (tmp_path / "saved" / "config.json").read_text()
    loaded = SmolDriverForConditionalGeneration.from_pretrained(tmp_path / "saved").eval()
    inputs = processor.encode_scene(images)
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    questions = [question for question, _ in QA]
    answers = [one.answer(one.encode_scene(**inputs), processor, questions) for one in (model, loaded)]
    assert answers[0] == answers[1]


def test_several_evaluation_sets_are_refused_in_one_line(config, processor, tmp_path):
    args = SmolDriverSFTConfig(output_dir=str(tmp_path), **ON_A_CPU)
    rows = dataset([frame(0)])
    with pytest.raises(
        ValueError, match=r"^eval_dataset is a dict of 2 \(day, night\): give one dataset, and evaluate"
    ):
        SmolDriverSFTTrainer(
            tiny_model(config),
            args,
            train_dataset=rows,
            eval_dataset={"day": rows, "night": rows},
            processing_class=processor,
        )


def test_training_on_one_frame_lowers_the_loss(make_trainer):
    trainer = make_trainer(None, [frame(0)], scene_packing=True, max_steps=15, learning_rate=1e-2)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.5 * losses[0]


def test_loss_that_is_not_finite_stops_the_run_and_names_the_frames(make_trainer, processor):
    trainer = make_trainer(scene_packing=True)
    with torch.no_grad():
        trainer.model.lm_head.weight[0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="nan at step 0 for the frames frame0, frame1"):
        trainer.compute_loss(trainer.model, SmolDriverCollator(processor, scene_packing=True)([frame(0), frame(1)]))


@pytest.mark.parametrize(
    "values, message",
    [
        ({"loss_mode": "both"}, "loss_mode='both' is unknown; use one of"),
        ({"packed_attention": "dense"}, "packed_attention='dense' is unknown; use one of"),
        ({"questions_per_scene": 0}, "questions_per_scene=0 must be at least 1"),
        ({"max_steps": -5}, "max_steps=-5 must be at least 1"),
        ({"max_steps": 0}, "max_steps=0 must be at least 1"),
        ({"num_train_epochs": 0}, "num_train_epochs=0 must be above 0"),
        ({"num_train_epochs": math.inf}, "num_train_epochs=inf must be above 0 and finite"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size=0 must be at least 1"),
        ({"per_device_eval_batch_size": -1}, "per_device_eval_batch_size=-1 must be at least 1"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps=0 must be at least 1"),
        ({"save_total_limit": 0}, "save_total_limit=0 must be at least 1"),
        ({"dataloader_num_workers": -1}, "dataloader_num_workers=-1 must be at least 0"),
        ({"logging_steps": 0}, "logging_steps=0 must be above 0"),
        ({"save_steps": -2}, "save_steps=-2 must be above 0"),
        ({"learning_rate": -1e-5}, "learning_rate=-1e-05 must be at least 0"),
        ({"learning_rate": math.nan}, "learning_rate=nan must be at least 0 and finite"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1 must be at least 0"),
        ({"adam_beta1": 1.0}, "adam_beta1=1.0 must be at least 0 and below 1"),
        ({"adam_epsilon": 0.0}, "adam_epsilon=0.0 must be above 0"),
        ({"seed": -1}, "seed=-1 must be at least 0 and below 4294967296"),
        ({"max_pack_length": 0}, "max_pack_length=0 must be at least 1"),
        ({"sample_steps": -1}, "sample_steps=-1 must be at least 0"),
    ],
)
def test_bad_training_values_are_refused(tmp_path, values, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        SmolDriverSFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **values)


def test_rows_that_fill_no_batch_are_refused(make_trainer):
    """With `dataloader_drop_last` such a run ended at once, its model untrained."""
    rows = [frame(0), frame(1)]
    options = {"dataloader_drop_last": True, "max_steps": 1, "scene_packing": True}
    with pytest.raises(ValueError, match="drop_last leaves out all 2 training rows, fewer than the 3 of a"):
        make_trainer(rows=rows, per_device_train_batch_size=3, **options)
    trainer = make_trainer(rows=rows, per_device_train_batch_size=2, **options)
    assert trainer.train().global_step == 1
    with pytest.raises(ValueError, match="no frame has a question"):
        make_trainer(rows=[frame(0, qa=[])])


@pytest.mark.parametrize("loss_mode", ["question", "token"])
@pytest.mark.parametrize("packing", [True, False])
def test_evaluation_is_the_same_at_every_batch_size(loss_mode, packing, make_trainer):
    rows = [frame(0), frame(1, QA[1:2]), frame(2, QA[:2], missing=("CAM_BACK",))]
    found = []
    for size in (1, 2, 3):
        trainer = make_trainer(
            rows=rows,
            loss_mode=loss_mode,
            scene_packing=packing,
            train_visual_tokens=[4, 9],
            per_device_eval_batch_size=size,
            dataloader_drop_last=True,
            per_device_train_batch_size=1,
        )
        metrics = trainer.evaluate(trainer.train_dataset)
        found.append([metrics["eval_loss"], metrics["eval_mean_token_accuracy"]])

    model, collator, total, items = trainer.model.eval(), trainer.data_collator, 0.0, 0.0
    collator.visual_tokens = [9]
    for row in one_by_one(rows):
        with torch.no_grad():
            loss = trainer.compute_loss(model, collator([row])).item()
        count = 1 if loss_mode == "question" else (collator([row])["labels"] != -100).sum().item()
        total, items = total + loss * count, items + count
    expected = [total / items, found[0][1]]
    torch.testing.assert_close(torch.tensor(found), torch.tensor([expected] * 3), rtol=0, atol=1e-6)
