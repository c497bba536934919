"""The RQ job that runs one of two functions and no other.

JSON keeps code out of the queue, but RQ would still import and call whatever dotted name a job carries, and four
kinds of call-backs besides. Here a job names an improve job's function or a helper's, or it fails.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from rq.job import Job

from core.errors import BadInput
from core.wire import HELP_FUNCTION, IMPROVE_FUNCTION


class AllowedJob(Job):
    """A job that may run `function` or HELP_FUNCTION only. A subclass names another function."""

    function: ClassVar[str] = IMPROVE_FUNCTION

    @property
    def func(self) -> Callable[..., Any] | None:
        """The function to run. Raises BadInput for any but the allowed ones, before anything is imported."""
        if self.func_name not in (self.function, HELP_FUNCTION) or self.instance is not None:
            raise BadInput("function", self.func_name, f"{self.function} or {HELP_FUNCTION}")
        function: Callable[..., Any] | None = super().func
        return function

    def restore(self, raw_data: Any) -> Any:  # noqa: ANN401  (RQ's signature)
        """Read the job from Redis, without call-backs and webhooks: we enqueue none, so any is foreign."""
        super().restore(raw_data)
        self._success_callback_name = self._failure_callback_name = self._stopped_callback_name = None
        self.webhooks = []
