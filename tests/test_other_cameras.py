"""Other sets of cameras than nuScenes' six, from a JSON file to a trained model: one list of names, checked where it
is set."""

import json

import pytest
from drivelm_source import prepare, refusal, stored_rows, write_source
from fakes import ON_A_CPU, dataset, frame, tiny_config, tiny_model

from data_scripts.schema import load_scenes, read_manifest, scene_features, scene_table
from modeling_smoldriver import CAMERAS, SmolDriverProcessor
from modeling_smoldriver.collator_smoldriver import RowsDoNotFit, SmolDriverCollator, group_questions
from modeling_smoldriver.distillation_smoldriver import VisionDistillationCollator
from modeling_smoldriver.planning_processing_smoldriver import SmolDriverPlannerProcessor
from modeling_smoldriver.trainer_smoldriver import SmolDriverSFTConfig, SmolDriverSFTTrainer
from recipes.evaluation.report import frame_pictures

pytestmark = pytest.mark.usefixtures("own_datasets_cache")

SETS = {
    "one": ["CAM_FRONT"],
    "Waymo": ["FRONT", "FRONT_LEFT", "FRONT_RIGHT", "SIDE_LEFT", "SIDE_RIGHT"],
    "nuPlan": [f"CAM_{name}" for name in ("F0", "L0", "R0", "L1", "R1", "L2", "R2", "B0")],
}


def processor_of(cameras, image_processor, tokenizer):
    config = tiny_config(tokenizer, cameras=cameras)
    return config, SmolDriverProcessor.from_config(config, image_processor, tokenizer)


def trainer_of(config, processor, rows, folder, **options):
    args = SmolDriverSFTConfig(output_dir=str(folder), **ON_A_CPU, max_steps=1, **options)
    return SmolDriverSFTTrainer(tiny_model(config), args, train_dataset=rows, processing_class=processor)


@pytest.mark.parametrize("name", SETS)
def test_a_set_of_cameras_is_prepared_trained_and_asked(name, image_processor, tokenizer, tmp_path):
    cameras = SETS[name]
    write_source(tmp_path, scenes=("scene-0",), cameras=cameras)
    manifest = prepare(tmp_path, "--cameras", *cameras)
    assert manifest["cameras"] == cameras and "sensors left out" not in manifest["report"]
    rows = load_scenes(tmp_path / "out", "train")
    assert rows.column_names == ["scene_token", "frame_token", "scene_description", *cameras, "qa"]
    config, processor = processor_of(cameras, image_processor, tokenizer)
    trainer = trainer_of(config, processor, rows, tmp_path / "run", scene_packing=True)
    (batch,) = trainer.get_train_dataloader()
    assert batch["camera_ids"].tolist() == [list(range(len(cameras)))] * len(batch["camera_ids"])
    trainer.train()
    model = trainer.model.eval()
    scene = model.encode_scene(**processor.encode_scene({camera: rows[0][camera] for camera in cameras}))
    assert len(model.answer(scene, processor, ["Why?"], max_new_tokens=2)) == 1
    assert list(frame_pictures(rows, {"scene-0-frame-1"})["scene-0-frame-1"]) == cameras


def test_rows_of_other_cameras_are_refused_before_the_training(image_processor, tokenizer, tmp_path):
    config, processor = processor_of(SETS["nuPlan"], image_processor, tokenizer)
    rows = dataset([frame(0)])
    message = "the rows have no camera CAM_F0, CAM_L0, .*: the model reads .*; prepare the scenes with these --cameras"
    for given in (rows, rows.to_iterable_dataset()):
        with pytest.raises(ValueError, match=message):
            trainer_of(config, processor, given, tmp_path)
    with pytest.raises(RowsDoNotFit, match=f"frame frame0: {message}"):
        SmolDriverCollator(processor)([frame(0)])
    with pytest.raises(ValueError, match=message):
        VisionDistillationCollator(processor, None, [9])([frame(0)])


def test_a_model_reads_its_cameras_from_rows_that_have_more(image_processor, tokenizer):
    _, processor = processor_of(["CAM_BACK", "CAM_FRONT"], image_processor, tokenizer)
    batch = SmolDriverCollator(processor, scene_packing=True)([frame(0)])
    assert batch["camera_ids"].tolist() == [[0, 1]]


def test_few_views_are_drawn_from_the_models_cameras():
    questions = [
        ("Are there cars to the back of the ego car?", "No."),
        ("Are there cars to the front of the ego car?", "No."),
    ]
    rows = dataset([frame(number, questions) for number in range(12)])
    cameras = ["CAM_FRONT", "CAM_BACK_LEFT", "CAM_BACK_RIGHT"]
    groups = list(group_questions(rows, 8, seed=0, most_views=3, cameras=cameras))
    assert len(groups) == 12  # the model has no camera to the back
    shown = {camera for row in groups for camera in cameras if row[camera] is not None}
    assert shown == set(cameras) and all(row["CAM_FRONT"] is not None for row in groups)
    with pytest.raises(ValueError, match="none for the cameras F0, B0: leave most_views out"):
        group_questions(rows, 8, seed=0, most_views=3, cameras=["F0", "B0"])


BAD_NAMES = {
    "twice": (["F0", "F0"], "distinct names"),
    "none": ([], "distinct names"),
    "a colon": (["F0:"], "letters, digits and underscores, not 'F0:'"),
    "a blank": (["front left"], "not 'front left'"),
    "a token": (["<image>"], "not '<image>'"),
    "a number": ([0], "not 0"),
}


@pytest.mark.parametrize(("cameras", "message"), BAD_NAMES.values(), ids=BAD_NAMES)
def test_names_are_checked_wherever_they_are_set(cameras, message, image_processor, tokenizer):
    for setting in (
        lambda: tiny_config(tokenizer, cameras=cameras),
        lambda: SmolDriverProcessor(image_processor, tokenizer, grid_size=6, scale_factor=2, cameras=cameras),
        lambda: SmolDriverPlannerProcessor(image_processor, grid_size=6, scale_factor=2, cameras=cameras),
        lambda: scene_features(cameras),
    ):
        with pytest.raises(ValueError, match=message):
            setting()


def test_preparation_refuses_what_its_cameras_do_not_fit(tmp_path):
    write_source(tmp_path, scenes=("scene-0",), cameras=SETS["Waymo"])
    message = refusal(tmp_path)
    assert message == (
        f"prepare_drivelm: no frame names a picture of {', '.join(CAMERAS)}; the JSON has the sensors FRONT,"
        " FRONT_LEFT, FRONT_RIGHT, SIDE_LEFT, SIDE_RIGHT: give --cameras"
    )
    assert "a camera cannot be called qa" in refusal(tmp_path, "--cameras", "qa")
    prepare(tmp_path, "--cameras", "FRONT", "SIDE_LEFT")
    assert [list(row) for row in stored_rows(tmp_path / "out")][0][3:5] == ["FRONT", "SIDE_LEFT"]
    message = refusal(tmp_path, "--cameras", "SIDE_LEFT", "FRONT")
    assert "was begun with the cameras FRONT, SIDE_LEFT, now SIDE_LEFT, FRONT" in message


def test_a_manifest_says_which_cameras_the_rows_have(tmp_path):
    write_source(tmp_path, scenes=("scene-0",), cameras=SETS["Waymo"])
    prepare(tmp_path, "--cameras", *SETS["Waymo"])
    path = tmp_path / "out" / "manifest.json"
    manifest = json.loads(path.read_text())
    for cameras, message in (
        (["FRONT"], "columns are not those of data_scripts/schema.py with the cameras FRONT"),
        (["FRONT", "../a"], "manifest.json names cameras that cannot be: .*'../a'"),
        (3, "manifest.json names cameras that cannot be"),
    ):
        path.write_text(json.dumps(manifest | {"cameras": cameras}))
        with pytest.raises(ValueError, match=message):
            load_scenes(tmp_path / "out", "train")
    del manifest["cameras"]  # an earlier version's, whose rows had nuScenes' six
    path.write_text(json.dumps(manifest))
    assert read_manifest(tmp_path / "out")
    with pytest.raises(ValueError, match="with the cameras CAM_FRONT_LEFT, "):
        load_scenes(tmp_path / "out", "train")


def test_rows_are_checked_for_their_own_cameras():
    row = {"scene_token": "s", "frame_token": "f", "scene_description": None, "F0": None, "qa": []}
    with pytest.raises(ValueError, match="none of the cameras F0 has an image"):
        scene_table([row], scene_features(["F0"]))
    with pytest.raises(ValueError, match="a scene row has the columns"):
        scene_table([row])
