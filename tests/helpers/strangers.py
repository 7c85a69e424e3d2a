"""Models that a stranger may send: sound ones in odd forms, and such as end or hang an engine."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.helpers import bundles
from tests.helpers.bundles import GgufParts


def of_architecture(parts: GgufParts, name: str) -> GgufParts:
    """Return the same tensors under another architecture's name."""
    metadata = {
        key.replace(f"{parts.architecture}.", f"{name}.", 1): value
        for key, value in parts.metadata.items()
    }
    return dataclasses.replace(parts, metadata=metadata, architecture=name)


def write_in_parts(parts: GgufParts, stem: Path, count: int = 2) -> list[Path]:
    """Write a model in `count` GGUF files, as llama.cpp's gguf-split does; return their paths."""
    names = list(parts.tensors)
    share = -(-len(names) // count)
    paths = []
    for place in range(count):
        own = names[place * share : (place + 1) * share]
        metadata: dict[str, tuple[str, Any]] = dict(parts.metadata) if place == 0 else {}
        metadata["split.no"] = ("uint16", place)
        metadata["split.count"] = ("uint16", count)
        metadata["split.tensors.count"] = ("int32", len(names))
        part = GgufParts(metadata, {n: parts.tensors[n] for n in own}, parts.architecture)
        path = stem.with_name(f"{stem.name}-{place + 1:05}-of-{count:05}.gguf")
        paths.append(part.write(path))
    return paths


def graph_with(
    nodes: Sequence[onnx.NodeProto],
    last: str,
    constants: Mapping[str, np.ndarray] | None = None,
    change: Callable[[onnx.ModelProto], object] | None = None,
) -> onnx.ModelProto:
    """Return the tiny vision graph with `nodes` in it, which may use its tensors.

    The largest value of the tensor `last` is added to the visual tokens.
    """
    model = bundles.vision_graph()
    graph = model.graph
    output = graph.node.pop()  # Identity: projected → visual_tokens
    graph.node.extend(nodes)
    graph.node.append(helper.make_node("Cast", [last], ["as_float"], to=TensorProto.FLOAT))
    graph.node.append(helper.make_node("ReduceMax", ["as_float"], ["extra"], keepdims=0))
    graph.node.append(helper.make_node("Add", [output.input[0], "extra"], [output.output[0]]))
    for name, value in (constants or {}).items():
        graph.initializer.append(numpy_helper.from_array(value, name))
    if change is not None:
        change(model)
    return model
