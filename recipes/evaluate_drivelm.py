"""Ask a model the questions of a split and score its answers, beside controls that must do worse.

python recipes/evaluate_drivelm.py --model outputs/sample/trained --scenes outputs/sample/scenes --split train \
    --output-dir outputs/sample/eval

Writes `predictions.parquet`, `metrics.json` (metrics: recipes/metrics/drivelm), `report.html` and `figures/`, and
prints a table. The same command resumes a stopped evaluation; `accelerate launch` shares it between processes. Scenes
that the model was trained on are refused, unless the split is `train`.

`--budgets 81 36 9 1` asks the model again at each number of visual tokens: one checkpoint, one curve.

python recipes/evaluate_drivelm.py --compare outputs/eval-a outputs/eval-b --output-dir outputs/comparison

puts finished evaluations of the same questions side by side, with paired p-values against the first. It
reuses their BERTScores.
"""

import argparse
import re
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path

import torch
from accelerate import PartialState

from data_scripts.schema import load_scenes
from modeling_smoldriver.collator_smoldriver import check_row_cameras
from recipes.evaluation.asking import ask_everyone, choose_questions, unfinished_folder
from recipes.evaluation.comparison import Evaluation, compare_evaluations, read_evaluation
from recipes.evaluation.contestants import contestants
from recipes.evaluation.lengths import check_lengths
from recipes.evaluation.predictions import CONTROLS, METRICS_FILE, Settings
from recipes.evaluation.provenance import check_leakage, loading_digests, weights_digest
from recipes.evaluation.report import write_evaluation, write_report
from recipes.evaluation.scoring import Scoring, score_everyone
from recipes.evaluation.tables import comparison_summary, summary
from recipes.metrics.drivelm.text_metrics import find_minilm
from recipes.training.loading import DTYPES, load_model
from smoldriver_common.command_line import errors_in_one_line, stopped_in_one_line, whole_number
from smoldriver_common.whole_files import check_apart, sole_writer, write_json


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", help="model folder, Hub id or folder of adapters")
    add("--name", type=model_name, default="smoldriver", help="of the model in tables and files")
    add("--compare", nargs="+", type=Path, metavar="DIR", help="finished evaluations to compare instead")
    add("--scenes", help="folder of prepared scene rows")
    add("--split", default="test", choices=("train", "eval", "test"))
    add("--output-dir", required=True, type=Path)
    add("--controls", nargs="*", default=["majority", "other_scene_images"], choices=list(CONTROLS))
    add("--max-frames", type=whole_number(), help="frames to ask about, evenly spread; default: all")
    add("--questions-per-frame", type=whole_number(), help="questions to draw per frame; default: all")
    add("--visual-tokens", type=whole_number(), help="tokens per camera; default: the model's largest budget")
    add("--budgets", nargs="+", type=whole_number(), default=[], help="tokens per camera to draw a curve over")
    add("--use-scene-description", action="store_true")
    add("--max-new-tokens", type=whole_number(), default=Settings.max_new_tokens, help="where an answer is cut")
    add(
        "--bertscore-model",
        default=find_minilm() or "none",
        help="folder or name that bert-score knows (roberta-large: the paper's), or none; default: all-MiniLM-L6-v2",
    )
    add("--worst", type=whole_number(), default=5, help="how many worst answers the report shows per measure")
    add("--dtype", choices=list(DTYPES), help="default: the dtype it was trained in")
    add("--int8", action="store_true", help="quantise the linear layers, for a faster CPU")
    add("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.compare is None and not (arguments.model and arguments.scenes):
        parser.error("--model and --scenes are needed, or --compare with finished evaluations")
    arguments.bertscore_model = None if arguments.bertscore_model == "none" else arguments.bertscore_model
    return arguments


def model_name(text: str) -> str:
    if not re.fullmatch(r"[\w.+ -]+", text) or text in CONTROLS:
        raise argparse.ArgumentTypeError(f"{text!r}: letters, digits, blanks and . + - _, and no control's name")
    return text


def evaluate(
    settings: Settings, controls: list[str], budgets: list[int], scoring: Scoring, output: Path, worst: int
) -> None:
    """Ask, score, write, print."""
    check_apart(output, {"the model": settings.model, "the folder of scenes": settings.scenes})
    state = PartialState(cpu=not torch.cuda.is_available())
    rows = load_scenes(settings.scenes, settings.split)
    leakage = check_leakage(settings.model, rows["scene_token"], settings.split)
    state.print(f"training scenes among those asked about: {leakage}")
    asked = choose_questions(rows, settings)
    check_lengths(settings.model, asked.questions(settings), [settings.visual_tokens, *budgets])
    model, processor = load_model(settings.model, settings.dtype and DTYPES[settings.dtype], settings.int8)
    check_row_cameras(rows, processor.cameras)
    everyone = contestants(settings, controls, budgets, processor.visual_token_budgets)
    with ExitStack() as held:
        if state.is_main_process:
            held.enter_context(sole_writer(output))
        parts = unfinished_folder(output, settings)
        answered, left_out = ask_everyone(everyone, model, processor, asked, settings, parts, state)
        if not state.is_main_process:
            return
        metrics, predictions = score_everyone(answered, settings, leakage, budgets, scoring)
        metrics.left_out_controls, metrics.weights_sha256 = left_out, weights_digest(settings.model)
        metrics.files_sha256 = loading_digests(settings.model)
        write_evaluation(Evaluation(output, metrics, predictions), asked.rows, worst)
    print(summary(metrics))
    print(f"{len(asked.rows)} frames, {len(answered[0].predictions)} questions; wrote {output}")


def compare(folders: list[Path], output: Path, worst: int) -> None:
    """Put finished evaluations side by side: write comparison.json and report.html, and print."""
    evaluations = [read_evaluation(folder) for folder in folders]
    if (output / METRICS_FILE).is_file():
        raise ValueError(f"{output} is an evaluation itself: give the comparison an --output-dir of its own")
    with sole_writer(output):
        comparison = compare_evaluations(evaluations)
        settings = evaluations[0].metrics.settings
        rows = load_scenes(settings.scenes, settings.split) if Path(settings.scenes).is_dir() else None
        write_report(output, evaluations, comparison, rows, worst)
        write_json(output / "comparison.json", comparison.as_json())
    print(comparison_summary(comparison))
    print(f"{len(evaluations)} evaluations of the same questions; wrote {output}")


def main():
    arguments = parse_arguments()
    with errors_in_one_line("evaluate_drivelm"):
        if arguments.compare:
            compare(arguments.compare, arguments.output_dir, arguments.worst)
            return
        evaluate(
            Settings(**{field.name: getattr(arguments, field.name) for field in fields(Settings)}),
            arguments.controls,
            list(dict.fromkeys(arguments.budgets)),
            Scoring(arguments.bertscore_model),
            arguments.output_dir,
            arguments.worst,
        )


if __name__ == "__main__":
    with stopped_in_one_line("evaluate_drivelm"):
        main()
