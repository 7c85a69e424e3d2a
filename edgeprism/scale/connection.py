"""A connection to a Ray cluster: made, kept quiet, and ended when no thread uses it any more."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from edgeprism.errors import EXIT_UNAVAILABLE, EdgePrismError, UsageError
from edgeprism.machine.facts import available_cores

LOCAL = "local"  # the address of a cluster that is started on this machine
_PATIENCE_S = 10  # with a cluster that does not answer, and with threads that do not end
_STORE_BYTES = 128 << 20  # of a cluster on this machine: only names and counts pass through it


class ClusterError(EdgePrismError):
    """There is no cluster at an address, or it cannot do the work."""

    exit_code = EXIT_UNAVAILABLE


@contextlib.contextmanager
def connected(address: str) -> Iterator[Any]:
    """Connect to a cluster, or start one on this machine for the block."""
    # Ray would tell its makers what runs here
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UsageError(
            "Captioning on a cluster needs Ray, which is not installed.",
            'Install it: python -m pip install "edgeprism[ray]"',
        ) from error
    if ray.is_initialized():  # by the program that calls; it stays connected
        yield ray
        return
    try:
        if address == LOCAL:
            ray.init(num_cpus=available_cores(), include_dashboard=False, log_to_driver=False,
                     logging_level="ERROR", object_store_memory=_STORE_BYTES)  # fmt: skip
        else:
            _check_address(os.environ.get("RAY_ADDRESS", "") if address == "auto" else address)
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except Exception as error:  # Ray raises bare ones, too: a node that starts too slowly
        where = "on this machine" if address in ("auto", LOCAL) else f"at {address}"
        why = next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
        if address == LOCAL:
            raise ClusterError(
                f"Ray did not start on this machine: {why}.",
                "A busy machine is too slow for it: try again when less runs on it.",
            ) from error
        raise ClusterError(
            f"There is no Ray cluster {where}: {why}.",
            "Start one with Ray's command, name another, or give local for one on this machine.",
        ) from error
    try:
        with threads_ended():
            yield ray
    finally:
        ray.shutdown()


@contextlib.contextmanager
def threads_ended() -> Iterator[None]:
    """Wait, at the end of the block, for the threads that were started inside it.

    Those of Ray Data still use the connection for a moment after their data set is done or given
    up, and Ray ends the whole process, with code 1, where a thread uses it after `ray.shutdown`.
    """
    before = set(threading.enumerate())
    try:
        yield
    finally:
        deadline = time.monotonic() + _PATIENCE_S
        while started := set(threading.enumerate()) - before:
            if time.monotonic() > deadline:
                break
            started.pop().join(0.1)  # not for longer: another one may be what it waits for


def _check_address(address: str) -> None:
    """Raise OSError where nobody answers: Ray would try for many minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE_S).close()


@contextlib.contextmanager
def quiet_data() -> Iterator[None]:
    """Keep Ray Data's own progress off the terminal inside the block."""
    import logging

    from ray.data import DataContext

    context, log = DataContext.get_current(), logging.getLogger("ray.data")
    before = context.enable_progress_bars, log.level
    context.enable_progress_bars = False
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        context.enable_progress_bars = before[0]
        log.setLevel(before[1])


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Raise Ray's own errors as ClusterError."""
    from ray.exceptions import RayError

    try:
        yield
    except RayError as error:
        line = next(iter(str(error).strip().splitlines()[-1:]), type(error).__name__)
        raise ClusterError(
            f"The cluster gave up: {line}", "Its own log says more; the same command goes on."
        ) from error
