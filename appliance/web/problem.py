"""What goes wrong, as HTTP answers: the one table error → status, and RFC 9457 documents.

Owns the errors that only HTTP knows. Invariant: a document holds no patient data: causes and hints
of our errors never quote a value, and other errors are not described.
"""

import msgspec
from aiohttp import web

from appliance.foundation import errors

RETRY_AFTER_S = 10


class HttpError(errors.AzekuraError):
    """A request that HTTP itself refuses; `status` says how."""

    status = 400


class BadRequest(HttpError):
    """The path or the parameters make no sense."""


class Unauthorized(HttpError):
    """Nobody that is known here asks."""

    status = 401


class Forbidden(HttpError):
    """Who asks may not do that."""

    status = 403


class NotAcceptable(HttpError):
    """No media type or transfer syntax of those that are accepted can be given."""

    status = 406


class Conflict(HttpError):
    """Nothing of what was sent could be stored."""

    status = 409


class TooLarge(HttpError):
    """The body is longer than is taken here."""

    status = 413


class UnsupportedMediaType(HttpError):
    """The body is of a kind that is not taken here."""

    status = 415


class TooMany(HttpError):
    """Too much at a time; later it will be better."""

    status = 429
    retry = True


_STATUSES: tuple[tuple[type[errors.AzekuraError], int], ...] = (
    (errors.NotFound, 404),
    (errors.ObjectMissing, 502),
    (errors.UsageError, 400),
    (errors.DatasetMismatch, 400),
    (errors.LimitExceeded, 413),
    (errors.DatasetNotUnderstood, 406),
    (errors.Refused, 400),
    (errors.NotAccepting, 503),
    (errors.OutOfSpace, 503),
    (errors.Busy, 503),
    (errors.IndexDamaged, 503),
    (errors.CloudUnavailable, 503),
    (errors.KeyUnavailable, 503),
    (errors.CloudError, 502),
)


class Refusal(HttpError):
    """What aiohttp refuses: no such path, no such method, a body that is too long."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__("answer", cause=reason)
        self.status = status


def refused(status: int, reason: str) -> HttpError:
    """Return the error for a status that aiohttp decided."""
    return Refusal(status, reason)


def status_of(error: errors.AzekuraError) -> int:
    """Return the HTTP status of an error; 500 for one without its own."""
    if isinstance(error, HttpError):
        return error.status
    return next((status for kind, status in _STATUSES if isinstance(error, kind)), 500)


def problem_response(error: errors.AzekuraError) -> web.Response:
    """Return the answer that says what is wrong and what can be done (RFC 9457)."""
    status = status_of(error)
    document = {
        "title": type(error).__name__,
        "status": status,
        "detail": error.cause or error.operation,
    }
    if error.hint:
        document["hint"] = error.hint
    headers = {}
    if status in (429, 503):
        headers["Retry-After"] = str(RETRY_AFTER_S)
    if status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="Azekura"'
    return web.Response(
        status=status,
        body=msgspec.json.encode(document),
        content_type="application/problem+json",
        headers=headers,
    )
