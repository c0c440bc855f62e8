"""What can go wrong, in types that a program can catch. No error ever holds a value."""

from __future__ import annotations

import json

__all__ = [
    "BadRequest",
    "Denied",
    "Failed",
    "InvalidName",
    "KeyhatchError",
    "NoField",
    "NotFound",
    "NotText",
    "Protocol",
    "Quarantined",
    "RateLimited",
    "Refused",
    "Sealed",
    "TimedOut",
    "Unavailable",
    "Unreachable",
    "UpstreamFailed",
    "UpstreamTimeout",
]


class KeyhatchError(Exception):
    """Why a request was not answered with what it asked for."""

    code: str | None
    """The stable code of the agent's problem document, such as `denied`; None where the agent said none."""
    status: int | None
    """The HTTP status; None where there was no answer."""
    request_id: str | None
    """Leads to the audit record of the request."""
    may_heal = False
    """It looks as it does while an agent restarts."""

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        status: int | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.status = status
        self.request_id = request_id

    @property
    def is_temporary(self) -> bool:
        """Whether the same request may well succeed a little later."""
        return isinstance(self, _TEMPORARY) or (isinstance(self, Failed) and (self.status or 0) >= 500)


class Denied(KeyhatchError):
    """The policy does not allow it, or there is no such secret: the agent gives the same answer for both."""


class Quarantined(KeyhatchError):
    """The bot is quarantined until an operator releases it."""


class NotFound(KeyhatchError):
    """No such secret, version or field; only told to a bot that may read or list the name."""


class Sealed(KeyhatchError):
    """The agent is sealed: it holds no values until an operator unseals it."""


class Unavailable(KeyhatchError):
    """The source is down and the last good value too old, or no audit record can be kept. Try again later."""


class RateLimited(KeyhatchError):
    """Too many requests; `retry_after` is how many seconds to wait, where the agent said so."""

    retry_after: float | None = None


class BadRequest(KeyhatchError):
    """The agent does not understand the request."""


class UpstreamFailed(KeyhatchError):
    """The upstream of a route could not be asked, or gave no answer that can be passed on."""


class UpstreamTimeout(KeyhatchError):
    """The upstream of a route was silent for too long."""


class Failed(KeyhatchError):
    """Any other refusal, such as a fault of the agent's own."""


class Refused(KeyhatchError):
    """What listens at the socket is not the agent's user, so nothing was sent to it."""


class Unreachable(KeyhatchError):
    """Nobody listens at the socket, or the connection broke."""


class TimedOut(KeyhatchError):
    """The agent did not answer in time."""


class Protocol(KeyhatchError):
    """The answer is not one that an agent gives."""


class InvalidName(KeyhatchError, ValueError):
    """The text asked for is not a secret name; nothing was sent."""


class NoField(KeyhatchError, LookupError):
    """The value is not a JSON object with this field."""


class NotText(KeyhatchError, ValueError):
    """The value is not UTF-8 text: read it as bytes."""


_TEMPORARY = (Sealed, Unavailable, RateLimited, Unreachable, TimedOut, UpstreamFailed, UpstreamTimeout)

_BY_CODE: dict[str, type[KeyhatchError]] = {
    "denied": Denied,
    "quarantined": Quarantined,
    "not_found": NotFound,
    "sealed": Sealed,
    "upstream_unavailable": Unavailable,
    "audit_unavailable": Unavailable,
    "timeout": Unavailable,
    "upstream_failed": UpstreamFailed,
    "upstream_timeout": UpstreamTimeout,
    "rate_limited": RateLimited,
    "bad_request": BadRequest,
    "too_large": BadRequest,
    "headers_too_large": BadRequest,
}

_BY_STATUS: dict[int, type[KeyhatchError]] = {
    400: BadRequest,
    403: Denied,
    404: NotFound,
    408: Unavailable,
    413: BadRequest,
    429: RateLimited,
    431: BadRequest,
    503: Unavailable,
}


def bare(error: KeyhatchError) -> KeyhatchError:
    """The error without its frames and causes: they may hold part of a value, and some tracebacks print locals."""
    error.__context__ = error.__cause__ = None
    return error.with_traceback(None)


def malformed(what: str) -> Protocol:
    """The error for an answer that no agent gives."""
    return Protocol(f"the answer is not one of a Keyhatch agent: {what}")


def from_answer(status: int, retry_after: float | None, body: bytes | bytearray) -> KeyhatchError:
    """The error that an answer other than 200 tells of."""
    problem = _problem(body)
    if problem is None:
        kind = _BY_STATUS.get(status, Failed)
        error = kind(f"the answer says no more than its status (status {status})", status=status)
    else:
        code, detail, request_id = problem
        kind = _BY_CODE.get(code, Failed)
        named = f"{code}, request {request_id}" if request_id else code
        error = kind(f"{detail} ({named})", code=code, status=status, request_id=request_id or None)
    if isinstance(error, RateLimited):
        error.retry_after = retry_after
    return error


def _problem(body: bytes | bytearray) -> tuple[str, str, str] | None:
    """Code, detail and request id of a problem document (RFC 9457)."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict):
        return None
    code, title, request_id = document.get("code"), document.get("title"), document.get("request_id")
    detail = document.get("detail")
    if not (isinstance(code, str) and isinstance(title, str) and isinstance(request_id, str)):
        return None
    return one_line(code), one_line(detail if isinstance(detail, str) else title), one_line(request_id)


def one_line(text: str) -> str:
    """Text for a terminal or a log: a control character cannot start a line or an escape sequence of its own."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)
