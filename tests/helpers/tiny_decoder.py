"""A tiny decoder that attends to a picture's rows: its two graphs, built node by node, and numpy.

The graphs have the inputs and outputs of the manifest's `Decoder`. The vocabulary is WordPiece with
BERT's ids of the special tokens, then words, letters and their continuations.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeprism.bundle.manifest_language import Decoder, LanguageModelFile
from tests.helpers import bundles

LAYERS, HEADS, HEAD, CONTEXT = 2, 4, 8, 96
WIDTH = HEADS * HEAD
ROW_WIDTH = bundles.N_EMBD  # another width than the decoder's own
UNK, CLS, SEP, START = 100, 101, 102, 104
_SIGNS = [*".,!?'-:;()/"]
_LETTERS = [*"abcdefghijklmnopqrstuvwxyz0123456789"]
WORDS = [*bundles.WORDS[:30], "café"[:3], "man", "isn", "there", "photo"]
PIECES = [
    "[PAD]", *(f"[unused{i}]" for i in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]",
    *_SIGNS, *_LETTERS, *(word for word in WORDS if word not in _LETTERS),
    *(f"##{letter}" for letter in _LETTERS),
]  # fmt: skip
N_VOCAB = len(PIECES)
SPECIAL = (0, UNK, CLS, SEP, 103, START)
SPEC = LanguageModelFile(
    "lm.gguf", "F32", "bert", WIDTH, N_VOCAB, CONTEXT, "causal",
    decoder=Decoder("lm.onnx", "lm.cross.onnx", LAYERS, HEADS, HEAD, "wordpiece"),
)  # fmt: skip


def write_vocabulary(path: Path, **metadata: tuple[str, Any]) -> Path:
    """Write the vocabulary's GGUF file; `metadata` replaces values, "." written as "__"."""
    parts = bundles.GgufParts(architecture="bert")
    special = {PIECES[i] for i in SPECIAL}
    types = [gguf.TokenType.CONTROL if p in special else gguf.TokenType.NORMAL for p in PIECES]
    texts = [
        piece if piece in special else piece.removeprefix("##") if piece.startswith("##")
        else f"▁{piece}" for piece in PIECES
    ]  # fmt: skip
    parts.metadata = {
        "bert.context_length": ("uint32", CONTEXT),
        "bert.embedding_length": ("uint32", WIDTH),
        "tokenizer.ggml.model": ("string", "bert"),
        "tokenizer.ggml.pre": ("string", "default"),
        "tokenizer.ggml.tokens": ("array", texts),
        "tokenizer.ggml.token_type": ("array", [int(kind) for kind in types]),
        "tokenizer.ggml.bos_token_id": ("uint32", START),
        "tokenizer.ggml.eos_token_id": ("uint32", SEP),
        "tokenizer.ggml.unknown_token_id": ("uint32", UNK),
        **{key.replace("__", "."): value for key, value in metadata.items()},
    }
    return parts.write(path)


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)

    def random(*shape: int, scale: float) -> np.ndarray:
        return (rng.standard_normal(shape) * scale).astype(np.float32)

    made = {
        "words": random(N_VOCAB, WIDTH, scale=0.7),
        "places": random(CONTEXT, WIDTH, scale=0.4),
        "head": random(WIDTH, N_VOCAB, scale=0.5),
    }
    for i in range(LAYERS):
        for name in ("q", "k", "v", "o", "cross_q", "cross_o"):
            made[f"{name}{i}"] = random(WIDTH, WIDTH, scale=1.3 / WIDTH**0.5)
        for name in ("cross_k", "cross_v"):
            made[f"{name}{i}"] = random(ROW_WIDTH, WIDTH, scale=1.0 / ROW_WIDTH**0.5)
    made["head"][:, list(SPECIAL)] = 0  # a text ends where a test wants it
    return made


class Reference:
    """The same in numpy, each text as a whole."""

    def __init__(self, seed: int = 0) -> None:
        self.weights = weights(seed)

    def logits(self, rows: np.ndarray, ids: Sequence[int]) -> np.ndarray:
        """Rows [n, ROW_WIDTH] and ids → logits [len(ids), N_VOCAB]."""
        w = self.weights
        x = w["words"][list(ids)] + w["places"][: len(ids)]
        future = np.triu(np.full((len(ids), len(ids)), -np.inf, np.float32), 1)
        for i in range(LAYERS):
            q, k, v = (_heads(x @ w[f"{name}{i}"]) for name in "qkv")
            x = x + _attended(q, k, v, future) @ w[f"o{i}"]
            q = _heads(x @ w[f"cross_q{i}"])
            k, v = (_heads(rows @ w[f"cross_{name}{i}"]) for name in "kv")
            x = x + _attended(q, k, v) @ w[f"cross_o{i}"]
        result: np.ndarray = x @ w["head"]
        return result

    def greedy(self, rows: np.ndarray, ids: Sequence[int], n: int) -> list[int]:
        text = list(ids)
        for _ in range(n):
            text.append(int(self.logits(rows, text)[-1].argmax()))
        return text[len(ids) :]


def _heads(x: np.ndarray) -> np.ndarray:
    result: np.ndarray = x.reshape(len(x), HEADS, HEAD).transpose(1, 0, 2)
    return result


def _attended(q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: Any = 0) -> np.ndarray:
    scores = q @ k.transpose(0, 2, 1) / HEAD**0.5 + mask
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    result: np.ndarray = (scores / scores.sum(-1, keepdims=True) @ v).transpose(1, 0, 2)
    return result.reshape(len(result), WIDTH)


# ---- the graphs


def decoder_graph(seed: int = 0) -> onnx.ModelProto:
    constants = {name: w for name, w in weights(seed).items() if name[:7] not in _OF_ROWS}
    constants |= {
        "to_heads": np.array([0, -1, HEADS, HEAD], np.int64),
        "from_heads": np.array([0, -1, WIDTH], np.int64),
        "scale": np.array(HEAD**-0.5, np.float32),
        "zero": np.array(0, np.int64), "one": np.array(1, np.int64),
        "two": np.array(2, np.int64), "far": np.array(-1e9, np.float32),
        "near": np.array(0, np.float32), "rows_axis": np.array([1, 2, 3], np.int64),
    }  # fmt: skip
    nodes: list[onnx.NodeProto] = []

    def add(kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, list(inputs), [output], output, **attributes))
        return output

    def product(x: str, matrix: str) -> str:
        return add("MatMul", [x, matrix], f"{x}*{matrix}")

    add("Gather", ["words", "ids"], "word")
    add("Gather", ["places", "positions"], "place")
    x = add("Add", ["word", "place"], "x")
    add("Shape", ["cross_key_0"], "shape")
    add("Gather", ["shape", "two"], "n")
    add("Range", ["zero", "n", "one"], "numbers")
    add("Unsqueeze", ["n_rows", "rows_axis"], "ends")
    add("Less", ["numbers", "ends"], "is_row")
    add("Where", ["is_row", "near", "far"], "mask")
    for i in range(LAYERS):
        q, k, v = (product(x, f"{name}{i}") for name in "qkv")
        outputs = [f"a{i}", f"new_key_{i}", f"new_value_{i}"]
        nodes.append(
            helper.make_node(
                "GroupQueryAttention",
                [q, k, v, f"key_{i}", f"value_{i}", "last", "total"],
                outputs, f"a{i}", domain="com.microsoft", num_heads=HEADS, kv_num_heads=HEADS,
            )
        )  # fmt: skip
        x = add("Add", [x, product(f"a{i}", f"o{i}")], f"x{i}")
        add("Reshape", [product(x, f"cross_q{i}"), "to_heads"], f"q_heads{i}")
        add("Transpose", [f"q_heads{i}"], f"cq{i}", perm=[0, 2, 1, 3])
        add("Transpose", [f"cross_key_{i}"], f"ck{i}", perm=[0, 1, 3, 2])
        add("Mul", [product(f"cq{i}", f"ck{i}"), "scale"], f"scores{i}")
        add("Add", [f"scores{i}", "mask"], f"masked{i}")
        add("Softmax", [f"masked{i}"], f"shares{i}", axis=-1)
        add("Transpose", [product(f"shares{i}", f"cross_value_{i}")], f"by{i}", perm=[0, 2, 1, 3])
        add("Reshape", [f"by{i}", "from_heads"], f"seen{i}")
        x = add("Add", [x, product(f"seen{i}", f"cross_o{i}")], f"y{i}")
    add("Gather", [x, "wanted"], "asked", axis=1)
    add("MatMul", ["asked", "head"], "logits")
    cells = _kept("", "cells")
    inputs = [
        _value("ids", ["batch", "n"], TensorProto.INT64),
        _value("positions", ["batch", "n"], TensorProto.INT64),
        _value("last", ["batch"], TensorProto.INT32),
        _value("total", [1], TensorProto.INT32),
        _value("wanted", ["m"], TensorProto.INT64),
        _value("n_rows", ["batch"], TensorProto.INT64),
        *cells, *_kept("cross_", "rows"),
    ]  # fmt: skip
    outputs = [_value("logits", ["batch", "m", N_VOCAB]), *_kept("new_", "cells")]
    return _model(nodes, inputs, outputs, constants)


_OF_ROWS = ("cross_k", "cross_v")


def cross_graph(seed: int = 0) -> onnx.ModelProto:
    constants = {name: w for name, w in weights(seed).items() if name[:7] in _OF_ROWS}
    constants["to_heads"] = np.array([0, -1, HEADS, HEAD], np.int64)
    nodes = []
    for i in range(LAYERS):
        for name, kind in (("k", "key"), ("v", "value")):
            made = f"{name}{i}"
            nodes += [
                helper.make_node("MatMul", ["rows", f"cross_{made}"], [made]),
                helper.make_node("Reshape", [made, "to_heads"], [f"{made}_heads"]),
                helper.make_node(
                    "Transpose", [f"{made}_heads"], [f"cross_{kind}_{i}"], perm=[0, 2, 1, 3]
                ),
            ]
    rows = [_value("rows", ["batch", "rows", ROW_WIDTH])]
    return _model(nodes, rows, _kept("cross_", "rows"), constants)


def _value(name: str, shape: Sequence[str | int], kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def _kept(lead: str, length: str) -> list[Any]:
    return [
        _value(f"{lead}{kind}_{i}", ["batch", HEADS, length, HEAD])
        for i in range(LAYERS)
        for kind in ("key", "value")
    ]


def _model(
    nodes: list[onnx.NodeProto], inputs: list[Any], outputs: list[Any],
    constants: dict[str, np.ndarray],
) -> onnx.ModelProto:  # fmt: skip
    tensors = [numpy_helper.from_array(values, name) for name, values in constants.items()]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, tensors)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def write_decoder(folder: Path, seed: int = 0) -> Path:
    """Write vocabulary and graphs into `folder`, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    write_vocabulary(folder / "lm.gguf")
    (folder / "lm.onnx").write_bytes(decoder_graph(seed).SerializeToString())
    (folder / "lm.cross.onnx").write_bytes(cross_graph(seed).SerializeToString())
    return folder


def write_bundle(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Write a whole bundle; `changes` replace parts of its manifest."""
    write_decoder(folder, seed)
    prompts = bundles.make_manifest({}).prompts
    prompts = dataclasses.replace(
        prompts, before_image="", after_image="", before_caption="", stop=[], focus_instruction="",
        default_instruction="a picture of",
    )  # fmt: skip
    return bundles.write_bundle(folder, seed, **{"lm": SPEC, "prompts": prompts, **changes})
