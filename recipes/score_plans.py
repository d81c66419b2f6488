"""Score the plans of finished runs of evaluate_planner.py again, or several side by side. Needs no model library.

python recipes/score_plans.py --plans outputs/planner-eval
python recipes/score_plans.py --plans outputs/guided-eval outputs/imitation-eval --output-dir outputs/comparison

One folder is scored where it lies: metrics.json, tables.md, report.html and figures/ are written again. Several
must be of the same frames; differences are paired by scene, against the first. Controls with equal plans are shown
once. The prepared rows must lie where they were.
"""

import argparse
from pathlib import Path

from recipes.planning.plan_report import printed
from recipes.planning.plan_scoring import compare_folders, score_folder
from smoldriver_common.command_line import errors_in_one_line, stopped_in_one_line
from smoldriver_common.whole_files import sole_writer


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plans", required=True, nargs="+", type=Path, help="folders that hold plans.parquet")
    parser.add_argument("--output-dir", type=Path, help="of a comparison of several")
    arguments = parser.parse_args()
    if (len(arguments.plans) > 1) != (arguments.output_dir is not None):
        parser.error("--output-dir is where several --plans are compared; one is scored in its own folder")
    output = arguments.output_dir or arguments.plans[0]
    with errors_in_one_line("score_plans"):
        if not arguments.output_dir and not output.is_dir():
            raise FileNotFoundError(f"there is no folder {output}")
        with sole_writer(output):
            if arguments.output_dir:
                scored = compare_folders(arguments.plans, output)
            else:
                scored = score_folder(output)
        print(printed(scored))
    print(f"wrote {output}")


if __name__ == "__main__":
    with stopped_in_one_line("score_plans"):
        main()
