"""Writes the tables of an evaluation of plans: tables.md, and report.html, one file that needs no other."""

import base64
from pathlib import Path

import jinja2

from recipes.planning.plan_files import CONTROLS, PlansRecord
from recipes.planning.plan_tables import tables
from smoldriver_common.whole_files import written_whole

TEMPLATE = Path(__file__).with_name("plan_report.html.jinja")


def write_report(folder: Path, scored) -> None:
    """Write tables.md and report.html of a `Scored` (plan_scoring.py), with the figures that lie in `folder`."""
    made, said = tables(scored.results, scored.differences), notes(scored.interval, scored.records)
    text = "\n\n".join([f"# {scored.first}", *said, *(table.markdown() for table in made)])
    figures = sorted((folder / "figures").glob("*.png"))
    page = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    html = page.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        planner=scored.first,
        notes=said,
        tables=made,
        controls={name: text for name, text in CONTROLS.items() if name in scored.results},
        figures={path.stem: base64.b64encode(path.read_bytes()).decode() for path in figures},
    )
    for name, content in (("tables.md", text + "\n"), ("report.html", html)):
        with written_whole(folder / name) as aside:
            aside.write_text(content, encoding="utf-8")


def printed(scored) -> str:
    """What an evaluation prints."""
    made, said = tables(scored.results, scored.differences), notes(scored.interval, scored.records)
    return "\n\n".join([*(table.text() for table in made), "\n".join(said)])


def notes(interval: str, records: dict[str, PlansRecord]) -> list[str]:
    """What a reader must know beside the numbers: intervals, leaks, what was left out or is unknown.

    Args:
        interval: what the intervals are.
        records: how the plans were made, by planner.
    """
    lines = [f"Intervals: {interval}."]
    first = next(iter(records.values()))
    for name, record in records.items():
        about = f"{name}: " if len(records) > 1 else ""
        lines.append(f"{about}Training scenes among those planned for: {record.leakage}.")
        reads = ", ".join(record.ego_inputs) or "nothing"
        lines.append(f"{about}Of the ego it reads, beside pictures and command: {reads}.")
        for control, why in record.left_out_controls.items():
            lines.append(f"{about}Left out: {control} ({why}).")
    if first.blind_training:
        learned = "The blind controls learned from {frames} frames of {scenes} scenes of the training split."
        lines.append(learned.format(**first.blind_training))
    for what, tokens in first.counted.items():
        lines.append(f"{len(tokens)} frames: {what} (such as {tokens[0]}).")
    sources = first.command_sources
    if sources.get("future"):
        lines.append(
            f"{sources['future']} commands come from the expert's future: they know where the ego went. Compare such"
            " scores only with those of other planners that are told as much."
        )
    ego = first.ego
    lines.append(f"The ego is {ego.length:g} x {ego.width:g} m, its middle {ego.ahead:g} m ahead of the rear axle.")
    return lines
