"""What every captioner can do, whichever engine runs its language side (helpers/engines.py)."""

from __future__ import annotations

import dataclasses
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeprism.bundle import open as open_module
from edgeprism.bundle.read_manifest import manifest_from_bundle
from edgeprism.cli.main import run
from edgeprism.errors import Interrupted, PromptTooLongError
from edgeprism.folder.batch import Batch
from edgeprism.folder.events import Outcome
from edgeprism.language.generator import Finished
from edgeprism.perceive import engines
from edgeprism.perceive.captioner import Captioner
from edgeprism.picture.find import find_pictures
from edgeprism.prism import Prism
from edgeprism.reason.local import Reasoner
from edgeprism.store.caption_store import CaptionStore
from edgeprism.store.stored_captioner import StoredCaptioner
from tests.helpers.bundles import SAID_TEXT
from tests.helpers.captions import caption_ids
from tests.helpers.captions import stream as stream_of
from tests.helpers.engines import ENGINES
from tests.helpers.serving import as_base64, serving

N_PICTURES, TOKENS = 7, 10
QUESTION = "What is on the left?"


@pytest.fixture(scope="module")
def bundle_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return cache(lambda name: ENGINES[name](tmp_path_factory.mktemp("engine")))


@pytest.fixture(params=ENGINES)
def bundle(request: pytest.FixtureRequest, bundle_of: Callable[[str], Path]) -> Path:
    return bundle_of(request.param)


@pytest.fixture
def captioner(bundle: Path) -> Iterator[Captioner]:
    with loaded(bundle) as it:
        yield it


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of several shapes; the last is the first under another name."""
    pictures = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(4)
    for number in range(N_PICTURES - 1):
        pixels = rng.integers(0, 256, (30 + 9 * number, 60 - 7 * number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(pictures / f"p{number}.png")
    shutil.copy(pictures / "p0.png", pictures / "q0.png")
    return pictures


def loaded(bundle: Path) -> Captioner:
    return Captioner.load(bundle, device="cpu", threads=1, kv_type="f32", flash_attention=False)


def batch(
    captioner: Captioner, folder: Path, store: Path | None = None, **options: Any
) -> Iterator[Outcome]:
    plan = captioner.plan(caption_tokens=TOKENS)
    open_store = None if store is None else lambda: CaptionStore(store)
    made = Batch(captioner, plan, open_store=open_store, **options)
    return made.run(find_pictures([folder]))


def texts(outcomes: list[Outcome]) -> list[str]:
    return [outcome.record["caption"] for outcome in outcomes if outcome.record is not None]


def singles(bundle: Path, folder: Path) -> list[str]:
    """Return the captions, one after another, in an order of which none is the batches'."""
    with loaded(bundle) as captioner:
        backwards = [
            captioner.caption(path, caption_tokens=TOKENS).text
            for path in sorted(folder.iterdir(), reverse=True)
        ]
    return backwards[::-1]


# ---- one caption


def test_every_file_is_checked_once_when_it_is_loaded(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[str] = []
    check = open_module.check_file

    def counting(path: Path, sha256: str, size: int) -> None:
        checked.append(path.name)
        check(path, sha256, size)

    monkeypatch.setattr(open_module, "check_file", counting)
    monkeypatch.setattr(engines, "try_captioner", lambda *_: None)  # which looks at each before
    with loaded(bundle) as captioner:
        captioner.caption(np.zeros((30, 40, 3), np.uint8), caption_tokens=1)
    assert sorted(checked) == sorted(manifest_from_bundle(bundle).files)


def test_picture_instruction_and_focus_decide_the_caption(
    captioner: Captioner, folder: Path
) -> None:
    first, second, *_ = sorted(folder.iterdir())
    seen = captioner.encode(first)
    variants: list[dict[str, Any]] = [
        {}, {"instruction": "Count the boats."}, {"focus": "the sea"},
        {"instruction": "Count the boats.", "focus": "the sea"},
    ]  # fmt: skip
    ids = [tuple(caption_ids(captioner, seen, caption_tokens=TOKENS, **v)) for v in variants]
    assert len({*ids, tuple(caption_ids(captioner, second, caption_tokens=TOKENS))}) == 5
    captions = [captioner.caption(seen, caption_tokens=TOKENS, **v) for v in variants]
    again = [
        captioner.caption(first, caption_tokens=TOKENS, instruction=caption.instruction).text
        for caption in reversed(captions)
    ]
    assert again[::-1] == [caption.text for caption in captions]


def test_what_was_captioned_before_changes_nothing(bundle: Path, folder: Path) -> None:
    """A sequence keeps what the next request begins with; a fresh engine has nothing to keep."""
    paths = sorted(folder.iterdir())
    requests: list[tuple[Path, str]] = [
        (paths[0], "Describe it."), (paths[0], "Describe it at length, all of it."),
        (paths[1], "Describe it."), (paths[0], "Describe it."), (paths[0], "It is red and"),
    ]  # fmt: skip
    options: dict[str, Any] = {"caption_tokens": TOKENS, "stop_at_end": False}
    with loaded(bundle) as captioner:
        warm = [caption_ids(captioner, p, instruction=text, **options) for p, text in requests]
    for (path, text), ids in zip(requests, warm, strict=True):
        with loaded(bundle) as captioner:
            assert caption_ids(captioner, path, instruction=text, **options) == ids


def test_pieces_join_to_the_caption_and_seeds_repeat_it(captioner: Captioner, folder: Path) -> None:
    path = min(folder.iterdir())
    said = set()
    for seed in (1, 2, 3, 1):
        stream = captioner.stream(path, caption_tokens=24, temperature=1.5, seed=seed)
        assert "".join(stream) == stream.caption.text
        said.add(stream.caption.text)
    assert len(said) == 3


def test_a_grammar_binds_the_caption(captioner: Captioner, folder: Path) -> None:
    plan = captioner.plan(caption_tokens=TOKENS)
    grammar = 'root ::= "no " [0-9] [0-9]'
    sampling = dataclasses.replace(plan.sampling, grammar=grammar, temperature=1.0)
    said = []
    for seed, path in enumerate(sorted(folder.iterdir())):
        bound = dataclasses.replace(plan, sampling=dataclasses.replace(sampling, seed=seed))
        said.append(captioner.start(path, bound).finished().caption.text)
    assert all(text.startswith("no ") and text[3:].isdecimal() and len(text) == 5 for text in said)
    assert len(set(said)) > 1


def test_a_prompt_that_does_not_fit_is_refused(captioner: Captioner, folder: Path) -> None:
    path = min(folder.iterdir())
    before = captioner.caption(path, caption_tokens=TOKENS).text
    limit = captioner.bundle.manifest.lm.context_length
    with pytest.raises(PromptTooLongError, match=f"at most {limit}"):
        captioner.caption(path, instruction="boat! " * limit)
    assert captioner.caption(path, caption_tokens=TOKENS).text == before


def test_a_caption_that_fills_the_context_ends_there(captioner: Captioner, folder: Path) -> None:
    """The last position that a model has is used, and none behind it."""
    limit = captioner.bundle.manifest.lm.context_length
    path = min(folder.iterdir())
    instruction = "."
    while (n := captioner.cost((60, 30), instruction=instruction).prompt_tokens) < limit - 6:
        instruction += "." * max(1, (limit - 6 - n) // 2)
    assert limit - 16 < n < limit
    ids = caption_ids(
        captioner, path, instruction=instruction, stop_at_end=False, caption_tokens=16
    )
    assert len(ids) == limit - n


# ---- many


@pytest.mark.parametrize(("parallel", "lanes"), [(1, 1), (4, 1), (2, 2)])
def test_a_folder_in_batches_says_what_single_captions_say(
    bundle: Path, captioner: Captioner, folder: Path, parallel: int, lanes: int
) -> None:
    outcomes = list(batch(captioner, folder, parallel=parallel, lanes=lanes))
    assert [outcome.picture.path for outcome in outcomes] == sorted(folder.iterdir())
    expected = singles(bundle, folder)
    assert texts(outcomes) == expected
    assert len(set(expected)) > 3


def test_a_folder_that_was_left_is_resumed(
    bundle: Path, captioner: Captioner, folder: Path, tmp_path: Path
) -> None:
    store = tmp_path / "captions.sqlite3"
    grown = shutil.copytree(folder, tmp_path / "grown")
    left = batch(captioner, grown, store, parallel=2)
    begun = [next(left) for _ in range(3)]
    left.close()  # type: ignore[attr-defined]
    Image.new("RGB", (50, 40), "teal").save(grown / "z.png")  # the others may be done by now
    with loaded(bundle) as another:
        resumed = list(batch(another, grown, store, parallel=3))
    assert [outcome.cached for outcome in resumed[:3]] == [True] * 3
    assert not resumed[-1].cached
    assert texts(resumed)[:3] == texts(begun)
    assert texts(resumed) == singles(bundle, grown)


def test_the_store_knows_a_caption(captioner: Captioner, folder: Path, tmp_path: Path) -> None:
    path = min(folder.iterdir())
    with CaptionStore(tmp_path / "captions.sqlite3") as store:
        stored = StoredCaptioner(captioner, store)
        made = stored.caption(path, caption_tokens=TOKENS)
        assert stored.caption(folder / "q0.png", caption_tokens=TOKENS).text == made.text
        assert len(list(store.records())) == 1
        stored.caption(path, caption_tokens=TOKENS, focus="boats")
        assert len(list(store.records())) == 2


def test_several_requests_in_one_context_do_not_touch_each_other(
    captioner: Captioner, folder: Path
) -> None:
    """One is dropped in the middle, and one comes while others are being written."""
    plan = captioner.plan(caption_tokens=TOKENS)
    plan = dataclasses.replace(plan, sampling=dataclasses.replace(plan.sampling, stop_at_end=False))
    seen = [captioner.encode(path) for path in sorted(folder.iterdir())[:4]]
    alone = [captioner.start(picture, plan).finished().ids for picture in seen]
    generator = captioner.engines.new_generator(2)
    try:
        requests = [captioner.request(picture, plan) for picture in seen]
        generator.add(0, requests[0])
        for _ in range(3):
            generator.step()
        generator.add(1, requests[1])
        generator.step()
        generator.drop()
        ended: dict[int, list[int]] = {}
        for event in generator.run(requests):
            if isinstance(event, Finished):
                ended[event.index] = event.ids
    finally:
        generator.close()
    assert [ended[index] for index in range(4)] == alone


# ---- given up


def test_a_caption_given_up_leaves_nothing_behind(captioner: Captioner, folder: Path) -> None:
    path, *_, other = sorted(folder.iterdir())[:3]
    expected = captioner.caption(path, caption_tokens=TOKENS).text
    left = captioner.stream(other, caption_tokens=400)
    next(left)
    left.close()
    assert captioner.caption(path, caption_tokens=TOKENS).text == expected


def test_cancel_ends_a_caption_of_another_thread(
    bundle: Path, captioner: Captioner, folder: Path
) -> None:
    path = min(folder.iterdir())
    expected = captioner.caption(path, caption_tokens=TOKENS).text
    begun = threading.Event()
    ended: list[str] = []

    def caption() -> None:
        try:  # until the context is full
            stream = stream_of(captioner, path, caption_tokens=100_000, stop_at_end=False)
            next(stream)
            begun.set()
            for _ in stream:
                pass
            ended.append("finished")
        except Interrupted:
            ended.append("interrupted")

    thread = threading.Thread(target=caption)
    thread.start()
    assert begun.wait(60)
    captioner.cancel()
    thread.join(60)
    assert not thread.is_alive()
    assert ended == ["interrupted"]
    with loaded(bundle) as another:
        assert another.caption(path, caption_tokens=TOKENS).text == expected


# ---- ask, the command line, the server


def test_ask_draws_a_focus_and_answers(
    captioner: Captioner, scripted_gguf: Path, folder: Path
) -> None:
    paths = sorted(folder.iterdir())[:2]
    reasoner = Reasoner.load(scripted_gguf, threads=1)
    prism = Prism(captioner, reasoner)
    answer = prism.ask(paths, QUESTION, focus="the boats", caption_tokens=TOKENS)
    plain = prism.ask(paths, QUESTION, instruction_mode="generic", caption_tokens=TOKENS)
    reasoner.close()
    assert answer.text == plain.text == SAID_TEXT
    focused = [
        captioner.caption(path, focus="the boats", caption_tokens=TOKENS).text for path in paths
    ]
    assert [caption.text for caption in answer.captions] == focused
    assert [caption.text for caption in plain.captions] != focused


def test_the_command_line_captions_a_folder(
    bundle: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["caption", str(folder), "--model", str(bundle), "--max-tokens", str(TOKENS)]
    assert run([*arguments, "--jsonl", "--no-cache"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == N_PICTURES
    assert run(["doctor", "--plan", str(bundle)]) == 0


def test_the_server_says_what_python_says(bundle: Path, folder: Path) -> None:
    paths = sorted(folder.iterdir())[:4]
    with Captioner.load(bundle, device="cpu") as captioner:
        expected = [captioner.caption(path, caption_tokens=TOKENS).text for path in paths]
    images = [as_base64(path.read_bytes()) for path in paths]
    body = {"images": images, "caption_tokens": TOKENS}
    with serving(model=str(bundle)) as server:
        reply = server.post("/v1/captions", body)
        assert reply.status == 200, reply.body
        assert [record["caption"] for record in reply.data["captions"]] == expected
        events = server.post("/v1/captions", {**body, "stream": True}).events()
    pieces = [
        "".join(d["text"] for name, d in events if name == "caption.delta" and d["index"] == i)
        for i in range(len(paths))
    ]
    assert pieces == expected
