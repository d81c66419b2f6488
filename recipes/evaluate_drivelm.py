"""Ask a model the questions of a split and score its answers, beside controls that must do worse.

python recipes/evaluate_drivelm.py --model outputs/sample/trained --scenes outputs/sample/scenes --split train \
    --output-dir outputs/sample/eval

Writes `predictions.parquet`, `metrics.json` (metrics: recipes/metrics/drivelm), `report.html` and `figures/`, prints a
table. An evaluation that was stopped goes on where it was; `accelerate launch` shares it between processes. Scenes
that the model was trained on are refused, unless the split asked for is `train`.

`--budgets 81 36 9 1` asks the model again at each number of visual tokens: one checkpoint, one curve.

python recipes/evaluate_drivelm.py --compare outputs/eval-a outputs/eval-b --output-dir outputs/comparison

puts finished evaluations of the same questions side by side, with paired bootstrap p-values against the first; the
BERTScores are those that the evaluations left.
"""

import argparse
import hashlib
import json
import random
import re
import shutil
import statistics
import time
from contextlib import ExitStack
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import PartialState
from tqdm import tqdm

from data_scripts.question_types import question_type
from data_scripts.schema import load_scenes
from recipes.evaluation.comparison import Run, compare_runs, read_run
from recipes.evaluation.contestants import CONTROLS, MajorityAnswers, ModelAnswers
from recipes.evaluation.provenance import check_leakage, weights_digest
from recipes.evaluation.report import write_report
from recipes.evaluation.tables import budget_table, differences_table, table
from recipes.metrics.drivelm.drivelm import BERTSCORE, compute_metrics
from recipes.metrics.drivelm.text_metrics import bert_scores, find_minilm
from recipes.training.loading import base_of_adapters, is_adapters, load_model
from recipes.training.manifest import scenes_identity
from smoldriver_common.command_line import errors_in_one_line, whole_number
from smoldriver_common.whole_files import sole_writer, write_json, written_whole

CHUNK = 16  # frames whose answers are written together


def select_questions(rows, questions_per_frame: int | None, seed: int) -> list[list[int]]:
    """Numbers of the questions to ask of each row: all, or a draw that depends on the seed and the frame alone."""
    chosen = []
    for row in rows:
        numbers = list(range(len(row["qa"])))
        if questions_per_frame is not None and len(numbers) > questions_per_frame:
            numbers = sorted(random.Random(f"{seed}-{row['frame_token']}").sample(numbers, questions_per_frame))
        chosen.append(numbers)
    return chosen


def check_answered(frames, chosen: list[list[int]], where: str) -> None:
    """Every question to ask has a true answer.

    Raises:
        ValueError: names the first that has none, and how many have none.
    """
    asked = [(frame, number) for frame, numbers in zip(frames, chosen, strict=True) for number in numbers]
    blank = [(frame, number) for frame, number in asked if not frame["qa"][number]["answer"].strip()]
    if blank:
        frame, number = blank[0]
        raise ValueError(
            f"{where}: frame {frame['frame_token']!r}: question {number} has no answer to score against:"
            f" {frame['qa'][number]['question']!r:.80} ({len(blank)} of {len(asked)} questions have none); name a"
            " --split with answers, or prepare the scenes from a file that has them"
        )


def predict(name: str, answer, texts, chosen: list[list[int]], folder: Path, state: PartialState) -> tuple[list, list]:
    """All predictions of one contestant and, by frame, its `measured`, in chunks that are kept as they are done.

    Both are empty except in the main process.
    """
    starts = range(0, len(texts), CHUNK)
    mine = [start for start in starts if start // CHUNK % state.num_processes == state.process_index]
    for start in tqdm(mine, desc=name, unit="chunk", disable=not state.is_main_process):
        path = folder / f"{name}-{start:06d}.json"
        if path.is_file():
            continue
        rows, measured = [], []
        for index in range(start, min(start + CHUNK, len(texts))):
            frame = texts[index]
            asked = [frame["qa"][number] for number in chosen[index]]
            if not asked:
                continue
            answers = answer(index, [qa["question"] for qa in asked])
            measured.append(answer.measured)
            for number, qa, text in zip(chosen[index], asked, answers, strict=True):
                rows.append(
                    {
                        "model": name,
                        "id": f"{frame['frame_token']}_{number}",
                        "scene_token": frame["scene_token"],
                        "frame_token": frame["frame_token"],
                        "task": qa["task"],
                        "type": question_type(qa["question"], qa["task"]),
                        "tag": qa["tag"],
                        "question": qa["question"],
                        "reference": qa["answer"],
                        "prediction": text,
                    }
                )
        write_json(path, {"rows": rows, "measured": measured}, indent=None, ensure_ascii=False)
    state.wait_for_everyone()
    if not state.is_main_process:
        return [], []
    chunks = [json.loads((folder / f"{name}-{start:06d}.json").read_text("utf-8")) for start in starts]
    return [row for chunk in chunks for row in chunk["rows"]], [
        frame for chunk in chunks for frame in chunk["measured"]
    ]


def score(predictions: list[dict], arguments: argparse.Namespace, **options) -> dict:
    """metrics.json's entry of one contestant: `compute_metrics` with the question types as groups."""
    columns = {key: [row[key] for row in predictions] for key in predictions[0]}
    options |= {
        "questions": columns["question"],
        "question_types": columns["type"],
        "tasks": columns["task"],
        "scene_tokens": columns["scene_token"],
        "frame_tokens": columns["frame_token"],
        "bootstrap_samples": arguments.bootstrap_samples,
    }
    return compute_metrics(columns["prediction"], columns["reference"], **options)


def score_bert(predictions: list[dict], model: str | None) -> tuple | None:
    """`bert_scores` of one contestant, which its rows keep: the report ranks them, on any machine."""
    if model is None:
        return None
    scores, encoder = bert_scores(*([row[key] for row in predictions] for key in ("prediction", "reference")), model)
    for row, values in zip(predictions, scores.tolist(), strict=True):
        row |= dict(zip(BERTSCORE, values, strict=True))
    return scores, encoder


def budget_entry(predictions: list[dict], measured: list[dict], arguments: argparse.Namespace) -> dict:
    """metrics.json's entry of one budget: the main scores with their intervals, and the median seconds."""
    result = score(predictions, arguments, metrics=("accuracy", "listing_f1", "bleu"))
    entry = {"frames": len(measured), "questions": len(predictions)}
    for name, group, metric in (
        ("closed_accuracy", "overall", "accuracy"),
        ("yes_no", "yes_no", "accuracy"),
        ("status", "status", "accuracy"),
        ("listing_f1", "listing", "listing_f1"),
        ("bleu", "overall", "bleu"),
    ):
        if result.get(group, {}).get(metric) is not None:
            entry |= {name: result[group][metric], f"{name}_ci": result[group][f"{metric}_ci"]}
    entry["encode_seconds_per_frame"] = statistics.median(frame["encode"] for frame in measured)
    entry["answer_seconds_per_question"] = statistics.median(frame["answer"] for frame in measured)
    return entry


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="model folder, Hub id or folder of adapters")
    parser.add_argument("--name", type=contestant, default="smoldriver", help="of the model in tables and files")
    parser.add_argument(
        "--compare", nargs="+", type=Path, metavar="DIR", help="finished evaluations to compare instead"
    )
    parser.add_argument("--scenes", help="folder of prepared scene rows")
    parser.add_argument("--split", default="test", choices=("train", "eval", "test"))
    parser.add_argument("--output-dir", required=True, type=Path)
    parser.add_argument("--controls", nargs="*", default=["majority", "other_scene_images"], choices=list(CONTROLS))
    parser.add_argument("--max-frames", type=whole_number(), help="frames to ask about, evenly spread; default all")
    parser.add_argument("--questions-per-frame", type=whole_number(), help="questions to draw a frame; default all")
    parser.add_argument(
        "--visual-tokens", type=whole_number(), help="tokens a camera; default the model's largest budget"
    )
    parser.add_argument(
        "--budgets", nargs="+", type=whole_number(), default=[], help="tokens a camera to draw a curve over"
    )
    parser.add_argument("--use-scene-description", action="store_true")
    parser.add_argument("--max-new-tokens", type=whole_number(), default=256, help="where an answer is cut")
    parser.add_argument("--bootstrap-samples", type=whole_number(0), default=1000)
    parser.add_argument(
        "--bertscore-model",
        default=find_minilm() or "none",
        help="folder or name that bert-score knows (roberta-large: the paper's), or none; default all-MiniLM-L6-v2",
    )
    parser.add_argument(
        "--worst", type=whole_number(), default=5, help="worst answers that the report shows a measure"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: as it was trained")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.compare is None and not (arguments.model and arguments.scenes):
        parser.error("--model and --scenes are needed, or --compare with finished evaluations")
    arguments.bertscore_model = None if arguments.bertscore_model == "none" else arguments.bertscore_model
    return arguments


def contestant(text: str) -> str:
    if not re.fullmatch(r"[\w.+ -]+", text) or text in CONTROLS:
        raise argparse.ArgumentTypeError(f"{text!r}: letters, digits, blanks and . + - _, and no control's name")
    return text


ANSWERS_DEPEND_ON = (
    *("model", "name", "scenes", "split", "max_frames", "questions_per_frame", "visual_tokens"),
    *("use_scene_description", "max_new_tokens", "dtype", "seed"),
)


def unfinished_folder(arguments: argparse.Namespace) -> tuple[Path, dict]:
    """Where answers are kept until all are there, and the settings: a place for these settings, scenes and weights."""
    settings = {key: str(getattr(arguments, key)) for key in ANSWERS_DEPEND_ON}
    folders = [arguments.model]
    if is_adapters(arguments.model):
        folders.append(base_of_adapters(arguments.model)[0])
    files = [path.stat() for folder in folders for path in sorted(Path(folder).glob("*.safetensors"))]
    weights = [(file.st_size, file.st_mtime_ns) for file in files]
    depends_on = [settings, scenes_identity(arguments.scenes), weights]
    digest = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()[:16]
    return arguments.output_dir / f".parts-{digest}", settings


def contestants(arguments: argparse.Namespace, model, processor, rows) -> dict:
    """What answers under each name, made when its turn comes: the model, its controls, the model at other budgets."""

    def asked(control: str | None, visual_tokens: int | None):
        return lambda: ModelAnswers(model, processor, rows, control, arguments, visual_tokens)

    found = {arguments.name: asked(None, arguments.visual_tokens)}
    for control in arguments.controls:
        found[control] = asked(control, arguments.visual_tokens)
    if "majority" in found:
        # in passing, and without its pictures, of which the datasets cache would else hold a copy
        found["majority"] = lambda: MajorityAnswers(load_scenes(arguments.scenes, "train", True, columns=["qa"]))
    for tokens in arguments.budgets:
        offered = processor.visual_token_budgets
        if tokens not in offered:
            raise ValueError(f"--budgets {tokens}: the model has no such budget; choose of {offered}")
        if tokens != (arguments.visual_tokens or offered[0]):  # which the model is asked at anyway
            found[f"{arguments.name}@{tokens}"] = asked(None, tokens)
    return found


def evaluate_model(arguments: argparse.Namespace, held: ExitStack):
    """Ask, score, write, print; `held` keeps other processes out of the output folder."""
    state, folder = PartialState(cpu=not torch.cuda.is_available()), arguments.output_dir
    rows = load_scenes(arguments.scenes, arguments.split)
    leakage = check_leakage(arguments.model, rows["scene_token"], arguments.split)
    state.print(f"training scenes among those asked about: {leakage}")
    if arguments.max_frames is not None and arguments.max_frames < len(rows):
        count = arguments.max_frames
        rows = rows.select([index * len(rows) // count for index in range(count)])
    texts = rows.select_columns(["scene_token", "frame_token", "qa"])
    chosen = select_questions(texts, arguments.questions_per_frame, arguments.seed)
    check_answered(texts, chosen, f"split {arguments.split!r} of {arguments.scenes}")
    model, processor = load_model(arguments.model, arguments.dtype and getattr(torch, arguments.dtype))
    if state.is_main_process:
        held.enter_context(sole_writer(folder))
    parts, settings = unfinished_folder(arguments)
    parts.mkdir(parents=True, exist_ok=True)

    answered, left_out, seconds = {}, {}, {}
    for name, make in contestants(arguments, model, processor, rows).items():
        started = time.perf_counter()
        try:
            answer = make()
        except ValueError as error:
            left_out[name] = str(error)
            continue
        answered[name] = predict(name, answer, texts, chosen, parts, state)
        seconds[name] = round(time.perf_counter() - started, 1)
    if not state.is_main_process:
        return

    predictions = {name: answers for name, (answers, _) in answered.items() if "@" not in name}
    results = {
        name: score(answers, arguments, bertscores=score_bert(answers, arguments.bertscore_model))
        for name, answers in predictions.items()
    }
    info = {name: result.pop("info") for name, result in results.items()}[arguments.name]
    info |= {"settings": settings, "controls": CONTROLS, "left_out_controls": left_out, "seconds": seconds}
    info |= {"leakage": leakage, "weights_sha256": weights_digest(arguments.model)}
    info["cut_answers"] = {name: sum(frame["cut"] for frame in answered[name][1]) for name in predictions}
    metrics = {"results": results, "info": info}
    if arguments.budgets:
        at = {tokens: f"{arguments.name}@{tokens}" for tokens in arguments.budgets}
        metrics["budgets"] = {
            str(tokens): budget_entry(*answered.get(name, answered[arguments.name]), arguments)
            for tokens, name in at.items()
        }
    (folder / "metrics.json").unlink(missing_ok=True)  # of an earlier evaluation, whose answers these are not
    with written_whole(folder / "predictions.parquet") as aside:
        pq.write_table(pa.Table.from_pylist([row for answers in predictions.values() for row in answers]), aside)
    run = Run(folder, metrics, predictions)
    write_report(folder, [run], compare_runs([run], arguments.bootstrap_samples), rows, arguments.worst)
    write_json(folder / "metrics.json", metrics)  # last: with it the evaluation is done
    for unfinished in folder.glob(".parts-*"):
        shutil.rmtree(unfinished)
    print(table(results))
    if arguments.budgets:
        print(budget_table(metrics["budgets"]))
    for name, why in left_out.items():
        print(f"left out: {name} ({why})")
    for name, cut in info["cut_answers"].items():
        if cut:
            print(f"{cut} answers of {name} were cut at --max-new-tokens {arguments.max_new_tokens}")
    print(f"{len(texts)} frames, {results[arguments.name]['overall']['count']} questions; wrote {folder}")


def compare(arguments: argparse.Namespace, held: ExitStack):
    """Put finished evaluations side by side: print, and write comparison.json and report.html; `held` as there."""
    folder = arguments.output_dir
    runs = [read_run(path) for path in arguments.compare]
    if (folder / "metrics.json").is_file():
        raise ValueError(f"{folder} is an evaluation itself: give the comparison an --output-dir of its own")
    held.enter_context(sole_writer(folder))
    comparison = compare_runs(runs, arguments.bootstrap_samples)
    settings = runs[0].metrics["info"]["settings"]
    rows = load_scenes(settings["scenes"], settings["split"]) if Path(settings["scenes"]).is_dir() else None
    write_report(folder, runs, comparison, rows, arguments.worst)
    kept = {key: value for key, value in comparison.items() if key != "predictions"}
    write_json(folder / "comparison.json", kept)
    print(table(comparison["results"]))
    print(differences_table(comparison))
    for name, leakage in comparison["leakage"].items():
        print(f"training scenes among those that {name} was asked about: {leakage}")
    for setting, values in comparison["differing_settings"].items():
        print(f"differs: {setting} ({', '.join(f'{name}: {value}' for name, value in values.items())})")
    print(f"{len(runs)} evaluations of the same questions; wrote {folder}")


def main():
    with errors_in_one_line("evaluate_drivelm"), ExitStack() as held:
        arguments = parse_arguments()
        if arguments.compare:
            compare(arguments, held)
        else:
            evaluate_model(arguments, held)


if __name__ == "__main__":
    main()
