"""RQ job with an allowlist of functions.

The JSON serialiser keeps code out of the queue, but RQ would still import and call any dotted name of a job, and four
kinds of callbacks. Here a job runs an improve job's function or an assistant worker's, or it fails.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from rq.job import Job

from core.errors import BadInput
from core.wire import HELP_FUNCTION, IMPROVE_FUNCTION


class AllowedJob(Job):
    """A job that may run `function` or HELP_FUNCTION only. A subclass may set another function."""

    function: ClassVar[str] = IMPROVE_FUNCTION

    @property
    def func(self) -> Callable[..., Any] | None:
        """The function to run. Raises BadInput for any other than the allowed ones, before anything is imported."""
        if self.func_name not in (self.function, HELP_FUNCTION) or self.instance is not None:
            raise BadInput("function", self.func_name, f"{self.function} or {HELP_FUNCTION}")
        function: Callable[..., Any] | None = super().func
        return function

    def restore(self, raw_data: Any) -> Any:  # noqa: ANN401  (RQ's signature)
        """Read the job from Redis without callbacks and webhooks: the service enqueues none."""
        super().restore(raw_data)
        self._success_callback_name = self._failure_callback_name = self._stopped_callback_name = None
        self.webhooks = []
