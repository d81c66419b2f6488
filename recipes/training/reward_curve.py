"""The reward of a GRPO run by step: `rewards.json` and `rewards.png`."""

from pathlib import Path

from matplotlib.figure import Figure

from smoldriver_common.whole_files import write_json, written_whole

SCORE = "score/"  # begins the names of the scores against the true answers
KEPT = ("reward", "reward_std", "frac_reward_zero_std", "entropy", "completions/clipped_ratio")


def reward_curve(log_history: list[dict]) -> list[dict[str, float]]:
    """What a trainer logged of its rewards, one entry per logged step.

    Returns:
        [{"step": 10, "reward": 0.61, "reward_std": 0.41, ..., "score/yes_no": 0.66, "score/listing": 0.52}, ...]; the
        scores are against the true answers, which the reward is too unless it is shuffled.
    """
    return [
        {"step": entry["step"], **{name: entry[name] for name in entry if name in KEPT or name.startswith(SCORE)}}
        for entry in log_history
        if "reward" in entry
    ]


def write_reward_curve(folder: Path, curve: list[dict[str, float]]) -> None:
    write_json(folder / "rewards.json", curve)
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    panel = figure.subplots()
    names = ["reward", *sorted({name for entry in curve for name in entry if name.startswith(SCORE)})]
    for name in names:
        points = [(entry["step"], entry[name]) for entry in curve if name in entry]
        label = "reward" if name == "reward" else f"true score, {name.removeprefix(SCORE)}"
        panel.plot(*zip(*points, strict=True), label=label, linewidth=2 if name == "reward" else 1)
    panel.set(xlabel="step", ylabel="mean over sampled answers", ylim=(0, 1))
    panel.legend(frameon=False)
    with written_whole(folder / "rewards.png") as aside:
        figure.savefig(aside, format="png", dpi=130, facecolor="white")
