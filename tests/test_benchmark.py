"""The benchmark's counts, contestants and report; nothing here looks at a clock."""

import json
import math

import pytest
import torch

from modeling_smoldriver import CAMERAS
from recipes import benchmark
from recipes.benchmarking import measuring
from recipes.benchmarking.counts import Limits, Phase, WorkCounts, counted_macs, limit_of
from recipes.benchmarking.inference import NEW_TOKENS, InferenceBench
from recipes.benchmarking.inputs import drivelm_style_questions
from recipes.benchmarking.models import SIZES, make_processor, one_camera_after_another
from recipes.benchmarking.training import TrainingBench, peak_of_step

RATIOS = {
    "train_packed_93",
    "answers_93_vs_generate",
    "answers_93_vs_smolvlm",
    "vision_vs_siglip",
    "vision_budget_9_vs_siglip",
    "vision_vs_camera_loop",
    "prefill_9_vs_81",
    "matmul_share_packed_train",
}


@pytest.fixture(scope="module")
def bench():
    return InferenceBench(SIZES["tiny"], "cpu", torch.float32)


# Counts


def test_vision_counts_are_torchs(bench):
    for contestant in bench.vision():
        with torch.no_grad():
            counted = counted_macs(contestant.run)
        assert sum(phase.macs for phase in contestant.phases) == counted, contestant.row


@pytest.mark.parametrize("keys", ["content", "position"])
def test_vision_counts_are_torchs_for_several_frames(bench, keys):
    vision = bench.smoldriver.model.vision_model
    before = vision.config.resampler_keys
    vision.config.resampler_keys = vision.resampler.config.resampler_keys = keys
    try:
        cameras = torch.arange(6).repeat(3)
        with torch.no_grad():
            pixels = torch.rand(18, 3, 64, 64)
            vision(pixels, cameras, 4)  # position keys are computed once
            counted = counted_macs(lambda: vision(pixels, cameras, 4))
        assert bench.counter.vision_macs(64, budget=4, frames=3) == counted
    finally:
        vision.config.resampler_keys = vision.resampler.config.resampler_keys = before


def test_prefill_and_decoding_counts_are_torchs(bench):
    for contestant in bench.prefill():
        with torch.no_grad():
            counted = counted_macs(contestant.run)
        assert sum(phase.macs for phase in contestant.phases) == counted, contestant.row


def test_counts_of_answers_are_torchs(bench):
    for contestant in bench.answers():
        if contestant.row["what"].startswith("scene") and contestant.row["questions"] in (1, 93):
            counted = counted_macs(contestant.run)
            assert sum(phase.macs for phase in contestant.phases) == counted, contestant.row


@pytest.mark.parametrize("questions, packs", [(1, 1), (8, 1), (9, 2)])
def test_training_counts_are_torchs(questions, packs):
    bench = TrainingBench(SIZES["tiny"], "cpu", torch.float32)
    batch = bench.batch(questions, packs)
    assert len(batch["input_ids"]) == packs
    tokens, (step, optimizer) = bench.counts(batch)
    counted = counted_macs(lambda: bench.step(batch))
    patch_embedding = 6 * 36 * 3 * 16**2 * 128  # pictures need no gradient, the count is a third less
    assert step.macs - patch_embedding == counted
    assert tokens == batch["input_ids"].numel()
    assert optimizer.bytes == 28 * sum(parameter.numel() for parameter in bench.model.parameters())


def test_counts_of_the_real_sizes_by_hand():
    processor, smoldriver, smolvlm = make_processor(SIZES["256m"])
    counter = WorkCounts(smoldriver, smolvlm, item=2)
    layer = 1024 * (4 * 768**2 + 2 * 768 * 3072) + 2 * 1024**2 * 768
    assert counter.siglip_macs() == 6 * (1024 * 3 * 16**2 * 768 + 12 * layer)
    assert counter.text_weights == 30 * (2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536)
    tower = 441 * 3 * 16**2 * 768 + 12 * (442 * 12 * 768**2 + 2 * 442**2 * 768)
    resampler = 441 * 768**2 + 2 * (441 + 1024) * 768**2 + 2 * 1024 * 441 * 768
    assert counter.vision_macs(336, budget=64) == 6 * (tower + resampler)
    assert counter.connector_macs(64) == 6 * 64 * (768 * 16) * 576
    assert counter.text_bytes(100) == 2 * (counter.text_weights + 576 * 49280 + 2 * 100 * 192 * 30)
    weights = [make_weights(name) for name in ("256m", "500m", "2.2b")]
    assert [round(count / 1e6) for count in weights] == [256, 507, 2247]  # as the checkpoints' names say


def make_weights(name: str) -> int:
    from transformers import SmolVLMForConditionalGeneration

    _, _, config = make_processor(SIZES[name])
    with torch.device("meta"):
        return SmolVLMForConditionalGeneration(config).num_parameters()


def test_tokens_of_a_scene_are_its_prefix_once_and_each_question(bench):
    prefix = bench.scenes[9]["input_ids"].shape[1]
    longest = max(map(len, bench.encoded))
    rows = {(one.row["what"], one.row["questions"], one.row["budget"]): one for one in bench.answers()}
    scene = rows["scene, smoldriver", 93, 9]
    assert prefix + 93 * NEW_TOKENS < scene.row["tokens"] <= prefix + 93 * (longest + NEW_TOKENS - 1)
    alone = rows["generate, smoldriver", 1, 9]
    assert alone.row["tokens"] == prefix + bench.mean_question + NEW_TOKENS - 1


def test_limit_is_that_of_the_slower_of_products_and_memory():
    machine = Limits(matmul_flops=100.0, memory_bytes_per_second=10.0)
    assert limit_of([Phase(macs=100, bytes=1)], machine) == (2.0, "matmul")
    assert limit_of([Phase(macs=100, bytes=1), Phase(macs=1, bytes=50)], machine) == (7.0, "memory")


# Contestants


@pytest.mark.parametrize("keys, residual", [("content", True), ("position", True), ("content", False)])
def test_camera_loop_gives_the_vision_models_output(bench, keys, residual):
    vision = bench.smoldriver.model.vision_model
    config = vision.resampler.config
    before = config.resampler_keys, config.resampler_residual
    config.resampler_keys, config.resampler_residual = keys, residual
    try:
        pixels, cameras = torch.rand(6, 3, 96, 96), torch.arange(6)
        for side in (6, 4):
            with torch.no_grad():
                batched = vision(pixels, cameras, side).last_hidden_state
            torch.testing.assert_close(one_camera_after_another(vision, pixels, cameras, side), batched)
    finally:
        config.resampler_keys, config.resampler_residual = before


def test_both_models_have_one_language_model_and_one_prompt(bench):
    assert bench.smolvlm.model.text_model is bench.smoldriver.model.text_model
    assert bench.smolvlm.lm_head is bench.smoldriver.lm_head
    prompt = bench._prompt(9, bench.encoded[0])
    with torch.no_grad():
        logits = bench.smolvlm(input_ids=prompt, pixel_values=bench.siglip_pixels).logits
        other = bench.smolvlm(input_ids=prompt, pixel_values=torch.rand_like(bench.siglip_pixels)).logits
    assert logits.shape == (1, prompt.shape[1], 1024) and not torch.equal(logits, other)


def test_questions_are_different_and_as_long_as_drivelms():
    pairs = drivelm_style_questions(93)
    assert len({question for question, _ in pairs}) == 93 and pairs == drivelm_style_questions(400)[:93]
    processor, _, _ = make_processor(SIZES["tiny"])
    lengths = [[len(processor.tokenizer(text)["input_ids"]) for text in pair] for pair in pairs]
    question, answer = (sum(column) / 93 for column in zip(*lengths, strict=True))
    assert 20 <= question <= 35 and 7 <= answer <= 16  # the real sample frames: 27 and 13
    assert all(camera in " ".join(question for question, _ in pairs) for camera in CAMERAS)


# The tool


def test_tiny_run_writes_table_json_and_plot(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(measuring, "CONTESTANTS", ((1, 1), (93, 1)))
    json_file, plot = tmp_path / "new" / "benchmark.json", tmp_path / "benchmark.png"
    benchmark.main(
        ["--size", "tiny", "--device", "cpu", "--repeats", "1", "--dtype", "float32"]
        + ["--json", str(json_file), "--plot", str(plot)]
    )
    report = json.loads(json_file.read_text())
    assert RATIOS <= set(report["ratios"]) and "train_packed_32" not in report["ratios"]
    assert all(math.isfinite(value) and value > 0 for value in report["ratios"].values())
    assert report["left_out"] == [] and report["machine"]["matmul_flops"] > 0
    assert {row["part"] for row in report["rows"]} == {"vision", "prefill", "answers", "training"}
    for row in report["rows"]:
        assert 0 < row["seconds_min"] <= row["seconds"] <= row["seconds_max"] and row["bound"] in ("matmul", "memory")
        assert row["limit_seconds"] / row["seconds"] == pytest.approx(row["limit_share"])
    scaled = [row for row in report["rows"] if row["multiplied_by"] == 93]
    assert {row["what"] for row in scaled} == {"generate, smoldriver", "generate, smolvlm"}
    assert all(row["questions"] == 93 for row in scaled)
    trained = [row for row in report["rows"] if row["part"] == "training"]
    assert all(row["peak_bytes"] > 2**27 for row in trained)  # two processes of their own
    loop = next(row for row in report["rows"] if row["what"] == "camera loop")
    assert loop["largest_difference"] < 1e-3
    assert plot.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "one question" in printed and "generate, smolvlm x 93" in printed and "train_packed_93" in printed
    assert not list(tmp_path.rglob("*.tmp"))


def test_what_does_not_fit_into_memory_is_left_out_and_said(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(measuring, "free_bytes", lambda device: 2**20)
    path = tmp_path / "benchmark.json"
    benchmark.main(["--size", "tiny", "--device", "cpu", "--repeats", "1", "--json", str(path)])
    report = json.loads(path.read_text())
    assert report["rows"] == [] and report["ratios"] == {}
    assert len(report["left_out"]) == 1 + len(measuring.CONTESTANTS)
    printed = capsys.readouterr().out
    assert (
        "left out: vision, prefill, answers: about" in printed and "left out: training, 93 questions in 2" in printed
    )


class EndsItsReader:
    """Ends the process that it is sent to, as the kernel does where memory runs out."""

    def __reduce__(self):
        return eval, ("__import__('os').kill(__import__('os').getpid(), 9)",)


def test_a_killed_process_ran_out_of_memory_and_a_failed_one_did_not(capfd):
    assert peak_of_step(SIZES["tiny"], EndsItsReader(), torch.float32, 1, 1) is None
    with pytest.raises(RuntimeError, match="^training, 1 questions in 1: its process failed with exit status 1, its"):
        peak_of_step(SIZES["tiny"], "nonsense", torch.float32, 1, 1)
    assert "nonsense" in capfd.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--size", "7b"], "invalid choice: '7b'"),
        (["--parts", "speed"], "invalid choice: 'speed'"),
        (["--repeats", "0"], "--repeats 0 must be at least 1"),
        (["--tower-image-size", "100"], "--tower-image-size 100 is not a multiple of 16"),
    ],
)
def test_bad_arguments_end_with_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        benchmark.main(arguments)
    assert end.value.code == 2 and message in capsys.readouterr().err
