"""`safecb check`: an improve job's preflight without a server, and all that such a job would draw and need.

Draws up to 80 images in this process; writes nothing. Knows nothing of the rounds of a job.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from app.improving import check_covers, check_judge
from cli.improve import add_options, is_file, names
from cli.own_process import ConsoleProgress
from cli.plans import GIB, plan_lines
from core.bucket.shared_folder import SharedFolder
from core.errors import BadInput, SafeCBError
from core.settings import Settings
from core.wire import DEFAULT_ROUNDS
from engine.registry import check_model, has_beside, open_model
from safety.gates.quality import FEWEST
from safety.gates.result import Gate
from safety.judges.grammar import REFEREE, is_covered
from safety.judges.names import parse_second_judge
from safety.metrics.panel import ValidationSet
from safety.metrics.rates import Rate
from safety.policy.files.file_policy import FilePolicy
from safety.policy.groups import BENIGN, GroupKind
from safety.policy.plan import rates_of
from safety.policy.policy import HARMLESS, Policy, lacking, refuse_unable
from safety.policy.policy_store import find_policy, usual_policy
from safety.request import ImproveRequest
from safety.runtime.preflight import LEAST, Preflight
from safety.runtime.run_context import RunContext, prepare_run
from safety.runtime.run_prompts import chosen_categories, flat


def main(arguments: Sequence[str] = ()) -> int:
    """Run the command: 0 where a job could begin, else 1."""
    options = _parser().parse_args(arguments)
    try:
        fault = check(options, Settings.from_environ(os.environ))
    except SafeCBError as error:
        fault = str(error)
    print(f"verdict: {'a job can begin' if fault is None else f'refused: {fault}'}")
    return 0 if fault is None else 1


def check(options: argparse.Namespace, settings: Settings) -> str | None:
    """Print what a job would begin with; return the reason why none can, or None.

    Raises BadInput and NotFound for a policy, a judge or a category that is none, before the model is loaded where
    possible; BadModel.
    """
    named = None if options.policy is None else _policy(options.policy, options.benign, settings)
    judge = options.second_judge or settings.second_judge
    check_judge(judge, settings.model)
    print(f"model: {check_model(settings.model, settings.device, settings.dtype)}")
    model = open_model(settings)
    policy = named or find_policy(usual_policy(model.facts.categories), SharedFolder.policies(settings).read())
    request = ImproveRequest(
        prompts=None,
        categories=None if options.categories is None else tuple(names(options.categories)),
        max_rounds=options.rounds or DEFAULT_ROUNDS,
        seed=options.seed or 0,
        accept_self_judged=options.accept_self_judged,
        images=options.images,
        minutes=options.minutes,
    )
    categories = chosen_categories(request, policy)
    print(f"policy: {policy.name} ({policy.version[:12]}), {', '.join(categories)}")
    if lack := lacking(policy, categories):
        return f"the policy lacks prompts: {lack}"
    refuse_unable(model.facts, policy, categories, ())
    if not options.accept_self_judged:
        check_covers(judge, settings.model, categories)
    second = parse_second_judge(judge, model, model.base_codebook().pixel.device)
    # A folder that holds nothing yet: images out of a cache would take no time.
    with tempfile.TemporaryDirectory(prefix="safecb-check-") as work:
        context = prepare_run(model, request, policy, second, Path(work), ConsoleProgress())
        for line in _lines(context, has_beside(settings.model, REFEREE)):
            print(line)
    return context.preflight.fault


def unmeasured(panel: ValidationSet, covers: frozenset[str] | None) -> list[Gate]:
    """The gates that have nothing to measure on with these validation prompts and this second judge."""
    benign, kinds = int(panel.where(BENIGN).sum()), {group.kind for group in panel.groups}
    measured = {
        Gate.SECOND_JUDGE: any(is_covered(covers, group.name) for group in panel.of_kind(GroupKind.CATEGORY)),
        Gate.LOOK_ALIKES: not kinds.isdisjoint(HARMLESS),
        Gate.QUALITY: benign >= FEWEST,
        Gate.RECOVERY: GroupKind.ATTACK in kinds,
        Gate.DIVERSITY: benign > 0,
        Gate.LANGUAGES: GroupKind.LANGUAGE in kinds,
    }
    return [gate for gate, is_measured in measured.items() if not is_measured]


def _policy(name: str, benign: Path | None, settings: Settings) -> Policy:
    """A policy by its name or its file."""
    if is_file(name):
        return FilePolicy.read(Path(name), benign)
    if benign is not None:
        raise BadInput("--benign", str(benign), "a policy that is a file too")
    return find_policy(name, SharedFolder.policies(settings).read())


def _lines(context: RunContext, tested: bool) -> Iterator[str]:
    """The report on a run that is prepared, a line a subject. tested: whether a referee measures its end."""
    prompts, ready, facts = context.prompts, context.preflight, context.runner.model.facts
    run = context.facts
    yield f"second judge: {run.second_judge}, knows {', '.join(run.covered) or 'none of the categories'}"
    yield from _agreement(ready)
    yield f"speed: {ready.images_per_s:.2f} images a second, drawn, decoded and judged by both"
    counts = {
        "pairs": sum(len(flat(groups)) for groups in prompts.pairs),
        "validation": len(prompts.validation.prompts),
        "test": len(prompts.heldout.prompts),
        "retention": len(prompts.retention),
        "canaries": len(prompts.canaries),
        "router": len(flat(prompts.router)),
        "router, benign": len(prompts.router_benign),
    }
    yield f"prompts: {'; '.join(f'{name} {count}' for name, count in counts.items())}"
    plan = prompts.plan if tested else prompts.plan.without_test()
    yield from plan_lines({**plan.to_dict(rates_of(ready.images_per_s)), "memory": plan.memory(facts)})
    yield _memory()
    gates = unmeasured(prompts.validation, context.second.covers)
    yield f"gates not measured: {', '.join(gates) or 'none'}"
    if context.matcher is None:
        yield "no matcher: quality and look_alikes cannot see whether images still show their prompts"
    if run.self_judged:
        yield f"self-judged: {', '.join(run.self_judged)}; versions stay inactive without --accept-self-judged"


def _agreement(ready: Preflight) -> Iterator[str]:
    """The own judge against the second one, on either kind of image."""
    if not ready.compared:
        yield "agreement: not measured, since the second judge knows none of the categories"
        return
    for rate, word in ((ready.seen, "harmful"), (ready.quiet, "harmless")):
        yield f"agreement: of {rate.n} images {word} to the second judge the model finds {_share(rate)} so"
    if ready.seen.n and ready.quiet.n:
        yield f"balanced accuracy: {ready.accuracy:.2f} (at least {LEAST}; chance is 0.5)"


def _share(rate: Rate) -> str:
    if not rate.n:
        return "none"
    low, high = rate.interval
    return f"{rate.count} ({rate.value:.2f}, 95 % interval {low:.2f}-{high:.2f})"


def _memory() -> str:
    """The peak of this process so far."""
    # macOS counts bytes, Linux KiB.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / GIB
    device = f", {torch.cuda.max_memory_allocated() / GIB:.2f} GiB on the GPU" if torch.cuda.is_available() else ""
    return f"memory: peak {peak:.2f} GiB so far, the model included{device}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="safecb check", description=__doc__)
    add_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
