"""GRPO: rewards by rule, each picture to its own camera, one pass of the pictures per frame, a run that resumes."""

import json
import shutil

import pytest
import torch
from fakes import LORA, ON_A_CPU, assert_same, command_line, scene_row, tiny_model, write_scenes
from peft import LoraConfig
from safetensors.torch import load_file
from trl import GRPOConfig, GRPOTrainer, ModelConfig, RLOOConfig, RLOOTrainer, TrlParser

from data_scripts.schema import load_scenes
from modeling_smoldriver.grpo_smoldriver import FramePromptsMixin, SmolDriverGRPOConfig, SmolDriverGRPOTrainer
from recipes import grpo
from recipes.tiny import grpo_demo, sampled_rewards
from recipes.training.loading import load_model
from recipes.training.reward_curve import reward_curve
from recipes.training.rewards import answer_rewards, reward, reward_questions, shuffled_within

FEW = {"num_generations": 4, "per_device_train_batch_size": 8, "max_completion_length": 5, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Four frames with 8 questions each, 2 of each type."""
    return write_scenes(tmp_path_factory.mktemp("scenes"), [scene_row(number, 8) for number in range(4)])


@pytest.fixture
def questions(scenes, processor):
    return reward_questions(load_scenes(scenes, "train"), ["yes_no", "listing"], processor)


def wordiness(completions, **_) -> list[float]:
    """Rewards that differ between the answers of random weights, which are never right."""
    return [len(turns[0]["content"]) / 100 for turns in completions]


def rewards_of(texts, **columns):
    logged = {}
    completions = [[{"role": "assistant", "content": text}] for text in texts]
    return answer_rewards(completions, log_metric=logged.__setitem__, **columns), logged


# Rewards


def test_rewards_are_the_metrics_own_scores():
    assert reward("Yes.", "Yes.", "yes_no") == 1 and reward("No.", "Yes.", "yes_no") == 0
    assert reward("", "Yes.", "yes_no") == 0 and reward("yes yes.", "No.", "yes_no") == 0
    truth = "There is one car and two trucks to the front of the ego car."
    assert reward("There is one car.", truth, "listing") == pytest.approx(2 / 3)  # precision 1, recall 1/2
    assert reward("There is one truck.", truth, "listing") == 0  # the count is wrong
    assert reward("There are two trucks and one car.", truth, "listing") == 1


def test_an_answer_is_rewarded_by_the_column_rewarded_and_its_score_is_by_the_truth():
    rewards, logged = rewards_of(
        [" Yes.", " No.", "There is one car."],
        question_type=["yes_no", "yes_no", "listing"],
        answer=["Yes.", "Yes.", "There is one car."],
        rewarded=["No.", "No.", "There are two cars."],
    )
    assert rewards == [0, 1, 0] and logged == {"score/yes_no": 0.5, "score/listing": 1}


def test_shuffled_rewards_are_another_questions_of_the_same_type():
    kinds = ["a", "b"] * 10
    answers = [f"{kind}{place}" for place, kind in enumerate(kinds)]
    shuffled = shuffled_within(answers, kinds, seed=0)
    assert sorted(shuffled) == sorted(answers) and shuffled != shuffled_within(answers, kinds, seed=1)
    assert all(new != old and new[0] == old[0] for new, old in zip(shuffled, answers, strict=True))


def test_questions_of_the_chosen_types_are_asked_with_their_frames_pictures(scenes, processor, questions):
    rows = load_scenes(scenes, "train")
    assert len(questions) == 16 and set(questions["question_type"]) == {"yes_no", "listing"}
    assert questions["rewarded"] == questions["answer"]
    taken = questions[5]
    *pictures, text = taken["prompt"][0]["content"]
    assert text["text"] == taken["question"] and [part["camera"] for part in pictures] == processor.cameras
    assert all(part["image"] == rows[taken["frame"]][part["camera"]] for part in pictures)
    control = reward_questions(rows, ["yes_no", "listing"], processor, shuffle=True)
    assert control["answer"] == questions["answer"] and control["rewarded"] != control["answer"]
    with pytest.raises(ValueError, match="question type 'planning' has no reward by rule"):
        reward_questions(rows, ["planning"], processor)


# Pictures


def inputs_of_prompt(processor, prompt: list[dict]) -> dict:
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    return processor.apply_chat_template(prompt, **options)


def test_six_views_without_camera_ids_are_in_the_configurations_order(config, processor, questions):
    model, prompt = tiny_model(config), questions[0]["prompt"]
    inputs = inputs_of_prompt(processor, prompt)
    with torch.no_grad():
        expected = model(**inputs).logits
        cameras = inputs.pop("camera_ids")
        assert_same(model(**inputs).logits, expected)
        turned = model(**inputs, camera_ids=cameras.flip(1)).logits
        assert (turned - expected).abs().max() > 1e-3
        inputs["pixel_values"] = inputs["pixel_values"][:, :5]
        with pytest.raises(ValueError, match="need camera_ids; without them a frame has one view per camera"):
            model(**inputs)


def reordered(prompt: list[dict], order: list[int]) -> list[dict]:
    content = prompt[0]["content"]
    return [{"role": "user", "content": [*(content[place] for place in order), content[-1]]}]


def logps_alone(model, processor, prompt, answer: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of an answer's tokens by the model and processor alone."""
    inputs = inputs_of_prompt(processor, prompt)
    tokens = torch.cat([inputs["input_ids"], answer[None]], dim=1)
    pictures = {name: inputs[name] for name in ("pixel_values", "camera_ids")}
    with torch.no_grad():
        logits = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), **pictures).logits
    return logits.log_softmax(-1)[0, -len(answer) - 1 : -1].gather(1, answer[:, None])[:, 0]


@pytest.mark.contract
def test_pictures_in_any_order_and_some_alone_go_to_their_cameras(config, processor, questions, tmp_path):
    prompt = questions[0]["prompt"]
    prompts = [prompt, reordered(prompt, [5, 3, 1, 0, 2, 4]), reordered(prompt, [4, 1])]
    arguments = SmolDriverGRPOConfig(tmp_path, **FEW, **ON_A_CPU)
    model = tiny_model(config)
    trainer = SmolDriverGRPOTrainer(
        model, args=arguments, reward_funcs=wordiness, train_dataset=questions, processing_class=processor
    )
    *pictures, text = prompt[0]["content"]
    apart = {"prompt": [{"role": "user", "content": [text]}], "images": [part["image"] for part in pictures]}
    apart["prompt"][0]["content"][:0] = [{"type": "image"}] * len(pictures)
    rows = [row for row in (*({"prompt": given} for given in prompts), apart) for _ in range(4)]
    batch = trainer._generate_and_score_completions(rows)

    def logps(chunk):
        trainer._shown = {name: batch[name] for name in ("frame_pixels", "frame_cameras", "frame_index")}
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        length = batch["completion_ids"].shape[1]
        return trainer._get_per_token_logps_and_entropies(model, ids, mask, length, batch_size=chunk)[0].detach()

    seen = logps(None)
    assert_same(logps(3), seen)
    for row, given in enumerate(given for given in (*prompts, prompt) for _ in range(4)):
        answer = batch["completion_ids"][row][batch["completion_mask"][row].bool()]
        assert_same(seen[row, : len(answer)], logps_alone(model, processor, given, answer), f"row {row}")


def views_encoded(model) -> list[int]:
    """How many views each pass through the vision model has, as they come."""
    counts = []
    model.model.vision_model.register_forward_pre_hook(lambda _, inputs: counts.append(len(inputs[0])))
    return counts


def test_a_frame_goes_through_the_vision_model_once_per_pass(config, processor, questions, tmp_path):
    model = tiny_model(config)
    counts = views_encoded(model)
    arguments = SmolDriverGRPOConfig(tmp_path, max_steps=1, **FEW, **ON_A_CPU)
    trainer = SmolDriverGRPOTrainer(
        model, args=arguments, reward_funcs=wordiness, train_dataset=questions, processing_class=processor
    )
    vision = {name: value.clone() for name, value in model.model.vision_model.named_parameters()}
    trainer.train()
    assert counts == [12, 12]  # two questions with four answers each: generated, then learned from
    assert all(torch.equal(value, vision[name]) for name, value in model.model.vision_model.named_parameters())


@pytest.mark.contract
@pytest.mark.parametrize("mixin", [True, False])
def test_trl_trains_on_frames_in_order_alone_and_on_any_with_the_mixin(mixin, config, processor, questions, tmp_path):
    """Stock GRPO learns from six pictures in the processor's order; RLOO compares with the model before by default."""
    trainer_class, arguments = (RLOOTrainer, RLOOConfig) if mixin else (GRPOTrainer, GRPOConfig)
    parents = (FramePromptsMixin, trainer_class) if mixin else (trainer_class,)
    trainer_class = type("Trainer", parents, {})
    peft_config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"])  # TRL's usual names
    trainer = trainer_class(
        tiny_model(config),
        args=arguments(tmp_path, max_steps=1, **FEW, **ON_A_CPU),
        reward_funcs=wordiness,
        train_dataset=questions,
        processing_class=processor,
        peft_config=peft_config,
    )
    trainer.train()
    assert trainer.state.log_history[0]["reward"] > 0 and trainer.state.log_history[0]["grad_norm"] > 0


# The recipe


def run(monkeypatch, options: dict) -> None:
    parser = TrlParser((grpo.DataArguments, SmolDriverGRPOConfig, ModelConfig))
    with monkeypatch.context() as patch:
        patch.setattr(grpo, "answer_rewards", wordiness)
        grpo.main(*parser.parse_args_and_config(args=command_line(options)))


def test_a_run_learns_resumes_and_leaves_its_curve(model_folder, scenes, processor, tmp_path, monkeypatch):
    options = {"model_name_or_path": model_folder, "scenes": scenes, "dtype": "float32", **FEW, **LORA, **ON_A_CPU}
    options |= {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    run(monkeypatch, options | {"output_dir": tmp_path / "whole"})
    adapters = load_file(tmp_path / "whole" / "adapter_model.safetensors")
    assert all(value.abs().max() > 0 for name, value in adapters.items() if "lora_B" in name)

    cut = tmp_path / "cut"
    shutil.copytree(tmp_path / "whole" / "checkpoint-1", cut / "checkpoint-1")
    run(monkeypatch, options | {"output_dir": cut})
    resumed = load_file(cut / "adapter_model.safetensors")
    assert all(torch.equal(value, resumed[name]) for name, value in adapters.items())
    curves = [json.loads((tmp_path / name / "rewards.json").read_text()) for name in ("whole", "cut")]
    assert curves[0] == curves[1] and [entry["step"] for entry in curves[0]] == [1, 2]
    assert (cut / "rewards.png").stat().st_size > 0

    assert len(json.loads((cut / "training_manifest.json").read_text())["scene_tokens"]) == 2
    model, _ = load_model(cut)
    loaded = {name.replace(".default.", "."): value for name, value in model.named_parameters()}
    assert all(torch.equal(loaded[name.removeprefix("base_model.model.")], value) for name, value in adapters.items())
    with pytest.raises(SystemExit, match="shuffle_rewards was False, now True"):
        run(monkeypatch, options | {"output_dir": cut, "shuffle_rewards": True})


def test_more_questions_than_there_are_is_refused(model_folder, scenes, tmp_path, monkeypatch):
    options = {
        "model_name_or_path": model_folder,
        "scenes": scenes,
        "output_dir": tmp_path / "run",
        **LORA,
        **ON_A_CPU,
    }
    options |= {**FEW, "per_device_train_batch_size": 68}
    with pytest.raises(SystemExit, match="16 questions are fewer than the 17 that one batch of answers is about"):
        run(monkeypatch, options)


# What is shown


def test_the_curve_holds_rewards_and_true_scores_by_step():
    history = [{"step": 1, "loss": 0.1, "reward": 0.5, "score/yes_no": 0.75}, {"step": 1, "train_runtime": 3.0}]
    assert reward_curve(history) == [{"step": 1, "reward": 0.5, "score/yes_no": 0.75}]


def test_the_table_puts_scores_and_differences_beside_their_intervals():
    def result(score):
        return {
            "yes_no": {"accuracy": score, "accuracy_ci": [score - 0.1, score + 0.1]},
            "listing": {"listing_f1": score, "listing_f1_ci": None},
        }

    difference = {"difference": 0.25, "ci": [0.125, 0.375], "p_value": 0.01}
    comparison = {
        "results": {"before": result(0.5), "rewarded": result(0.75)},
        "differences": {"rewarded": {"yes_no": {"accuracy": difference}, "listing": {"listing_f1": difference}}},
    }
    head, before, rewarded = grpo_demo.before_and_after(comparison).splitlines()
    assert before.split() == ["before", "50.0", "[40.0,", "60.0]", "50.0"]
    assert rewarded.split("  ")[-1].strip() == "+25.0 [+12.5, +37.5]" and "difference from before" in head


def test_drawn_answers_are_compared_with_the_first_models():
    def drawn(*texts):
        asked = [("yes_no", "Yes."), ("yes_no", "No."), ("listing", "There is one car.")]
        return [
            {"text": text, "truth": truth, "type": kind, "scene": f"scene{number}"}
            for number, (text, (kind, truth)) in enumerate(zip(texts, asked, strict=True))
        ]

    before, after = drawn("Yes.", "Yes.", "There is one car."), drawn("Yes.", "No.", "There are two cars.")
    lines = sampled_rewards.table({"before": before, "after": after}).splitlines()
    scores = [[word for word in line.split() if word[0] not in "[n"] for line in lines[1:]]
    assert [score[:3] for score in scores] == [["before", "50.0", "100.0"], ["after", "100.0", "0.0"]]
    assert scores[1][3:] == ["50.0", "-100.0"] and len(scores[0]) == 3
