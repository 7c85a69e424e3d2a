"""What the server answers instead of a result: a status, a sentence, and what to do about it."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from typing import Any

from edgeprism.errors import (
    DeviceError,
    EdgePrismError,
    ImageError,
    Interrupted,
    ModelError,
    NoAnswerError,
    PromptTooLongError,
    RepetitionError,
    ReplyError,
    ServerError,
    UsageError,
)


class Refusal(Exception):
    """A request that is not answered; `summary` says why, `hint` what to do.

    Args:
        status: HTTP's status code.
        code: A word for programs: "invalid_json", "queue_full", …
        headers: Sent with the answer.
    """

    def __init__(
        self,
        status: int,
        code: str,
        summary: str,
        hint: str = "",
        *,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(summary)
        self.status, self.code, self.summary, self.hint = status, code, summary, hint
        self.headers = dict(headers or {})


class ClientLeft(Exception):
    """The client has closed the connection: nobody reads an answer."""


# the first that an error belongs to → (status, code)
_STATUSES: tuple[tuple[type[EdgePrismError], int, str], ...] = (
    (ImageError, 400, "unreadable_picture"),
    (PromptTooLongError, 400, "prompt_too_long"),
    (UsageError, 400, "invalid_value"),
    (ModelError, 503, "model_unavailable"),
    (DeviceError, 503, "device_unavailable"),
    (ServerError, 502, "reasoner_unavailable"),
    (ReplyError, 502, "reasoner_failed"),
    (NoAnswerError, 502, "no_answer"),
    (RepetitionError, 502, "repetition"),
    (Interrupted, 503, "stopped"),
)


def to_refusal(error: BaseException) -> Refusal:
    """Return what to answer for an error; one that is not foreseen is told in a word only."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, EdgePrismError):
        for kind, status, code in _STATUSES:
            if isinstance(error, kind):
                return Refusal(status, code, one_line(error), error.hint)
        return Refusal(500, "failed", one_line(error), error.hint)
    if isinstance(error, MemoryError):
        return Refusal(503, "out_of_memory", "Memory ran out.", "Send less, or try again later.")
    return Refusal(500, "internal_error", "The server failed on this request.", "See its log.")


def let_go(error: BaseException) -> None:
    """Give back what the frames hold that an error went through, pictures among it.

    An error and these frames refer to each other, so they would stay until Python looks for such
    cycles. The places of the traceback stay.
    """
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        traceback.clear_frames(each.__traceback__)
        each = each.__cause__ or each.__context__


def one_line(error: EdgePrismError) -> str:
    """Return an error's summary and details as one line."""
    return " ".join([error.summary, *error.details])


def to_error(refusal: Refusal) -> dict[str, Any]:
    """Return a refusal as OpenAI's API writes errors; `hint` is ours."""
    kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
    kind = kinds.get(
        refusal.status, "invalid_request_error" if refusal.status < 500 else "server_error"
    )
    message = f"{refusal.summary} {refusal.hint}".strip()
    return {
        "message": message,
        "type": kind,
        "param": None,
        "code": refusal.code,
        "hint": refusal.hint,
    }
