"""What is printed of driven scenes."""

from recipes.evaluation.tables import aligned
from recipes.metrics.driving.drive_scores import compare, compute_metrics
from recipes.metrics.driving.driven_scenes import DrivenScene
from recipes.planning.guard import LIGHT, OBJECT, PEDESTRIAN

# metric, head, factor, digits
COLUMNS = (
    ("driving_score", "driving score", 1, 1),
    ("success", "success %", 100, 0),
    ("completion", "route %", 100, 1),
    ("at_fault_hit", "hit %", 100, 0),
    ("ran_red", "red %", 100, 0),
    ("outside", "outside %", 100, 1),
    ("efficiency", "efficiency", 1, 0),
    ("smoothness", "smooth %", 100, 0),
)
PLAN_COLUMNS = (
    ("plan_pdms", "PDMS", 100, 1),
    ("plan_nc", "NC", 100, 1),
    ("plan_dac", "DAC", 100, 1),
    ("plan_tlc", "TLC", 100, 1),
    ("plan_ttc", "TTC", 100, 1),
    ("plan_ep", "EP", 100, 1),
    ("plan_comfort", "C", 100, 1),
)


def scores_table(results: dict[str, dict], columns: tuple) -> str:
    """One row per policy: value [95% interval over scenes]."""
    shown = [column for column in columns if any(column[0] in result for result in results.values())]
    rows = [["policy", *(head for _, head, _, _ in shown)]]
    for name, result in results.items():
        rows.append([name, *(_cell(result, *column) for column in shown)])
    return aligned(rows)


def _cell(result: dict, metric: str, head: str, factor: int, digits: int) -> str:
    if result.get(metric) is None:
        return "-"
    text, interval = f"{result[metric] * factor:.{digits}f}", result[f"{metric}_ci"]
    if interval is None:
        return text
    low, high = (value * factor for value in interval)
    return f"{text} [{low:.{digits}f}, {high:.{digits}f}]"


def differences_table(scenes: dict[str, list[DrivenScene]], planners: list[str]) -> str:
    """Each planner's driving score less every other policy's, paired by scene."""
    rows, done = [["driving score", "difference", "95% interval", "p"]], set()
    for name in planners:
        for other in scenes:
            if other == name or (other, name) in done:
                continue
            done.add((name, other))
            found = compare(scenes[name], scenes[other])["driving_score"]
            interval = "-" if found["ci"] is None else f"[{found['ci'][0]:+.1f}, {found['ci'][1]:+.1f}]"
            p = "-" if found["p"] is None else f"{found['p']:.3f}"
            rows.append([f"{name} - {other}", f"{found['difference']:+.1f}", interval, p])
    return aligned(rows)


def failures_table(results: dict[str, dict]) -> str:
    """Scenes that failed, by first cause."""
    causes = sorted({cause for result in results.values() for cause in result["failures"]})
    rows = [["failed scenes by first cause", *results]]
    for cause in causes:
        rows.append([cause, *(str(result["failures"].get(cause, 0)) for result in results.values())])
    rows.append(["all", *(str(sum(result["failures"].values())) for result in results.values())])
    return aligned(rows)


def report(scenes: dict[str, list[DrivenScene]], compared: list[str]) -> tuple[str, dict[str, dict]]:
    """Everything that is printed, and the scores by policy."""
    results = {name: compute_metrics(of) for name, of in scenes.items()}
    parts = [scores_table(results, COLUMNS)]
    if any("plan_pdms" in result for result in results.values()):
        parts.append("single plans of 3 s, everyone else replayed\n" + scores_table(results, PLAN_COLUMNS))
    if compared and len(scenes) > 1:
        parts.append(differences_table(scenes, compared))
    parts.append(failures_table(results))
    interval = next(iter(results.values()))["info"]["interval"]
    return "\n\n".join(parts) + f"\n\nintervals: {interval}", results


def guard_table(records: dict[str, list[dict]]) -> str:
    """What the guards did: braked plans, interventions (a rule that begins to brake) and their false alarms, by rule.

    Args:
        records: {guarded policy: its records}.
    """
    rules = (LIGHT, PEDESTRIAN, OBJECT)
    heads = [head for rule in rules for head in (rule, "false")]
    rows = [["guard", "plans", "braked", "interventions", "false alarms", *heads, "answers not read"]]
    for name, of_policy in records.items():
        states = [moment["guard"] for record in of_policy for moment in record["trace"]]
        found = [one for record in of_policy for one in record["guard"]["interventions"]]
        counts = [len(states), sum(state["rule"] is not None for state in states)]
        for chosen in (found, *([one for one in found if one["rule"] == rule] for rule in rules)):
            counts += [len(chosen), sum(one["false_alarm"] for one in chosen)]
        counts.append(sum(record["guard"]["unparsed"] for record in of_policy))
        rows.append([name, *map(str, counts)])
    return aligned(rows) + "\nfalse alarm: the expert does not brake within 2 s"


def times_per_plan(records: dict[str, list[dict]]) -> str:
    """One line per policy."""
    lines = []
    for name, of_policy in records.items():
        seconds = [moment["seconds"] for record in of_policy for moment in record["trace"]]
        mean = 1000 * sum(seconds) / len(seconds)
        lines.append(f"{name}: {mean:.1f} ms of processor time per plan, {len(seconds)} plans")
    return "\n".join(lines)
