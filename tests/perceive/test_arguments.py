"""Wrong values are refused at once, by name; errors travel between processes."""

from __future__ import annotations

import inspect
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgeprism
from edgeprism import Captioner, EdgePrismError, Prism, Reasoner, RemoteReasoner, UsageError, errors
from edgeprism.reason.http import StatusError


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1}, {"temperature": "0.5"}, {"temperature": float("nan")},
        {"temperature": float("inf")}, {"temperature": None}, {"temperature": True},
        {"caption_tokens": "5"}, {"caption_tokens": 0}, {"caption_tokens": 5.0},
        {"caption_tokens": True}, {"seed": "1"}, {"seed": 1.5}, {"instruction": 5},
        {"instruction": b"x"}, {"focus": ["boats"]},
    ],
    ids=str,
)  # fmt: skip
def test_options_of_captions(options: dict[str, Any], scripted_captioner: Captioner) -> None:
    (name,) = options
    for call in (
        lambda: scripted_captioner.caption("no-such-picture.png", **options),
        lambda: scripted_captioner.stream("no-such-picture.png", **options),
        lambda: scripted_captioner.plan(**options),
    ):
        with pytest.raises(UsageError, match=name):
            call()
    assert not scripted_captioner.engines.is_loaded()


@pytest.mark.parametrize(
    "options",
    [
        {"device": "gpu"}, {"device": None}, {"device": 1}, {"device": ""}, {"threads": 0},
        {"threads": -1}, {"threads": "2"}, {"threads": 1.5}, {"threads": True},
        {"gpu_layers": -1}, {"gpu_layers": "all"}, {"vision_quant": "int4"},
        {"kv_type": "f8"}, {"flash_attention": "yes"},
    ],
    ids=str,
)  # fmt: skip
def test_options_of_engines(
    options: dict[str, Any], scripted_bundle: Path, scripted_gguf: Path
) -> None:
    """Already when the model is opened, not at the first picture."""
    with pytest.raises(EdgePrismError) as caught:
        Captioner.load(scripted_bundle, **options)
    assert next(iter(options)) in str(caught.value).lower()
    if options.keys() <= {"device", "threads", "gpu_layers"}:
        with pytest.raises(EdgePrismError):
            Reasoner.load(scripted_gguf, **options)


def test_numbers_of_numpy_are_numbers(scripted_captioner: Captioner) -> None:
    numbers: dict[str, Any] = {
        "caption_tokens": np.int64(7), "temperature": np.float32(0.5), "seed": np.uint8(3)
    }  # fmt: skip
    plan = scripted_captioner.plan(**numbers)
    assert plan.sampling.max_tokens == 7


@pytest.mark.parametrize(
    "options", [{"warm": "yes"}, {"chat_format": 1}], ids=str
)  # fmt: skip
def test_options_of_reasoners(options: dict[str, Any], scripted_gguf: Path) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        Reasoner.load(scripted_gguf, **options)


@pytest.mark.parametrize(
    "options", [{"timeout_s": 0}, {"timeout_s": "5"}, {"pause_s": -1}, {"allow_network": 1}],
    ids=str,
)  # fmt: skip
def test_options_of_remote_reasoners(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        RemoteReasoner.load("http://127.0.0.1:9/v1", "model", **options)


def test_a_question_is_checked_before_anything_loads(
    scripted_captioner: Captioner, scripted_gguf: Path
) -> None:
    reasoner = Reasoner.load(scripted_gguf, chat_format="chatml")
    prism = Prism(scripted_captioner, reasoner)
    wrong: list[tuple[Any, dict[str, Any]]] = [
        (5, {}), ("What?", {"answer_tokens": "5"}), ("What?", {"answer_tokens": 0}),
        ("What?", {"temperature": -1}),
    ]  # fmt: skip
    for question, options in wrong:
        with pytest.raises(UsageError):
            prism.ask("no-such-picture.png", question, **options)
    assert "not loaded" in repr(reasoner)
    assert repr(prism).startswith("<Prism [<Captioner ")


def test_every_error_is_public_and_travels() -> None:
    kinds = {
        kind for _, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, EdgePrismError)
    }  # fmt: skip
    assert {kind.__name__ for kind in kinds} <= set(edgeprism.__all__)
    assert all(getattr(edgeprism, kind.__name__) is kind for kind in kinds)
    made: list[EdgePrismError] = [
        edgeprism.ManifestError("bundle", ["a: wrong", "b: missing"]),
        edgeprism.StoreError("the store", "a cure"),
        StatusError(503, "busy", "later"),
    ]
    made += [kind("what happened", "what to do") for kind in kinds - {edgeprism.ManifestError}]
    for error in made:
        copy = pickle.loads(pickle.dumps(error))
        assert type(copy) is type(error)
        assert (str(copy), copy.__dict__, copy.args) == (str(error), error.__dict__, error.args)
        assert copy.exit_code == error.exit_code
