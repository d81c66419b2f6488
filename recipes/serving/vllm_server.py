"""A vLLM server of its own for a check or a benchmark, and how it is asked over HTTP; needs no model library."""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

NAME = "smoldriver"
SERVER = ("-m", "vllm.entrypoints.openai.api_server", "--trust-remote-code", "--dtype", "float32")
SMALL = ("--max-model-len", "1024", "--block-size", "32", "--max-num-seqs", "32", "--enforce-eager")
OPEN = ("--trust-request-mm-kwargs", "--enable-prompt-tokens-details", "--served-model-name", NAME)
ONE_THREAD = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}  # a bound thread waits for a busy core
CACHE = {"VLLM_CPU_KVCACHE_SPACE": "1"}  # GiB
OFFLINE = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
REQUESTS = 16  # at a time


@contextmanager
def running_server(model: str, log: Path, **environment: str) -> Iterator[str]:
    """-> the address of a server with one thread; it ends with the block.

    Raises:
        RuntimeError: the server ended; its log says why.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {**os.environ, **ONE_THREAD, **CACHE, **OFFLINE, **environment}
    place = ("--host", "127.0.0.1", "--port", str(port))
    command = [sys.executable, *SERVER, *SMALL, *OPEN, "--model", model, *place]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        process = subprocess.Popen(
            command, env=settings, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        address, started = f"http://127.0.0.1:{port}", time.perf_counter()
        try:
            while process.poll() is None:
                try:
                    urllib.request.urlopen(f"{address}/health", timeout=5).read()
                    break
                except OSError:
                    time.sleep(2)
            if process.poll() is not None:
                raise RuntimeError(log.read_text())
            print(f"the server answers after {time.perf_counter() - started:.0f} s", flush=True)
            yield address
        finally:
            end(process)


def end(process: subprocess.Popen) -> None:
    """End the server with its workers: they are in its session."""
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def picture_part(file: bytes, **more) -> dict:
    """The part of a chat message that holds a PNG file."""
    url = f"data:image/png;base64,{base64.b64encode(file).decode()}"
    return {"type": "image_url", "image_url": {"url": url}, **more}


def labelled_parts(views: Iterable[tuple[str, bytes]]) -> list[dict]:
    """Cameras and their PNG files: each file stands behind a text part with just the camera's name."""
    return [part for camera, file in views for part in ({"type": "text", "text": camera}, picture_part(file))]


def ask(
    address: str, parts: list[dict], question: str, visual_tokens: int | None = None, max_new_tokens: int = 64
) -> tuple[str, int]:
    """-> (answer, tokens of the prompt that were in the cache)"""
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]
    body = {"model": NAME, "messages": messages, "max_tokens": max_new_tokens, "temperature": 0}
    if visual_tokens is not None:
        body["mm_processor_kwargs"] = {"visual_tokens": visual_tokens}
    request = urllib.request.Request(
        f"{address}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=600) as response:
        said = json.load(response)
    details = said["usage"].get("prompt_tokens_details") or {}
    return said["choices"][0]["message"]["content"].strip(), details.get("cached_tokens") or 0


def ask_many(address: str, files: dict[str, bytes], questions: list[str], max_new_tokens: int) -> list[str]:
    """Answers about one frame's PNG files by camera: after the first question the frame's prefix is in the cache."""
    parts = labelled_parts(files.items())

    def answer(question: str) -> str:
        return ask(address, parts, question, max_new_tokens=max_new_tokens)[0]

    first = answer(questions[0])
    with ThreadPoolExecutor(REQUESTS) as pool:
        return [first, *pool.map(answer, questions[1:])]
