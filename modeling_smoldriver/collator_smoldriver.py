"""Scene rows -> training batches: one question per sequence, or a frame's questions packed behind its pictures.

A pack is the frame's shared prefix followed by branches, each one question with its answer. A branch sees the prefix
and itself, and its positions continue from the prefix, so that each question is computed as if it stood alone.
"""

import hashlib
import io
import logging
import math
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from datasets import Dataset, IterableDataset
from datasets import Image as ImageFeature
from PIL import Image

from .inputs_smoldriver import CAMERAS
from .packing_smoldriver import PADDING, PREFIX
from .processing_smoldriver import SmolDriverProcessor

logger = logging.getLogger(__name__)


_DIRECTION = re.compile(r"to the ((?:front|back)(?: (?:left|right))?) of the ego")
_WAY_AHEAD = re.compile(r"in the front view|traffic signal|target action|safe actions")


def camera_asked(question: str) -> str | None:
    """The camera of the one direction that a question is about, in DriveLM's words.

    "... to the front left of the ego car?" names it; the traffic signal, the target action and safe actions are about
    the way ahead. None for a question about no direction or several.
    """
    directions = set(_DIRECTION.findall(question))
    if _WAY_AHEAD.search(question):
        directions.add("front")
    return f"CAM_{directions.pop().upper().replace(' ', '_')}" if len(directions) == 1 else None


def check_questions(scenes: Dataset | IterableDataset) -> None:
    """Refuse scenes without any question. It reads up to the first, also of a stream.

    Raises:
        ValueError: no frame has a question.
    """
    if not any(row["qa"] for row in scenes.select_columns(["qa"])):
        raise ValueError("no frame has a question: prepare the scenes with DriveLM's JSON")


def check_directions(scenes: Dataset | IterableDataset, most_views: int, cameras: Sequence[str] = CAMERAS) -> None:
    """Refuse scenes without a question about one direction. It reads up to the first such question, also of a stream.

    Args:
        cameras: the model's; a question about another camera's direction does not count.

    Raises:
        ValueError: names `most_views`, which asks no other questions.
    """
    if not any(camera_asked(qa["question"]) in cameras for row in scenes.select_columns(["qa"]) for qa in row["qa"]):
        raise ValueError(
            f'most_views={most_views} asks only questions about one direction ("to the front left of the ego car"),'
            f" and there is none for the cameras {', '.join(cameras)}: leave most_views out"
        )


def pictures_of(row: dict, cameras: Sequence[str]) -> dict:
    """A row's pictures by camera, None where one is missing.

    Raises:
        ValueError: the row has no column for one of the cameras, which is not the same as a missing picture.
    """
    _check_columns(row, cameras)
    return {camera: row[camera] for camera in cameras}


def check_row_cameras(scenes: Dataset | IterableDataset, cameras: Sequence[str]) -> None:
    """Refuse rows of another set of cameras than a model reads, before anything is read.

    Raises:
        ValueError: see [`pictures_of`].
    """
    if scenes.column_names is not None:  # a stream may not know its columns
        _check_columns(scenes.column_names, cameras)


def _check_columns(columns: Iterable[str], cameras: Sequence[str]) -> None:
    missing = [camera for camera in cameras if camera not in columns]
    if missing:
        raise ValueError(
            f"the rows have no camera {', '.join(missing)}: the model reads {', '.join(cameras)}; prepare the scenes"
            " with these --cameras, or build the model with those that the rows have"
        )


@dataclass(frozen=True)
class QuestionGroups:
    """How the questions of a frame are split into groups, each a row of its own; see [`group_questions`]."""

    questions_per_scene: int
    seed: int
    most_views: int = 0
    cameras: Sequence[str] = CAMERAS  # that the model reads

    def draw(self, row: dict) -> list[tuple[list[str], list[int]]]:
        """The groups of one frame: the cameras that are shown (none named: all) and places in its `qa`."""
        order = list(range(len(row["qa"])))
        rng = random.Random(f"{self.seed}-{row['frame_token']}")
        rng.shuffle(order)
        together = self._by_camera(row, order) if self.most_views else [(None, order)]
        return [
            (self._shown(camera, rng), sorted(chosen[start : start + self.questions_per_scene]))
            for camera, chosen in together
            for start in range(0, len(chosen), self.questions_per_scene)
        ]

    def _by_camera(self, row: dict, order: list[int]) -> list[tuple[str, list[int]]]:
        of_camera = defaultdict(list)
        for index in order:
            of_camera[camera_asked(row["qa"][index]["question"])].append(index)
        return sorted((camera, indices) for camera, indices in of_camera.items() if camera in self.cameras)

    def _shown(self, camera: str | None, rng: random.Random) -> list[str]:
        if camera is None:
            return []
        others = [name for name in self.cameras if name != camera]
        return [camera, *rng.sample(others, min(len(others), rng.randint(0, self.most_views - 1)))]

    def ask(self, row: dict, cameras: list[str], group: list[int]) -> dict:
        """A row with one group of its questions."""
        row = row | {"qa": [row["qa"][index] for index in group]}
        if cameras and row.get(cameras[0]) is not None:  # a frame that lacks the camera keeps its other pictures
            row |= {name: None for name in self.cameras if name in row and name not in cameras}
        return row

    def split(self, batch: dict) -> dict:
        """One streamed frame -> its groups; both as columns."""
        row = {name: values[0] for name, values in batch.items()}
        rows = [self.ask(row, *group) for group in self.draw(row)]
        return {name: [row[name] for row in rows] for name in batch}


def group_questions(
    scenes: Dataset | IterableDataset,
    questions_per_scene: int,
    seed: int,
    most_views: int = 0,
    cameras: Sequence[str] = CAMERAS,
) -> Dataset | IterableDataset:
    """Rows of at most `questions_per_scene` questions: an epoch over them asks every question of every frame once.

    The groups of a frame are drawn by `seed` and its token alone, so that they are the same in every process and after
    a restart. Pictures are read when a row is taken, never copied per question. Frames without questions are left out.

    With `most_views` only the questions about one direction are asked (see [`camera_asked`]), those of each camera in
    rows of their own: with one to `most_views` pictures, still encoded, its own and others drawn for each row from
    `cameras`, those of the model.

    Raises:
        ValueError: see [`check_questions`] and [`check_directions`]; a stream, which may have no end, is not searched
            here.
    """
    if most_views:
        for name, feature in (scenes.features or {}).items():
            if isinstance(feature, ImageFeature):
                scenes = scenes.cast_column(name, ImageFeature(decode=False))
    groups = QuestionGroups(questions_per_scene, seed, most_views, tuple(cameras))
    if isinstance(scenes, IterableDataset):
        return scenes.map(groups.split, batched=True, batch_size=1)
    check_questions(scenes)
    if most_views:
        check_directions(scenes, most_views, cameras)
    return _indexed(scenes, groups)


def _indexed(scenes: Dataset, groups: QuestionGroups) -> Dataset:
    """The groups of all frames as rows of indices, which become frames when they are taken."""
    index = {"frame": [], "cameras": [], "questions": []}
    for number, row in enumerate(scenes.select_columns(["frame_token", "qa"])):
        for cameras, questions in groups.draw(row):
            for name, value in zip(index, (number, cameras, questions), strict=True):
                index[name].append(value)

    return Dataset.from_dict(index).with_transform(_GroupsTaken(scenes, groups))


@dataclass
class _GroupsTaken:
    """Rows of indices -> rows of frames with their groups of questions; a loader's worker gets a copy."""

    scenes: Dataset
    groups: QuestionGroups

    def __call__(self, batch: dict) -> dict:
        columns = self.scenes[batch["frame"]]
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        rows = [self.groups.ask(*chosen) for chosen in zip(rows, batch["cameras"], batch["questions"], strict=True)]
        return {name: [row[name] for row in rows] for name in columns}


def draw_budget(budgets: list[int], seed: int, batch: str) -> int:
    """One of the budgets, by the seed and by a text that only this batch has."""
    digest = hashlib.sha256(f"{seed}-{batch}".encode()).digest()
    return budgets[int.from_bytes(digest[:8], "big") % len(budgets)]


class RowsDoNotFit(ValueError):
    """Scene rows that cannot become a batch: they are too long, or hold what may not stand in a prompt."""


@dataclass
class SmolDriverCollator:
    """Batches scene rows.

    Args:
        processor ([`SmolDriverProcessor`]): the model's processor.
        scene_packing (`bool`): pack a row's questions into one sequence; otherwise each question is a sequence.
        max_pack_length (`int`, *optional*): most tokens of a sequence, prefix included; a row that needs more becomes
            several sequences of about equal length. Rows of a batch are split further where that saves padding: a
            sequence costs as much as the longest one beside it.
        context_length (`int`, *optional*): positions that the language model has, for a prefix with one question.
        visual_tokens (`list[int]`, *optional*): budgets to draw from, one per batch; default: the full one.
        use_scene_description (`bool`): put the clip's human summary into the prompt.
        seed (`int`): for the draws, which depend on it and on the batch alone.
        teacher ([`SmolDriverCollator`], *optional*): for a model that reads the same questions behind a prefix of its
            own; its processor has the same tokenizer.
    """

    processor: SmolDriverProcessor
    scene_packing: bool = False
    max_pack_length: int | None = None
    context_length: int | None = None
    visual_tokens: list[int] | None = None
    use_scene_description: bool = False
    seed: int = 0
    teacher: "SmolDriverCollator | None" = None
    too_long: int = field(default=0, init=False)  # questions dropped so far

    def __call__(self, rows: list[dict]) -> dict:
        """
        Returns:
            `input_ids`, `position_ids`, `labels` `(sequences, length)`; `loss_weights` `(sequences, length)` float32,
            at each answer token 1 / (answer tokens of its question); `pixel_values`, `camera_ids` (see the processor),
            one entry per frame; `frame_index` `(sequences,)` int64, the frame that each sequence shows, only where
            some frame has several sequences; `segment_ids` `(sequences, length)` for packs, else `attention_mask`;
            `frame_tokens`, one per sequence; `row_index` `(sequences,)` int64, the row that each comes from; with a
            teacher `teacher`, its batch of the same sequences, answer tokens
            in the same order.

        Raises:
            RowsDoNotFit: no question is left, a prefix leaves no room in `max_pack_length` or in the model's context,
                or a text may not stand in a prompt; names the frame.
        """
        visual_tokens = self._draw_budget(rows)
        frames, views, asked, numbers = [], [], [], []
        for number, row in enumerate(rows):
            scene, prefix, branches = self._sequence(row, visual_tokens)
            if branches:
                frames.append((prefix, branches))
                views.append(scene)
                asked.append(row)
                numbers.append(number)
        if not frames:
            raise RowsDoNotFit(
                f"no question of the frames {[row['frame_token'] for row in rows]} is left: they have none, or none"
                f" fits into max_pack_length={self.max_pack_length} and the context of {self.context_length} tokens"
            )
        if self.scene_packing:
            packs = _packs([(len(prefix), branches) for prefix, branches in frames], self.max_pack_length)
        else:
            packs = [[[branch] for branch in branches] for _, branches in frames]
        batch = self._batch([prefix for prefix, _ in frames], packs, views, visual_tokens)
        if self.teacher is not None:
            batch["teacher"] = self.teacher.ask_too(asked, packs, views)
        batch["frame_tokens"] = [
            row["frame_token"] for row, of_frame in zip(asked, packs, strict=True) for _ in of_frame
        ]
        batch["row_index"] = torch.tensor(
            [number for number, of_frame in zip(numbers, packs, strict=True) for _ in of_frame]
        )
        return batch

    def _sequence(self, row: dict, visual_tokens: int | None) -> tuple[list, list[int], list]:
        """A row's views, the tokens of its prefix, and its branches."""
        try:
            pictures = pictures_of(row, self.processor.cameras)
            scene = self.processor.scene_views({camera: _picture(image) for camera, image in pictures.items()})
            prefix = self._prefix(row, [camera for camera, _ in scene], visual_tokens)
            return scene, prefix, self._branches(row, len(prefix))
        except RowsDoNotFit:
            raise
        except ValueError as error:
            raise RowsDoNotFit(f"frame {row['frame_token']}: {error} (prepare the scenes again)") from None

    def ask_too(self, rows: list[dict], packs: list[list[list]], views: list[list[tuple[str, object]]]) -> dict:
        """The batch of sequences that another collator chose, behind this one's prefixes and at its full budget.

        Raises:
            RowsDoNotFit: a question is too long for the teacher's context behind its prefix.
        """
        prefixes = [
            self._prefix(row, [camera for camera, _ in scene], None) for row, scene in zip(rows, views, strict=True)
        ]
        for row, prefix, of_frame in zip(rows, prefixes, packs, strict=True):
            longest = len(prefix) + max(_length([branch]) for pack in of_frame for branch in pack)
            if self.context_length is not None and longest > self.context_length:
                raise RowsDoNotFit(
                    f"frame {row['frame_token']}: prefix and question take the teacher {longest} tokens, its context"
                    f" is {self.context_length}: choose another teacher_model or a smaller max_pack_length"
                )
        return self._batch(prefixes, packs, views, None)

    def _batch(self, prefixes: list[list[int]], packs: list[list[list]], views, visual_tokens: int | None) -> dict:
        """One sequence per pack of each frame, with the frames' pictures."""
        frame_index = [frame for frame, of_frame in enumerate(packs) for _ in of_frame]
        batch = self._pad([(prefixes[frame], pack) for frame, of_frame in enumerate(packs) for pack in of_frame])
        batch.update(self.processor.encode_images(views, visual_tokens))
        if len(frame_index) > len(prefixes):
            batch["frame_index"] = torch.tensor(frame_index)
        return batch

    def _draw_budget(self, rows: list[dict]) -> int | None:
        if not self.visual_tokens:
            return None
        text = "|".join(row["frame_token"] + "".join(qa["question"] for qa in row["qa"]) for row in rows)
        return draw_budget(self.visual_tokens, self.seed, text)

    def _prefix(self, row: dict, cameras: list[str], visual_tokens: int | None) -> list[int]:
        description = row["scene_description"] if self.use_scene_description else None
        return self._tokens([self.processor.scene_prompt(cameras, description, visual_tokens)])[0]

    def _tokens(self, texts: list[str]) -> list[list[int]]:
        return self.processor.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []

    def _branches(self, row: dict, prefix: int) -> list[tuple[list[int], list[int]]]:
        """(question tokens, answer tokens) of a row's questions that fit behind a prefix of `prefix` tokens."""
        questions = self._tokens([self.processor.question_prompt(qa["question"]) for qa in row["qa"]])
        answers = self._tokens([self.processor.answer_text(qa["answer"]) for qa in row["qa"]])
        branches = list(zip(questions, answers, strict=True))
        limits = {"max_pack_length": self.max_pack_length, "the model's context": self.context_length}
        limits = {what: limit for what, limit in limits.items() if limit is not None}
        for what, limit in limits.items():
            if prefix >= limit:
                raise RowsDoNotFit(
                    f"frame {row['frame_token']}: the prefix takes {prefix} tokens, {what} is {limit}:"
                    f" {'raise it or ' if what == 'max_pack_length' else ''}choose fewer visual_tokens"
                )
        if not limits:
            return branches
        what, limit = min(limits.items(), key=lambda item: item[1])
        fitting = [branch for branch in branches if prefix + _length([branch]) <= limit]
        if len(fitting) < len(branches):
            self.too_long += len(branches) - len(fitting)
            logger.warning("%d questions so far were longer than %s of %d and left out", self.too_long, what, limit)
        return fitting

    def _pad(self, sequences) -> dict:
        pad_token = self.processor.tokenizer.pad_token_id
        columns = {"input_ids": [], "position_ids": [], "labels": [], "loss_weights": [], "segment_ids": []}
        for prefix, branches in sequences:
            ids, positions, segments = list(prefix), list(range(len(prefix))), [PREFIX] * len(prefix)
            labels, weights = [-100] * len(prefix), [0.0] * len(prefix)
            for number, (question, answer) in enumerate(branches, start=1):
                length = len(question) + len(answer)
                ids += question + answer
                positions += range(len(prefix), len(prefix) + length)
                segments += [number] * length
                labels += [-100] * len(question) + answer
                weights += [0.0] * len(question) + [1 / len(answer)] * len(answer)
            for name, values in zip(columns, (ids, positions, labels, weights, segments), strict=True):
                columns[name].append(torch.tensor(values))
        padding = {
            "input_ids": pad_token,
            "position_ids": 0,
            "labels": -100,
            "loss_weights": 0.0,
            "segment_ids": PADDING,
        }
        batch = {
            name: torch.nn.utils.rnn.pad_sequence(values, batch_first=True, padding_value=padding[name])
            for name, values in columns.items()
        }
        if all(len(branches) == 1 for _, branches in sequences):  # plain causal sequences: any attention serves
            batch["attention_mask"] = (batch.pop("segment_ids") != PADDING).long()
        return batch


def _picture(image):
    """Decoded pictures as they are; undecoded ones (`datasets.Image(decode=False)`) opened from their bytes."""
    if isinstance(image, dict):
        return Image.open(io.BytesIO(image["bytes"])) if image.get("bytes") else image["path"]
    return image


def _length(branches: list) -> int:
    return sum(len(question) + len(answer) for question, answer in branches)


def _split(branches: list, packs: int) -> list[list]:
    """`packs` packs of about equal length: the longest branch first, to the emptiest pack."""
    lengths = [_length([branch]) for branch in branches]
    chosen, filled = [[] for _ in range(packs)], [0] * packs
    for index in sorted(range(len(branches)), key=lambda index: -lengths[index]):
        emptiest = filled.index(min(filled))
        chosen[emptiest].append(index)
        filled[emptiest] += lengths[index]
    return [[branches[index] for index in sorted(pack)] for pack in chosen]


def _balance(branches: list, room: int) -> list[list]:
    """The fewest packs that `_split` makes of at most `room` tokens each; every single branch fits."""
    count = max(1, -(-_length(branches) // room))
    while max(map(_length, packs := _split(branches, count))) > room:
        count += 1
    return packs


def _packs(frames: list[tuple[int, list]], limit: int | None) -> list[list[list]]:
    """Packs of each frame, given as (tokens of its prefix, branches), with little padding in the batch.

    It begins with the fewest packs that `limit` allows. The frame with the longest sequence is split once more as long
    as that can make the batch smaller, every sequence padded to the longest.
    """
    packs = [_balance(branches, (limit or math.inf) - prefix) for prefix, branches in frames]
    best, fewest = packs, math.inf
    while True:
        longest = [prefix + max(map(_length, of_frame)) for (prefix, _), of_frame in zip(frames, packs, strict=True)]
        padded = max(longest) * sum(map(len, packs))
        if padded < fewest:
            best, fewest = packs, padded
        splits = longest.index(max(longest))
        count = len(packs[splits]) + 1
        packs = [*packs]
        packs[splits] = _split(frames[splits][1], count)
        tokens = sum(
            len(of_frame) * prefix + _length(branches)
            for (prefix, branches), of_frame in zip(frames, packs, strict=True)
        )
        if count > len(frames[splits][1]) or tokens >= fewest:
            return best
