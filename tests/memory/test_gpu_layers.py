"""Layers of a captioner's and a reasoner's language model for a GPU that is made up."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeprism.language import gpu
from edgeprism.language.gpu import Gpu
from edgeprism.machine.device import ALL_LAYERS
from edgeprism.perceive import engines
from edgeprism.perceive.captioner import Captioner
from edgeprism.reason import local
from edgeprism.reason.local import Reasoner

MB = 10**6


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """The free bytes of the GPU, which a test may change."""
    sizes = {"free": 8000 * MB}

    def found() -> Gpu:
        return Gpu("a GPU", 8000 * MB, sizes["free"], shared=False)

    monkeypatch.setattr(gpu, "find_gpu", found)
    for module in (engines, local):
        monkeypatch.setattr(module, "supports_offload", lambda: True)
    return sizes


def layers_of(bundle: Path, gguf: Path, gpu_layers: int | None = None) -> tuple[int, int]:
    captioner = Captioner.load(bundle, gpu_layers=gpu_layers)
    reasoner = Reasoner.load(gguf, gpu_layers=gpu_layers)
    return captioner.engines.placement()[1], reasoner._gpu_layers()


def test_all_layers_where_they_fit(
    free: dict[str, int], scripted_bundle: Path, scripted_gguf: Path
) -> None:
    assert layers_of(scripted_bundle, scripted_gguf) == (ALL_LAYERS, ALL_LAYERS)
    free["free"] = 100 * MB
    assert layers_of(scripted_bundle, scripted_gguf) == (0, 0)


def test_layers_as_requested(
    free: dict[str, int], scripted_bundle: Path, scripted_gguf: Path
) -> None:
    free["free"] = 100 * MB
    assert layers_of(scripted_bundle, scripted_gguf, gpu_layers=1) == (1, 1)


def test_what_is_planned_stands_on_the_gpu(free: dict[str, int], scripted_bundle: Path) -> None:
    captioner = Captioner.load(scripted_bundle)
    parts = captioner.engines.memory_parts()
    assert {part.what for part in parts.parts if part.place == "gpu"} >= {
        "language weights", "KV cache", "compute buffer",
    }  # fmt: skip
    free["free"] = 0
    alone = Captioner.load(scripted_bundle, device="cpu").engines.memory_parts()
    assert all(part.place == "cpu" for part in alone.parts)
