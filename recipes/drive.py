"""Let planners drive in the synthetic world, and score how they drive.

python recipes/drive.py --planner guided=outputs/guided --blind-rows outputs/planning --output-dir outputs/drive

Everyone drives the same scenes of an unseen world: the expert for 2 s, then the policy for the rest of the
20 s, with a new plan each half second. Beside the planners drive the expert (the ceiling), constant velocity, a lane
follower that sees nothing, and with --blind-rows (a prepared planning folder) a network that knows the ego's status
and sees nothing. `recipes/metrics/driving` has the scores. An interrupted run resumes; the output folder then holds

    <policy>/scene-*.json  one record per scene: events, motion, and the trace at 2 Hz with every plan
    scores.json            the scores of all policies

--collect FOLDER also writes rows at the states that the planner gets into, with the expert's way back as label: train
on them beside the prepared rows, and evaluate on another --seed.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from data_scripts.synthesize_world import MAX_SEED, image_size
from data_scripts.world.folder import WORLD_VERSION, read_world
from recipes.driving.collect import begin_rows, finish_rows
from recipes.driving.drives import DriveOptions, begin_folder, digest_of, drive_all, read_records, scenes_of
from recipes.driving.policies import BLIND_STATUS, PLANNER, UNTRAINED, PolicySpec
from recipes.driving.tables import report
from smoldriver_common.command_line import errors_in_one_line, stopped_in_one_line, whole_number
from smoldriver_common.whole_files import sole_writer, write_json


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--output-dir", required=True, type=Path)
    add("--planner", type=planner_spec, action="append", default=[], help="NAME=FOLDER; may be given several times")
    add("--policies", nargs="*", choices=UNTRAINED, default=list(UNTRAINED), help="who drives beside them")
    add("--blind-rows", type=Path, help="prepared planning folder on which the blind ego status policy is trained")
    add("--scenes", type=whole_number(), default=100)
    add("--seed", type=whole_number(0, MAX_SEED), default=9001, help="of the world: not one that was trained on")
    add("--world", type=Path, help="the world that was trained in: its picture size is taken, its seed is refused")
    add("--image-size", type=image_size, default=(160, 90), help="WIDTHxHEIGHT of the pictures, without --world")
    add("--no-plans", action="store_true", help="leave out the scores of single plans, a seventh of the time")
    add("--workers", type=whole_number(1, 256), default=1)
    add("--collect", type=Path, help="folder for recovery rows; needs exactly one --planner")
    return parser.parse_args()


def planner_spec(text: str) -> PolicySpec:
    name, _, folder = text.partition("=")
    if not name or not folder or "/" in name or name in (*UNTRAINED, BLIND_STATUS):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not NAME=FOLDER with a name of its own, as in mine=outputs/mine"
        )
    return PolicySpec(name, PLANNER, folder)


def check_arguments(arguments: argparse.Namespace) -> None:
    """Refuse what cannot be driven before anyone drives; takes the picture size from --world.

    Raises:
        FileNotFoundError, ValueError: names the option.
    """
    names = [spec.name for spec in arguments.planner]
    if len(set(names)) != len(names):
        raise ValueError(f"--planner: two planners have one name: {', '.join(names)}")
    for spec in arguments.planner:
        if not (Path(spec.source) / "config.json").is_file():
            raise FileNotFoundError(f"--planner {spec.name}={spec.source} is not a planner's folder")
    if arguments.collect is not None and len(names) != 1:
        raise ValueError(f"--collect takes the rows of one planner's drives: give one --planner, not {len(names)}")
    if arguments.world is not None:
        options = read_world(arguments.world)["options"]
        if options["seed"] == arguments.seed:
            raise ValueError(f"--seed {arguments.seed} is that of {arguments.world}: drive where nobody was trained")
        arguments.image_size = tuple(options["image_size"])


def blind_policy(rows: Path, output: Path) -> PolicySpec:
    """The blind ego status policy, trained where its file is not there yet.

    Raises:
        ValueError: the file there was trained on other rows.
    """
    from recipes.planning.blind import rows_of, train_blind_planner

    file = output / "blind.safetensors"
    if not file.is_file():
        train_blind_planner(rows).save(file, rows)
    if rows_of(file) != str(rows):
        raise ValueError(f"{file} was trained on {rows_of(file)}, not on --blind-rows {rows}: delete it")
    return PolicySpec(BLIND_STATUS, BLIND_STATUS, str(file))


def drive(arguments: argparse.Namespace) -> None:
    output, indices = arguments.output_dir, list(range(arguments.scenes))
    specs = [PolicySpec(kind, kind) for kind in arguments.policies]
    if arguments.blind_rows is not None:
        specs.append(blind_policy(arguments.blind_rows, output))
    specs += arguments.planner
    options = DriveOptions(arguments.seed, arguments.image_size, not arguments.no_plans)
    source = {"world_version": WORLD_VERSION, "seed": options.seed, "image_size": list(options.image_size)}
    if arguments.collect is not None:
        source |= {"policy": arguments.planner[0].name, "weights": digest_of(arguments.planner[0])}
        begin_rows(arguments.collect, source)
    for spec in specs:
        begin_folder(output / spec.name, spec, options)
    scenes, records = {}, {}
    for spec in specs:
        collects = arguments.collect is not None and spec.kind == PLANNER
        of_policy = replace(options, collect=arguments.collect if collects else None)
        folder = output / spec.name
        driven = drive_all(spec, of_policy, folder, indices, arguments.workers)
        for _ in tqdm(driven, total=len(indices), unit=" scenes", desc=spec.name, disable=None):
            pass
        records[spec.name] = read_records(folder, indices)
        scenes[spec.name] = scenes_of(records[spec.name])
    text, results = report(scenes, [spec.name for spec in arguments.planner])
    print(text)
    for name, of_policy in records.items():
        seconds = [moment["seconds"] for record in of_policy for moment in record["trace"]]
        print(f"{name}: {1000 * sum(seconds) / len(seconds):.1f} ms of processor time per plan, {len(seconds)} plans")
    write_json(output / "scores.json", {**source, "scenes": len(indices), "policies": results})
    if arguments.collect is not None:
        rows = finish_rows(arguments.collect, source, len(indices))
        print(f"{rows} recovery rows in {arguments.collect}; evaluate on another --seed than {options.seed}")


def main():
    arguments = parse_arguments()
    with stopped_in_one_line("drive"), errors_in_one_line("drive"):
        check_arguments(arguments)
        with sole_writer(arguments.output_dir):
            drive(arguments)


if __name__ == "__main__":
    main()
