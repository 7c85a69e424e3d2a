"""Tiny checkpoints and their bundles, made once a session."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
from checkpoints import Folders, Spec, describe, write_checkpoint
from converting import convert

from edgeprism.convert import pipeline
from edgeprism.convert.vision_export import export_graph
from edgeprism.convert.vision_graph import VisionGraph, VisionWeights


@pytest.fixture(scope="session")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Spec], Folders]:
    """The folders of a spec's checkpoint; shared, so not to be changed."""
    made: dict[Spec, Folders] = {}

    def get(spec: Spec) -> Folders:
        if spec not in made:
            made[spec] = write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "c", spec)
        return made[spec]

    return get


def export_once(
    kept: Path, module: VisionGraph, weights: VisionWeights, work: Path, stem: str
) -> Path:
    """export_graph, whose files are kept and handed out again."""
    folder = kept / str(module.dtype)
    if not folder.exists():
        folder.mkdir(parents=True)
        export_graph(module, weights, folder, stem)
    for path in folder.iterdir():
        shutil.copy(path, work)
    return work / f"{stem}.onnx"


@pytest.fixture(scope="session")
def bundle_of(
    tmp_path_factory: pytest.TempPathFactory, checkpoint_of: Callable[[Spec], Folders]
) -> Callable[..., Path]:
    """The bundle of a spec's checkpoint under the given options; shared, so not to be changed."""
    made: dict[object, Path] = {}
    exports = tmp_path_factory.mktemp("exports")

    def get(spec: Spec, **options: object) -> Path:
        key = (spec, *sorted(options.items()))
        if key not in made:
            out = tmp_path_factory.mktemp("bundle") / describe(spec)
            # a bundle that differs in the language model alone needs no export of its own
            kept = exports / describe(spec) / str(options.get("keep_first_patch"))
            with mock.patch.object(pipeline, "export_graph", partial(export_once, kept)):
                made[key] = convert(checkpoint_of(spec), out, **options)
        return made[key]

    return get
