"""The connection to a cluster ends only when no thread uses it any more."""

from __future__ import annotations

import threading

import pytest
import ray

from edgeprism.errors import EdgePrismError
from edgeprism.scale import connection
from edgeprism.scale.connection import connected


@pytest.mark.parametrize("fails", [False, True])
def test_ray_is_shut_down_after_the_threads_that_use_it(
    fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray ends the process, with code 1, where a thread uses it after its shutdown."""
    order: list[str] = []
    go_on, permanent = threading.Event(), threading.Event()
    threads = []

    def start(**_: object) -> None:  # Ray's own threads end with its shutdown
        threads.append(threading.Thread(target=permanent.wait))
        threads[-1].start()

    def use() -> None:
        go_on.wait()
        for _ in range(100):  # for longer than to leave the block takes
            threading.Event().wait(0.003)
        order.append("used")

    def shut_down() -> None:
        order.append("shut down")
        permanent.set()

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", start)
    monkeypatch.setattr(ray, "shutdown", shut_down)
    try:
        with connected("local"):
            threads.append(threading.Thread(target=use))
            threads[-1].start()
            go_on.set()
            if fails:
                raise EdgePrismError("a model that is not there")
    except EdgePrismError:
        assert fails
    assert order == ["used", "shut down"]
    for thread in threads:
        thread.join()


def test_a_thread_that_does_not_end_keeps_nobody_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_PATIENCE_S", 0.05)
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    with connection.threads_ended():
        thread.start()
    assert thread.is_alive()
    stop.set()
    thread.join()
