"""RQ job with an allowlist of functions.

The JSON serialiser keeps code out of the queue, but RQ would still import and call any dotted name of a job, and four
kinds of callbacks. Here a job runs the function of a kind of jobs or an assistant worker's, or it fails.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from rq.job import Job

from core.errors import BadInput
from core.wire import FUNCTIONS, HELP_FUNCTION


class AllowedJob(Job):
    """A job that may run HELP_FUNCTION or one of `functions`, by kind, only. A subclass may set others."""

    functions: ClassVar[Mapping[str, str]] = FUNCTIONS

    @property
    def func(self) -> Callable[..., Any] | None:
        """The function to run. Raises BadInput for any other than the allowed ones, before anything is imported."""
        allowed = (*self.functions.values(), HELP_FUNCTION)
        if self.func_name not in allowed or self.instance is not None:
            raise BadInput("function", self.func_name, f"one of {', '.join(allowed)}")
        function: Callable[..., Any] | None = super().func
        return function

    def restore(self, raw_data: Any) -> Any:  # noqa: ANN401  (RQ's signature)
        """Read the job from Redis without callbacks and webhooks: the service enqueues none."""
        super().restore(raw_data)
        self._success_callback_name = self._failure_callback_name = self._stopped_callback_name = None
        self.webhooks = []
