"""What a model hub's refusals and broken connections mean, in words."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType

from edgeprism.errors import HubUnreachableError, PullError

_AGAIN = "Run the same command again: it continues where this one stopped."
_NETWORK = f"Check the network, the proxy and HF_ENDPOINT. {_AGAIN}"
_LONGEST_WAIT_S = 60  # for which a hub may ask without an end of the command
_TOO_MANY, _UNAVAILABLE = 429, 503
_ASK_AGAIN = (408, _TOO_MANY, 500, 502, _UNAVAILABLE, 504)


def asked_to_wait(error: BaseException) -> float | None:
    """Return for how many seconds the hub asks to wait; None if it does not."""
    response = _response_of(error)
    headers: Mapping[str, str] = getattr(response, "headers", None) or {}
    text = str(headers.get("Retry-After", ""))
    if _status_of(error) not in _ASK_AGAIN or not re.fullmatch(r"[0-9]{1,6}", text):
        return None
    return float(text)


def is_final(hub: ModuleType, error: BaseException) -> bool:
    """Return whether another try would end in the same way, or has to wait too long."""
    if isinstance(error, RecursionError):  # the client follows redirects by calling itself
        return True
    status = _status_of(error)
    if status is not None:
        wait_s = asked_to_wait(error)
        return status not in _ASK_AGAIN or (wait_s is not None and wait_s > _LONGEST_WAIT_S)
    if isinstance(error, hub.errors.LocalEntryNotFoundError):
        return _is_unreachable(error)
    # a full disk has an errno
    refused = isinstance(error, hub.errors.HfHubHTTPError)
    return refused or getattr(error, "errno", None) is not None or _is_unreachable(error)


def _response_of(error: BaseException | None) -> object:
    """Return the hub's response that an error or one of its causes carries, or None."""
    for _ in range(5):
        response: object = getattr(error, "response", None)
        if getattr(response, "status_code", None) is not None:
            return response
        error = error.__cause__ or error.__context__ if error is not None else None
    return None


def _status_of(error: BaseException) -> int | None:
    status = getattr(_response_of(error), "status_code", None)
    return status if isinstance(status, int) else None


def _is_unreachable(error: BaseException) -> bool:
    """Return whether nobody answers at the address, which a second later is no better."""
    texts = [str(error), str(error.__cause__ or ""), str(error.__context__ or "")]
    return any(re.search("Connection refused|Failed to resolve|NameResolution", t) for t in texts)


@contextlib.contextmanager
def explained(
    hub: ModuleType,
    repo: str,
    revision: str,
    file: str = "",
    *,
    branches: Callable[[], list[str]] | None = None,
) -> Iterator[None]:
    """Turn every error of the hub's client into a PullError.

    `branches` asks the hub for the branches of a repository that lacks `revision`.
    """
    what = f"{repo}: {file}" if file else repo
    errors = hub.errors
    try:
        yield
    except PullError:
        raise
    except RecursionError as error:
        raise PullError(
            f"{what}: the hub redirects without end, or its answer is nested without end.",
            "Check HF_ENDPOINT.",
        ) from error
    except errors.GatedRepoError as error:
        raise PullError(
            f"{what}: access to the repository must be granted.",
            "Accept its terms on the model page, then set HF_TOKEN.",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise PullError(
            f"{what}: the hub has no such repository, or it is private.",
            "Check the name and HF_ENDPOINT; for a private repository set HF_TOKEN.",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise PullError(
            f"{what}: the repository has no revision {revision}.", _other_branches(branches)
        ) from error
    except errors.LocalEntryNotFoundError as error:
        if (status := _status_of(error)) is not None:
            raise _refusal(what, status, error) from error
        raise HubUnreachableError(f"{what}: the hub cannot be reached.", _NETWORK) from error
    except errors.EntryNotFoundError as error:
        raise PullError(
            f"{what}: the repository has no such file at {revision} (404).",
            "Its layout may have changed: please report it to the EdgePrism project.",
        ) from error
    except errors.HfHubHTTPError as error:
        raise _refusal(what, _status_of(error), error) from error
    except Exception as error:  # the client's transports raise their own kinds of errors
        first = (str(error).splitlines() or [type(error).__name__])[0]
        unreachable = re.search(r"(Failed to |timed out|Connection refused)[^\"()]*", first)
        if getattr(error, "errno", None) is not None:
            raise PullError(f"{what}: {first}.", "Check the disk and HF_HOME.") from error
        if unreachable:
            reason = unreachable[0].replace("\\", "").strip()
            message = f"{what}: the hub cannot be reached ({reason})."
            raise HubUnreachableError(message, _NETWORK) from error
        raise PullError(f"{what}: {first}.", _NETWORK) from error


def _refusal(what: str, status: int | None, error: BaseException) -> PullError:
    if status != _TOO_MANY:
        return PullError(f"{what}: the hub answered with HTTP {status or '?'}.", _AGAIN)
    wait_s = asked_to_wait(error)
    wait = f"Wait {wait_s:.0f} s" if wait_s is not None else "Wait some minutes"
    return PullError(
        f"{what}: the hub takes no more requests from here for now (HTTP 429).",
        f"{wait}, then run the same command again: it continues where this one stopped. With "
        "HF_TOKEN set the hub allows more.",
    )


def _other_branches(branches: Callable[[], list[str]] | None) -> str:
    if branches is None:
        return ""
    try:
        names = branches()
    except Exception:  # the branches only complete a hint, and the hub has answered "no" already
        return ""
    return f"Its branches: {', '.join(names[:10])}. Name one with `revision`." if names else ""
