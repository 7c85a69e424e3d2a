"""Bounds on a model hub's answers: the bytes of a listing or a refusal, and the time for a listing.

huggingface_hub reads such an answer into memory however long it is, and its limits of time are for
each read. Its versions bring different HTTP clients (requests, httpx, httpx2), which all have hooks
that get a response before its body is read: there the body is read within bounds.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from edgeprism.errors import PullError

LARGEST_LISTING = 32 << 20  # bytes; a hundred thousand files take about 20 MB
LARGEST_REFUSAL = 64 << 10  # bytes of a refusal's text, of which the rest is not read
ANSWER_S = 120.0
_CHUNK = 64 << 10
_ENDLESS = "Check HF_ENDPOINT: what answers there may be no sound model hub."
_current = threading.local()  # `bounds` is set while this thread asks a hub for EdgePrism
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class _Bounds:
    what: str  # for errors
    deadline: float  # of `time.monotonic`
    transfers: bool  # a file is fetched, whose bytes `hub_trust` counts


def ask_within(
    hub: Any, what: str, request: Callable[[], _Result], seconds: float | None = None
) -> _Result:
    """Return the answer to a request that huggingface_hub makes; PullError if it has no end.

    The request runs in a thread, because nothing else bounds the time for a name, a handshake and
    a header as well. If its time is over, the thread ends with the next byte that comes.

    Args:
        hub: The library.
        what: The repository, for errors.
        request: Calls the library.
        seconds: For the whole answer; by default `ANSWER_S`.
    """
    seconds = ANSWER_S if seconds is None else seconds
    results: list[_Result] = []
    errors: list[BaseException] = []

    def ask() -> None:
        try:
            with _bounded(hub, _Bounds(what, time.monotonic() + seconds, transfers=False)):
                results.append(request())
        except BaseException as error:  # raised again in the thread that asked
            errors.append(error)

    thread = threading.Thread(target=ask, name="hub-request", daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise _too_slow(what, seconds)
    return results[0]


@contextlib.contextmanager
def bounded_refusals(hub: Any, what: str) -> Iterator[None]:
    """Read no more than the beginning of a refusal while this thread fetches a file."""
    with _bounded(hub, _Bounds(what, float("inf"), transfers=True)):
        yield


@contextlib.contextmanager
def _bounded(hub: Any, bounds: _Bounds) -> Iterator[None]:
    _add_hook(hub)
    _current.bounds = bounds
    try:
        yield
    finally:
        _current.bounds = None


def _add_hook(hub: Any) -> None:
    """Add the hook to the library's client, which it may have made anew since the last request."""
    session = hub.utils.get_session()
    hooks = getattr(session, "event_hooks", None) or getattr(session, "hooks", None)
    added = hooks.get("response") if isinstance(hooks, dict) else None
    if not isinstance(added, list):
        raise PullError(
            f"This huggingface_hub ({hub.__version__}) is not known: its HTTP client has no hooks, "
            "so what a hub answers cannot be bounded.",
            "Install one that is: pip install 'huggingface_hub==0.36.*'",
        )
    if _read_within_bounds not in added:
        added.append(_read_within_bounds)


def _read_within_bounds(response: Any, **_: object) -> None:
    """Read a response's body; in threads that ask nothing for EdgePrism, leave it as it is."""
    bounds: _Bounds | None = getattr(_current, "bounds", None)
    refused = not 200 <= response.status_code < 300
    if bounds is None or (bounds.transfers and not refused):
        return
    most = LARGEST_REFUSAL if refused else LARGEST_LISTING
    with_requests = hasattr(response, "iter_content")
    body = bytearray()
    for chunk in response.iter_content(_CHUNK) if with_requests else response.iter_bytes():
        body += chunk
        if len(body) > most:
            break
        if time.monotonic() > bounds.deadline:
            break
    response.close()  # what is left of the body is not read
    if len(body) > most and not refused:
        raise PullError(f"{bounds.what}: the hub's answer exceeds {most >> 20} MB.", _ENDLESS)
    # Where each of the three clients keeps a body that was read. If it were another place, they
    # would say that the body is gone.
    response._content = bytes(body[:most])


def _too_slow(what: str, seconds: float) -> PullError:
    return PullError(
        f"{what}: the hub's answer was not complete after {seconds:g} s.",
        f"Check the network and try again. {_ENDLESS}",
    )
