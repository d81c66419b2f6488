"""The benchmark's table, ratios and picture."""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from recipes.benchmarking.models import SIZES

COLUMNS = (
    "part, size",
    "what",
    "budget",
    "px",
    "questions",
    "tokens",
    "GMAC",
    "seconds",
    "fastest..slowest",
    "limit",
    "bound",
    "questions/s",
    "peak GiB",
)


def find(rows: list[dict], part: str, what: str, **wanted) -> dict | None:
    """The first row of a part and contestant with these values."""
    for row in rows:
        if (
            row["part"] == part
            and row["what"] == what
            and all(row.get(name) == value for name, value in wanted.items())
        ):
            return row
    return None


def ratios(rows: list[dict], size: str) -> dict[str, float]:
    """How many times faster; `prefill_9_vs_81` and `scene_9_vs_81` are shares of time, `matmul_share...` of the limit.

    "81" stands for the largest budget of tokens per camera and "9" for 9 (4 in the tiny model). The vision model's
    ratios hold at SmolVLM2-2.2B's dimensions where those were measured; those of the run's own have its size in the
    name.
    """
    full, small = SIZES[size].budgets[0], SIZES[size].small_budget
    single = find(rows, "training", "one question")
    packed = {count: fastest_pack(rows, count) for count in (32, 93)}
    scene = find(rows, "answers", "scene, smoldriver", budget=full, questions=93)
    prefill = [find(rows, "prefill", "language model", budget=budget) for budget in (small, full)]
    encode = [find(rows, "prefill", "encode_scene", budget=budget) for budget in (small, full)]
    pairs = {
        "train_packed_32": (single, packed[32], 32),
        "train_packed_93": (single, packed[93], 93),
        "answers_93_vs_generate": (find(rows, "answers", "generate, smoldriver", budget=full, questions=93), scene, 1),
        "answers_93_vs_smolvlm": (find(rows, "answers", "generate, smolvlm", budget=full, questions=93), scene, 1),
        "prefill_9_vs_81": (*prefill, 1),
        "scene_9_vs_81": (*encode, 1),
    }
    of_vision = list(dict.fromkeys(row["size"] for row in rows if row["part"] == "vision"))
    for measured in of_vision:
        after = "" if measured == of_vision[-1] else f"_{measured}"
        full, small = SIZES[measured].budgets[0], SIZES[measured].small_budget
        siglip, whole, loop, as_many_patches = (
            find(rows, "vision", what, size=measured, budget=full)
            for what in ("siglip", "smoldriver", "camera loop", "smoldriver, siglip's patches")
        )
        pairs |= {
            f"vision_vs_siglip{after}": (siglip, whole, 1),
            f"vision_budget_9_vs_siglip{after}": (
                siglip,
                find(rows, "vision", "smoldriver", size=measured, budget=small),
                1,
            ),
            f"vision_vs_camera_loop{after}": (loop, whole, 1),
            f"vision_siglips_patches_vs_siglip{after}": (siglip, as_many_patches, 1),
        }
    found = {
        name: times * slow["seconds"] / fast["seconds"] for name, (slow, fast, times) in pairs.items() if slow and fast
    }
    if packed[93]:
        found["matmul_share_packed_train"] = packed[93]["matmul_share"]
    for count, row in packed.items():
        if row and single:
            found[f"train_peak_memory_{count}_vs_1"] = row["peak_bytes"] / single["peak_bytes"]
    return found


def fastest_pack(rows: list[dict], questions: int) -> dict | None:
    """The row of packed training with this many questions that takes least, whatever its number of packs."""
    packed = [row for row in rows if row["part"] == "training" and row["what"] != "one question"]
    return min((row for row in packed if row["questions"] == questions), key=lambda row: row["seconds"], default=None)


def print_table(rows: list[dict]):
    lines = [COLUMNS]
    for row in rows:
        times = f" x {row['multiplied_by']}" if row["multiplied_by"] > 1 else ""
        lines.append(
            (
                f"{row['part']}, {row['size']}",
                row["what"] + times,
                str(row.get("budget", "")),
                str(row.get("image_size", "")),
                str(row.get("questions", "")),
                f"{row['tokens']:,}",
                f"{row['macs'] / 1e9:,.1f}",
                f"{row['seconds']:.4g}",
                f"{row['seconds_min']:.4g}..{row['seconds_max']:.4g}",
                f"{row['limit_share']:.0%}",
                row["bound"],
                f"{row['questions'] / row['seconds']:.3g}" if row["part"] in ("answers", "training") else "",
                f"{row['peak_bytes'] / 2**30:.2f}" if "peak_bytes" in row else "",
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS))]
    for line in lines:
        cells = [
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


def draw(report: dict, path):
    """One panel per measured part; the caller writes the file aside and renames it."""
    rows = report["rows"]
    parts = list(dict.fromkeys((row["part"], row["size"]) for row in rows))
    figure, axes = plt.subplots(1, max(1, len(parts)), figsize=(5.5 * max(1, len(parts)), 4.2), squeeze=False)
    for axis, (part, size) in zip(axes[0], parts, strict=False):
        of_part = [row for row in rows if (row["part"], row["size"]) == (part, size)]
        if part in ("vision", "prefill"):
            labels = [f"{row['what']}, {row['budget']}" for row in of_part]
            low = [row["seconds"] - row["seconds_min"] for row in of_part]
            high = [row["seconds_max"] - row["seconds"] for row in of_part]
            axis.barh(labels, [row["seconds"] for row in of_part], xerr=[low, high])
            axis.invert_yaxis()
            axis.set_xlabel("seconds per frame (median, whole range)")
        else:
            for what, budget in dict.fromkeys((row["what"], row["budget"]) for row in of_part):
                series = [row for row in of_part if (row["what"], row["budget"]) == (what, budget)]
                rates = [row["questions"] / row["seconds"] for row in series]
                axis.plot([row["questions"] for row in series], rates, "o-", label=f"{what}, {budget}")
            axis.set(xscale="log", yscale="log", xlabel="questions per frame", ylabel="questions per second")
            axis.legend(fontsize=7)
        axis.set_title(f"{part}, {size}")
    machine = report["machine"]
    figure.suptitle(f"{machine['size']}, {machine['dtype']}, {machine['device']}")
    figure.tight_layout()
    figure.savefig(path, format="png", dpi=110)
    plt.close(figure)
