"""Publish a trained SmolDriver or planner with its card, figures and report on the Hugging Face Hub, in one commit.

python recipes/push_to_hub.py --model outputs/smoldriver-2b-merged --evaluation outputs/eval-2b \
    --repo-id user/smoldriver --data drivelm --dry-run

The repository is private unless --public is given; --dry-run lists the files and contacts nobody. The card is
model_card.md or, for a planner that evaluate_planner.py evaluated, planner_card.md. It is filled in from the
evaluation's metrics.json, the training manifests and the model's config. A headline number without its interval or
its controls is refused, and so are numbers of other weights, and files or scores that were changed after the
evaluation. Only this version's own code is published, and no path of this machine.
"""

import argparse
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.utils import validate_repo_id

from recipes.evaluation.model_card import DATA
from recipes.evaluation.publishing import MODEL_FILES, matches
from recipes.evaluation.repository import repository_files
from recipes.serving.hub_files import HUB_FILES
from recipes.serving.space_files import SPACE_FILES, published_space
from recipes.training.manifest import TRAINING_MANIFEST
from smoldriver_common.command_line import errors_in_one_line, stopped_in_one_line

# The next push removes stale ones.
OWN_FILES = (*MODEL_FILES, *HUB_FILES, "figures/*.png", "report.html", TRAINING_MANIFEST)


def push(files: dict[str, Path | bytes], repo_id: str, public: bool, api: HfApi, kind: str = "model") -> str:
    """One commit with all files; creates the repository if it does not exist -> the commit's address.

    Args:
        kind: "model" or "space".

    Raises:
        ValueError: the repository exists and is public where a private one was asked for, or the reverse.
        ConnectionError: the push failed.
    """
    try:
        sdk, own = ("gradio", SPACE_FILES) if kind == "space" else (None, OWN_FILES)
        api.create_repo(repo_id, private=not public, exist_ok=True, repo_type=kind, space_sdk=sdk)
        there = api.repo_info(repo_id, repo_type=kind)
        if there.private == public:
            seen, asked = ("private", "leave out") if public else ("public", "give")
            raise ValueError(f"{repo_id} exists and is {seen}: {asked} --public, or give another --repo-id")
        stale = [file.rfilename for file in there.siblings or () if matches(file.rfilename, own)]
        operations = [CommitOperationDelete(name) for name in stale if name not in files]
        operations += [CommitOperationAdd(name, content) for name, content in files.items()]
        message = "SmolDriver with its evaluation" if kind == "model" else "A page that asks SmolDriver"
        return api.create_commit(repo_id, operations, commit_message=message, repo_type=kind).commit_url
    except ValueError:
        raise
    except Exception as error:  # also of the client's HTTP library, which differs between its versions
        causes = f"{error} {error.__cause__ or ''}".strip()
        raise ConnectionError(
            f"the push to {repo_id} failed: {causes} (a push is one commit: all of it is published or nothing)"
        ) from error


def listing(files: dict[str, Path | bytes]) -> str:
    sizes = {name: len(entry) if isinstance(entry, bytes) else entry.stat().st_size for name, entry in files.items()}
    lines = [f"{size:>15,}  {name}" for name, size in sizes.items()]
    return "\n".join([*lines, f"{sum(sizes.values()):>15,}  bytes in {len(files)} files"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=Path, help="whole model folder, as save_pretrained leaves it")
    parser.add_argument(
        "--evaluation", required=True, type=Path, help="--output-dir of evaluate_drivelm.py or of evaluate_planner.py"
    )
    parser.add_argument("--repo-id", required=True, help="user/name on the Hub")
    parser.add_argument(
        "--data", required=True, choices=list(DATA), help="what it was trained on; decides the licence"
    )
    parser.add_argument("--public", action="store_true", help="make the repository public; default: private")
    parser.add_argument("--space", action="store_true", help="publish the page of recipes/serving/space beside it")
    parser.add_argument("--dry-run", action="store_true", help="list the files and contact nobody")
    arguments = parser.parse_args()
    with errors_in_one_line("push_to_hub"):
        validate_repo_id(arguments.repo_id)
        if "/" not in arguments.repo_id:
            raise ValueError(f"--repo-id {arguments.repo_id!r} names no owner: give user/name")
        files, left = repository_files(
            arguments.model, arguments.evaluation, arguments.repo_id, arguments.data, arguments.space
        )
        print(listing(files))
        print(f"stays at home: {', '.join(left) or 'nothing'}")
        space = {}
        if arguments.space:
            space = published_space(arguments.repo_id, arguments.evaluation, arguments.data)
            print(f"the Space:\n{listing(space)}")
        visibility = "public" if arguments.public else "private"
        if arguments.dry_run:
            print(f"dry run: nothing was sent to {arguments.repo_id} ({visibility})")
        else:
            print(f"{visibility}: {push(files, arguments.repo_id, arguments.public, HfApi())}")
            if space:
                print(f"{visibility} Space: {push(space, arguments.repo_id, arguments.public, HfApi(), 'space')}")


if __name__ == "__main__":
    with stopped_in_one_line("push_to_hub"):
        main()
