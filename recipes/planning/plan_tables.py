"""The tables of an evaluation of plans: what is printed, and the same as Markdown and HTML."""

from dataclasses import dataclass

from recipes.evaluation.tables import aligned, percent
from recipes.metrics.planning.protocols import PROTOCOLS
from recipes.planning.plan_files import EXPERT

SUBSETS = {
    "all": "all",
    "not_straight": "turns",
    "speed_changes": "speed changes",
    "stands_and_goes": "will go",
}
WHICH_SUBSETS = (
    "turns: the expert ends 2 m or more to the side; speed changes: by more than 2 m/s; will go: it stands now and is"
    " more than 2 m away at the end"
)
STEPS = ("1s", "2s", "3s", "avg")


@dataclass
class Table:
    """Cells as they are shown.

    Example: `Table("L2", "metres", ["", "ours"], [["planner", "1.10"], ["scenes", "48"]])`
    """

    title: str
    note: str
    heads: list[str]
    lines: list[list[str]]

    def text(self) -> str:
        return f"{self.title}: {self.note}\n{aligned([self.heads, *self.lines])}"

    def markdown(self) -> str:
        lines = [self.heads, ["---"] * len(self.heads), *self.lines]
        return f"### {self.title}\n\n{self.note}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def tables(results: dict[str, dict], differences: dict[str, dict]) -> list[Table]:
    """All tables of an evaluation or a comparison (see plan_files.py), the headline first."""
    made = [headline_table(results), subset_table(results), l2_table(results), collision_table(results)]
    return [*made, difference_table(results, differences)] if differences else made


def headline_table(results: dict[str, dict]) -> Table:
    """L2 and collisions in our own protocol."""

    def line(name: str, result: dict) -> list[str]:
        ours = result["all"]["ours"]
        l2 = [metres(ours, f"l2_{step}") for step in STEPS]
        hits = [share(ours, f"collision_{step}") for step in STEPS]
        return [name, *l2, bounds(ours, "l2_avg", 1, 2), *hits, bounds(ours, "collision_avg", 100, 1)]

    heads = ["", *(f"L2 {step}" for step in STEPS), "interval", *(f"hit {step}" for step in STEPS), "interval"]
    note = "L2 in metres at that time, hit: % of plans that touch a road user up to that time; avg of 1, 2 and 3 s"
    lines = [line(name, result) for name, result in results.items()]
    return Table("Ours", note, heads, [*lines, *counts(results, [("all", "ours", "l2_3s")] * (len(heads) - 1))])


def subset_table(results: dict[str, dict]) -> Table:
    """Our L2 and collisions where the expert turns, changes its speed, or stands and will go."""
    shown = [subset for subset in SUBSETS if any(result[subset]["count"] for result in results.values())]
    heads = ["", *(f"{what}, {SUBSETS[subset]}" for subset in shown for what in ("L2 avg", "hit 3s"))]
    lines = []
    for name, result in results.items():
        scores = [result[subset].get("ours", {}) for subset in shown]
        lines.append([name, *(cell for one in scores for cell in (metres(one, "l2_avg"), share(one, "collision_3s")))])
    cells = [(subset, "ours", metric) for subset in shown for metric in ("l2_avg", "collision_3s")]
    note = f"our L2 in metres and hits in %; {WHICH_SUBSETS}"
    return Table("Subsets", note, heads, [*lines, *counts(results, cells)])


def l2_table(results: dict[str, dict]) -> Table:
    def cell(scores: dict) -> str:
        return "/".join(metres(scores, f"l2_{step}") for step in STEPS)

    lines = [[name, *(cell(result["all"][one]) for one in PROTOCOLS)] for name, result in results.items()]
    lines += counts(results, [("all", protocol, "l2_avg") for protocol in PROTOCOLS])
    return Table("L2 in every protocol", "metres, at 1/2/3 s/avg", ["", *PROTOCOLS], lines)


def collision_table(results: dict[str, dict]) -> Table:
    shown = [protocol for protocol in PROTOCOLS if protocol != "paradrive"]

    def cell(name: str, scores: dict) -> str:
        # The public protocols leave out what the expert hits: its own row is its floor with nothing left out.
        metric = "expert_collision" if name == EXPERT else "collision"
        return "/".join(share(scores, f"{metric}_{step}") for step in STEPS)

    lines = [[name, *(cell(name, result["all"][one]) for one in shown)] for name, result in results.items()]
    lines += counts(results, [("all", protocol, "collision_avg") for protocol in shown])
    note = f"%, at 1/2/3 s/avg; {EXPERT}: hits of its own way, which the public protocols leave out elsewhere"
    return Table("Hits in every protocol", note, ["", *shown], lines)


def difference_table(results: dict[str, dict], differences: dict[str, dict]) -> Table:
    """The first planner less every other and every control."""
    first = next(iter(results))
    heads = [f"{first} less", *(f"L2 avg, {SUBSETS[subset]}" for subset in SUBSETS), "hit 3s, all"]
    lines = []
    for name, difference in differences.items():
        found = [difference[subset].get("ours", {}).get("l2_avg") for subset in SUBSETS]
        hits = difference["all"]["ours"].get("collision_3s")
        lines.append([name, *(_difference(one, 1, 2) for one in found), _difference(hits, 100, 1)])
    cells = [*((subset, "ours", "l2_avg") for subset in SUBSETS), ("all", "ours", "collision_3s")]
    note = f"ours, metres and percentage points, paired by scene; below 0 {first} is better"
    return Table("Differences", note, heads, [*lines, *counts(results, cells)])


def _difference(found: dict | None, scale: float, digits: int) -> str:
    if found is None or found["difference"] is None:
        return "-"
    cell = f"{scale * found['difference']:+.{digits}f}"
    if found["ci"] is None:
        return cell
    low, high = (f"{scale * bound:+.{digits}f}" for bound in found["ci"])
    return f"{cell} [{low}, {high}]"


def counts(results: dict[str, dict], cells: list[tuple[str, str, str]]) -> list[list[str]]:
    """The lines with the number of frames and of scenes below (subset, protocol, metric); alike for everyone."""
    first = next(iter(results.values()))

    def frames(subset: str, protocol: str, metric: str) -> str:
        return str(first[subset].get(protocol, {}).get(f"{metric}_count", first[subset]["count"]))

    return [
        ["frames", *(frames(*cell) for cell in cells)],
        ["scenes", *(str(first[subset]["scenes"]) for subset, _, _ in cells)],
    ]


def metres(scores: dict, metric: str) -> str:
    value = scores.get(metric)
    return "-" if value is None else f"{value:.2f}"


def share(scores: dict, metric: str) -> str:
    return percent(scores.get(metric))


def bounds(scores: dict, metric: str, scale: float, digits: int) -> str:
    found = scores.get(f"{metric}_ci")
    return "-" if found is None else f"[{scale * found[0]:.{digits}f}, {scale * found[1]:.{digits}f}]"
