# ruff: noqa: T201 - a script, not a test: what it prints is its report
"""Checks the page of recipes/serving/space with its model in headless Chromium (`make app-check`).

    .venv-app/bin/python tests/check_app.py outputs/space --chromium /usr/bin/chromium

It starts the app, uses it as people and programs do, and compares what it shows with `model.answer` in this process.
Beside the folder it leaves `<folder>-desktop.png` and `<folder>-phone.png`.
"""

import argparse
import base64
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from broken_pictures import huge_png
from gradio_client import Client
from gradio_client.exceptions import AppError
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright
from transformers import AutoModelForImageTextToText, AutoProcessor

CAMERAS = ("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT")
LIMIT = 1_000_000_000  # bytes of resident memory
GROWTH = 20_000_000  # bytes in 500 scenes, 250 MB of which were encoded meanwhile
SCENES = 1000
WAIT = 600_000  # ms; long, so that a busy machine fails nothing
START_SECONDS = 1800
WHOLE = """() => {
    if (document.querySelector("#answers .error:not(.old)")) return true;
    const steps = document.querySelector("#answers .steps:not(.old)");
    const count = steps && steps.innerText.match(/([0-9]+) of ([0-9]+) answers/);
    return count && count[1] === count[2];
}"""


class Reference:
    """The model in this process, asked by `model.answer`."""

    def __init__(self, folder: Path):
        torch.set_num_threads(1)
        name = json.loads((folder / "settings.json").read_text())["model"]
        self.processor = AutoProcessor.from_pretrained(name, trust_remote_code=True)
        self.model = AutoModelForImageTextToText.from_pretrained(name, trust_remote_code=True).eval()

    def answers(self, pictures: dict, questions: list[str], visual_tokens: int | None = None) -> list[str]:
        scene = self.model.encode_scene(**self.processor.encode_scene(pictures, visual_tokens=visual_tokens))
        return self.model.answer(scene, self.processor, questions, max_new_tokens=256)


@contextmanager
def running_app(folder: Path):
    """-> (its address, its process)"""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "GRADIO_SERVER_PORT": str(port), "GRADIO_ANALYTICS_ENABLED": "False"}
    process = subprocess.Popen([sys.executable, folder / "app.py"], env=environment)
    address = f"http://127.0.0.1:{port}/"
    try:
        started = time.perf_counter()
        while not is_up(address):
            assert process.poll() is None, "the app ended"
            assert time.perf_counter() - started < START_SECONDS, f"no page after {START_SECONDS} s"
            time.sleep(0.5)
        yield address, process
    finally:
        process.terminate()
        process.wait()


def is_up(address: str) -> bool:
    try:
        urllib.request.urlopen(address, timeout=60).read()
    except OSError:
        return False
    return True


def resident(process, field: str = "VmRSS") -> int:
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.partition(f"{field}:")[2].split()[0]) * 1024


class User:
    """A person with a browser; what goes wrong in the console is kept."""

    def __init__(self, browser, address: str, width: int = 1280, height: int = 1000):
        self.faults = []
        self.page: Page = browser.new_page(viewport={"width": width, "height": height})
        self.page.set_default_timeout(WAIT)
        self.page.on("console", lambda said: said.type == "error" and self.faults.append(said.text))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("request", lambda asked: self.note_request(asked.url, address))
        self.page.goto(address)
        expect(self.page.locator("#ask")).to_be_visible(timeout=WAIT)

    def note_request(self, url: str, address: str) -> None:
        if not url.startswith((address, "data:", "blob:")):
            self.faults.append(f"a request to {url}")

    def choose(self, group: str, *labels: str) -> None:
        """Check these boxes of a group, or press these radio buttons, and clear the other boxes."""
        for box in self.page.locator(f"#{group} label:has(input)").all():
            inner = box.locator("input")
            if box.inner_text().strip() in labels:
                inner.check()
            elif inner.get_attribute("type") == "checkbox":
                inner.uncheck()

    def ask(self, questions: list[str] = (), own: str = "") -> None:
        self.choose("suggested", *questions)
        self.page.locator("#own textarea").fill(own)
        self.press()

    def press(self) -> None:
        """Ask, and wait until the answer to this press is whole."""
        self.page.evaluate("document.querySelector('#answers .steps, #answers .error')?.classList.add('old')")
        self.page.locator("#ask").click()
        self.page.wait_for_function(WHOLE, timeout=WAIT)

    def shown(self, kind: str = "answer") -> list[str]:
        return self.page.locator(f"#answers .{kind}").all_inner_texts()

    def steps(self) -> str:
        return self.page.locator("#answers .steps").inner_text()

    def error(self) -> str:
        return self.page.locator("#answers .error").inner_text()


@dataclass
class Scene:
    """An example as its files hold it."""

    pictures: dict[str, Image.Image]
    truth: dict[str, str]
    files: dict[str, Path]

    @property
    def questions(self) -> list[str]:
        return list(self.truth)[:6]

    def as_base64(self) -> dict[str, str]:
        return {camera: base64.b64encode(path.read_bytes()).decode() for camera, path in self.files.items()}


def read_scenes(folder: Path) -> list[Scene]:
    scenes = []
    for entry in json.loads((folder / "examples/examples.json").read_text()):
        files = {camera: folder / "examples" / name for camera, name in entry["pictures"].items()}
        scenes.append(Scene({camera: Image.open(path) for camera, path in files.items()}, entry["truth"], files))
    return scenes


def check_answers(user: User, reference: Reference, scenes: list[Scene]) -> None:
    """Six answers, kept scenes, each control, a budget, fewer cameras."""
    scene = scenes[0]
    expected = reference.answers(scene.pictures, scene.questions)
    user.ask(scene.questions)
    assert user.shown() == expected, (user.shown(), expected)
    truth = [scene.truth[question] for question in scene.questions]
    right = [answer.lower() == known.lower() for answer, known in zip(expected, truth, strict=True)]
    assert len(user.shown("right")) == sum(right) and len(user.shown("wrong")) == 6 - sum(right)
    assert user.shown("truth") == [f"truth: {known}" for known in truth]
    assert "encoded in" in user.steps()
    print(f"six answers equal those of model.answer, {sum(right)} right: {user.steps()}")

    own = "Are there pedestrians to the back of the ego car?"
    user.ask(own=own)
    assert user.shown() == reference.answers(scene.pictures, [own]) and "the scene was kept" in user.steps()
    print(f"a second question: {user.steps()}")

    blank = {camera: Image.new("RGB", picture.size, (128, 128, 128)) for camera, picture in scene.pictures.items()}
    shown = {"blank": blank, "of another scene": scenes[1].pictures}
    for control, pictures in shown.items():
        user.choose("control", control)
        user.ask(scene.questions)
        changed = sum(one != other for one, other in zip(user.shown(), expected, strict=True))
        assert user.shown() == reference.answers(pictures, scene.questions) and changed
        print(f"pictures {control}: {changed} of 6 answers change")
    user.choose("control", "as above")

    few = reference.processor.visual_token_budgets[1]
    user.choose("budget", str(few))
    user.ask(scene.questions)
    assert user.shown() == reference.answers(scene.pictures, scene.questions, few)
    print(f"budget {few}: equal to model.answer; {user.steps()}")
    user.choose("budget", str(reference.processor.visual_token_budgets[0]))

    user.choose("cameras", "front", "back")
    user.ask(scene.questions)
    two = {camera: scene.pictures[camera] for camera in ("CAM_FRONT", "CAM_BACK")}
    assert user.shown() == reference.answers(two, scene.questions) and user.steps().startswith("2 pictures")
    print(f"two cameras: equal to model.answer; {user.steps()}")
    user.choose("cameras", *(camera.removeprefix("CAM_").replace("_", " ").lower() for camera in scene.pictures))


def upload(user: User, camera: str, path: Path) -> None:
    """The browser may show no picture, but the server has the file when it can be removed."""
    remove = user.page.locator(f"#{camera} button[aria-label='Remove Image']")
    remove.click()
    expect(remove).to_be_hidden(timeout=WAIT)
    user.page.locator(f"#{camera} input[type=file]").set_input_files(path)
    expect(remove).to_be_visible(timeout=WAIT)


def check_upload(user: User, reference: Reference, scenes: list[Scene]) -> None:
    """Another scene is chosen, then a picture of a third one is uploaded: its truth is not shown any more."""
    user.page.locator("#scenes button:has(img)").nth(2).click()
    expect(user.page.locator("#suggested")).to_contain_text(list(scenes[2].truth)[1], timeout=WAIT)
    user.ask(scenes[2].questions)
    assert user.shown() == reference.answers(scenes[2].pictures, scenes[2].questions)
    upload(user, "CAM_FRONT", scenes[3].files["CAM_FRONT"])
    own = "What are objects to the front of the ego car?"
    expect(user.page.locator("#suggested")).not_to_contain_text(list(scenes[2].truth)[1], timeout=WAIT)
    user.ask(own=own)
    mixed = {**scenes[2].pictures, "CAM_FRONT": scenes[3].pictures["CAM_FRONT"]}
    assert user.shown() == reference.answers(mixed, [own]) and not user.shown("truth")
    print(f"another scene and an upload: equal to model.answer; {user.steps()}")


def check_bad_input_on_the_page(user: User, work: Path) -> None:
    def refused(said: str, **asked) -> None:
        user.ask(**asked)
        assert said in user.error(), user.error()
        print(f"  {user.error()}")

    print("refused on the page:")
    refused("there is no question")
    refused("101 questions are too many", own="\n".join(f"Is this question {number}?" for number in range(101)))
    refused("special token <image>", own="What is <image>?")
    refused("question 1 has 600 characters", own="?" * 600)
    user.choose("cameras")
    refused("there is no picture", own="Why?")
    user.choose("cameras", "front")
    (work / "broken.jpg").write_bytes(b"not a picture")
    upload(user, "CAM_FRONT", work / "broken.jpg")
    refused("CAM_FRONT: the file is not a picture", own="Why?")
    (work / "huge.png").write_bytes(huge_png())
    upload(user, "CAM_FRONT", work / "huge.png")
    refused("CAM_FRONT: the picture is too large", own="Why?")
    whole = io.BytesIO()
    Image.effect_noise((400, 300), 50).convert("RGB").save(whole, "JPEG")
    (work / "cut.jpg").write_bytes(whole.getvalue()[:5000])
    upload(user, "CAM_FRONT", work / "cut.jpg")
    refused("CAM_FRONT: the picture cannot be read", own="Why?")


def check_two_users(browser, address: str, reference: Reference, scenes: list[Scene]) -> None:
    """Both press before either has an answer; each gets the answers about its own pictures."""
    users = [User(browser, address) for _ in range(2)]
    for number, user in enumerate(users, start=3):
        user.page.locator("#scenes button:has(img)").nth(number).click()
        expect(user.page.locator("#suggested")).to_contain_text(list(scenes[number].truth)[1], timeout=WAIT)
    questions = [question for scene in scenes for question in scene.truth]
    questions = list(dict.fromkeys(questions))[:30]
    for user in users:
        user.choose("suggested")
        user.page.locator("#own textarea").fill("\n".join(questions))
    for user in users:
        user.page.locator("#ask").click()
    for user in users:
        user.page.wait_for_function(WHOLE, timeout=WAIT)
    expected = [reference.answers(scenes[number].pictures, questions) for number in (3, 4)]
    assert [user.shown() for user in users] == expected and expected[0] != expected[1]
    assert not any(user.faults for user in users), [user.faults for user in users]
    print(f"two users at the same time: {len(questions)} answers each, their own; {users[0].steps()}")
    for user in users:
        user.page.close()


def check_endpoint(address: str, reference: Reference, scenes: list[Scene]) -> None:
    """`/ask` by gradio's own client: the same answers, kept scenes, and one sentence for what is bad."""
    client, scene = Client(address, verbose=False), scenes[5]
    for kept in (False, True):
        told = client.predict(scene.as_base64(), scene.questions, None, api_name="/ask")
        assert told["answers"] == reference.answers(scene.pictures, scene.questions) and told["scene_kept"] is kept
    print(f"/ask: equal to model.answer; {json.dumps({**told, 'answers': len(told['answers'])})}")
    front = {"CAM_FRONT": scene.as_base64()["CAM_FRONT"]}
    address_as_file = {"path": "http://127.0.0.1/front.jpg", "meta": {"_type": "gradio.FileData"}}
    bad = {
        "unknown camera": ({"CAM_TOP": front["CAM_FRONT"]}, ["Why?"], None),
        "'???' is not base64": ({"CAM_FRONT": "???"}, ["Why?"], None),
        "is not a picture": ({"CAM_FRONT": base64.b64encode(b"text").decode()}, ["Why?"], None),
        "addresses are not fetched": ({"CAM_FRONT": "http://127.0.0.1/front.jpg"}, ["Why?"], None),
        "addresses are not fetched here": ({"CAM_FRONT": address_as_file}, ["Why?"], None),
        "has no picture at all": ({}, ["Why?"], None),
        "must be an object": (["CAM_FRONT"], ["Why?"], None),
        "there is no question": (front, [], None),
        "question 2 is empty": (front, ["Why?", " "], None),
        "101 questions are too many": (front, ["Why?"] * 101, None),
        "not a budget": (front, ["Why?"], 5),
    }
    print("refused by /ask:")
    for said, request in bad.items():
        try:
            client.predict(*request, api_name="/ask")
        except AppError as error:
            assert said in str(error), (said, str(error))
            print(f"  {str(error)[:160]}")
        else:
            raise AssertionError(f"/ask took {said!r}")


def check_disconnect(browser, address: str, scenes: list[Scene]) -> None:
    """Three people ask 100 questions and leave in the middle; the next request is answered as fast as before."""
    client, scene = Client(address, verbose=False), scenes[0]

    def seconds() -> float:
        started = time.perf_counter()
        client.predict(scene.as_base64(), scene.questions, None, api_name="/ask")
        return time.perf_counter() - started

    before = seconds()
    for _ in range(3):
        user = User(browser, address)
        user.choose("suggested")
        user.page.locator("#own textarea").fill("\n".join(f"How many cars are there, {n}?" for n in range(100)))
        user.page.locator("#ask").click()
        expect(user.page.locator("#answers .answer").first).to_be_visible(timeout=WAIT)
        assert len(user.shown()) < 100, "nothing was streamed"
        user.page.close()
    after = seconds()
    assert after < before + 5, (before, after)
    print(f"three users left in the middle of 100 answers: the next request took {after:.2f} s, before {before:.2f} s")


def ask_by_http(address: str, pictures: dict[str, str], question: str) -> dict:
    """One call of `/ask` as curl does it, much cheaper than gradio's client; to gradio it is a new session."""
    body = json.dumps({"data": [pictures, [question], None]}).encode()
    request = urllib.request.Request(f"{address}gradio_api/call/ask", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as response:
        event = json.load(response)["event_id"]
    with urllib.request.urlopen(f"{address}gradio_api/call/ask/{event}", timeout=300) as response:
        *_, kind, data = response.read().decode().strip().splitlines()
    assert kind == "event: complete", (kind, data)
    return json.loads(data.removeprefix("data: "))[0]


def check_memory(address: str, process) -> None:
    """1,000 scenes, two at a time: less than `LIMIT`, and no growth from the half on."""
    measured = {0: resident(process)}

    def ask_about(number: int) -> None:
        pixels = np.random.default_rng(number).integers(0, 256, (9, 16, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        pictures = dict.fromkeys(CAMERAS, base64.b64encode(file.getvalue()).decode())
        told = ask_by_http(address, pictures, "Are there cars to the front of the ego car?")
        assert not told["scene_kept"]

    started = time.perf_counter()
    with ThreadPoolExecutor(2) as pool:
        for done, _ in enumerate(pool.map(ask_about, range(SCENES)), start=1):
            if done % 100 == 0:
                measured[done] = resident(process)
                print(f"  {done} scenes: {measured[done] / 1e6:.0f} MB", flush=True)
    most, grown = resident(process, "VmHWM"), measured[SCENES] - measured[SCENES // 2]
    print(
        f"{SCENES} scenes in {time.perf_counter() - started:.0f} s: {most / 1e6:.0f} MB at most, {grown / 1e6:.0f} MB"
        " of growth in the second half"
    )
    assert most < LIMIT and grown < GROWTH


def check_phone(browser, address: str, picture: Path) -> None:
    """420 pixels wide: three slots in a row, and nothing to scroll to the side."""
    user = User(browser, address, width=420, height=900)
    boxes = [user.page.locator(f"#{camera}").bounding_box() for camera in CAMERAS]
    for row in (boxes[:3], boxes[3:]):
        assert len({box["y"] for box in row}) == 1 and all(box["x"] + box["width"] <= 420 for box in row), row
        assert row[0]["x"] < row[1]["x"] < row[2]["x"]
    assert user.page.evaluate("document.documentElement.scrollWidth") <= 420
    user.press()
    user.page.screenshot(path=picture, full_page=True)
    assert not user.faults, user.faults
    print(f"at 420 pixels: slots of {boxes[0]['width']:.0f} pixels, three in a row; {picture}")
    user.page.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("space", type=Path, help="folder of recipes/build_space.py, with examples")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    args = parser.parse_args()
    if not (args.space / "examples/examples.json").is_file():
        sys.exit(f"check_app: {args.space} is not a Space with examples; recipes/build_space.py writes one")
    reference, scenes = Reference(args.space), read_scenes(args.space)
    with running_app(args.space) as (address, process), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=args.chromium, args=["--no-sandbox"])
        user = User(browser, address)
        check_answers(user, reference, scenes)
        user.page.screenshot(path=f"{args.space}-desktop.png", full_page=True)
        check_upload(user, reference, scenes)
        assert not user.faults, user.faults
        print("no error in the console, no request to another server")
        check_phone(browser, address, Path(f"{args.space}-phone.png"))
        check_two_users(browser, address, reference, scenes)
        with tempfile.TemporaryDirectory() as work:
            check_bad_input_on_the_page(User(browser, address), Path(work))
        check_endpoint(address, reference, scenes)
        check_disconnect(browser, address, scenes)
        browser.close()
        check_memory(address, process)
    print("all checks passed")


if __name__ == "__main__":
    main()
