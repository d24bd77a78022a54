"""The one exception tree of VisionGate; it knows neither HTTP nor tensors.

    VisionGateError
    ├── InvalidRequest            the caller's fault, and the caller can mend it
    │   ├── InvalidImage          a picture that cannot be read, or breaks a limit of shape
    │   ├── InvalidParameter      a parameter out of its range (carries `param`)
    │   └── ContextOverflow       the prompt and the asked-for answer do not fit the context
    ├── TooLarge                  more bytes or pixels than the limit
    ├── Unavailable               not now; worth another try (carries `retry_after_seconds`)
    │   ├── Busy                  every place and every waiting place is taken
    │   ├── ModelNotLoaded        the model is loading, or could not be loaded
    │   ├── WorkerDied            the worker process ended while it held the request
    │   └── OutOfMemory           memory is short for this request now
    ├── DeadlineExceeded          the request's own deadline passed
    ├── InvalidCheckpoint         a model folder that cannot be loaded
    └── InvalidSettings           a setting that cannot work

The message is for the user: it states the limit, the value given and what to do. It never holds
another exception's text.
"""

from __future__ import annotations


class VisionGateError(Exception):
    """The base of every error that VisionGate raises on purpose."""

    @property
    def message(self) -> str:
        """The text for the user."""
        return str(self.args[0]) if self.args else type(self).__name__


class InvalidRequest(VisionGateError):
    """The request cannot be served as it stands."""


class InvalidImage(InvalidRequest):
    """A picture that is damaged, of an unsupported type, or of an impossible shape."""


class InvalidParameter(InvalidRequest):
    """A parameter is missing or out of its range.

    Attributes:
        param: the parameter's name as the caller wrote it.
    """

    def __init__(self, message: str, *, param: str) -> None:
        super().__init__(message)
        self.param = param

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.message, {"param": self.param})


class ContextOverflow(InvalidRequest):
    """The prompt, with room for one token, is longer than the model's context."""


class TooLarge(VisionGateError):
    """A body or a picture is larger than its limit."""


class Unavailable(VisionGateError):
    """The service cannot answer now.

    Attributes:
        retry_after_seconds: when another try makes sense.
    """

    def __init__(self, message: str, *, retry_after_seconds: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds

    def __reduce__(self) -> tuple[object, ...]:
        state = {"retry_after_seconds": self.retry_after_seconds}
        return _rebuild, (type(self), self.message, state)


class Busy(Unavailable):
    """Every running place and every waiting place is taken."""


class ModelNotLoaded(Unavailable):
    """The model is still loading, or failed to load."""


class WorkerDied(Unavailable):
    """The worker process ended while it held the request."""


class OutOfMemory(Unavailable):
    """Memory is too short for this request at this moment."""


class DeadlineExceeded(VisionGateError):
    """The request's own deadline passed before its answer was complete."""


class InvalidCheckpoint(VisionGateError):
    """A model folder is missing something, or holds a model that is not supported."""


class InvalidSettings(VisionGateError):
    """A setting has a value that cannot work; the message names it and its range."""


def _rebuild(
    cls: type[VisionGateError], message: str, keywords: dict[str, object]
) -> VisionGateError:
    """Makes an error again on the other side of a process border."""
    return cls(message, **keywords)
