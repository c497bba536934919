"""`safecb improve`: an improve job on the running server, with a policy of its own if a file is named.

Uses HTTP only. Knows nothing of what a policy holds.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from cli import demo
from cli.client import Client
from cli.plans import plan_lines
from core.errors import BadInput, SafeCBError
from core.settings import Settings
from core.wire import DEFAULT_ROUNDS

POLICY_TYPES = {".csv": "text/csv", ".jsonl": "application/jsonl"}
ACTIVATIONS: dict[str, bool | str] = {"yes": True, "no": False, "canary": "canary"}
BENIGN_TYPES = {".csv": "text/csv", ".txt": "text/plain"}


def main(arguments: Sequence[str] = ()) -> int:
    """Run an improve job to its end: 0 if it published a version, else 1.

    A dry run prints its plan: 0. Without following, the job's id is printed once it has begun: 0.
    """
    options = _parser().parse_args(arguments)
    try:
        with closing(Client.of(Settings.from_environ(os.environ))) as client:
            if options.dry_run:
                print("\n".join(plan_lines(client.plan(**request(client, options)))))
                return 0
            if not options.follow:
                print(client.improve(**request(client, options)))
                return 0
            return 1 if demo.improve(client, **request(client, options)) is None else 0
    except SafeCBError as error:
        print(f"safecb: {error}", file=sys.stderr)
        return 1


def request(client: Client, options: argparse.Namespace) -> dict[str, Any]:
    """The body of POST /improve; uploads the policy if it is a file."""
    body = {
        "policy": upload(client, options.policy, options.benign),
        "second_judge": options.second_judge,
        "categories": options.categories and names(options.categories),
        "max_rounds": options.rounds,
        "seed": options.seed,
        "budget": budget(options),
        "activate": not options.no_activate and ACTIVATIONS[options.activate],
        "accept_self_judged": options.accept_self_judged,
    }
    return {name: value for name, value in body.items() if value is not None}


def budget(options: argparse.Namespace) -> dict[str, int] | None:
    """The budget of a round by the options; None without any."""
    limits = {"images": options.images, "minutes": options.minutes}
    return {name: value for name, value in limits.items() if value is not None} or None


def upload(client: Client, policy: str | None, benign: Path | None) -> str | None:
    """The name of the policy: of its file, uploaded under its stem, or as it is; None for none.

    Raises BadInput for a file that cannot be read, and benign prompts without a policy.
    """
    if benign is not None and policy is None:
        raise BadInput("--benign", str(benign), "--policy too: benign prompts stand beside a policy")
    if policy is None:
        return None
    # Both are read before anything is sent.
    beside = None if benign is None else (_read("--benign", benign, BENIGN_TYPES), BENIGN_TYPES[benign.suffix.lower()])
    if not is_file(policy):
        name = policy
    else:
        path = Path(policy)
        name, data = path.stem, _read("--policy", path, POLICY_TYPES)
        summary = client.put_policy(name, data, POLICY_TYPES[path.suffix.lower()])
        print(f"  policy {name}: {', '.join(summary['categories'])}")
    if beside is not None:
        client.put_policy(f"{name}/benign", *beside)
    return name


def is_file(policy: str) -> bool:
    """Whether a policy is named by its file; names of policies hold no dot."""
    return "." in policy or os.sep in policy


def names(listed: str) -> list[str]:
    """The names in a list with commas between."""
    return [name.strip() for name in listed.split(",")]


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that say what a job works on."""
    parser.add_argument("--policy", metavar="NAME|FILE", help="a policy of the server, or a .csv or .jsonl file")
    parser.add_argument("--benign", type=Path, metavar="FILE", help="benign prompts beside it: .txt or .csv")
    parser.add_argument("--second-judge", metavar="NAME", help="the independent judge, such as opennsfw")
    parser.add_argument(
        "--accept-self-judged", action="store_true", help="activate though the second judge knows not every category"
    )
    parser.add_argument("--categories", metavar="A,B", help="categories of the policy; all without it")
    parser.add_argument("--rounds", type=int, help=f"the most rounds, 1 to 8; {DEFAULT_ROUNDS} without it")
    parser.add_argument("--seed", type=int, help="of all randomness")
    parser.add_argument("--images", type=int, help="the most images that a round draws; about 12,000 without it")
    parser.add_argument("--minutes", type=int, help="the most minutes that a round takes, by the speed measured")


def _read(option: str, path: Path, types: dict[str, str]) -> bytes:
    if path.suffix.lower() not in types:
        raise BadInput(option, str(path), f"a file whose name ends in {' or '.join(types)}")
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadInput(option, str(path), f"a file that can be read ({error.strerror})") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="safecb improve", description="Run an improve job on the running server.")
    add_options(parser)
    parser.add_argument("--dry-run", action="store_true", help="print the plan of the job and begin none")
    parser.add_argument(
        "--follow",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="show progress until the job ends; --no-follow prints its id once it has begun",
    )
    parser.add_argument(
        "--activate",
        choices=ACTIVATIONS,
        default="yes",
        help="activate each version, none, or roll the last one out in steps",
    )
    parser.add_argument("--no-activate", action="store_true", help="as --activate no")
    return parser
