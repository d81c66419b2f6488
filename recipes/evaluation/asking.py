"""Which questions are asked, and each contestant's answers, kept in parts so that a stopped evaluation resumes."""

import hashlib
import json
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from accelerate import PartialState
from datasets import Dataset
from tqdm import tqdm

from data_scripts.question_types import question_type
from recipes.evaluation.contestants import Answers, Measured, answers_of
from recipes.evaluation.lengths import Question
from recipes.evaluation.predictions import Contestant, Prediction, Settings
from recipes.evaluation.provenance import code_digest, loading_digests, local_folder
from recipes.training.loading import base_of_adapters, is_adapters
from recipes.training.manifest import scenes_identity
from smoldriver_common.shipped import fault_of_text
from smoldriver_common.whole_files import write_json

CHUNK = 16  # frames whose answers are written together


@dataclass
class Asked:
    """The frames that are asked about and, for each, the numbers of its questions that are asked."""

    rows: Dataset  # scene rows with their pictures
    texts: Dataset  # the same rows without pictures: fast to read
    chosen: list[list[int]]

    def questions(self, settings: Settings) -> Iterator[Question]:
        """All that are asked, as their lengths are checked."""
        for frame, numbers in zip(self.texts, self.chosen, strict=True):
            description = frame["scene_description"] if settings.use_scene_description else None
            for number in numbers:
                qa = frame["qa"][number]
                where = f"question {number} of frame {frame['frame_token']!r}"
                yield Question(where, qa["question"], qa["answer"], description)


@dataclass
class Answered:
    """One contestant's answers to everything that is asked."""

    contestant: Contestant
    predictions: list[Prediction]
    measured: list[Measured]  # of each frame with questions
    seconds: float  # of this run; less than all of them where a stopped evaluation was resumed


def choose_questions(rows: Dataset, settings: Settings) -> Asked:
    """The frames and questions that the settings ask for, of the rows of their split that have questions.

    Raises:
        ValueError: no row has a question, a question has no true answer, or a text may not stand in a prompt.
    """
    asked = [place for place, row in enumerate(rows.select_columns(["qa"])) if row["qa"]]
    if not asked:
        raise ValueError(f"no frame in split {settings.split!r} of {settings.scenes} has a question")
    if len(asked) < len(rows):
        rows = rows.select(asked)
    if settings.max_frames is not None and settings.max_frames < len(rows):
        count = settings.max_frames
        rows = rows.select([index * len(rows) // count for index in range(count)])
    texts = rows.select_columns(["scene_token", "frame_token", "scene_description", "qa"])
    chosen = select_questions(texts, settings.questions_per_frame, settings.seed)
    where = f"split {settings.split!r} of {settings.scenes}"
    check_answered(texts, chosen, where)
    check_askable(texts, chosen, settings.use_scene_description, where)
    return Asked(rows, texts, chosen)


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


def check_askable(frames, chosen: list[list[int]], use_scene_description: bool, where: str) -> None:
    """Every text that will be asked may stand in a prompt.

    Raises:
        ValueError: names the first that may not, with its frame.
    """
    for frame, numbers in zip(frames, chosen, strict=True):
        asked = [(f"question {number}", frame["qa"][number]["question"]) for number in numbers]
        if use_scene_description and frame["scene_description"]:
            asked.append(("its scene description", frame["scene_description"]))
        for name, text in asked:
            if fault := fault_of_text(text):
                raise ValueError(
                    f"{where}: frame {frame['frame_token']!r}: {name} {fault}: {text!r:.80}; prepare the scenes again,"
                    " which leaves it out"
                )


def unfinished_folder(output: Path, settings: Settings) -> Path:
    """Where answers are kept until all are there: a folder of its own for all that they depend on.

    These are the settings, the scenes, the weights, the configuration, the processor and the code.
    """
    folders = [local_folder(settings.model)]
    if is_adapters(settings.model):
        folders.append(local_folder(base_of_adapters(settings.model)[0]))
    files = [path.stat() for folder in folders for path in sorted(folder.glob("*.safetensors"))]
    weights = [(file.st_size, file.st_mtime_ns) for file in files]
    loading = [loading_digests(folder) for folder in folders]
    depends_on = [asdict(settings), scenes_identity(settings.scenes), weights, loading, code_digest()]
    digest = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()[:16]
    return output / f".parts-{digest}"


def ask_everyone(
    contestants: list[Contestant],
    model,
    processor,
    asked: Asked,
    settings: Settings,
    folder: Path,
    state: PartialState,
) -> tuple[list[Answered], dict[str, str]]:
    """-> (each contestant's answers, {control that the data does not allow: why}); in the main process alone.

    `folder` keeps the parts, see [`unfinished_folder`]. Other processes get no answers.
    """
    answered, left_out = [], {}
    for contestant in contestants:
        started = time.perf_counter()
        try:
            answers = answers_of(contestant, model, processor, asked.rows, settings)
        except ValueError as error:
            left_out[contestant.name] = str(error)
            continue
        ask(contestant, answers, asked, folder, state)
        if state.is_main_process:
            predictions, measured = read_answers(contestant, asked, folder)
            seconds = round(time.perf_counter() - started, 1)
            answered.append(Answered(contestant, predictions, measured, seconds))
    return answered, left_out


def ask(contestant: Contestant, answers: Answers, asked: Asked, folder: Path, state: PartialState) -> None:
    """Ask one contestant everything. The processes share the chunks; chunks that are in `folder` are done."""
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(asked.texts), CHUNK)
    mine = [start for start in starts if start // CHUNK % state.num_processes == state.process_index]
    for start in tqdm(mine, desc=str(contestant), unit="chunk", disable=not state.is_main_process):
        path = part_file(folder, contestant, start)
        if not path.is_file():
            write_json(path, ask_chunk(contestant, answers, asked, start), indent=None, ensure_ascii=False)
    state.wait_for_everyone()


def ask_chunk(contestant: Contestant, answers: Answers, asked: Asked, start: int) -> dict:
    predictions, measured = [], []
    for index in range(start, min(start + CHUNK, len(asked.texts))):
        frame, chosen = asked.texts[index], asked.chosen[index]
        if chosen:
            texts, took = answers(index, [frame["qa"][number]["question"] for number in chosen])
            predictions += [one.as_row() for one in frame_predictions(contestant, frame, chosen, texts)]
            measured.append(asdict(took))
    return {"predictions": predictions, "measured": measured}


def frame_predictions(
    contestant: Contestant, frame: dict, chosen: list[int], answers: list[str]
) -> Iterator[Prediction]:
    for number, answer in zip(chosen, answers, strict=True):
        qa = frame["qa"][number]
        yield Prediction(
            model=contestant.name,
            id=f"{frame['frame_token']}_{number}",
            scene_token=frame["scene_token"],
            frame_token=frame["frame_token"],
            task=qa["task"],
            type=question_type(qa["question"], qa["task"]),
            tag=qa["tag"],
            question=qa["question"],
            reference=qa["answer"],
            prediction=answer,
        )


def read_answers(contestant: Contestant, asked: Asked, folder: Path) -> tuple[list[Prediction], list[Measured]]:
    """All answers of a contestant that [`ask`] has asked, and what each frame took."""
    predictions, measured = [], []
    for start in range(0, len(asked.texts), CHUNK):
        part = json.loads(part_file(folder, contestant, start).read_text("utf-8"))
        predictions += [Prediction(**row) for row in part["predictions"]]
        measured += [Measured(**took) for took in part["measured"]]
    return predictions, measured


def part_file(folder: Path, contestant: Contestant, start: int) -> Path:
    budget = "" if contestant.budget is None else f"-{contestant.budget}-tokens"
    return folder / f"{contestant.name}{budget}-{start:06d}.json"
