"""The plan of an improve job, as responses hold it.

Knows shapes of JSON. Knows nothing of how a plan comes about.
"""

from __future__ import annotations

from pydantic import BaseModel, Field


class PlannedPhase(BaseModel):
    """One phase of an improve job."""

    phase: str = Field(description="Name of the phase.")
    round: int = Field(description="Number of the round; 0 before the first and after the last.")
    images: int = Field(description="Images that the phase draws.")
    seconds: float | None = Field(description="Estimated seconds; null before anything was measured.")
    spent: float | None = Field(default=None, description="Seconds spent in the phase so far.")


class PlanResponse(BaseModel):
    """The phases of an improve job and their price. A job may end after fewer rounds than planned."""

    phases: list[PlannedPhase] = Field(description="Phases in order.")
    images_planned: int = Field(description="Images that all phases draw.")
    images_done: int = Field(default=0, description="Images of the plan that the job is past.")
    seconds: float | None = Field(description="Estimated seconds of all phases; null before anything was measured.")
    seconds_left: float | None = Field(default=None, description="Estimated seconds until the end, when last reported.")
    eta: str | None = Field(default=None, description="Estimated time of the end: UTC, ISO 8601.")
    memory: int = Field(description="Bytes that the job holds beside the model, at the most: features and logits.")
