"""`ask` and the caption store; both models in memory, or one at a time."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeprism.cli.main import run
from edgeprism.errors import ImageError
from edgeprism.language.model import LanguageModel
from edgeprism.perceive.captioner import Captioner
from edgeprism.prism import Prism
from edgeprism.reason.local import Reasoner
from edgeprism.store.caption_store import CaptionStore, default_path
from edgeprism.store.stored_captioner import StoredCaptioner
from edgeprism.vision.onnx import VisionEncoder
from tests.helpers.calls import count_calls


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry for each picture that the vision engine encodes."""
    return count_calls(monkeypatch, VisionEncoder, "encode")


def test_a_caption_is_made_once(
    captioner: Captioner, photo: Path, tmp_path: Path, looks: list[str]
) -> None:
    moved = shutil.copy(photo, tmp_path / "moved.png")
    with CaptionStore(tmp_path / "captions.sqlite3") as store:
        stored = StoredCaptioner(captioner, store)
        made = stored.caption(photo)
        assert len(looks) == 1
        assert stored.caption(photo).to_dict() == made.to_dict()
        assert (stored.caption(moved).text, stored.caption(moved).image) == (made.text, str(moved))
        assert stored.caption(photo.read_bytes()).image == "image in memory"
        assert len(looks) == 1
        assert stored.caption(photo, focus="boats").instruction != made.instruction
        assert len(looks) == 2
        seen = captioner.encode(photo)
        assert stored.caption(seen, focus="boats").text == stored.caption(photo, focus="boats").text
        assert len(looks) == 3  # encoded by hand, and known
        assert len(list(store.records())) == 2


def test_another_picture_under_the_same_name(
    captioner: Captioner, tmp_path: Path, looks: list[str]
) -> None:
    path = tmp_path / "photo.png"
    with CaptionStore(tmp_path / "captions.sqlite3") as store:
        stored = StoredCaptioner(captioner, store)
        texts = []
        for seed in (1, 2):
            pixels = np.random.default_rng(seed).integers(0, 256, (28, 28, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
            texts.append(stored.caption(path).text)
            assert texts[-1] == captioner.caption(path).text
        assert texts[0] != texts[1]
        with pytest.raises(ImageError, match=r"gone\.png"):
            stored.caption(tmp_path / "gone.png")
        (tmp_path / "bad.png").write_bytes(b"no picture")
        with pytest.raises(ImageError, match=r"bad\.png"):
            stored.caption(tmp_path / "bad.png")


def test_ask_and_caption_share_the_store(
    random_bundle: Path, scripted_gguf: Path, photo: Path, capsys: Any, looks: list[str]
) -> None:
    again = str(shutil.copy(photo, photo.with_name("again.png")))
    assert run(["caption", str(photo), again, "--model", str(random_bundle), "--jsonl"]) == 0
    [first, _] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    asked = ["ask", str(photo), "What is there?", "--captioner", str(random_bundle),
             "--reasoner", str(scripted_gguf), "--json"]  # fmt: skip
    del looks[:]
    assert run([*asked, "--instruction-mode", "generic"]) == 0
    [caption] = json.loads(capsys.readouterr().out)["captions"]
    assert caption["caption"] == first["caption"]
    assert looks == []
    assert run([*asked, "--instruction-mode", "generic", "--no-cache"]) == 0
    assert len(looks) == 1
    before = default_path().read_bytes()
    assert run([*asked, "--focus", "boats", "--no-cache", "--stages", "apart"]) == 0
    assert default_path().read_bytes() == before


@pytest.mark.parametrize("apart", [False, True])
def test_how_many_language_models_are_in_memory(
    captioner: Captioner,
    scripted_gguf: Path,
    photo: Path,
    monkeypatch: pytest.MonkeyPatch,
    apart: bool,
) -> None:
    open_now: set[int] = set()
    most = [0]
    load, close = LanguageModel.__init__, LanguageModel.close

    def loading(self: LanguageModel, *arguments: Any, **options: Any) -> None:
        load(self, *arguments, **options)
        open_now.add(id(self))
        most[0] = max(most[0], len(open_now))

    def closing(self: LanguageModel) -> None:
        close(self)
        open_now.discard(id(self))

    monkeypatch.setattr(LanguageModel, "__init__", loading)
    monkeypatch.setattr(LanguageModel, "close", closing)
    reasoner = Reasoner.load(scripted_gguf, threads=1)
    prism = Prism(captioner, reasoner, apart=apart)
    answers = [prism.ask([photo, photo], "How many boats are there?") for _ in range(2)]
    assert most == [1 if apart else 2]
    assert answers[0].text == answers[1].text
    assert len(answers[0].captions) == 2
    prism.close()
    assert open_now == set()
