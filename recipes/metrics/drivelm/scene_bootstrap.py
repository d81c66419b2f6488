"""Intervals and p-values by drawing whole scenes with replacement: questions of one scene are not independent."""

import numpy as np


class SceneBootstrap:
    """Scores sets of questions, on all of a set's scenes and on draws of them.

    Args:
        scene_tokens: list of str, one a question, or None: then there are no draws.
        samples: number of draws; 0 for none.
        seed: equal seeds and equal scenes give equal draws, so that two models can be compared draw by draw.
    """

    def __init__(self, scene_tokens, samples, seed):
        self.scenes = None if scene_tokens is None else np.unique(scene_tokens, return_inverse=True)[1]
        self.samples = samples
        self.seed = seed

    def describe(self):
        if self.scenes is None or not self.samples:
            return "none: " + ("needs scene_tokens" if self.scenes is None else "bootstrap_samples is 0")
        text = f"95% percentile bootstrap over scenes, {self.samples} draws, seed {self.seed}"
        return text + "; null where a group has a single scene"

    def count_scenes(self, rows):
        """-> {"scenes": how many the questions of these row indices come from}, empty where scenes are unknown."""
        return {} if self.scenes is None else {"scenes": len(np.unique(self.scenes[rows]))}

    def score(self, statistics, rows):
        """Scores of the questions of these row indices.

        statistics: {metric: (array (questions, k), score function of its sums)}.
        -> {metric: (value, values of the draws (samples,) or None, number of questions that count)}; a metric that no
        question of the set counts for (all its statistics are 0) is left out.
        """
        draws, scene = None, None
        if self.scenes is not None and self.samples:
            scenes, scene = np.unique(self.scenes[rows], return_inverse=True)
            if len(scenes) > 1:
                generator = np.random.default_rng(self.seed)
                draws = generator.multinomial(len(scenes), np.full(len(scenes), 1 / len(scenes)), size=self.samples)
        scored = {}
        for name, (columns, score) in statistics.items():
            columns = columns[rows]
            count = int((columns != 0).any(axis=1).sum())
            if not count:
                continue
            values = None
            if draws is not None:
                sums = np.zeros((draws.shape[1], columns.shape[1]))
                np.add.at(sums, scene, columns)
                values = score(draws @ sums)
            scored[name] = (score(columns.sum(axis=0)), values, count)
        return scored


def interval(draws):
    """95% percentile interval [low, high] of the draws that have a value; None without any."""
    if draws is None or np.isnan(draws).all():
        return None
    return [float(bound) for bound in np.nanpercentile(draws, [2.5, 97.5])]


def p_value(differences):
    """Two-sided p of the drawn differences being 0: twice (k + 1) / (draws + 1), k the draws on the rarer side."""
    if differences is None or np.isnan(differences).all():
        return None
    differences = differences[~np.isnan(differences)]
    rarer = min((differences <= 0).sum(), (differences >= 0).sum())
    return float(min(1.0, 2 * (rarer + 1) / (len(differences) + 1)))
