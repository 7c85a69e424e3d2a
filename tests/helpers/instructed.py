"""A tiny bundle whose visual tokens depend on the instruction: two graphs and a vocabulary.

The first graph's features are the picture's patches times a matrix. The connector multiplies the
first of them by another matrix, and adds the mean of a table's rows for the instruction's ids.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeprism.bundle import manifest as m
from tests.helpers import bundles

WIDTH, N_ROWS, MAX_IDS = 24, 5, 16
GRAPH, VOCABULARY_FILE = "connector.fp32.onnx", "vocab.txt"
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
VOCABULARY = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]",
    *_LETTERS, *(f"##{letter}" for letter in _LETTERS), *"!\"#$%&'()*+,-./:;<=>?@[]^_`{|}~",
    *("describe", "the", "red", "house", "picture", "boat", "tree", "near", "dog", "is", "it"),
    *("##ed", "##house", "##ing", "ist", "##an", "##bul", "nai", "##ve"),
    *"猫红图一的中", *"σοδας", *("##" + c for c in "σοδας"),
    *"かなカﬁ한ß。…½", "##ß",
    "sep", "cls", "unk", "pad", "mask", "dec",
]  # fmt: skip


def write_vocabulary(folder: Path) -> Path:
    """Write VOCABULARY as BERT's vocab.txt; return its path."""
    path = folder / VOCABULARY_FILE
    path.write_text("".join(f"{piece}\n" for piece in VOCABULARY), encoding="utf-8")
    return path


def table(seed: int = 0, n_pieces: int = len(VOCABULARY)) -> np.ndarray:
    rng = np.random.default_rng([seed, 1])
    return rng.standard_normal((n_pieces, bundles.N_EMBD)).astype(np.float32)


def matrix(seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng([seed, 2])
    return rng.standard_normal((WIDTH, bundles.N_EMBD)).astype(np.float32) / 4


def connector_graph(seed: int = 0, n_pieces: int = len(VOCABULARY)) -> onnx.ModelProto:
    """Return the connector; fewer `n_pieces` than there are is a fault."""
    constants: dict[str, np.ndarray] = {
        "table": table(seed, n_pieces),
        "weight": matrix(seed),
        "axis": np.array([1], np.int64),
        "from": np.array([0], np.int64),
        "to": np.array([N_ROWS], np.int64),
    }
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["pieces"]),
        helper.make_node("ReduceMean", ["pieces", "axis"], ["meant"], keepdims=1),
        helper.make_node("Slice", ["features", "from", "to", "axis"], ["first"]),
        helper.make_node("MatMul", ["first", "weight"], ["seen"]),
        helper.make_node("Add", ["seen", "meant"], ["visual_tokens"]),
    ]
    features, rows = [bundles.N_TOKENS, WIDTH], [N_ROWS, bundles.N_EMBD]
    graph = helper.make_graph(
        nodes,
        "connector",
        [
            helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", *features]),
            helper.make_tensor_value_info("ids", TensorProto.INT64, [1, "length"]),
        ],
        [helper.make_tensor_value_info("visual_tokens", TensorProto.FLOAT, ["n", *rows])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
        value_info=[
            helper.make_tensor_value_info(
                "pieces", TensorProto.FLOAT, [1, "length", bundles.N_EMBD]
            ),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def rows_of(pixels: np.ndarray, ids: list[int], seed: int = 0) -> np.ndarray:
    """Compute both graphs in numpy: uint8 [1, size, size, 3] → [N_ROWS, n_embd]."""
    x = pixels.astype(np.float32) / 127.5 - 1
    patch, grid = bundles.PATCH, bundles.GRID
    x = x.reshape(-1, grid, patch, grid, patch, 3).transpose(0, 1, 3, 2, 4, 5)
    patches = x.reshape(bundles.N_TOKENS, patch * patch * 3)
    features = patches @ bundles.vision_weight(seed, WIDTH)
    rows: np.ndarray = features[:N_ROWS] @ matrix(seed) + table(seed)[ids].mean(axis=0)
    return rows


def vision_text(**changes: Any) -> m.VisionText:
    """Return the manifest's `vision.text`; `changes` replace fields."""
    base = m.VisionText(
        tokenizer="wordpiece", vocabulary=VOCABULARY_FILE, max_ids=MAX_IDS, truncation="left",
        features=bundles.N_TOKENS, width=WIDTH, input="features", ids="ids",
        output="visual_tokens",
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


def vision(text: m.VisionText | None = None) -> m.Vision:
    """Return the manifest's `vision`."""
    return m.Vision(
        variants=[m.VisionVariant("vision.fp32.onnx", "fp32", GRAPH)],
        input="pixels", output="features", grid=[1, N_ROWS], drop_first_patch=False,
        tokens_per_tile=N_ROWS, n_embd=bundles.N_EMBD, text=text or vision_text(),
    )  # fmt: skip


def write_instructed(
    folder: Path, seed: int = 0, connector: onnx.ModelProto | None = None, **changes: Any
) -> Path:
    """Write a whole bundle into `folder`; `changes` replace parts of its manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    write_vocabulary(folder)
    (folder / GRAPH).write_bytes((connector or connector_graph(seed)).SerializeToString())
    tower = bundles.vision_graph(seed, n_embd=WIDTH, output_name="features")
    changes.setdefault("vision", vision())
    return bundles.write_bundle(folder, seed, graph=tower, **changes)
