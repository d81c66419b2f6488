"""The benchmark's inference parts: vision, prefill and decoding, answers to many questions about one frame."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from tqdm import tqdm
from transformers import DynamicCache

from recipes.benchmarking.counts import LimitProbe, Phase, WorkCounts
from recipes.benchmarking.inputs import drivelm_style_questions, pictures
from recipes.benchmarking.models import (
    QUESTION_COUNTS,
    Size,
    make_processor,
    make_smoldriver,
    make_smolvlm,
    one_camera_after_another,
)

NEW_TOKENS = 16
ROWS = 64  # questions decoded together, the default of `model.answer`


@dataclass
class Contestant:
    """Something to time; `row` describes it in the report.

    Args:
        phases: the work of one run.
        stands_for: numbers of questions that a run of one question is multiplied to, one row each.
    """

    row: dict
    run: Callable[[], object]
    phases: list[Phase]
    stands_for: tuple[int, ...] = (1,)


def take_turns(contestants: list[Contestant], repeats: int, probe: LimitProbe) -> list[dict]:
    """Time every contestant, and the machine's limits, once a round; returns the report's rows."""
    seconds = [[] for _ in contestants]
    progress = tqdm(total=repeats * len(contestants), desc=f"measuring {contestants[0].row['part']}")
    for _ in range(repeats):
        probe.probe()
        for contestant, times in zip(contestants, seconds, strict=True):
            times.append(probe.time(contestant.run))
            progress.update()
    progress.close()
    return [
        _row(contestant, times, number)
        for contestant, times in zip(contestants, seconds, strict=True)
        for number in contestant.stands_for
    ]


def _row(contestant: Contestant, seconds: list[float], number: int) -> dict:
    row = dict(contestant.row)
    for name in ("questions", "tokens"):
        if name in row:
            row[name] *= number
    return {
        **row,
        "seconds": number * median(seconds),
        "seconds_min": number * min(seconds),
        "seconds_max": number * max(seconds),
        "repeats": len(seconds),
        "multiplied_by": number,
        "macs": number * sum(phase.macs for phase in contestant.phases),
        "bytes": number * sum(phase.bytes for phase in contestant.phases),
        "phases": number * contestant.phases,
    }


class InferenceBench:
    """Both models, which share a language model, and inputs for them."""

    def __init__(self, size: Size, device: str, dtype: torch.dtype):
        self.size, self.device = size, device
        self.processor, config, smolvlm_config = make_processor(size)
        self.smoldriver = make_smoldriver(config, device, dtype)
        self.smolvlm = make_smolvlm(smolvlm_config, self.smoldriver)
        for model in (self.smoldriver, self.smolvlm):
            model.requires_grad_(False)
        self.counter = WorkCounts(config, smolvlm_config, item=dtype.itemsize)
        self.full = size.budgets[0]
        self.scenes = {
            budget: self.processor.encode_scene(pictures(), visual_tokens=budget).to(device) for budget in size.budgets
        }
        self.questions = [question for question, _ in drivelm_style_questions(max(QUESTION_COUNTS))]
        prompts = [self.processor.question_prompt(question) for question in self.questions]
        self.encoded = self.processor.tokenizer(prompts, add_special_tokens=False)["input_ids"]
        side = size.siglip_image_size
        self.siglip_pixels = torch.rand(1, 6, 3, side, side, device=device, dtype=dtype)

    def image_size(self, budget: int) -> int:
        return self.scenes[budget]["pixel_values"].shape[-1]

    # Vision

    @torch.no_grad()
    def vision(self) -> list[Contestant]:
        vision, counter, scale = self.smoldriver.model.vision_model, self.counter, self.size.scale_factor
        cameras = torch.arange(6, device=self.device)

        def all_at_once(*inputs) -> torch.Tensor:
            return vision(*inputs).last_hidden_state

        def contestant(budget: int, pixels: torch.Tensor, what="smoldriver", run=all_at_once) -> Contestant:
            side, size = scale * round(budget**0.5), pixels.shape[-1]
            pixels = pixels.to(vision.dtype)
            row = {"part": "vision", "what": what, "budget": budget, "image_size": size, "tokens": 6 * budget}
            phase = Phase(counter.vision_macs(size, budget), counter.vision_bytes())
            return Contestant(row, lambda: run(pixels, cameras, side), [phase])

        own = {budget: scene["pixel_values"][0] for budget, scene in self.scenes.items()}
        loop = contestant(
            self.full, own[self.full], "camera loop", lambda *inputs: one_camera_after_another(vision, *inputs)
        )
        contestants = [
            Contestant(
                {
                    "part": "vision",
                    "what": "siglip",
                    "budget": self.full,
                    "image_size": self.size.siglip_image_size,
                    "tokens": 6 * self.full,
                },
                lambda: self.smolvlm.model.vision_model(self.siglip_pixels[0]),
                [Phase(counter.siglip_macs(), counter.siglip_bytes())],
            ),
            *(contestant(budget, pixels) for budget, pixels in own.items()),
            loop,
        ]
        batched = contestants[1].run()
        loop.row["largest_difference"] = (loop.run() - batched).abs().max().item() / batched.abs().max().item()
        whole = self.size.grid * 16  # as many patches as SigLIP
        if whole != self.image_size(self.full):
            pixels = torch.rand(6, 3, whole, whole, device=self.device)
            contestants.append(contestant(self.full, pixels, "smoldriver, siglip's patches"))
        return contestants

    # Prefill and decoding

    @torch.no_grad()
    def prefill(self) -> list[Contestant]:
        counter, text = self.counter, self.smoldriver.model.text_model
        question = self.encoded[0]
        contestants = []
        for budget, scene in self.scenes.items():
            prefix = scene["input_ids"].shape[1]
            length = prefix + len(question)
            embeddings = torch.randn(
                1, length, text.config.hidden_size, device=self.device, dtype=self.smoldriver.dtype
            )
            row = {"part": "prefill", "budget": budget, "image_size": self.image_size(budget)}
            contestants += [
                Contestant(
                    {**row, "what": "language model", "tokens": length},
                    lambda embeddings=embeddings: text(
                        inputs_embeds=embeddings, past_key_values=DynamicCache(), use_cache=True
                    ),
                    [counter.prefill_phase(length, heads=0)],
                ),
                Contestant(
                    {**row, "what": "encode_scene", "tokens": prefix},
                    lambda scene=scene: self.smoldriver.encode_scene(**scene),
                    [counter.vision_phase(self.image_size(budget), budget), counter.prefill_phase(prefix, heads=0)],
                ),
            ]
        prompt = self._prompt(self.full, question)
        contestants.append(
            Contestant(
                {
                    "part": "prefill",
                    "what": "smolvlm, pictures and prompt",
                    "budget": self.full,
                    "image_size": self.size.siglip_image_size,
                    "tokens": prompt.shape[1],
                },
                lambda: self.smolvlm(
                    input_ids=prompt, pixel_values=self.siglip_pixels, use_cache=True, logits_to_keep=1
                ),
                [counter.siglip_phase(self.full), counter.prefill_phase(prompt.shape[1])],
            )
        )
        return contestants + [self._decoding(rows) for rows in (1, ROWS)]

    def _decoding(self, rows: int) -> Contestant:
        """One more token for each of `rows` questions behind the scene."""
        inputs = self.scenes[self.full]
        prefix, question = inputs["input_ids"].shape[1], max(len(ids) for ids in self.encoded)
        scene = self.smoldriver.encode_scene(**inputs)
        cache = DynamicCache()

        @torch.no_grad()
        def step(tokens: int, seen: int):
            self.smoldriver(
                input_ids=torch.ones(rows, tokens, dtype=torch.long, device=self.device),
                attention_mask=torch.ones(rows, seen + tokens, dtype=torch.long, device=self.device),
                position_ids=torch.arange(prefix + seen, prefix + seen + tokens, device=self.device)[None],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
                scene=scene,
            )

        step(question, 0)

        def run():
            step(1, question)
            cache.crop(-1)

        row = {"part": "prefill", "what": f"one token, {rows} rows", "budget": self.full, "questions": rows}
        return Contestant(
            {**row, "tokens": rows}, run, self.counter.continuation_phases(prefix + question, 0, rows, 2)
        )

    # Answers

    @torch.no_grad()
    def answers(self) -> list[Contestant]:
        contestants = []
        for budget in self.size.budgets:
            counts = QUESTION_COUNTS if budget == self.full else (QUESTION_COUNTS[0], QUESTION_COUNTS[-1])
            contestants += [self._scene_cached(budget, count) for count in counts]
            contestants.append(self._one_by_one(self.smoldriver, "generate, smoldriver", budget, counts))
            if budget == self.full:
                contestants.append(self._one_by_one(self.smolvlm, "generate, smolvlm", budget, counts))
        return contestants

    def _prompt(self, budget: int, question: list[int]) -> torch.Tensor:
        return torch.cat([self.scenes[budget]["input_ids"], torch.tensor([question], device=self.device)], dim=1)

    def _one_by_one(self, model, what: str, budget: int, counts: tuple[int, ...]) -> Contestant:
        """Plain `generate` on one question, another in each round; counted for a question of mean length."""
        pictures = {"pixel_values": self.siglip_pixels}
        vision = self.counter.siglip_phase(budget)
        size = self.size.siglip_image_size
        if model is self.smoldriver:
            pictures = {name: self.scenes[budget][name] for name in ("pixel_values", "camera_ids")}
            size = self.image_size(budget)
            vision = self.counter.vision_phase(size, budget)
        turn = itertools.cycle(self._by_distance_from_mean())

        def run():
            prompt = self._prompt(budget, self.encoded[next(turn)])
            generated = model.generate(
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                **pictures,
                **generation_arguments(self.processor.tokenizer.pad_token_id),
            )
            assert generated.shape[1] == prompt.shape[1] + NEW_TOKENS

        length = self.scenes[budget]["input_ids"].shape[1] + self.mean_question
        phases = [vision, self.counter.prefill_phase(length)]
        phases += self.counter.continuation_phases(length, 0, 1, NEW_TOKENS)
        row = {"part": "answers", "what": what, "budget": budget, "image_size": size, "questions": 1}
        return Contestant({**row, "tokens": length + NEW_TOKENS - 1}, run, phases, counts)

    @property
    def mean_question(self) -> int:
        return round(sum(map(len, self.encoded)) / len(self.encoded))

    def _by_distance_from_mean(self) -> list[int]:
        """Questions, those of mean length first."""
        return sorted(range(len(self.encoded)), key=lambda index: abs(len(self.encoded[index]) - self.mean_question))

    def _scene_cached(self, budget: int, count: int) -> Contestant:
        scene_inputs = self.scenes[budget]
        asked = sorted(self._by_distance_from_mean()[:count])

        def run():
            scene = self.smoldriver.encode_scene(**scene_inputs)
            self.smoldriver.answer(
                scene,
                self.processor,
                [self.questions[index] for index in asked],
                batch_size=ROWS,
                **generation_arguments(self.processor.tokenizer.pad_token_id),
            )

        prefix, size = scene_inputs["input_ids"].shape[1], self.image_size(budget)
        phases = [self.counter.vision_phase(size, budget), self.counter.prefill_phase(prefix, heads=0)]
        tokens = prefix
        lengths = sorted(len(self.encoded[index]) for index in asked)
        for start in range(0, count, ROWS):  # as `answer` batches them
            batch = lengths[start : start + ROWS]
            phases += self.counter.continuation_phases(prefix, batch[-1], len(batch), NEW_TOKENS)
            tokens += len(batch) * (batch[-1] + NEW_TOKENS - 1)
        row = {"part": "answers", "what": "scene, smoldriver", "budget": budget, "image_size": size}
        return Contestant({**row, "questions": count, "tokens": tokens}, run, phases)


def generation_arguments(pad_token_id: int) -> dict:
    return {
        "do_sample": False,
        "max_new_tokens": NEW_TOKENS,
        "min_new_tokens": NEW_TOKENS,
        "pad_token_id": pad_token_id,
    }


def estimate_bytes(size: Size, dtype: torch.dtype) -> int:
    """Memory of the inference parts: both models with one language model, and the largest activations."""
    _, config, smolvlm_config = make_processor(size)
    smoldriver = make_smoldriver(config, "meta", dtype)
    weights = (
        smoldriver.num_parameters() + make_smolvlm(smolvlm_config, smoldriver).model.vision_model.num_parameters()
    )
    patches = 6 * size.grid**2
    activations = patches * (size.siglip_mlp + 8 * size.siglip_width) * 2
    cache = 2 * ROWS * 128 * size.text_layers * size.text_width + ROWS * size.vocabulary * 4
    return dtype.itemsize * (weights + activations + cache)
