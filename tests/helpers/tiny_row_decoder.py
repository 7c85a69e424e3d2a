"""A tiny decoder among whose tokens a picture's rows stand: its graph, node by node, and numpy.

The GGUF file is that of `bundles`, of which the vocabulary and the table of embeddings count.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeprism.bundle.manifest_language import Decoder, LanguageModelFile
from tests.helpers import bundles

LAYERS, HEADS, HEAD, CONTEXT = 2, 4, 32, bundles.CONTEXT
WIDTH, N_VOCAB = HEADS * HEAD, bundles.N_VOCAB
TURNING = 16  # channels of a head that turn with the position
SPEC = LanguageModelFile(
    "lm.gguf", "F32", "llama", WIDTH, N_VOCAB, CONTEXT, "causal",
    decoder=Decoder("lm.onnx", "", LAYERS, HEADS, HEAD),
)  # fmt: skip


def weights(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)

    def random(*shape: int, scale: float) -> np.ndarray:
        return (rng.standard_normal(shape) * scale).astype(np.float32)

    made = {"head": random(WIDTH, N_VOCAB, scale=0.5)}
    for i in range(LAYERS):
        for name in "qkvo":
            made[f"{name}{i}"] = random(WIDTH, WIDTH, scale=1.3 / WIDTH**0.5)
    return made


def turns() -> tuple[np.ndarray, np.ndarray]:
    """Return cosines and sines [CONTEXT, TURNING / 2]."""
    angles = np.outer(np.arange(CONTEXT), 100.0 ** (-np.arange(0, TURNING, 2) / TURNING))
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


class Reference:
    """The same in numpy, each text as a whole."""

    def __init__(self, seed: int = 0) -> None:
        self.weights = weights(seed)
        self.table = bundles.lm_parts(seed).tensors["token_embd.weight"]

    def logits(self, rows: np.ndarray, ids: Sequence[int]) -> np.ndarray:
        """Rows [n, WIDTH] and ids behind them → logits [len(ids), N_VOCAB]."""
        w, x = self.weights, np.concatenate([rows, self.table[list(ids)]])
        future = np.triu(np.full((len(x), len(x)), -np.inf, np.float32), 1)
        for i in range(LAYERS):
            q, k, v = (_heads(x @ w[f"{name}{i}"]) for name in "qkv")
            scores = _turned(q) @ _turned(k).transpose(0, 2, 1) / HEAD**0.5 + future
            shares = np.exp(scores - scores.max(-1, keepdims=True))
            seen = (shares / shares.sum(-1, keepdims=True) @ v).transpose(1, 0, 2)
            x = x + seen.reshape(len(x), WIDTH) @ w[f"o{i}"]
        result: np.ndarray = x[len(rows) :] @ w["head"]
        return result

    def greedy(self, rows: np.ndarray, ids: Sequence[int], n: int) -> list[int]:
        text = list(ids)
        for _ in range(n):
            text.append(int(self.logits(rows, text)[-1].argmax()))
        return text[len(ids) :]


def _heads(x: np.ndarray) -> np.ndarray:
    result: np.ndarray = x.reshape(len(x), HEADS, HEAD).transpose(1, 0, 2)
    return result


def _turned(x: np.ndarray) -> np.ndarray:
    cos, sin = (each[: x.shape[1]] for each in turns())
    first, second = x[..., : TURNING // 2], x[..., TURNING // 2 : TURNING]
    parts = (first * cos - second * sin, second * cos + first * sin, x[..., TURNING:])
    result: np.ndarray = np.concatenate(parts, axis=-1)
    return result


def decoder_graph(seed: int = 0) -> onnx.ModelProto:
    constants = weights(seed)
    constants["cos"], constants["sin"] = turns()
    nodes: list[onnx.NodeProto] = []

    def add(kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, list(inputs), [output], output, **attributes))
        return output

    x = "rows"
    for i in range(LAYERS):
        q, k, v = (add("MatMul", [x, f"{name}{i}"], f"{name}_{i}") for name in "qkv")
        nodes.append(
            helper.make_node(
                "GroupQueryAttention",
                [q, k, v, f"key_{i}", f"value_{i}", "last", "total", "cos", "sin"],
                [f"a{i}", f"new_key_{i}", f"new_value_{i}"], f"a{i}", domain="com.microsoft",
                num_heads=HEADS, kv_num_heads=HEADS, do_rotary=1,
            )
        )  # fmt: skip
        x = add("Add", [x, add("MatMul", [f"a{i}", f"o{i}"], f"o_{i}")], f"x{i}")
    add("Gather", [x, "wanted"], "asked", axis=1)
    add("MatMul", ["asked", "head"], "logits")
    inputs = [
        _value("rows", ["batch", "n", WIDTH]),
        _value("last", ["batch"], TensorProto.INT32),
        _value("total", [1], TensorProto.INT32),
        _value("wanted", ["m"], TensorProto.INT64),
        *_kept(""),
    ]
    outputs = [_value("logits", ["batch", "m", N_VOCAB]), *_kept("new_")]
    tensors = [numpy_helper.from_array(values, name) for name, values in constants.items()]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, tensors)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def _value(name: str, shape: Sequence[str | int], kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def _kept(lead: str) -> list[Any]:
    return [
        _value(f"{lead}{kind}_{i}", ["batch", HEADS, "cells", HEAD])
        for i in range(LAYERS)
        for kind in ("key", "value")
    ]


def write_decoder(folder: Path, seed: int = 0) -> Path:
    """Write vocabulary and graph into `folder`, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    bundles.write_lm(folder / "lm.gguf", seed)
    (folder / "lm.onnx").write_bytes(decoder_graph(seed).SerializeToString())
    return folder


def write_bundle(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Write a whole bundle; `changes` replace parts of its manifest."""
    write_decoder(folder, seed)
    return bundles.write_bundle(folder, seed, **{"lm": SPEC, **changes})


def spec(**changes: Any) -> LanguageModelFile:
    """Return SPEC with `changes` of its decoder."""
    assert SPEC.decoder is not None
    return dataclasses.replace(SPEC, decoder=dataclasses.replace(SPEC.decoder, **changes))
