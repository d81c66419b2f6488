"""How often the metric's intervals and p-values are right, measured with answers whose truth is known.

    python recipes/metrics/check_intervals.py

prints, for accuracy, listing F1 and BLEU and for each number of scenes, how often the 95% interval of a score covers
the score of the whole population, and how often two models that are equally good get a p-value of at most 0.05. Right
would be 95% and 5%.

The population is 600 scenes with answers in DriveLM's words, scored by the metric's own functions. Scenes have two to
nine frames and differ in difficulty, for both models alike and for each alone; so do frames. Answers are therefore
clustered and scenes are unequal. In each trial scenes are drawn, and in each scene a coin decides which model is the
first: that makes the two equally good.
"""

import argparse

import numpy as np

from recipes.metrics.drivelm.answer_metrics import closed_answer_match, listing_f1
from recipes.metrics.drivelm.scene_intervals import SceneIntervals
from recipes.metrics.drivelm.text_metrics import hf_bleu_score, mean_score, mean_statistics, ngram_statistics

SIZES = (3, 6, 12, 24, 48)
METRICS = {"accuracy": mean_score, "listing_f1": mean_score, "bleu": hf_bleu_score}
CLASSES = ("cars", "trucks", "buses", "barriers", "trailers", "pedestrians")
COUNTS = ("one", "two", "three", "many")


def listing(objects: list[tuple[str, str]]) -> str:
    if not objects:
        return "There are no objects to the front of the ego car."
    return f"There are {', '.join(' '.join(pair) for pair in objects)} to the front of the ego car."


def listing_answers(generator, skills) -> tuple[str, list[str]]:
    """A reference and an answer for each skill (0..1): objects are missed and miscounted."""
    classes = generator.choice(CLASSES, generator.integers(1, 4), replace=False)
    truth = [(str(generator.choice(COUNTS)), str(name)) for name in classes]
    answers = []
    for skill in skills:
        seen = [pair for pair in truth if generator.random() < (1 + skill) / 2]
        answers.append(
            listing([(n if generator.random() < skill else str(generator.choice(COUNTS)), c) for n, c in seen])
        )
    return listing(truth), answers


def scene_answers(generator, ease: float) -> dict[str, tuple[list, list, list]]:
    """{"closed" or "listing": (references, answers of one model, answers of the other)} of one scene."""
    asked = {"closed": ([], [], []), "listing": ([], [], [])}
    models = generator.normal(ease, 1.0) + generator.normal(0.0, 0.7, size=2)
    for _ in range(generator.integers(2, 10)):
        skills = 1 / (1 + np.exp(-models - generator.normal(0.0, 0.7)))
        for _ in range(generator.integers(2, 8)):
            truth, wrong = generator.permutation(["Yes.", "No."])
            said = [truth if generator.random() < skill else wrong for skill in skills]
            for texts, text in zip(asked["closed"], (truth, *said), strict=True):
                texts.append(str(text))
        for _ in range(generator.integers(1, 4)):
            truth, said = listing_answers(generator, skills)
            for texts, text in zip(asked["listing"], (truth, *said), strict=True):
                texts.append(text)
    return asked


def population(scenes: int, ease: float, seed: int) -> dict[str, list[np.ndarray]]:
    """{metric: for each scene its statistics (2 models, questions, k)}. ease: log-odds of an answer being right."""
    generator = np.random.default_rng(seed)
    found = {name: [] for name in METRICS}
    for _ in range(scenes):
        asked = scene_answers(generator, ease)
        for name in METRICS:
            references, *models = asked["closed" if name == "accuracy" else "listing"]
            found[name].append(np.array([question_statistics(name, answers, references) for answers in models]))
    return found


def question_statistics(name: str, predictions: list[str], references: list[str]) -> np.ndarray:
    if name == "bleu":
        return ngram_statistics(predictions, references, "13a")
    score = closed_answer_match if name == "accuracy" else listing_f1
    scores = [score(*pair) for pair in zip(predictions, references, strict=True)]
    return mean_statistics(scores, np.ones(len(scores)))


def rates(population: list[np.ndarray], score, scenes: int, trials: int, seed: int) -> tuple[float, float]:
    """-> (share of intervals that cover the truth, share of p-values of at most 0.05 between equal models)."""
    generator = np.random.default_rng(seed)
    truth = score(sum(statistics.sum(axis=(0, 1)) for statistics in population))
    covered = significant = 0
    for _ in range(trials):
        chosen = generator.integers(0, len(population), scenes)
        drawn = [population[scene][:: 1 - 2 * generator.integers(2)] for scene in chosen]  # -1: the models swap
        intervals = SceneIntervals(np.repeat(np.arange(scenes), [statistics.shape[1] for statistics in drawn]))
        own, other = (
            intervals.score({"it": (columns, score)}, np.arange(len(columns)))["it"]
            for columns in np.concatenate(drawn, axis=1)
        )
        low, high = own.interval()
        covered += low <= truth <= high
        significant += other.minus(own).p_value() <= 0.05
    return covered / trials, significant / trials


def table(trials: int, ease: float, seed: int = 0) -> list[tuple[str, int, float, float]]:
    """-> (metric, scenes, coverage, null rate) for each metric and each number of scenes."""
    known = population(600, ease, seed)
    return [(name, size, *rates(known[name], METRICS[name], size, trials, seed)) for name in METRICS for size in SIZES]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--trials", type=int, default=4000, help="samples of scenes per cell (default 4000)")
    parser.add_argument(
        "--ease", type=float, default=0.5, help="log-odds of a right answer; 3 is an easy task (default 0.5)"
    )
    arguments = parser.parse_args()
    print(f"| metric | scenes | 95% interval covers | equal models with p <= 0.05 |\n|{'---|' * 4}")
    for name, size, coverage, null_rate in table(arguments.trials, arguments.ease):
        print(f"| {name} | {size} | {coverage:.3f} | {null_rate:.3f} |")


if __name__ == "__main__":
    main()
