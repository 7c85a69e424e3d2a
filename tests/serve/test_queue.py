"""The bounded queue, models that leave, and the end of a server."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from edgeprism.memory.plan import MachineMemory
from edgeprism.serve.options import Limits
from edgeprism.serve.places import Places
from edgeprism.serve.refusals import Refusal
from tests.helpers.serving import Reply, Running, as_base64, serving


def test_places_are_bounded_and_say_when_to_come_back() -> None:
    places = Places(3)
    with places.take(5):  # one request may be larger than the queue if nothing waits
        pass
    with places.take(2):
        with pytest.raises(Refusal) as refused, places.take(2):
            pass
        assert refused.value.status == 429
        assert 1 <= int(refused.value.headers["Retry-After"]) <= 60
        with places.take(1):
            assert places.taken == 3
    assert places.taken == 0


def test_a_full_queue_refuses_and_goes_on(scenes: list[bytes]) -> None:
    images = [as_base64(data) for data in scenes[:4]]
    with serving(Limits(waiting=8)) as running:

        def ask(_: int) -> Reply:
            return running.post("/v1/captions", {"images": images})

        with ThreadPoolExecutor(8) as pool:
            replies = list(pool.map(ask, range(12)))
        assert {reply.status for reply in replies} == {200, 429}
        refused = next(reply for reply in replies if reply.status == 429)
        assert refused.code == "queue_full"
        assert int(refused.headers["retry-after"]) >= 1
        assert all(len(r.data["captions"]) == 4 for r in replies if r.status == 200)
        assert running.taken() == 0
        assert ask(0).status == 200


def test_idle_models_leave_and_come_back(scenes: list[bytes], texts: list[str]) -> None:
    with serving(keep_alive_s=0.1, idle_look_s=0.05, log_content=True) as running:
        for _ in range(2):
            reply = running.post("/v1/captions", {"images": [as_base64(scenes[0])]})
            assert reply.data["captions"][0]["caption"] == texts[0]
            deadline = time.monotonic() + 10
            while running.log[-1] != "freed captioner nano" and time.monotonic() < deadline:
                time.sleep(0.05)
            assert running.log[-1] == "freed captioner nano"
        assert running.log.count("loaded captioner nano") == 2
        assert running.log.count(f"caption of picture 1: {texts[0]}") == 2  # it was asked for
        told = {"instruction": "Describe it.", "focus": "the colours", "caption_tokens": 1}
        running.post("/v1/captions", {"images": [as_base64(scenes[0])], **told})
        assert {"instruction: Describe it.", "focus: the colours"} <= set(running.log)


def test_idle_models_make_room_for_others(
    scenes: list[bytes], scripted_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine whose free memory holds one model at a time."""
    with serving(reasoner=str(scripted_gguf), keep_alive_s=float("inf")) as running:
        body = {"images": [as_base64(scenes[0])], "question": "What is it?"}
        assert running.post("/v1/captions", {"images": body["images"]}).status == 200
        monkeypatch.setattr(
            "edgeprism.serve.models.machine_memory", lambda gpu: MachineMemory(1 << 30, 1000)
        )
        assert running.post("/v1/ask", body).status == 200
        moves = [line.split()[:2] for line in running.log if line.startswith(("loaded", "freed"))]
        assert moves == [["loaded", "captioner"], ["freed", "captioner"], ["loaded", "reasoner"],
                         ["freed", "reasoner"], ["loaded", "captioner"], ["freed", "captioner"],
                         ["loaded", "reasoner"]]  # fmt: skip


def test_what_runs_is_finished_when_the_server_stops(scenes: list[bytes], texts: list[str]) -> None:
    replies: list[Reply] = []
    with serving() as running:

        def ask() -> None:
            images = [as_base64(scenes[0])] * 8
            replies.append(running.post("/v1/captions", {"images": images}))

        thread = threading.Thread(target=ask)
        thread.start()
        while not running.taken():
            time.sleep(0.005)
        running.server.stop()
        thread.join(30)
    assert replies[0].status == 200
    assert [record["caption"] for record in replies[0].data["captions"]] == texts[:1] * 8


def test_what_runs_longer_than_the_stop_timeout_is_told(scenes: list[bytes]) -> None:
    replies: list[Reply] = []
    with serving(stop_seconds=0) as running:

        def ask(path: str) -> None:
            images = [as_base64(scenes[0])] * 16
            body = {"images": images, "model": "nano", "prompt": "Describe it.", "stream": False}
            replies.append(running.post(path, body if "api" in path else {"images": images}))

        paths = "/v1/captions", "/api/generate"
        threads = [threading.Thread(target=ask, args=(path,)) for path in paths]
        for thread in threads:
            thread.start()
        while running.taken() < 2:
            time.sleep(0.005)
        running.server.stop()
        for thread in threads:
            thread.join(30)
    assert [reply.status for reply in replies] == [503, 503]
    for reply in replies:
        error = reply.data["error"]
        assert "The server is stopping." in (error if isinstance(error, str) else error["message"])
    assert not [line for line in running.log if "Exception in ASGI" in line]


def test_an_answer_tells_what_was_waited_for(scenes: list[bytes], scripted_gguf: Path) -> None:
    with serving(reasoner=str(scripted_gguf)) as running:
        body = {"images": [as_base64(scenes[0])], "question": "What is it?"}
        first, second = (running.post("/v1/ask", body).data for _ in "ab")
    for said in (first, second):
        caption, answer = said["captions"][0]["timings_ms"], said["timings_ms"]
        assert answer["total"] > answer["prefill"] + answer["decode"] + caption["total"]
    assert first["timings_ms"]["load"] > 0
    assert second["timings_ms"]["load"] == 0


def test_metrics_are_prometheus_text(server: Running, scenes: list[bytes]) -> None:
    server.post("/v1/captions", {"images": [as_base64(scenes[0])]})
    reply = server.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    values = {}
    for line in reply.body.decode().splitlines():
        if not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            values[name] = float(value)
    assert values['edgeprism_captions_total{model="nano",outcome="made"}'] >= 1
    assert values["edgeprism_places_taken"] == 0
    assert values['edgeprism_model_loaded{kind="captioner",model="nano"}'] == 1
    buckets = [value for name, value in values.items() if "seconds_bucket" in name]
    assert buckets == sorted(buckets)
    assert buckets[-1] == values["edgeprism_request_seconds_count"]
