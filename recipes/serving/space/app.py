"""A page that asks a SmolDriver about six camera pictures, and an endpoint `/ask` that does the same.

python app.py      (`make app` writes the folder around it; on the Hub the Space runs it)

`settings.json` beside this file names the model, a Hub id or a folder. The model's own code is run from there.
"""

import ctypes
import json
import platform
from collections.abc import Iterator
from pathlib import Path

import gradio as gr
import spaces
import torch
from answering import (
    MAX_FILE_BYTES,
    Answered,
    Answering,
    check_picture,
    check_questions,
    decoded,
    grey_picture,
)
from gradio import processing_utils
from showing import QUESTIONS, Example, answers_html, camera_label, error_html, read_examples
from transformers import AutoModelForImageTextToText, AutoProcessor

HERE = Path(__file__).parent
MODEL = json.loads((HERE / "settings.json").read_text(encoding="utf-8"))["model"]
EXAMPLES = read_examples(HERE / "examples")
LAYOUT = [["CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT"], ["CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT"]]
AS_ABOVE, BLANK, OTHER = "as above", "blank", "of another scene"
TURN = {"concurrency_id": "model", "concurrency_limit": 2}  # page and endpoint wait in one line
KEEP_SECONDS = 3600  # uploads; looked at as often
SESSIONS = 64  # gradio copies the page's settings for each visit and each call of /ask; the page itself needs none

THEME = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])  # nothing from other servers
CSS = """
.slots { gap: 6px; flex-wrap: nowrap; }
.slots > * { aspect-ratio: 16 / 9; height: auto !important; }
.slots img { width: 100%; height: 100%; object-fit: contain; }
.answers .row { padding: 6px 0; border-bottom: 1px solid var(--border-color-primary); }
.answers b, .answers span { display: block; font-weight: normal; }
.answers .right { color: #15803d; }
.answers .wrong { color: #b91c1c; }
.answers .answer { font-weight: 600; }
.answers .truth, .steps { font-size: 0.85em; opacity: 0.75; }
.error { color: #b91c1c; }
.steps { padding-top: 6px; }
"""
INTRO = """## SmolDriver
Six cameras around a car are read once, then every question is answered from what was read. Choose a scene or upload
your own pictures, and ask. Does the model look at all? With blank pictures or those of another scene its answers must
change. Green is right and red is wrong, where the truth is known. **Research only: it must not drive a car.**"""

if platform.libc_ver()[0] == "glibc":  # one heap for all threads: with one each, scenes that are freed leave gaps
    ctypes.CDLL(None).mallopt(-8, 1)  # M_ARENA_MAX
torch.set_num_threads(1)  # more threads than free cores make an answer ten times slower
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
processor = AutoProcessor.from_pretrained(MODEL, trust_remote_code=True, allow_urls=False)
model = AutoModelForImageTextToText.from_pretrained(MODEL, trust_remote_code=True).eval().to(DEVICE)
answering = Answering(model, processor)


async def refuse_address(address: str, *args, **kwargs):
    raise gr.Error(f"addresses are not fetched here; upload the picture itself ({address:.80})", print_exception=False)


# A request may name an address in the place of an uploaded file. gradio would fetch it, and has no setting against it.
processing_utils.async_ssrf_protected_download = refuse_address


class Slot(gr.Image):
    """A picture's place. Its file is handed on unread, so that a broken one is refused in our words."""

    is_template = True  # the page's Image draws it

    def preprocess(self, payload) -> str | None:
        return payload and payload.path


@spaces.GPU  # on ZeroGPU a process of its own for each call, without the scenes of earlier ones; elsewhere nothing
def answer(pictures: dict[str, bytes], questions: list[str], visual_tokens: int | None) -> Iterator[Answered]:
    yield from answering.stream(pictures, questions, visual_tokens)


def ask(pictures: dict, questions: list, visual_tokens: int | None = None) -> dict:
    """Answer questions about one frame.

    Args:
        pictures: base64 of JPEG, PNG or WebP files by camera name (CAM_FRONT, ...); any of the six may be missing.
        questions: 1 to 100 strings.
        visual_tokens: tokens per camera; null for the model's largest budget.

    Returns:
        answers in order, cameras, visual_tokens, scene_kept (encoded by an earlier request) and seconds of each step.
    """
    try:
        if not isinstance(pictures, dict):
            raise ValueError(f"the pictures must be an object by camera name, not {type(pictures).__name__}")
        questions = check_questions(questions)
        files = {camera: check_picture(decoded(text, camera), camera) for camera, text in pictures.items()}
        *_, last = answer(files, questions, visual_tokens)
    except ValueError as error:
        raise gr.Error(str(error), print_exception=False) from error
    return {
        "answers": last.answers,
        "cameras": last.cameras,
        "visual_tokens": last.visual_tokens,
        "scene_kept": last.scene_kept,
        "seconds": {"encode": round(last.encode_seconds, 4), "answer": round(last.answer_seconds, 4)},
    }


def show_answers(example, shown, visual_tokens, cameras, suggested, own, *files) -> Iterator[str]:
    """The answers as HTML, again after each part. `example` is its number, None for the user's own pictures."""
    truth = {} if example is None else EXAMPLES[example].truth
    try:
        written = [line.strip() for line in own.splitlines() if line.strip()]
        questions = check_questions(list(dict.fromkeys([*suggested, *written])))
        slots = dict(zip(sum(LAYOUT, []), files, strict=True))
        if shown == OTHER:
            slots = EXAMPLES[0 if example is None else (example + 1) % len(EXAMPLES)].pictures
        on = {camera: file for camera, file in slots.items() if file is not None and camera in cameras}
        if not on:
            raise ValueError("there is no picture: choose a scene, upload one picture or more, and leave a camera on")
        pictures = {camera: check_picture(Path(file).read_bytes(), camera) for camera, file in on.items()}
        if shown == BLANK:
            pictures = dict.fromkeys(pictures, grey_picture())
        for answered in answer(pictures, questions, visual_tokens):
            yield answers_html(answered, truth, shown)
    except ValueError as error:
        yield error_html(str(error))


def choose_example(chosen: gr.SelectData):
    """-> its number, its suggested questions, its six pictures"""
    example = EXAMPLES[chosen.index]
    pictures = [example.pictures.get(camera) for camera in sum(LAYOUT, [])]
    return chosen.index, suggestions(list(example.truth)), *(picture and str(picture) for picture in pictures)


def own_pictures():
    """A slot was changed by hand: the truth is not known any more."""
    return None, suggestions(list(QUESTIONS))


def suggestions(questions: list[str]):
    return gr.CheckboxGroup(choices=questions, value=questions[:3])


def picture_column(first: Example | None) -> tuple[gr.Gallery | None, list[Slot], list]:
    """-> the scenes to choose from, the six slots, what is set about them: cameras, control, budget"""
    gallery, slots, cameras = None, [], sum(LAYOUT, [])
    if EXAMPLES:
        fronts = [str(example.front) for example in EXAMPLES]
        gallery = gr.Gallery(
            fronts,
            label="Scenes",
            columns=len(fronts),
            height=140,
            allow_preview=False,
            buttons=[],
            elem_id="scenes",
        )
    for row in LAYOUT:
        with gr.Row(elem_classes="slots"):
            for camera in row:
                picture = str(first.pictures[camera]) if first and camera in first.pictures else None
                slots.append(
                    Slot(
                        picture,
                        label=camera_label(camera),
                        sources=["upload"],  # a second source would add a bar below each picture
                        buttons=[],
                        min_width=100,  # three in a row on a phone
                        height=150,
                        elem_id=camera,
                    )
                )
    choices = [(camera_label(camera), camera) for camera in cameras]
    seen = gr.CheckboxGroup(choices, value=cameras, label="Cameras that the model sees", elem_id="cameras")
    with gr.Row():
        controls = [AS_ABOVE, BLANK, *([OTHER] if len(EXAMPLES) > 1 else [])]
        shown = gr.Radio(controls, value=AS_ABOVE, label="Pictures (control)", elem_id="control")
        budgets = processor.visual_token_budgets
        budget = gr.Radio(budgets, value=budgets[0], label="Visual tokens per camera", elem_id="budget")
    return gallery, slots, [shown, budget, seen]


def build() -> gr.Blocks:
    first = EXAMPLES[0] if EXAMPLES else None
    questions = list(first.truth if first else QUESTIONS)
    with gr.Blocks(title="SmolDriver", analytics_enabled=False, delete_cache=(KEEP_SECONDS, KEEP_SECONDS)) as page:
        gr.Markdown(INTRO)
        last = len(EXAMPLES) - 1  # the number is kept by the browser, not here
        example = gr.Number(0 if first else None, precision=0, minimum=0, maximum=last, visible="hidden")
        with gr.Row():
            with gr.Column(scale=3, min_width=320):
                gallery, slots, settings = picture_column(first)
            with gr.Column(scale=2, min_width=320):
                suggested = gr.CheckboxGroup(questions, value=questions[:3], label="Questions", elem_id="suggested")
                own = gr.Textbox(label="Your own questions, one per line", lines=2, elem_id="own")
                button = gr.Button("Ask", variant="primary", elem_id="ask")
                answers = gr.HTML(elem_id="answers")
        inputs = [example, *settings, suggested, own, *slots]
        button.click(show_answers, inputs, answers, show_progress="hidden", api_visibility="private", **TURN)
        for slot in slots:
            gr.on([slot.upload, slot.clear], own_pictures, None, [example, suggested], api_visibility="private")
        if gallery:
            gallery.select(choose_example, None, [example, suggested, *slots], api_visibility="private")
        gr.api(ask, api_name="ask", **TURN)
    return page.queue(max_size=64)


if __name__ == "__main__":
    build().launch(
        css=CSS,
        theme=THEME,
        ssr_mode=False,
        run_history=False,
        max_file_size=MAX_FILE_BYTES,
        state_session_capacity=SESSIONS,
        footer_links=["api"],
        quiet=True,
    )
