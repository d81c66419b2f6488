"""Scores of answers to driving questions: `compute_metrics(predictions, references, ...)`. Offline, without Java.

Metrics (higher is better; 0..1 unless said otherwise):

- `exact_match`: the two strings are equal, character by character.
- `accuracy`: closed questions only (types yes_no, status, counting, behavior). Case, outer blanks and the final full
  stop do not matter. Where the reference begins with yes or no, only that leading word counts; of a status question
  only the statuses that are said (parked, moving, turn left ...).
- `extracted_accuracy`: the same after taking the answer out of sentences such as "The correct answer is A".
- `listing_f1`: listing questions only; mean F1 between the sets of (count, class) that the two answers list.
- `match_f1`: questions whose reference names object tags; the challenge's greedy F1 of points within 16 pixels (L1).
- `bleu`: corpus BLEU of Hugging Face's `bleu` metric (13a tokens, case kept, no smoothing): the paper's.
- `bleu_1` .. `bleu_4`, `rouge_l`, `cider` (0..10): the caption metrics of the DriveLM challenge (PTB tokens in lower
  case without punctuation). In a group, CIDEr's document frequencies are those of the whole set.
- `meteor`: NLTK's, where its WordNet corpus is installed (`python -m nltk.downloader wordnet`).
- `bertscore_precision`, `bertscore_recall`, `bertscore_f1`: mean over questions, without baseline rescaling.
- `challenge_without_gpt`: the challenge's weighted sum without its GPT terms, in a group of its own (see below).

Groups: `overall`, each question type that occurs, each task as `task_<name>`, and `challenge`. A metric that applies
to only some of a group's questions has a `<metric>_count`, to only some of its scenes a `<metric>_scenes`; one that
applies to none is absent. `<metric>_ci` is the 95% t interval over scenes, see scene_intervals. CIDEr's frequencies
and the challenge's skipped questions stay as they are when a scene is left out. The interval is null where fewer than
3 scenes count or scenes are not given. Print the number of scenes beside it.

The `challenge` group needs tags (0 accuracy, 1 GPT, 2 language, 3 match). It leaves out the questions that the
challenge silently leaves out (`skipped` counts them, see `skipped_by_graph`) and combines
    language = (BLEU-1 + BLEU-2 + BLEU-3 + BLEU-4) / 12 + ROUGE-L / 3 + CIDEr / 30
    challenge_without_gpt = 0.2 * language + 0.2 * match_f1 + 0.2 * exact_match
`extracted_accuracy` stands beside the official `exact_match` and is not part of the sum. The official score adds
0.4 * GPT, and its match is the mean of this F1 and a GPT score: the two are not comparable.
The sum is null if one of its terms has no question. Definitions: `challenge/` of github.com/OpenDriveLab/DriveLM.
"""

import numpy as np

from .answer_metrics import (
    OBJECT_TAG,
    closed_match,
    exact_match,
    extracted_match,
    listing_f1,
    match_points,
    skipped_by_graph,
)
from .ptb_tokenizer import ptb_tokens
from .scene_intervals import SceneIntervals
from .text_metrics import (
    bert_scores,
    cider,
    coco_bleu_score,
    has_wordnet,
    hf_bleu_score,
    mean_score,
    mean_statistics,
    meteor,
    ngram_statistics,
    rouge_l,
)

QUESTION_TYPES = (
    "yes_no",
    "status",
    "listing",
    "counting",
    "description",
    "planning",
    "coordinates",
    "behavior",
    "other",
)
CLOSED_TYPES = ("yes_no", "status", "counting", "behavior")
HIGHEST = {"cider": 10.0}  # every other score ends at 1
TAGS = {0: "accuracy", 1: "GPT", 2: "language", 3: "match"}
COCO_BLEU = ("bleu_1", "bleu_2", "bleu_3", "bleu_4")
BERTSCORE = ("bertscore_precision", "bertscore_recall", "bertscore_f1")
METRICS = (
    "exact_match",
    "accuracy",
    "extracted_accuracy",
    "listing_f1",
    "match_f1",
    "bleu",
    *COCO_BLEU,
    "rouge_l",
    "cider",
    "meteor",
    *BERTSCORE,
    "challenge_without_gpt",
)


def compute_metrics(predictions, references, **options):
    """Scores of answers, by group.

    -> {group: {"count": questions, "scenes": scenes, metric: value, metric + "_ci": [low, high] or None},
        "info": {"left_out": {metric: why}, "interval": what the intervals are, "scenes": how many scenes or None,
        "bertscore_encoder": name and layer}}

    Args:
        predictions, references: lists of str. An empty prediction is a wrong answer, not an error.
        questions: list of str; with `tags`, scene and frame tokens it is what the `challenge` group needs.
        question_types: list of `QUESTION_TYPES`; without it there is no `accuracy`, `extracted_accuracy`
            and `listing_f1`.
        tasks: list of str (perception, prediction, planning, behavior).
        scene_tokens, frame_tokens: lists of str; without scenes there is no interval. For the `challenge` group the
            questions of a frame stand in the official order (perception, prediction, planning, behavior).
        tags: list of lists of int (see `TAGS`), as in the challenge's test files.
        metrics: names out of `METRICS`; None for all that the arguments and the machine allow.
        bootstrap_samples, seed: accepted and ignored, for callers of earlier versions: nothing is drawn any more.
        bertscore_model: a folder or a name that bert-score knows; None leaves BERTScore out.
        bertscores: in place of `bertscore_model`, what `bert_scores` gave for these predictions.

    Raises:
        ValueError: lists of unequal length or none at all, a value that is not a string, an unknown metric, question
            type or tag, or a metric asked for by name whose arguments are missing.
    """
    scored, info = _score_groups(predictions, references, **options)
    result = {}
    for group, (metrics, numbers) in scored.items():
        result[group] = dict(numbers)
        for name, score in metrics.items():
            result[group][name] = _number(score.value)
            result[group][name + "_ci"] = score.interval(HIGHEST.get(name, 1.0))
            if score.questions != numbers["count"]:
                result[group][name + "_count"] = score.questions
            if score.scenes != numbers.get("scenes"):
                result[group][name + "_scenes"] = score.scenes
    return {**result, "info": info}


def compare_predictions(predictions, others, references, **options):
    """Whether `others` are better answers to the same questions than `predictions`, paired by scene.

    Takes the options of `compute_metrics`. The interval and the two-sided p-value are those of a t test on what each
    scene contributes to the difference; both are None where `compute_metrics` has no interval.
    -> {group: {metric: {"difference": others - predictions, "ci": [low, high], "p_value": p}}, "info": {...}}
    """
    scored, info = _score_groups(predictions, references, **options)
    scored_others, _ = _score_groups(others, references, **options)
    result = {}
    for group, (metrics, _) in scored.items():
        result[group] = {}
        other_metrics = scored_others[group][0]
        # The challenge may skip every question of a term for one side only: nothing to compare then.
        for name in [name for name in metrics if name in other_metrics]:
            difference, highest = other_metrics[name].minus(metrics[name]), HIGHEST.get(name, 1.0)
            result[group][name] = {
                "difference": _number(difference.value),
                "ci": difference.interval_of_difference(highest),
                "p_value": difference.p_value(highest),
            }
    return {**result, "info": info}


def _number(value):
    return None if np.isnan(value) else float(value)


def _score_groups(
    predictions,
    references,
    *,
    questions=None,
    question_types=None,
    tasks=None,
    scene_tokens=None,
    frame_tokens=None,
    tags=None,
    metrics=None,
    bootstrap_samples=None,
    seed=None,
    bertscore_model=None,
    bertscores=None,
):
    """-> ({group: ({metric: SceneScore}, {"count", ...})}, info), see `compute_metrics`."""
    texts = {
        "predictions": predictions,
        "references": references,
        "questions": questions,
        "question_types": question_types,
        "tasks": tasks,
        "scene_tokens": scene_tokens,
        "frame_tokens": frame_tokens,
    }
    _check_inputs(texts, tags)
    wanted, left_out = _wanted_metrics(metrics, texts, tags, bertscores or bertscore_model)
    info = {"left_out": left_out}
    tokenized = _tokenize(predictions, references)

    statistics = _question_statistics(wanted, predictions, references, tokenized, question_types)
    if wanted & set(BERTSCORE):
        scores, info["bertscore_encoder"] = bertscores or bert_scores(predictions, references, bertscore_model)
        for name, column in zip(BERTSCORE, scores.T, strict=True):
            statistics[name] = (mean_statistics(column, np.ones(len(column))), mean_score)
    statistics = {name: statistics[name] for name in METRICS if name in statistics and name in wanted}

    intervals = SceneIntervals(scene_tokens)
    info |= {"interval": intervals.describe(), "scenes": intervals.count}
    scored = {}
    for group, rows in _groups(len(predictions), question_types, tasks).items():
        scored[group] = (intervals.score(statistics, rows), {"count": len(rows), **intervals.count_scenes(rows)})
    if "challenge_without_gpt" in wanted:
        frames = list(zip(scene_tokens, frame_tokens, strict=True))
        skipped = np.array(skipped_by_graph(questions, predictions, references, frames))
        rows = np.flatnonzero(~skipped)
        statistics = _challenge_statistics(predictions, references, tokenized, tags, skipped)
        numbers = {"count": len(rows), "skipped": int(skipped.sum()), **intervals.count_scenes(rows)}
        scored["challenge"] = (intervals.score(statistics, rows), numbers)
    return scored, info


def _check_inputs(texts, tags):
    lengths = {name: len(values) for name, values in {**texts, "tags": tags}.items() if values is not None}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"all lists must have one entry for each question, got lengths {lengths}")
    if not lengths["predictions"]:
        raise ValueError("no predictions: there is nothing to score")
    for name, values in texts.items():
        for index, value in enumerate(values or ()):
            if not isinstance(value, str):
                raise ValueError(f"{name}[{index}] is {value!r}: a string was expected")
    for index, kind in enumerate(texts["question_types"] or ()):
        if kind not in QUESTION_TYPES:
            raise ValueError(f"question_types[{index}] is {kind!r}; the known types are {', '.join(QUESTION_TYPES)}")
    for index, entry in enumerate(tags or ()):
        if not isinstance(entry, (list, tuple)) or any(tag not in TAGS for tag in entry):
            known = ", ".join(f"{tag} {name}" for tag, name in TAGS.items())
            raise ValueError(f"tags[{index}] is {entry!r}; a list of the known tags ({known}) was expected")


def _wanted_metrics(metrics, texts, tags, bertscore_model):
    """-> (names to compute, {name: why it is left out}). A metric asked for by name is never left out silently."""
    asked = METRICS if metrics is None else metrics
    unknown = sorted(set(asked) - set(METRICS))
    if unknown:
        raise ValueError(f"unknown metric {', '.join(map(repr, unknown))}; the known ones are {', '.join(METRICS)}")
    missing = {}
    if texts["question_types"] is None:
        missing |= dict.fromkeys(("accuracy", "extracted_accuracy", "listing_f1"), "needs question_types")
    if bertscore_model is None:
        missing |= dict.fromkeys(BERTSCORE, "needs bertscore_model (a folder or a name that bert-score knows)")
    if not any(tags or ()) or any(texts[name] is None for name in ("questions", "scene_tokens", "frame_tokens")):
        missing["challenge_without_gpt"] = "needs tags, questions, scene_tokens and frame_tokens"
    if "meteor" in asked and not has_wordnet():
        missing["meteor"] = "needs NLTK's WordNet corpus: python -m nltk.downloader wordnet"
    left_out = {name: why for name, why in missing.items() if name in asked}
    if metrics is not None and left_out:
        raise ValueError("; ".join(f"metric {name!r} {why}" for name, why in left_out.items()))
    return set(asked) - set(left_out), left_out


def _tokenize(predictions, references):
    """-> the two lists as texts whose PTB tokens are separated by blanks."""
    return [" ".join(ptb_tokens(text)) for text in predictions], [" ".join(ptb_tokens(text)) for text in references]


def _question_statistics(wanted, predictions, references, tokenized, question_types):
    """-> {metric: (array (questions, k), score function of its sums)}, see text_metrics."""
    every = np.ones(len(predictions))
    types = np.array(question_types or [""] * len(predictions))
    statistics = {}

    def add_mean(name, scores, chosen=every):
        statistics[name] = (mean_statistics(scores, chosen), mean_score)

    def each(score):
        return [score(prediction, reference) for prediction, reference in zip(predictions, references, strict=True)]

    if "exact_match" in wanted:
        add_mean("exact_match", each(exact_match))
    for name, score in (("accuracy", closed_match), ("extracted_accuracy", extracted_match)):
        if name in wanted:
            triples = zip(predictions, references, types, strict=True)
            add_mean(name, [score(*triple) for triple in triples], np.isin(types, CLOSED_TYPES))
    if "listing_f1" in wanted:
        add_mean("listing_f1", each(listing_f1), types == "listing")
    if "match_f1" in wanted:
        names_object = [OBJECT_TAG.search(reference) is not None for reference in references]
        add_mean("match_f1", each(lambda p, r: match_points(p, r)[1]), names_object)
    if "bleu" in wanted:
        statistics["bleu"] = (ngram_statistics(predictions, references, "13a"), hf_bleu_score)
    if wanted & set(COCO_BLEU):
        statistics |= _coco_bleu(ngram_statistics(*tokenized, "none"))
    if "rouge_l" in wanted:
        add_mean("rouge_l", rouge_l(*tokenized))
    if "cider" in wanted:
        add_mean("cider", cider(*tokenized))
    if "meteor" in wanted:
        add_mean("meteor", meteor(*tokenized))
    return statistics


def _coco_bleu(counts):
    return {
        name: (counts, lambda sums, order=order: coco_bleu_score(sums, order))
        for order, name in enumerate(COCO_BLEU, start=1)
    }


def _challenge_statistics(predictions, references, tokenized, tags, skipped):
    """The challenge's terms on the questions that it scores -> as `_question_statistics`, `language` and
    `challenge_without_gpt` with them. CIDEr's document frequencies are those of its own language questions."""
    tagged = {name: np.array([tag in entry for entry in tags]) & ~skipped for tag, name in TAGS.items()}
    pairs = list(zip(predictions, references, strict=True))
    language = np.flatnonzero(tagged["language"])
    predicted, referred = ([texts[i] for i in language] for texts in tokenized)
    counts = np.zeros((len(predictions), 10))
    rouge_scores, cider_scores = np.zeros(len(predictions)), np.zeros(len(predictions))
    if len(language):
        counts[language] = ngram_statistics(predicted, referred, "none")
        rouge_scores[language] = rouge_l(predicted, referred)
        cider_scores[language] = cider(predicted, referred)

    accuracy = mean_statistics([exact_match(*pair) for pair in pairs], tagged["accuracy"])
    extracted = mean_statistics([extracted_match(*pair, "") for pair in pairs], tagged["accuracy"])
    match = mean_statistics([match_points(*pair)[1] for pair in pairs], tagged["match"])
    rouge = mean_statistics(rouge_scores, tagged["language"])
    caption = mean_statistics(cider_scores, tagged["language"])

    def language_score(sums):  # (..., 14): n-gram counts, ROUGE-L, CIDEr
        bleus = sum(coco_bleu_score(sums[..., :10], order) for order in (1, 2, 3, 4))
        return bleus / 12 + mean_score(sums[..., 10:12]) / 3 + mean_score(sums[..., 12:14]) / 30

    def challenge_score(sums):  # (..., 18): accuracy, match, then language
        terms = mean_score(sums[..., 0:2]), mean_score(sums[..., 2:4]), language_score(sums[..., 4:])
        return 0.2 * sum(terms)

    return {
        "exact_match": (accuracy, mean_score),
        "extracted_accuracy": (extracted, mean_score),
        "match_f1": (match, mean_score),
        **_coco_bleu(counts),
        "rouge_l": (rouge, mean_score),
        "cider": (caption, mean_score),
        "language": (np.hstack([counts, rouge, caption]), language_score),
        "challenge_without_gpt": (np.hstack([accuracy, match, counts, rouge, caption]), challenge_score),
    }


def _groups(count, question_types, tasks):
    """-> {group: row indices}: overall, the types and tasks that occur. Tasks and types share names, hence `task_`."""
    groups = {"overall": np.arange(count)}
    types = np.array(question_types or [])
    for kind in QUESTION_TYPES:
        if (types == kind).any():
            groups[kind] = np.flatnonzero(types == kind)
    for task in dict.fromkeys(tasks or ()):
        groups[f"task_{task}"] = np.flatnonzero(np.array(tasks) == task)
    return groups
