"""The tree of all errors that this project raises on purpose; `app/http/problems.py` maps it to HTTP in one table.

SafeCBError
|- BadInput             the caller's value is wrong (field, value and what is allowed are named)
|  `- BadSetting        the same, for an environment variable: the process does not start
|- Refused              the active version draws no image for such a prompt
|- NotFound             no such version, job or image
|  `- UnknownModel      no model of that name is served
|- Conflict             the state has changed: another epoch, another running job
|- BadCodebook          a stored version fails a check; the reason names which
|- BadModel             a model folder cannot be served; the reason names why
|- BadNumber            a model, a table or a judge came to NaN or infinity: its image is refused
`- Unavailable          try again later: Redis away, model still loading
   |- Busy              the same, because the queue is full
   |- Stopping          the same, because the server is shutting down
   `- NoStorage         a file cannot be read or written now; it is named (core/storage.py has the reasons)
      |- NoRoom         its disk is full or its quota used up
      |- NoAccess       its disk is read-only or fails, a right is missing, or too many files are open
      `- NoBucket       an object of the bucket: its server does not answer, or refuses this process
"""

import math
from pathlib import Path


class SafeCBError(Exception):
    """Base of the tree; its text is meant for the caller."""


class BadInput(SafeCBError):
    """A value of the caller is not allowed.

    field: its name, as the caller writes it. value: the value. allowed: the values that are allowed.
    """

    def __init__(self, field: str, value: object, allowed: str) -> None:
        self.field, self.value, self.allowed = field, value, allowed
        super().__init__(f"{field}: {value!r} is not allowed; expected {allowed}")


class BadSetting(BadInput):
    """An environment variable holds a value that is not allowed."""


class Refused(SafeCBError):
    """A codebook version of mode "refuse" fires for an image."""

    def __init__(self, version: str) -> None:
        self.version = version
        super().__init__(f"codebook version {version} refuses to draw this prompt")


class NotFound(SafeCBError):
    """The thing named does not exist."""


class UnknownModel(NotFound):
    """No model of the name in the request is served."""


class Conflict(SafeCBError):
    """The request contradicts the present state."""


class BadCodebook(SafeCBError):
    """A codebook version failed a check and was refused. `check` is the short name of the check."""

    def __init__(self, version: str, check: str, detail: str) -> None:
        self.version, self.check, self.detail = version, check, detail
        super().__init__(f"codebook {version} refused ({check}): {detail}")


class BadModel(SafeCBError):
    """A model folder or name cannot be loaded or served."""


class BadNumber(SafeCBError):
    """A computed value is NaN, infinite or out of its range, so that nothing can be decided by it.

    `part` names the value ("logits", "pixels", "verdict", a judge), `detail` its fault; `version` is the codebook
    version of the image, "" where there is none.
    """

    def __init__(self, part: str, detail: str = "NaN or infinity", version: str = "") -> None:
        self.part, self.detail, self.version = part, detail, version
        super().__init__(f"{part}: {detail}")


class Unavailable(SafeCBError):
    """A temporary failure; `retry_after` is the whole number of seconds, at least 1, after which to try again."""

    def __init__(self, detail: str, retry_after: float = 1.0) -> None:
        self.retry_after = max(1, math.ceil(retry_after))
        super().__init__(detail)


class Busy(Unavailable):
    """The queue is full."""


class Stopping(Unavailable):
    """The server is shutting down: it refuses new requests and may abort accepted ones."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down", retry_after=5.0)


class NoStorage(Unavailable):
    """A file or folder cannot be read or written; the service recovers by itself once the reason is gone.

    path: for logs; callers see its last component only. state: the reason in a word or two. remedy: what to do.
    """

    def __init__(self, path: Path, state: str, remedy: str) -> None:
        self.path, self.state, self.remedy = path, state, remedy
        super().__init__(self.about(path.name), retry_after=10)

    def about(self, name: object) -> str:
        """Return the error's text with another name of the file, such as its full path."""
        return f"{name} cannot be used: {self.remedy}"


class NoRoom(NoStorage):
    """The disk is full."""


class NoAccess(NoStorage):
    """A file cannot be opened, read or changed."""


class NoBucket(NoStorage):
    """An object in a bucket cannot be read or written. `key`: the URL of the object, for logs."""

    def __init__(self, key: str, state: str, remedy: str) -> None:
        super().__init__(Path(key), state, remedy)
        self.key = key

    def about(self, name: object) -> str:
        """Return the error's text; callers see the setting."""
        return f"SAFECB_STORE cannot be used: {self.remedy}"
