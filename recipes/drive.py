"""Let planners drive in the synthetic world, and score how they drive.

python recipes/drive.py --planner guided=outputs/guided --blind-rows outputs/planning --output-dir outputs/drive

Everyone drives the same scenes of an unseen world: the expert for 2 s, then the policy for the rest of the
20 s, with a new plan each half second. Beside the planners drive the expert (the ceiling), constant velocity, a lane
follower that sees nothing, and with --blind-rows (a prepared planning folder) a network that knows the ego's status
and sees nothing. With --guard (a SmolDriver's folder) the planners also drive guarded, in rows of their own, and a
table apart counts what the guard did. `recipes/metrics/driving` has the scores. An interrupted run resumes; the output
folder then holds

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
from data_scripts.world.scenarios import SCENARIOS
from recipes.driving.collect import begin_rows, finish_rows
from recipes.driving.drives import (
    DriveOptions,
    Drives,
    begin_folder,
    digest_of,
    drive_all,
    read_records,
    scenes_in,
    scenes_of,
)
from recipes.driving.policies import BLIND_STATUS, PLANNER, UNTRAINED, PolicySpec, guarded_policies
from recipes.driving.tables import guard_table, report, times_per_plan
from recipes.planning.guard import RATE
from smoldriver_common.command_line import errors_in_one_line, named_folder, stopped_in_one_line, whole_number
from smoldriver_common.whole_files import sole_writer, write_json


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--output-dir", required=True, type=Path)
    add("--planner", type=named_folder, action="append", default=[], help="NAME=FOLDER; may be given several times")
    add("--guard", type=Path, help="SmolDriver whose answers guard the planners, each as a policy of its own")
    add("--guarded", nargs="+", metavar="NAME", help="planners that it guards; default: all")
    add("--guard-rate", type=float, default=RATE, help="times per second that it asks")
    add("--policies", nargs="*", choices=UNTRAINED, default=list(UNTRAINED), help="who drives beside them")
    add("--blind-rows", type=Path, help="prepared planning folder on which the blind ego status policy is trained")
    add("--scenes", type=whole_number(), default=100)
    add("--scenario", choices=SCENARIOS, help="drive only scenes where the ego has to deal with this")
    add("--seed", type=whole_number(0, MAX_SEED), default=9001, help="of the world: not one that was trained on")
    add("--world", type=Path, help="the world that was trained in: its picture size is taken, its seed is refused")
    add("--image-size", type=image_size, default=(160, 90), help="WIDTHxHEIGHT of the pictures, without --world")
    add("--no-plans", action="store_true", help="leave out the scores of single plans, a seventh of the time")
    add("--workers", type=whole_number(1, 256), default=1)
    add("--collect", type=Path, help="folder for recovery rows; needs exactly one --planner")
    arguments = parser.parse_args()
    arguments.planner = [PolicySpec(name, PLANNER, str(folder)) for name, folder in arguments.planner]
    return arguments


def check_arguments(arguments: argparse.Namespace) -> None:
    """Refuse what cannot be driven before anyone drives; takes the picture size from --world.

    Raises:
        FileNotFoundError, ValueError: names the option.
    """
    names = [spec.name for spec in arguments.planner]
    if len(set(names)) != len(names):
        raise ValueError(f"--planner: two planners have one name: {', '.join(names)}")
    if taken := set(names) & {*UNTRAINED, BLIND_STATUS}:
        raise ValueError(f"--planner {taken.pop()}=...: another driver has this name, give one of its own")
    for spec in arguments.planner:
        if not (Path(spec.source) / "config.json").is_file():
            raise FileNotFoundError(f"--planner {spec.name}={spec.source} is not a planner's folder")
    guarded_policies(arguments.planner, arguments.guard, arguments.guarded, arguments.guard_rate)
    if arguments.collect is not None and len(names) != 1:
        raise ValueError(f"--collect takes the rows of one planner's drives: give one --planner, not {len(names)}")
    if arguments.world is not None:
        options = read_world(arguments.world)["options"]
        if options["seed"] == arguments.seed:
            raise ValueError(f"--seed {arguments.seed} is that of {arguments.world}: drive where nobody was trained")
        arguments.image_size = tuple(options["image_size"])


def policies(arguments: argparse.Namespace) -> list[PolicySpec]:
    """Who drives, in the order of the tables; trains the blind one where its file is not there yet."""
    specs = [PolicySpec(kind, kind) for kind in arguments.policies]
    if arguments.blind_rows is not None:
        from recipes.planning.blind_planner import status_planner_file

        file = status_planner_file(arguments.blind_rows, arguments.output_dir)
        specs.append(PolicySpec(BLIND_STATUS, BLIND_STATUS, str(file)))
    guarded = guarded_policies(arguments.planner, arguments.guard, arguments.guarded, arguments.guard_rate)
    return specs + arguments.planner + guarded


def drive(arguments: argparse.Namespace) -> None:
    output, specs = arguments.output_dir, policies(arguments)
    indices = scenes_in(arguments.seed, arguments.scenes, arguments.scenario)
    options = DriveOptions(arguments.seed, arguments.image_size, not arguments.no_plans)
    source = {"world_version": WORLD_VERSION, "seed": options.seed, "image_size": list(options.image_size)}
    if arguments.collect is not None:
        source |= {"policy": arguments.planner[0].name, "weights": digest_of(arguments.planner[0])}
        begin_rows(arguments.collect, source)
    drives = [Drives(spec, options_of(spec, options, arguments.collect), output / spec.name) for spec in specs]
    for of_policy in drives:
        begin_folder(of_policy.folder, of_policy.spec, of_policy.options)
    jobs = [(of_policy, index) for of_policy in drives for index in of_policy.missing(indices)]
    with tqdm(total=len(jobs), unit=" scenes", disable=None) as progress:
        for (of_policy, _), _ in zip(jobs, drive_all(jobs, arguments.workers), strict=True):
            progress.set_description(of_policy.spec.name, refresh=False)
            progress.update()
    records = {of_policy.spec.name: read_records(of_policy.folder, indices) for of_policy in drives}
    scenes = {name: scenes_of(driven) for name, driven in records.items()}
    text, results = report(scenes, [spec.name for spec in arguments.planner])
    guarded = {spec.name: records[spec.name] for spec in specs if spec.guard}
    print(text, *([guard_table(guarded)] if guarded else []), times_per_plan(records), sep="\n\n")
    write_json(output / "scores.json", {**source, "scenes": len(indices), "policies": results})
    if arguments.collect is not None:
        rows = finish_rows(arguments.collect, source, len(indices))
        print(f"{rows} recovery rows in {arguments.collect}; evaluate on another --seed than {options.seed}")


def options_of(spec: PolicySpec, options: DriveOptions, collect: Path | None) -> DriveOptions:
    """A guard acts over time, so a guarded policy has no scores of single plans; and its states are not collected."""
    if spec.guard:
        return replace(options, plans=False)
    return replace(options, collect=collect if spec.kind == PLANNER else None)


def main():
    arguments = parse_arguments()
    with stopped_in_one_line("drive"), errors_in_one_line("drive"):
        check_arguments(arguments)
        with sole_writer(arguments.output_dir):
            drive(arguments)


if __name__ == "__main__":
    main()
