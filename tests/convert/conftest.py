"""Tiny checkpoints and their bundles, made once per session."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from unittest import mock

import pytest

from edgeprism.convert import pipeline
from edgeprism.convert.vision import graph
from edgeprism.convert.vision.export import export_graph
from edgeprism.convert.vision.graph import VisionGraph
from edgeprism.convert.vision.weights import VisionWeights
from tests.helpers.checkpoints import Folders, Spec, describe, write_checkpoint
from tests.helpers.converting import convert


@pytest.fixture(scope="session")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Spec], Folders]:
    """Return the folders of a spec's checkpoint; tests share them and must not change them."""
    cached: dict[Spec, Folders] = {}

    def get(spec: Spec) -> Folders:
        if spec not in cached:
            cached[spec] = write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "c", spec)
        return cached[spec]

    return get


@pytest.fixture(scope="session")
def bundle_of(
    tmp_path_factory: pytest.TempPathFactory, checkpoint_of: Callable[[Spec], Folders]
) -> Callable[..., Path]:
    """Return the bundle of a spec's checkpoint; tests share it and must not change it."""
    cached: dict[object, Path] = {}

    def get(spec: Spec, **options: object) -> Path:
        key = (spec, *sorted(options.items()))
        if key not in cached:
            out = tmp_path_factory.mktemp("bundle") / describe(spec)
            cached[key] = convert(checkpoint_of(spec), out, **options)
        return cached[key]

    return get


@pytest.fixture(autouse=True, scope="session")
def _each_graph_exported_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Share exports of equal weights by equal code: export takes most of a tiny conversion."""
    cached = tmp_path_factory.mktemp("exports")
    with mock.patch.object(pipeline, "export_graph", partial(_export_once, cached)):
        yield


def _export_once(
    cached: Path, module: VisionGraph, weights: VisionWeights, work: Path, _stem: str
) -> Path:
    """Run export_graph once for each key and copy its files afterwards."""
    key = hashlib.sha256()
    for name, _ in module.named_parameters():
        key.update(weights.read(name, module.dtype).numpy().tobytes())
    # the key includes the code, because tests plant mistakes in it
    code = tuple(map(id, (VisionGraph.forward, graph.gelu, graph.join_cells,
                          graph.Tower.forward)))  # fmt: skip
    settings = (module.configs, module.drop_first_patch, module.dtype, module.n_views)
    key.update(repr((settings, code)).encode())
    stem = key.hexdigest()
    if not (cached / f"{stem}.onnx").exists():
        export_graph(module, weights, cached, stem)
    for path in cached.glob(f"{stem}*"):
        shutil.copy(path, work)
    return work / f"{stem}.onnx"
