"""What an evaluation shows of its results: which metric of which question type, and the tables that are printed."""

from recipes.evaluation.contestants import CONTROLS
from recipes.metrics.drivelm.drivelm import CLOSED_TYPES, QUESTION_TYPES


def is_control(name: str) -> bool:
    return name.rpartition(": ")[2] in CONTROLS


def type_metric(kind: str) -> str:
    """The metric that suits a question type: right or wrong, F1 of what is listed, or the exact text."""
    if kind == "listing":
        return "listing_f1"
    return "accuracy" if kind in CLOSED_TYPES else "exact_match"


def columns(results: dict[str, dict]) -> list[tuple[str, str, str]]:
    """(head, group, metric) of what a table shows: closed accuracy, each question type that occurs, corpus BLEU."""
    types = [kind for kind in QUESTION_TYPES if any(kind in result for result in results.values())]
    words = {"exact_match": "exact", "listing_f1": "F1"}
    heads = [(f"{kind} {words.get(type_metric(kind), 'accuracy')}", kind, type_metric(kind)) for kind in types]
    return [("closed accuracy", "overall", "accuracy"), *heads, ("BLEU", "overall", "bleu")]


def conditions(settings: dict[str, str]) -> str:
    """How a model was asked, in words, from metrics.json's settings, whose values are text."""
    tokens, frames, questions = (settings[key] for key in ("visual_tokens", "max_frames", "questions_per_frame"))
    budget = "the model's largest number of" if tokens == "None" else tokens
    described = "with" if settings["use_scene_description"] == "True" else "without"
    asked = "all questions" if questions == "None" else f"at most {questions} questions a frame"
    of = "all frames" if frames == "None" else f"at most {frames} frames, evenly spread"
    return (
        f"{budget} visual tokens a camera, {described} the scene description in the prompt, {asked} of {of}, answers"
        f" of at most {settings['max_new_tokens']} tokens"
    )


def aligned(lines: list[list[str]]) -> str:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def table(results: dict[str, dict]) -> str:
    """One line a contestant, in percent, see `columns`."""
    heads = columns(results)
    lines = [["", *(head for head, _, _ in heads)]]
    for name, result in results.items():
        values = (result.get(group, {}).get(metric) for _, group, metric in heads)
        lines.append([name, *("-" if value is None else f"{100 * value:.1f}" for value in values)])
    return aligned(lines)


def differences_table(comparison: dict) -> str:
    """A line a contestant: points more or less than the first, and the p-value of that."""
    heads = columns(comparison["results"])
    lines = [[f"against {comparison['first']}", *(head for head, _, _ in heads)]]
    for name, groups in comparison["differences"].items():
        cells = []
        for _, group, metric in heads:
            found = groups.get(group, {}).get(metric)
            if found is None:
                cells.append("-")
                continue
            p = "" if found["p_value"] is None else f" p={found['p_value']:.3f}"
            cells.append(f"{100 * found['difference']:+.1f}{p}")
        lines.append([name, *cells])
    return aligned(lines)


def budget_table(budgets: dict[str, dict]) -> str:
    scores = ("closed_accuracy", "yes_no", "status", "listing_f1", "bleu")
    lines = [["visual tokens a camera", *scores, "ms a frame", "ms a question"]]
    for tokens, entry in budgets.items():
        cells = [f"{100 * entry[key]:.1f}" if key in entry else "-" for key in scores]
        latency = [1000 * entry[key] for key in ("encode_seconds_per_frame", "answer_seconds_per_question")]
        lines.append([tokens, *cells, *(f"{value:.1f}" for value in latency)])
    return aligned(lines)
