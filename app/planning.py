"""The plan of an improve job that is not begun: a dry run of POST /improve.

Joins a request, its policy and the rates of the last finished job. Draws nothing and writes nothing.
"""

from __future__ import annotations

from app.improving import check_improve
from app.plan_schemas import PlanResponse
from app.schemas import ImproveBody
from app.service import Service
from core.wire import DEFAULT_ROUNDS
from engine.registry import has_beside
from safety.judges.grammar import REFEREE
from safety.policy.plan import plan_job


def plan_improve(body: ImproveBody, service: Service) -> PlanResponse:
    """The plan of the job that the body would begin, priced at the rates of the last finished job; null without one.

    Prompts of flags are not counted. Raises what check_improve raises; blocks.
    """
    policy, rates = check_improve(body, service), service.journal.rates()
    budget = body.budget.model_dump() if body.budget else {}
    plan = plan_job(
        policy,
        body.categories or policy.categories,
        rates,
        rounds=body.max_rounds or DEFAULT_ROUNDS,
        seed=body.seed or 0,
        operator=len(body.prompts or ()),
        edits=service.engine.facts.edits,
        **budget,
    )
    if not has_beside(service.settings.model, REFEREE):
        plan = plan.without_test()
    return PlanResponse(**plan.to_dict(rates), memory=plan.memory(service.engine.facts))
