"""Made-up stores of other programs, in the layouts that these publish."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import bundles, mmprojs

_OLLAMA = "application/vnd.ollama.image."


@dataclass(frozen=True)
class Models:
    """The files that the stores hold: a language model, and an mmproj that belongs to it."""

    lm: Path
    mmproj: Path


def write_models(folder: Path) -> Models:
    """Write a tiny language model and its mmproj."""
    lm = mmprojs.with_marks(bundles.lm_parts(2))
    lm.metadata["general.name"] = ("string", "Tiny")
    lm.metadata["general.file_type"] = ("uint32", 0)
    mmproj = mmprojs.mmproj_parts(mmprojs.IDEFICS)
    return Models(lm.write(folder / "lm.gguf"), mmproj.write(folder / "mmproj.gguf"))


def other_lm(path: Path, seed: int = 3, **metadata: tuple[str, Any]) -> Path:
    """Write another tiny language model, with more metadata or other values of it."""
    parts = bundles.lm_parts(seed)
    parts.metadata |= {key.replace("__", "."): value for key, value in metadata.items()}
    return parts.write(path)


# ---- Ollama


def ollama_blob(store: Path, source: Path | bytes) -> dict[str, Any]:
    """Put a file into `blobs/` and return its layer."""
    data = source if isinstance(source, bytes) else source.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    blob = store / "blobs" / f"sha256-{digest}"
    blob.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(data)
    return {"digest": f"sha256:{digest}", "size": len(data)}


def ollama_manifest(store: Path, name: str, layers: list[dict[str, Any]]) -> Path:
    """Write the manifest of HOST/NAMESPACE/MODEL/TAG."""
    config = ollama_blob(store, b'{"model_format":"gguf","model_family":"llama"}')
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": {"mediaType": "application/vnd.docker.container.image.v1+json", **config},
        "layers": layers,
    }
    path = store / "manifests" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(manifest))
    return path


def ollama_model(store: Path, name: str, template: str = "{{ .Prompt }}", **files: Path) -> Path:
    """Add a model; `files` by the kind of their layer: model, projector, adapter."""
    layers = [
        {"mediaType": f"{_OLLAMA}{kind}", **ollama_blob(store, path)}
        for kind, path in files.items()
    ]
    text = ollama_blob(store, template.encode())
    layers.append({"mediaType": f"{_OLLAMA}template", **text})
    return ollama_manifest(store, name, layers)


def ollama_store(store: Path, models: Models) -> Path:
    """A store with a captioner, a reasoner under two tags, and one of another host."""
    library = "registry.ollama.ai/library"
    ollama_model(store, f"{library}/llava/7b", model=models.lm, projector=models.mmproj)
    plain = other_lm(store.parent / "plain.gguf")
    ollama_model(store, f"{library}/qwen2.5/3b", model=plain)
    ollama_model(store, f"{library}/qwen2.5/latest", model=plain)
    ollama_model(store, "registry.ollama.ai/somebody/tuned/v1", model=other_lm(plain, 4))
    ollama_model(store, "hf.co/owner/repo/Q4_K_M", model=other_lm(plain, 5))
    plain.unlink()
    return store


# ---- the others


def copy(source: Path, target: Path) -> Path:
    """Copy a file, and make the folders above."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)
    return target


def lm_studio_store(store: Path, models: Models) -> Path:
    """`PUBLISHER/REPO/FILE.gguf`: a pair, and a repository with two quantizations."""
    copy(models.lm, store / "lmstudio-community" / "eyes-GGUF" / "eyes-Q8_0.gguf")
    copy(models.mmproj, store / "lmstudio-community" / "eyes-GGUF" / "mmproj-model-f16.gguf")
    words = store / "bartowski" / "words-GGUF"
    other_lm(copy(models.lm, words / "words-Q4_K_M.gguf"), 6)
    other_lm(words / "words-Q8_0.gguf", 7)
    return store


def hub_file(cache: Path, repository: str, name: str, source: Path, commit: str = "c" * 40) -> Path:
    """Put a file into the hub's cache: the blob by its sha256, the snapshot's link to it."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    blob = copy(source, folder / "blobs" / digest)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text(commit)
    link = folder / "snapshots" / commit / name
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(os.path.relpath(blob, link.parent))
    return link


def hub_cache(cache: Path, models: Models) -> Path:
    """A pair, a language model in two quantizations, and a repository of other files."""
    hub_file(cache, "owner/eyes-GGUF", "eyes-Q8_0.gguf", models.lm)
    hub_file(cache, "owner/eyes-GGUF", "mmproj-eyes-f16.gguf", models.mmproj)
    scratch = cache.parent / "scratch.gguf"
    hub_file(cache, "owner/words-GGUF", "words-q4_k_m.gguf", other_lm(scratch, 8))
    hub_file(cache, "owner/words-GGUF", "words-q8_0.gguf", other_lm(scratch, 9))
    scratch.write_bytes(b"{}")
    hub_file(cache, "owner/checkpoint", "config.json", scratch)
    scratch.unlink()
    return cache


def llama_cache(cache: Path, models: Models) -> Path:
    """The flat form: a pair that a manifest names, and a file without a manifest."""
    copy(models.lm, cache / "ggml-org_eyes-GGUF_eyes-Q8_0.gguf")
    copy(models.mmproj, cache / "ggml-org_eyes-GGUF_mmproj-eyes-f16.gguf")
    manifest = {
        "ggufFile": {"rfilename": "eyes-Q8_0.gguf", "size": 1},
        "mmprojFile": {"rfilename": "mmproj-eyes-f16.gguf", "size": 1},
    }
    (cache / "manifest=ggml-org=eyes-GGUF=latest.json").write_text(json.dumps(manifest))
    other_lm(cache / "fetched-by-url.gguf", 10)
    (cache / "fetched-by-url.gguf.json").write_text("{}")
    return cache


def jan_store(data: Path, models: Models) -> Path:
    """Records of today, of the version before (files), and of the first one (model.json)."""
    today = data / "llamacpp" / "models" / "owner" / "eyes"
    copy(models.lm, today / "model.gguf")
    copy(models.mmproj, today / "mmproj.gguf")
    (today / "model.yml").write_text(
        "name: 'Eyes'\nmodel_path: llamacpp/models/owner/eyes/model.gguf\n"
        'mmproj_path: "llamacpp/models/owner/eyes/mmproj.gguf"\nsize_bytes: 3\n'
        "embedding: false\n"
    )
    before = data / "models" / "cortex.so" / "words" / "1b"
    before.mkdir(parents=True)
    other_lm(before / "model.gguf", 11)
    (before / "model.yml").write_text(
        "model: words:1b\nstop:\n  - <|end|>\nfiles:\n  - models/cortex.so/words/1b/model.gguf\n"
    )
    first = data / "models" / "old-words"
    first.mkdir(parents=True)
    other_lm(first / "old-Q4.gguf", 12)
    (first / "model.json").write_text(
        json.dumps({"id": "old-words", "settings": {"llama_model_path": "old-Q4.gguf"}})
    )
    return data


def gpt4all_store(folder: Path, models: Models) -> Path:
    """GGUF files side by side, one of them half fetched."""
    copy(models.lm, folder / "Words-8B.Q4_0.gguf")
    other_lm(folder / "Words-8B.Q4_0.gguf", 13)
    other_lm(folder / "Other.Q4_0.gguf", 14)
    (folder / "incomplete-Third.Q4_0.gguf").write_bytes(b"GGUF")
    return folder


def snapshot(*roots: Path) -> dict[str, tuple[int, int, int, int, str]]:
    """Return mode, dates, links and content of everything below, with the dates of folders."""
    state = {}
    for root in roots:
        for path in sorted([root, *root.rglob("*")]):
            status = path.lstat()
            content = ""
            if path.is_symlink():
                content = os.readlink(path)
            elif path.is_file():
                content = hashlib.sha256(path.read_bytes()).hexdigest()
            state[str(path)] = (status.st_mode, status.st_mtime_ns, status.st_ctime_ns,
                                status.st_ino, content)  # fmt: skip
    return state


def new_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make `home` the user's, with nothing in it, and name no store by the environment."""
    home.mkdir()
    for name in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "JAN_DATA_FOLDER",
                 "LLAMA_CACHE", "OLLAMA_MODELS", "XDG_CACHE_HOME", "XDG_CONFIG_HOME",
                 "XDG_DATA_HOME"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(home))
    return home


def all_stores(home: Path, models: Models) -> None:
    """Put a store of every program where it lies on Linux."""
    ollama_store(home / ".ollama" / "models", models)
    lm_studio_store(home / ".lmstudio" / "models", models)
    hub_cache(home / ".cache" / "huggingface" / "hub", models)
    llama_cache(home / ".cache" / "llama.cpp", models)
    jan_store(home / ".local" / "share" / "Jan" / "data", models)
    gpt4all_store(home / ".local" / "share" / "nomic.ai" / "GPT4All", models)
