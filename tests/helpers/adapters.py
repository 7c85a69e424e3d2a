"""Adapters of the tests' tiny language models, and a reference that has them on for some rows."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from edgeprism.bundle import places
from edgeprism.files.home import data_dir
from edgeprism.models.catalogue import read_catalogue
from tests.helpers.bundles import GgufParts
from tests.helpers.llama_reference import LlamaReference, Visual

RANK, ALPHA = 6, 12


def adapter_parts(lm: GgufParts, seed: int = 5, *, knows_prompts: bool = False) -> GgufParts:
    """Return an adapter of every matrix of `lm`'s layers, which changes much."""
    rng = np.random.default_rng(seed)
    parts = GgufParts(
        {
            "general.type": ("string", "adapter"), "adapter.type": ("string", "lora"),
            "adapter.lora.alpha": ("float32", float(ALPHA)),
        },
        architecture=lm.architecture,
    )  # fmt: skip
    if knows_prompts:
        parts.metadata["edgeprism.reader"] = ("uint32", 1)
    for name, matrix in lm.tensors.items():
        if name.startswith("blk.") and matrix.ndim == 2:
            n_out, n_in = matrix.shape
            a, b = rng.standard_normal((RANK, n_in)), rng.standard_normal((n_out, RANK))
            parts.tensors[f"{name}.lora_a"] = (a / n_in**0.5).astype(np.float32)
            parts.tensors[f"{name}.lora_b"] = (b * 0.15).astype(np.float32)
    return parts


def merged_parts(lm: GgufParts, adapter: GgufParts) -> GgufParts:
    """Return `lm` with the adapter's products added to its matrices."""
    tensors = dict(lm.tensors)
    for name in [name for name in adapter.tensors if name.endswith(".lora_a")]:
        base = name.removesuffix(".lora_a")
        a, b = (adapter.tensors[f"{base}.lora_{half}"].astype(np.float64) for half in "ab")
        # the embeddings' halves lie the other way: [n_vocab, rank] and [n_embd, rank]
        product = a @ b.T if base == "token_embd.weight" else b @ a
        tensors[base] = (tensors[base] + ALPHA / RANK * product).astype(np.float32)
    return GgufParts(dict(lm.metadata), tensors, lm.architecture)


def write_adapted(folder: Path, lm: GgufParts) -> Path:
    """Write a model, adapters of it, and the model with the first adapter merged."""
    adapter = adapter_parts(lm)
    lm.write(folder / "base.gguf")
    adapter.write(folder / "foreign.gguf")
    adapter_parts(lm, knows_prompts=True).write(folder / "taught.gguf")
    adapter_parts(lm, 6).write(folder / "other.gguf")
    merged_parts(lm, adapter).write(folder / "merged.gguf")
    return folder


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def digest_of(base: Path, adapter: Path) -> str:
    """The digest of a model with an adapter, as the documentation says it."""
    return hashlib.sha256(f"{sha256(base)}\n{sha256(adapter)}\n".encode()).hexdigest()


def ship(package: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have `package` be one whose catalogue has an adapter for smollm2-135m, which is installed.

    Its own models are there, too. Returns the adapter's file.
    """
    (own,) = places.builtin_models_dir()
    catalogue = json.loads((own / "catalogue.json").read_text())
    base, taught = made / "base.gguf", made / "taught.gguf"
    catalogue["reasoners"]["smollm2-135m"] |= {
        "size": base.stat().st_size,
        "sha256": sha256(base),
        "adapter": {
            "name": "reader", "file": "reader/r.gguf", "sha256": sha256(taught),
            "size": taught.stat().st_size, "license": "Apache-2.0", "origin": "made here",
        },
    }  # fmt: skip
    (package / "reader").mkdir(parents=True)
    (package / "catalogue.json").write_text(json.dumps(catalogue))
    (package / "nano").symlink_to(own / "nano")
    shutil.copy(taught, package / "reader" / "r.gguf")
    (data_dir() / "models").mkdir(parents=True)
    shutil.copy(base, data_dir() / "models" / "smollm2-135m.gguf")
    monkeypatch.setattr(places, "builtin_models_dir", lambda: [package])
    monkeypatch.setattr(read_catalogue, "__defaults__", (package / "catalogue.json",))
    return package / "reader" / "r.gguf"


class AdapterReference(LlamaReference):
    """The forward pass with an adapter on for those rows of which `applies` says so."""

    def __init__(
        self,
        lm: GgufParts,
        adapter: GgufParts,
        applies: Callable[[bool], bool] = lambda is_picture: is_picture,
    ) -> None:
        super().__init__(lm)
        self.adapter = {name: value.astype(np.float64) for name, value in adapter.tensors.items()}
        self.applies = applies

    def _entered(
        self, prompt: Sequence[list[int] | Visual]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        entered = super()._entered(prompt)
        each = [
            self.applies(isinstance(part, Visual))
            for part in prompt
            for _ in range(len(part) if isinstance(part, list) else len(part.values))
        ]
        self.on = np.array(each, np.float64)[:, None]  # a row that it is on for: 1
        return entered

    def _linear(self, x: np.ndarray, name: str) -> np.ndarray:
        y = super()._linear(x, name)
        a, b = (self.adapter.get(f"{name}.weight.lora_{half}") for half in "ab")
        if a is None or b is None:
            return y
        changed: np.ndarray = y + self.on * (ALPHA / RANK) * (x @ a.T @ b.T)
        return changed
