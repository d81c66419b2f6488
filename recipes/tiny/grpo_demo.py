"""Does a model of the demo learn from rewards by rule? Its scores before and after GRPO, and after a null control.

python recipes/tiny/grpo_demo.py --demo outputs/demo --output-dir outputs/grpo

    before      the demo's model
    rewarded    after GRPO on yes/no and listing questions of the training scenes, by rewards from their true answers
    shuffled    the same with each answer rewarded by another question's truth: what GRPO does without a signal

All three answer the questions of test scenes, greedily; `recipes/tiny/sampled_rewards.py` scores answers as GRPO draws
them. It needs a finished demo (recipes/tiny/demo.py). Every step is a script of its own, with its output in
`<output-dir>/logs`; after an interruption the same command resumes the run.
"""

import json
from pathlib import Path

from recipes.evaluation.tables import aligned
from recipes.tiny.pipeline import (
    CONFIGS,
    Step,
    evaluation_step,
    open_run_after_demo,
    run_steps,
    side_by_side,
    training_step,
)
from smoldriver_common.command_line import errors_in_one_line, stopped_in_one_line

FULL = {"steps": 80, "test_frames": 192}
SHORT = {"steps": 2, "test_frames": 4}
BEFORE, REWARDED, SHUFFLED = "before", "rewarded", "shuffled"
COLUMNS = {"yes/no": ("yes_no", "accuracy"), "listing F1": ("listing", "listing_f1")}
COMPARISON = "comparison"


def steps_of(out: Path, demo: Path, size: dict) -> list[Step]:
    models = {BEFORE: demo / "model", REWARDED: out / REWARDED, SHUFFLED: out / SHUFFLED}
    folders = [out / f"{name}-eval" for name in models]
    command = ["recipes/evaluate_drivelm.py", "--compare", *folders, "--output-dir", out / COMPARISON]
    return [
        *side_by_side(
            [grpo_step(out, demo, REWARDED, size)],
            [grpo_step(out, demo, SHUFFLED, size, "--shuffle_rewards", "true")],
        ),
        *(answers_step(name, model, out, demo, size) for name, model in models.items()),
        Step(COMPARISON, command, seconds=15, done=out / COMPARISON / "comparison.json"),
    ]


def grpo_step(out: Path, demo: Path, name: str, size: dict, *options) -> Step:
    options = ("--scenes", demo / "scenes", "--max_steps", size["steps"], *options)
    config = f"{CONFIGS}/demo_grpo.yaml"
    return training_step(name, "recipes/grpo.py", config, demo / "model", out / name, 500, *options)


def answers_step(name: str, model: Path, out: Path, demo: Path, size: dict) -> Step:
    folder, options = out / f"{name}-eval", ("--name", name, "--controls", "--bertscore-model", "none")
    return evaluation_step(folder.name, model, demo / "scenes", folder, size["test_frames"], 40, *options)


def before_and_after(comparison: dict) -> str:
    """Scores in percent with their 95% intervals by scene, and the paired differences from the model before."""
    lines = [["", *COLUMNS, *(f"{name}, difference from {BEFORE}" for name in COLUMNS)]]
    for name, result in comparison["results"].items():
        line = [name]
        for group, metric in COLUMNS.values():
            line.append(with_interval(result[group][metric], result[group][f"{metric}_ci"]))
        for group, metric in COLUMNS.values():
            found = comparison["differences"].get(name, {}).get(group, {}).get(metric)
            line.append("" if found is None else with_interval(found["difference"], found["ci"], "+"))
        lines.append(line)
    return aligned(lines)


def with_interval(value: float, interval: list[float] | None, sign: str = "") -> str:
    text = f"{100 * value:{sign}.1f}"
    return text if interval is None else f"{text} [{100 * interval[0]:{sign}.1f}, {100 * interval[1]:{sign}.1f}]"


def main():
    run = open_run_after_demo("grpo", __doc__, FULL, SHORT)
    run_steps(run.out, steps_of(run.out, run.demo, run.size), estimate=not run.short)
    with errors_in_one_line("grpo_demo"):
        comparison = json.loads((run.out / COMPARISON / "comparison.json").read_text(encoding="utf-8"))
        print(before_and_after(comparison))
    print(f"rewards by step: {run.out / REWARDED / 'rewards.png'}, {run.out / SHUFFLED / 'rewards.png'}")


if __name__ == "__main__":
    with stopped_in_one_line("grpo_demo"):
        main()
