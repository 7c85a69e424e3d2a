"""Names in place of opened models, and arguments that changed places, are told at the call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import edgeprism
from edgeprism import Captioner, Reasoner
from edgeprism.errors import UsageError

# Untyped, as in a notebook, where no checker sees the slip.
Prism: Any = edgeprism.Prism
caption_folder: Any = edgeprism.caption_folder
load_captioner: Any = Captioner.load
load_reasoner: Any = Reasoner.load


@pytest.fixture
def reasoner(scripted_gguf: Path) -> Reasoner:
    return Reasoner.load(scripted_gguf)


WRONG: dict[str, tuple[Callable[[Any, Any], object], str, str]] = {
    "names": (lambda c, r: Prism("nano", "x"), "captioner", "Captioner.load"),
    "a name": (lambda c, r: Prism("nano", r), "captioner", "Captioner.load"),
    "a name among several": (lambda c, r: Prism([c, "nano"], r), "captioner", "Captioner.load"),
    "a class": (lambda c, r: Prism(Captioner, r), "captioner", "Captioner.load"),
    "a reasoner's name": (lambda c, r: Prism(c, "x"), "reasoner", "Reasoner.load"),
    "none": (lambda c, r: Prism(c, None), "reasoner", "Reasoner.load"),
    "swapped": (lambda c, r: Prism(r, c), "captioner", "Captioner.load"),
    "a folder's captioner": (lambda c, r: caption_folder(".", "nano"), "captioner", "Captioner."),
    "a folder, swapped": (lambda c, r: caption_folder(c, "."), "captioner", "Captioner.load"),
    "a number": (lambda c, r: load_captioner(3), "model", ""),
    "nothing": (lambda c, r: load_captioner(None), "model", ""),
    "a reasoner's number": (lambda c, r: load_reasoner(3), "model", ""),
    "an address": (
        lambda c, r: Reasoner.load("http://127.0.0.1:9/v1"),
        "http://",
        "RemoteReasoner",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_opened_model_is_refused(
    case: str, captioner: Captioner, reasoner: Reasoner
) -> None:
    call, named, example = WRONG[case]
    with pytest.raises(UsageError) as caught:
        call(captioner, reasoner)
    assert named in caught.value.message
    assert example in caught.value.hint
    Prism([captioner], reasoner)
