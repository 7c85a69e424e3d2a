"""Tiny checkpoints and their bundles, made once a session."""

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
    """The folders of a spec's checkpoint; shared, so not to be changed."""
    made: dict[Spec, Folders] = {}

    def get(spec: Spec) -> Folders:
        if spec not in made:
            made[spec] = write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "c", spec)
        return made[spec]

    return get


@pytest.fixture(scope="session")
def bundle_of(
    tmp_path_factory: pytest.TempPathFactory, checkpoint_of: Callable[[Spec], Folders]
) -> Callable[..., Path]:
    """The bundle of a spec's checkpoint under the given options; shared, so not to be changed."""
    made: dict[object, Path] = {}

    def get(spec: Spec, **options: object) -> Path:
        key = (spec, *sorted(options.items()))
        if key not in made:
            out = tmp_path_factory.mktemp("bundle") / describe(spec)
            made[key] = convert(checkpoint_of(spec), out, **options)
        return made[key]

    return get


@pytest.fixture(autouse=True, scope="session")
def _each_graph_exported_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Exporting takes most of a tiny conversion: equal weights under equal code share one."""
    kept = tmp_path_factory.mktemp("exports")
    with mock.patch.object(pipeline, "export_graph", partial(_export_once, kept)):
        yield


def _export_once(
    kept: Path, module: VisionGraph, weights: VisionWeights, work: Path, _stem: str
) -> Path:
    """export_graph, whose files are kept and handed out again."""
    key = hashlib.sha256()
    for name, _ in module.named_parameters():
        key.update(weights.read(name, module.dtype).numpy().tobytes())
    # the code too: tests plant mistakes in it
    code = tuple(map(id, (VisionGraph.forward, graph.gelu, graph.join_cells,
                          graph.Tower.forward)))  # fmt: skip
    settings = (module.configs, module.drop_first_patch, module.dtype, module.n_views)
    key.update(repr((settings, code)).encode())
    stem = key.hexdigest()
    if not (kept / f"{stem}.onnx").exists():
        export_graph(module, weights, kept, stem)
    for path in kept.glob(f"{stem}*"):
        shutil.copy(path, work)
    return work / f"{stem}.onnx"
