"""Scene rows -> training batches: one question a sequence, or a frame's questions packed behind its pictures.

A packed sequence is the scene's shared prefix followed by branches, one a question with its answer. A branch sees the
prefix and itself, and its positions continue from the prefix, so that each question is computed as if it stood alone.
"""

import hashlib
import io
import logging
import random
from dataclasses import dataclass, field

import torch
from datasets import Dataset, IterableDataset
from PIL import Image

from .packing_smoldriver import PADDING, PREFIX
from .processing_smoldriver import SmolDriverProcessor

logger = logging.getLogger(__name__)


def group_questions(
    scenes: Dataset | IterableDataset, questions_per_scene: int, seed: int
) -> Dataset | IterableDataset:
    """Rows of at most `questions_per_scene` questions: an epoch over them asks every question of every frame once.

    The groups of a frame are drawn by `seed` and its token alone, so that they are the same in every process and after
    a restart. Pictures are read when a row is taken, never copied a question. Frames without a question are left out.
    """

    def draw(frame_token: str, count: int) -> list[list[int]]:
        order = list(range(count))
        random.Random(f"{seed}-{frame_token}").shuffle(order)
        return [sorted(order[start : start + questions_per_scene]) for start in range(0, count, questions_per_scene)]

    if isinstance(scenes, IterableDataset):

        def split(batch: dict) -> dict:
            groups = draw(batch["frame_token"][0], len(batch["qa"][0]))
            rows = {name: values * len(groups) for name, values in batch.items()}
            rows["qa"] = [[batch["qa"][0][index] for index in group] for group in groups]
            return rows

        return scenes.map(split, batched=True, batch_size=1)

    frames, groups = [], []
    for index, row in enumerate(scenes.select_columns(["frame_token", "qa"])):
        for group in draw(row["frame_token"], len(row["qa"])):
            frames.append(index)
            groups.append(group)

    def take(batch: dict) -> dict:
        rows = scenes[batch["frame"]]
        rows["qa"] = [[qa[index] for index in group] for qa, group in zip(rows["qa"], batch["questions"], strict=True)]
        return rows

    return Dataset.from_dict({"frame": frames, "questions": groups}).with_transform(take)


@dataclass
class SmolDriverCollator:
    """Batches scene rows.

    Args:
        processor ([`SmolDriverProcessor`]): the model's processor.
        scene_packing (`bool`): pack a row's questions into one sequence; otherwise each question is a sequence.
        max_pack_length (`int`, *optional*): most tokens a sequence may have, prefix included; a row that needs more
            becomes several sequences of about equal length.
        visual_tokens (`list[int]`, *optional*): tokens a camera to draw from, one a batch; default: the full budget.
        use_scene_description (`bool`): put the clip's human summary into the prompt.
        seed (`int`): for the draws, which depend on it and on the batch alone.
    """

    processor: SmolDriverProcessor
    scene_packing: bool = False
    max_pack_length: int | None = None
    visual_tokens: list[int] | None = None
    use_scene_description: bool = False
    seed: int = 0
    too_long: int = field(default=0, init=False)  # questions dropped so far

    def __call__(self, rows: list[dict]) -> dict:
        """
        Returns:
            `input_ids`, `position_ids`, `labels` `(sequences, length)`; `loss_weights` `(sequences, length)` float32,
            one over the number of answer tokens of a question at each of them; `pixel_values`, `camera_ids` (see the
            processor); `segment_ids` `(sequences, length)` for packed sequences, else `attention_mask`;
            `frame_tokens`, one a sequence.

        Raises:
            ValueError: no question is left, an empty answer, or a prefix that leaves no room in `max_pack_length`.
        """
        visual_tokens = self._draw_budget(rows)
        sequences, views, frame_tokens = [], [], []
        for row in rows:
            scene = self.processor.scene_views({camera: _picture(row[camera]) for camera in self.processor.cameras})
            prefix = self._prefix(row, [camera for camera, _ in scene], visual_tokens)
            for branches in self._packs(row, prefix):
                sequences.append((prefix, branches))
                views.append(scene)
                frame_tokens.append(row["frame_token"])
        if not sequences:
            raise ValueError(
                f"no question of the frames {[row['frame_token'] for row in rows]} fits into"
                f" max_pack_length={self.max_pack_length}; raise it"
            )
        batch = self._pad(sequences)
        batch.update(self.processor.encode_images(views, visual_tokens))
        batch["frame_tokens"] = frame_tokens
        return batch

    def _draw_budget(self, rows: list[dict]) -> int | None:
        if not self.visual_tokens:
            return None
        text = "|".join(row["frame_token"] + "".join(qa["question"] for qa in row["qa"]) for row in rows)
        digest = hashlib.sha256(f"{self.seed}-{text}".encode()).digest()
        return self.visual_tokens[int.from_bytes(digest[:8], "big") % len(self.visual_tokens)]

    def _prefix(self, row: dict, cameras: list[str], visual_tokens: int | None) -> list[int]:
        description = row["scene_description"] if self.use_scene_description else None
        return self._tokens(self.processor.scene_prompt(cameras, description, visual_tokens))

    def _tokens(self, text: str) -> list[int]:
        return self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _packs(self, row: dict, prefix: list[int]) -> list[list[tuple[list[int], list[int]]]]:
        """Lists of (question tokens, answer tokens) that share a sequence."""
        branches = [
            (
                self._tokens(self.processor.question_prompt(qa["question"])),
                self._tokens(self.processor.answer_text(qa["answer"])),
            )
            for qa in row["qa"]
        ]
        if self.max_pack_length is not None:
            room = self.max_pack_length - len(prefix)
            if room <= 0:
                raise ValueError(
                    f"frame {row['frame_token']}: the prefix takes {len(prefix)} tokens, max_pack_length is"
                    f" {self.max_pack_length}: raise it or choose fewer visual_tokens"
                )
            fitting = [branch for branch in branches if len(branch[0]) + len(branch[1]) <= room]
            if len(fitting) < len(branches):
                self.too_long += len(branches) - len(fitting)
                logger.warning("%d questions so far were longer than max_pack_length and left out", self.too_long)
            branches = fitting
        if not self.scene_packing:
            return [[branch] for branch in branches]
        if self.max_pack_length is None:
            return [branches] if branches else []
        return _balance(branches, room)

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


def _balance(branches: list, room: int) -> list[list]:
    """As few packs as a first fit of the longest needs, then the longest to the emptiest pack; none above `room`."""
    lengths = [len(question) + len(answer) for question, answer in branches]
    order = sorted(range(len(branches)), key=lambda index: -lengths[index])
    packs = max(1, -(-sum(lengths) // room)) if branches else 0
    while packs:
        chosen, filled = [[] for _ in range(packs)], [0] * packs
        for index in order:
            emptiest = filled.index(min(filled))
            chosen[emptiest].append(index)
            filled[emptiest] += lengths[index]
        if max(filled) <= room:
            return [[branches[index] for index in sorted(pack)] for pack in chosen]
        packs += 1
    return []
