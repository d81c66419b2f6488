"""The serving benchmark without vLLM, which `make serving-benchmark` and `make vllm-check` run for real."""

from recipes.benchmark_serving import COUNTS, as_png, contestants, table, take_turns
from recipes.benchmarking.inputs import drivelm_style_questions, pictures
from recipes.benchmarking.random_model import write_random_model
from recipes.training.loading import load_model


def test_model_and_handler_answer_alike_and_fill_the_table(tmp_path):
    write_random_model("tiny", tmp_path / "model")
    _, processor = load_model(tmp_path / "model")
    texts = [processor.tokenizer.decode([number]) for number in range(600, 1024)]
    assert len(processor.tokenizer) == 1024 and all(texts) and len(set(texts)) == len(texts)

    asked = contestants(str(tmp_path / "model"), "no server", max_new_tokens=3)[:2]
    frames = [
        {camera: as_png(image) for camera, image in pictures(seed=seed).items()} for seed in range(1 + len(COUNTS))
    ]
    questions = [question for question, _ in drivelm_style_questions(max(COUNTS))]
    take_turns(asked, frames, questions)
    model, handler = asked
    assert {count: len(answers) for count, answers in model.answers.items()} == {count: count for count in COUNTS}
    assert handler.answers == model.answers and len(set(model.answers[93])) > 1
    head, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table(asked).splitlines()]
    assert head == ["questions per frame", "`model.answer`", "handler", "equal answers"]
    assert [row[0] for row in rows] == [str(count) for count in COUNTS]
    assert all(float(cell) > 0 for row in rows for cell in row[1:3])
    assert [row[3] for row in rows] == [f"{count}/{count}" for count in COUNTS]
    handler.answers[8] = ["another", *handler.answers[8][1:]]
    assert "| 7/8 |" in table(asked)
