"""What an evaluation shows of its results: which metric of which question type, and the tables that are printed.

A `result` is one contestant's entry in `metrics.json`, a `budget` one of its budgets': see predictions.py.
"""

from typing import NamedTuple

from recipes.evaluation.comparison import Comparison
from recipes.evaluation.predictions import Metrics, Settings
from recipes.metrics.drivelm.scores import CLOSED_TYPES, QUESTION_TYPES

BUDGET_COLUMNS = ("closed_accuracy", "yes_no", "status", "listing_f1", "bleu")


class Column(NamedTuple):
    """One number of a result: `result[group][metric]`."""

    head: str
    group: str  # "overall" or a question type
    metric: str

    def value(self, result: dict) -> float | None:
        return result.get(self.group, {}).get(self.metric)

    def interval(self, result: dict) -> list[float] | None:
        return result.get(self.group, {}).get(f"{self.metric}_ci")

    def scenes(self, result: dict) -> int | None:
        """How many scenes the value and its interval are of."""
        group = result.get(self.group, {})
        return group.get(f"{self.metric}_scenes", group.get("scenes"))


def type_metric(kind: str) -> str:
    """The metric that suits a question type: right or wrong, F1 of what is listed, or the exact text."""
    if kind == "listing":
        return "listing_f1"
    return "accuracy" if kind in CLOSED_TYPES else "exact_match"


def types_of(results: dict[str, dict]) -> list[str]:
    """The question types that occur, in the metrics' order."""
    return [kind for kind in QUESTION_TYPES if any(kind in result for result in results.values())]


def columns(results: dict[str, dict]) -> list[Column]:
    """What a table shows: closed accuracy, each question type that occurs, corpus BLEU."""
    words = {"exact_match": "exact", "listing_f1": "F1", "accuracy": "accuracy"}
    types = [Column(f"{kind} {words[type_metric(kind)]}", kind, type_metric(kind)) for kind in types_of(results)]
    return [Column("closed accuracy", "overall", "accuracy"), *types, Column("BLEU", "overall", "bleu")]


def conditions(settings: Settings) -> str:
    """How a model was asked, in words."""
    budget = "the model's largest number of" if settings.visual_tokens is None else settings.visual_tokens
    described = "with" if settings.use_scene_description else "without"
    drawn, frames = settings.questions_per_frame, settings.max_frames
    questions = "all questions" if drawn is None else f"at most {drawn} questions per frame"
    of = "all frames" if frames is None else f"at most {frames} frames, evenly spread"
    return (
        f"{budget} visual tokens per camera, {described} the scene description in the prompt, {questions} of {of},"
        f" answers of at most {settings.max_new_tokens} tokens" + (", linear layers in int8" if settings.int8 else "")
    )


def aligned(lines: list[list[str]]) -> str:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def score_table(results: dict[str, dict]) -> str:
    """One line per contestant, in percent, see `columns`; the last line is the number of scenes."""
    shown = columns(results)
    lines = [[name, *(percent(column.value(result)) for column in shown)] for name, result in results.items()]
    return aligned([["", *(column.head for column in shown)], *lines, scenes_line(shown, results)])


def scenes_line(shown: list[Column], results: dict[str, dict]) -> list[str]:
    """The number of scenes under each column; all contestants answered the same questions."""
    first = next(iter(results.values()))
    return ["scenes", *(str(column.scenes(first) or "-") for column in shown)]


def differences_table(comparison: Comparison) -> str:
    """One line per contestant: percentage points more or less than the first, and the p-value of that."""
    shown = columns(comparison.results)

    def cell(found: dict | None) -> str:
        if found is None:
            return "-"
        p = "" if found["p_value"] is None else f" p={found['p_value']:.3f}"
        return f"{100 * found['difference']:+.1f}{p}"

    lines = [
        [name, *(cell(groups.get(column.group, {}).get(column.metric)) for column in shown)]
        for name, groups in comparison.differences.items()
    ]
    heads = [f"against {comparison.first.name}", *(column.head for column in shown)]
    return aligned([heads, *lines, scenes_line(shown, comparison.results)])


def milliseconds(budget: dict) -> list[str]:
    """Of a frame's encoding and of a question's answer."""
    return [f"{1000 * budget[key]:.1f}" for key in ("encode_seconds_per_frame", "answer_seconds_per_question")]


def budget_table(budgets: dict[int, dict]) -> str:
    """One line per budget: scores in percent and latency."""
    lines = [["visual tokens per camera", *BUDGET_COLUMNS, "ms per frame", "ms per question", "scenes"]]
    for tokens, budget in budgets.items():
        scores = (percent(budget.get(key)) for key in BUDGET_COLUMNS)
        lines.append([str(tokens), *scores, *milliseconds(budget), str(budget["scenes"])])
    return aligned(lines)


def summary(metrics: Metrics) -> str:
    """What an evaluation prints: its tables, controls that were left out, and answers that were cut."""
    lines = [score_table(metrics.results)]
    if metrics.budgets:
        lines.append(budget_table(metrics.budgets))
    lines += [f"left out: {name} ({why})" for name, why in metrics.left_out_controls.items()]
    limit = metrics.settings.max_new_tokens
    cut_answers = metrics.cut_answers.items()
    lines += [f"{cut} answers of {name} were cut at --max-new-tokens {limit}" for name, cut in cut_answers if cut]
    return "\n".join(lines)


def comparison_summary(comparison: Comparison) -> str:
    """What a comparison prints: its tables, leakage, and settings that differ."""
    lines = [score_table(comparison.results), differences_table(comparison)]
    for name, leakage in comparison.leakage.items():
        lines.append(f"training scenes among those that {name} was asked about: {leakage}")
    for setting, values in comparison.differing_settings.items():
        lines.append(f"differs: {setting} ({', '.join(f'{name}: {value}' for name, value in values.items())})")
    return "\n".join(lines)
