"""Answers to score, and independent implementations of the scores."""

import json
import math
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pycocoevalcap
import pytest

ROOT = Path(__file__).resolve().parents[1]
TOLERANCE = 1e-6

ROWS = [  # scene, frame, task, type, tags, question, reference, prediction
    (
        "s1", "f1", "perception", "coordinates", [2, 3], "What are the important objects in the current scene?",
        "A red car in front, <c1,CAM_FRONT,800.0,450.0>, and a cyclist, <c2,CAM_BACK,100.5,300.2>.",
        "A red car ahead, <c1,CAM_FRONT,805.5,447.0>, and a bus, <c2,CAM_BACK,900.0,300.2>.",
    ),
    (
        "s1", "f1", "perception", "yes_no", [0], "Is <c1,CAM_FRONT,800.0,450.0> a traffic sign or a road barrier?",
        "No.", "No.",
    ),
    (
        "s1", "f1", "prediction", "yes_no", [0], "Is <c2,CAM_BACK,100.5,300.2> a traffic sign or a road barrier?",
        "No.", "Yes.",
    ),
    (
        "s1", "f1", "perception", "listing", [], "What are objects to the front of the ego car?",
        "There are two cars, one truck, and many barriers to the front of the ego car.",
        "There are two cars and three barriers in front of the ego car.",
    ),
    (
        "s1", "f1", "planning", "planning", [1, 2], "What is the target action of the ego vehicle?",
        "Go straight at the same speed.", "Go straight.",
    ),
    (
        "s2", "f2", "perception", "coordinates", [3], "What are the important objects in the current scene?",
        "<c1,CAM_FRONT,10.0,20.0> is a parked van.", "There is a parked van on the left, isn't there?",
    ),
    (
        "s2", "f2", "perception", "status", [0], "What is the status of the van that is to the left of the ego car?",
        "One van is parked.", "one van is parked ",
    ),
    (
        "s2", "f2", "perception", "description", [2], "Please describe the current scene.",
        "There are two moving cars behind the ego car and two barriers in front of it.",
        "There are two moving cars behind the ego car, and a slow-moving bus (10 m/s).",
    ),
    (
        "s3", "f3", "perception", "counting", [0], "How many cars are to the back of the ego car?", "Three.", "two",
    ),
    (
        "s3", "f3", "behavior", "behavior", [0], "Predict the behavior of the ego vehicle.",
        "The ego vehicle is going straight. The ego vehicle is driving fast.",
        "The ego vehicle is going straight. The ego vehicle is driving slowly.",
    ),
    (
        "s3", "f3", "planning", "planning", [2],
        "In this scenario, what are safe actions to take for the ego vehicle?",
        "Keep going at the same speed, decelerate gradually without braking.",
        "Keep going at the same speed.",
    ),
    ("s3", "f3", "perception", "other", [2], "What kind of traffic sign is it?", "A traffic light.", ""),
]  # fmt: skip


def arguments(rows):
    columns = ("scene_tokens", "frame_tokens", "tasks", "question_types", "tags", "questions")
    options = {name: [row[i] for row in rows] for i, name in enumerate(columns)}
    return {"references": [row[6] for row in rows], "predictions": [row[7] for row in rows], **options}


def close(got, expected):
    assert got == pytest.approx(expected, rel=0, abs=TOLERANCE)


# ---------------------------------------------------------------- independent implementations


def freedom_of(weights):
    """Degrees of freedom of the variance of a weighted mean, from the eigenvalues of its quadratic form."""
    weights = np.array(weights, dtype=float)
    centred = np.eye(len(weights)) - np.outer(np.ones(len(weights)), weights / weights.sum())
    sizes = np.linalg.svd(np.diag(weights) @ centred, compute_uv=False) ** 2
    return sizes.sum() ** 2 / (sizes**2).sum()


def tokens_13a(text):
    """mteval-v13a's tokens, from its published rules."""
    text = f" {text} "
    text = re.sub(r"([\{-\~\[-\` -\&\(-\+\:-\@\/])", r" \1 ", text)
    text = re.sub(r"([^0-9])([\.,])", r"\1 \2 ", text)
    text = re.sub(r"([\.,])([^0-9])", r" \1 \2", text)
    return re.sub(r"([0-9])(-)", r"\1 \2 ", text).split()


def ngrams(tokens, n):
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))


def plain_bleu(predictions, references):
    """Papineni's corpus BLEU with one reference, on lists of tokens."""
    logs = 0.0
    for n in (1, 2, 3, 4):
        pairs = [(ngrams(p, n), ngrams(r, n)) for p, r in zip(predictions, references, strict=True)]
        matches = sum((p & r).total() for p, r in pairs)
        if not matches:
            return 0.0
        logs += math.log(matches / sum(p.total() for p, _ in pairs)) / 4
    predicted, referred = sum(map(len, predictions)), sum(map(len, references))
    return math.exp(logs) * (1.0 if predicted > referred else math.exp(1 - referred / predicted))


def plain_rouge_l(prediction, reference, beta=1.2):
    table = np.zeros((len(prediction) + 1, len(reference) + 1), dtype=int)
    for i, p in enumerate(prediction):
        for j, r in enumerate(reference):
            table[i + 1, j + 1] = table[i, j] + 1 if p == r else max(table[i, j + 1], table[i + 1, j])
    if not table[-1, -1]:
        return 0.0
    precision, recall = table[-1, -1] / len(prediction), table[-1, -1] / len(reference)
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision)


def plain_cider(predictions, references):
    """CIDEr-D with sigma 6 and one reference, on lists of tokens: tf-idf cosine with clipped counts, n = 1..4."""
    scores = np.zeros(len(references))
    for n in (1, 2, 3, 4):
        frequency = Counter(gram for reference in references for gram in set(ngrams(reference, n)))
        for i, (p, r) in enumerate(zip(predictions, references, strict=True)):
            weights = [
                {
                    g: c * (math.log(len(references)) - math.log(max(1, frequency[g])))
                    for g, c in ngrams(text, n).items()
                }
                for text in (p, r)
            ]
            norms = [math.sqrt(sum(w * w for w in side.values())) for side in weights]
            dot = sum(min(w, weights[1].get(g, 0.0)) * weights[1].get(g, 0.0) for g, w in weights[0].items())
            # The original measures both lengths in bigrams.
            length_gap = max(0, len(p) - 1) - max(0, len(r) - 1)
            cosine = dot / (norms[0] * norms[1]) if all(norms) else 0.0
            scores[i] += 10 / 4 * cosine * math.exp(-(length_gap**2) / 72)
    return scores


def caption_dicts(tokenized):
    return {i: [" ".join(tokens)] for i, tokens in enumerate(tokenized)}


def java_tokens(texts):
    """The original tokenizer on one text a process call, so that no text sees the next one."""
    jar = Path(next(iter(pycocoevalcap.__path__))) / "tokenizer" / "stanford-corenlp-3.4.1.jar"
    if shutil.which("java") is None or not jar.is_file():
        pytest.skip("needs Java for the original PTB tokenizer")
    command = ["java", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    # An empty line between texts keeps the original from looking into the next text.
    lines = "\n\n".join(text.replace("\n", " ") for text in texts)
    done = subprocess.run(command, input=lines, capture_output=True, text=True, check=True).stdout.split("\n")
    punctuation = "'' ' `` ` -LRB- -RRB- -LCB- -RCB- . ? ! , : - -- ... ;".split()
    return [tuple(token for token in line.split() if token not in punctuation) for line in done[::2][: len(texts)]]


def run_python(script, *arguments, folder, **environment):
    """The JSON that a script prints last, run offline in a process whose current folder is `folder`."""
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "HF_HUB_OFFLINE": "1", **environment}
    command = [sys.executable, "-P", "-c", script, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])
