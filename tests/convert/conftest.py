"""Tiny checkpoints and their bundles, made once per session."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import onnx_ir
import pytest
import torch

from edgeprism.convert import memory
from edgeprism.convert.vision import export
from edgeprism.convert.vision.export import trace_graph
from edgeprism.convert.vision.graph import GraphModule
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
def _no_memory_is_collected() -> Iterator[None]:
    """Spare the collections between the steps of a conversion.

    Tiny models leave nothing to collect, and beside torch each collection takes half a second.
    """
    with mock.patch.object(memory, "gc"):
        yield


@pytest.fixture(autouse=True, scope="session")
def _each_graph_is_traced_once() -> Iterator[None]:
    """Share what torch traces of equal modules: it takes most of a tiny conversion.

    The weights are not shared: they are written into the graph for each export.
    """
    traced: dict[object, onnx_ir.Model] = {}

    def trace_once(module: GraphModule) -> onnx_ir.Model:
        key = _trace_key(module)
        if key not in traced:
            traced[key] = trace_graph(module)
        return traced[key]

    with mock.patch.object(export, "trace_graph", trace_once):
        yield


def _trace_key(module: GraphModule) -> object:
    """Return what decides a trace: the modules' settings, their code, and the parameters' shapes.

    The code itself is in the key, because tests plant mistakes in it, and the key keeps it alive.
    """
    settings = [
        (name, {key: _told(value) for key, value in vars(part).items() if not key.startswith("_")})
        for name, part in module.named_modules()
    ]
    parameters = [(name, *p.shape, p.dtype) for name, p in module.named_parameters()]
    settings += [(name, {"": _told(buffer)}) for name, buffer in module.named_buffers()]
    kinds = dict.fromkeys(type(part) for part in module.modules())
    code = [kind.forward for kind in kinds]
    for name in dict.fromkeys(kind.__module__ for kind in kinds):
        if name.startswith("edgeprism."):  # the functions that the modules call
            code += [it for it in vars(sys.modules[name]).values() if inspect.isfunction(it)]
    return (repr((settings, parameters)), tuple(kinds), tuple(code))


def _told(value: object) -> object:
    """Return a value, or of a tensor its whole content, which `repr` would shorten."""
    return value.numpy().tobytes() if isinstance(value, torch.Tensor) else value
