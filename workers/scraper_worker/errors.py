"""What a scraper raises to say how an item failed, and what the SDK raises about itself."""

from __future__ import annotations


class WorkerError(Exception):
    """The base of everything that the SDK raises on purpose."""


class ItemError(WorkerError):
    """An item failed; the subclass says what shall become of it.

    Args:
        message: one sentence for the operator.
        signature: a short stable name that groups like failures; derived from the class and message if None.
        status: the HTTP status behind it, if there was one.
        retry_after: seconds, from now, that the target asked us to wait.
    """

    def __init__(
        self,
        message: str = "",
        *,
        signature: str | None = None,
        status: int | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message or type(self).__name__)
        self.signature = signature
        self.status = status
        self.retry_after = retry_after


class TransientError(ItemError):
    """The item may well succeed if it is tried again later."""


class PermanentError(ItemError):
    """The item can't succeed: it is failed for good and not tried again."""


class BlockedError(ItemError):
    """The target holds us off (429, 403, a challenge page): try again later, and it costs the item no attempt."""


class InfrastructureError(ItemError):
    """Browser, driver or supervisor failed, not the item: it is tried again and costs no attempt."""


class SessionExpired(ItemError):
    """The site knows us no more: `process(login=f)` logs in anew and tries the item again; without it, permanent."""


class LoginFailed(WorkerError):
    """The login failed too often in a row; the worker must end.

    Args:
        message: one sentence for the operator.
        permanent: whether the last failure was, as with refused credentials, so that no new start would mend it.
    """

    def __init__(self, message: str, *, permanent: bool) -> None:
        super().__init__(message)
        self.permanent = permanent


class UsageError(WorkerError):
    """The SDK was called in a way that it can't serve; the message names the remedy."""


class SetupError(UsageError):
    """The worker's own set-up is wrong: every start would end like this one, so the process exits with 78."""


class Refused(WorkerError):
    """The supervisor refused this worker's credentials; the process must end."""


class SupervisorLost(WorkerError):
    """No supervisor answered for so long that the worker must end."""


class CallError(WorkerError):
    """The supervisor answered a call with an error.

    Args:
        code: JSON-RPC or application error code.
        message: the supervisor's sentence.
        data: the error's data, if any.
    """

    def __init__(self, code: int, message: str, data: object = None) -> None:
        super().__init__(f"{message} ({code})")
        self.code = code
        self.data = data


class BrowserUnavailable(WorkerError):
    """No browser could be started, which no item is to blame for; the worker must end."""


class BrowserUnusable(BrowserUnavailable):
    """No other try would start a browser: its options are wrong, or none is installed. It is the worker's set-up."""


class StateMismatch(WorkerError):
    """A saved state does not fit the registered schema, and no migration leads there; the state itself is untouched."""
