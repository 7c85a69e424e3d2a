"""Make tiny real models from a seed in well under a second, without convert or download.

The vision graph has the real interface (uint8 pixels → float32 visual tokens), the language
model is a real GGUF with a sentencepiece vocabulary, and the manifest has their true digests.
A *scripted* language model generates given tokens after a line feed, whatever precedes it; the
output of a *random* one depends on every row and token of its prompt.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeprism.bundle import manifest as m
from edgeprism.bundle.manifest_language import LanguageModelFile

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + "
    "message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SIZE, PATCH, N_EMBD = 28, 7, 128
GRID = SIZE // PATCH
N_TOKENS = GRID * GRID
CONTEXT = 2048

_CONTROL = ["<unk>", "<s>", "</s>"]
_CHAT = ["<|im_start|>", "<|im_end|>"]
WORDS = [
    *("a", "the", "one", "two", "three", "red", "green", "blue", "white", "black", "boat", "dog"),
    *("cat", "bird", "tree", "house", "sea", "sky", "sun", "hill", "on", "near", "under", "above"),
    *("left", "right", "of", "and", "with", "no", "it", "is", "picture", "small", "large", "old"),
]
_LETTERS = [
    *"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;!?'\"()[]{}<>|/_-+="
]
PIECES = [*_CONTROL, *(f"<0x{i:02X}>" for i in range(256)), *_CHAT, "▁", *_LETTERS,
          *(f"▁{word}" for word in WORDS)]  # fmt: skip
IDS = {piece: i for i, piece in enumerate(PIECES)}
N_VOCAB = len(PIECES)
LINE_FEED = IDS["<0x0A>"]
IM_START, IM_END = IDS["<|im_start|>"], IDS["<|im_end|>"]


@dataclass(frozen=True)
class LmShape:
    """The dimensions of a language model."""

    n_embd: int = N_EMBD
    n_head: int = 4
    n_layer: int = 2
    n_ff: int = 160
    context: int = CONTEXT


@dataclass
class GgufParts:
    """The content of a GGUF file; tests change a part before they write it."""

    metadata: dict[str, tuple[str, Any]] = field(default_factory=dict)  # key → (type, value)
    tensors: dict[str, np.ndarray] = field(default_factory=dict)
    architecture: str = "llama"
    quants: dict[str, gguf.GGMLQuantizationType] = field(default_factory=dict)  # quantized tensors

    def write(self, path: Path) -> Path:
        writer = gguf.GGUFWriter(path, self.architecture)
        for key, (kind, value) in self.metadata.items():
            getattr(writer, f"add_{kind}")(key, value)
        for name, values in self.tensors.items():
            writer.add_tensor(name, values, raw_dtype=self.quants.get(name))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path


def piece_ids(*pieces: str | int) -> list[int]:
    """Return the ids of vocabulary pieces; characters like "é" give their bytes."""
    ids: list[int] = []
    for piece in pieces:
        if isinstance(piece, int):
            ids.append(piece)
        elif piece in IDS:
            ids.append(IDS[piece])
        else:
            ids += [IDS[f"<0x{byte:02X}>"] for byte in piece.encode()]
    return ids


# "A red dog" with an accent that takes two byte tokens, then the end of the turn
SAID = piece_ids("▁a", "▁red", "▁dog", "é", "▁on", "▁the", "▁sea", IM_END)
SAID_TEXT = "a red dogé on the sea"


def lm_parts(
    seed: int = 0,
    *,
    script: Sequence[int] | None = None,
    shape: LmShape | None = None,
    chat_template: str | None = CHATML,
) -> GgufParts:
    """Return a language model; `script` has distinct ids that follow a line feed, in order."""
    shape = shape or LmShape()
    rng = np.random.default_rng(seed)
    types = [gguf.TokenType.NORMAL] * N_VOCAB
    types[0] = gguf.TokenType.UNKNOWN
    for i in (1, 2, IM_START, IM_END):
        types[i] = gguf.TokenType.CONTROL
    for i in range(3, 259):
        types[i] = gguf.TokenType.BYTE
    parts = GgufParts()
    parts.metadata = {
        "llama.context_length": ("uint32", shape.context),
        "llama.embedding_length": ("uint32", shape.n_embd),
        "llama.block_count": ("uint32", shape.n_layer),
        "llama.feed_forward_length": ("uint32", shape.n_ff),
        "llama.attention.head_count": ("uint32", shape.n_head),
        "llama.attention.head_count_kv": ("uint32", shape.n_head),
        "llama.attention.layer_norm_rms_epsilon": ("float32", 1e-5),
        "llama.rope.dimension_count": ("uint32", shape.n_embd // shape.n_head),
        "llama.rope.freq_base": ("float32", 10000.0),
        "llama.vocab_size": ("uint32", N_VOCAB),
        "tokenizer.ggml.model": ("string", "llama"),
        "tokenizer.ggml.pre": ("string", "default"),
        "tokenizer.ggml.tokens": ("array", PIECES),
        "tokenizer.ggml.scores": ("array", [-float(i) for i in range(N_VOCAB)]),
        "tokenizer.ggml.token_type": ("array", [int(t) for t in types]),
        "tokenizer.ggml.bos_token_id": ("uint32", 1),
        "tokenizer.ggml.eos_token_id": ("uint32", IM_END),
        "tokenizer.ggml.unknown_token_id": ("uint32", 0),
        "tokenizer.ggml.add_bos_token": ("bool", True),
        "tokenizer.ggml.add_eos_token": ("bool", False),
    }
    if chat_template is not None:
        parts.metadata["tokenizer.chat_template"] = ("string", chat_template)
    parts.tensors = _lm_tensors(rng, shape, script)
    return parts


def _lm_tensors(
    rng: np.random.Generator, shape: LmShape, script: Sequence[int] | None
) -> dict[str, np.ndarray]:
    def random(*dimensions: int, scale: float) -> np.ndarray:
        return (rng.standard_normal(dimensions) * scale).astype(np.float32)

    n_embd = shape.n_embd
    # large enough that every row of a prompt changes the next token
    inner = 0.0 if script is not None else 3.0 / np.sqrt(n_embd)
    embedding = random(N_VOCAB, n_embd, scale=1.0)
    output = random(N_VOCAB, n_embd, scale=0.5)
    if script is not None:
        # the hidden state is the last token's embedding, so the next token's row must match it
        output = np.zeros_like(output)
        for before, after in zip([LINE_FEED, *script], script, strict=False):
            output[after] += embedding[before]
        # where a grammar rules the script out: "none", so that no tie decides
        output[3 + ord("n")] += embedding[LINE_FEED] / 10
    tensors = {"token_embd.weight": embedding}
    for i in range(shape.n_layer):
        for name, rows, columns in (
            ("attn_q", n_embd, n_embd),
            ("attn_k", n_embd, n_embd),
            ("attn_v", n_embd, n_embd),
            ("attn_output", n_embd, n_embd),
            ("ffn_gate", shape.n_ff, n_embd),
            ("ffn_up", shape.n_ff, n_embd),
            ("ffn_down", n_embd, shape.n_ff),
        ):
            tensors[f"blk.{i}.{name}.weight"] = random(rows, columns, scale=inner)
        for name in ("attn_norm", "ffn_norm"):
            tensors[f"blk.{i}.{name}.weight"] = np.ones(n_embd, np.float32)
    tensors["output_norm.weight"] = np.ones(n_embd, np.float32)
    tensors["output.weight"] = output
    return tensors


def write_lm(path: Path, seed: int = 0, **settings: Any) -> Path:
    return lm_parts(seed, **settings).write(path)


def write_heavy_lm(path: Path, shape: LmShape) -> Path:
    """Write a language model of zeros as a sparse file: slow to run, quick to write, and small."""
    parts = lm_parts()
    head = shape.n_embd // shape.n_head
    for key, value in (
        ("context_length", shape.context),
        ("embedding_length", shape.n_embd),
        ("block_count", shape.n_layer),
        ("feed_forward_length", shape.n_ff),
        ("attention.head_count", shape.n_head),
        ("attention.head_count_kv", 1),
        ("rope.dimension_count", head),
    ):
        parts.metadata[f"llama.{key}"] = ("uint32", value)
    shapes = {"token_embd.weight": (N_VOCAB, shape.n_embd), "output_norm.weight": (shape.n_embd,)}
    for i in range(shape.n_layer):
        for name, rows, columns in (
            ("attn_q", shape.n_embd, shape.n_embd),
            ("attn_k", head, shape.n_embd),
            ("attn_v", head, shape.n_embd),
            ("attn_output", shape.n_embd, shape.n_embd),
            ("ffn_gate", shape.n_ff, shape.n_embd),
            ("ffn_up", shape.n_ff, shape.n_embd),
            ("ffn_down", shape.n_embd, shape.n_ff),
        ):
            shapes[f"blk.{i}.{name}.weight"] = (rows, columns)
        for name in ("attn_norm", "ffn_norm"):
            shapes[f"blk.{i}.{name}.weight"] = (shape.n_embd,)
    writer = gguf.GGUFWriter(path, "llama")
    for key, (kind, value) in parts.metadata.items():
        getattr(writer, f"add_{kind}")(key, value)
    size = 0
    for name, dimensions in shapes.items():
        n_bytes = 4 * int(np.prod(dimensions))
        writer.add_tensor_info(name, dimensions, np.dtype(np.float32), n_bytes)
        size += -(-n_bytes // 32) * 32
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    start = -(-path.stat().st_size // 32) * 32
    with open(path, "r+b") as file:
        file.truncate(start + size)
    return path


def vision_weight(seed: int = 0, n_embd: int = N_EMBD) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((PATCH * PATCH * 3, n_embd)) / 6).astype(np.float32)


def vision_reference(pixels: np.ndarray, seed: int = 0) -> np.ndarray:
    """Compute the graph in numpy: uint8 [n, S, S, 3] → float32 [n, N_TOKENS, N_EMBD]."""
    x = pixels.astype(np.float32) / 127.5 - 1
    x = x.reshape(-1, GRID, PATCH, GRID, PATCH, 3).transpose(0, 1, 3, 2, 4, 5)
    rows: np.ndarray = x.reshape(-1, N_TOKENS, PATCH * PATCH * 3) @ vision_weight(seed)
    return rows


def vision_graph(
    seed: int = 0,
    *,
    n_embd: int = N_EMBD,
    input_name: str = "pixels",
    output_name: str = "visual_tokens",
    size: int = SIZE,
    input_type: int = TensorProto.UINT8,
    heavy_run: int = 0,
    heavy_load: int = 0,
) -> onnx.ModelProto:
    """Return a graph that multiplies the picture's patches by a matrix.

    `heavy_run` adds a loop of so many matrix products; `heavy_load` adds so many products of
    constants, which ONNX Runtime folds while it loads the graph.
    """
    grid = size // PATCH
    constants: dict[str, np.ndarray] = {
        "scale": np.array(1 / 127.5, np.float32),
        "one": np.array(1, np.float32),
        "split": np.array([-1, grid, PATCH, grid, PATCH, 3], np.int64),
        "join": np.array([-1, grid * grid, PATCH * PATCH * 3], np.int64),
        "weight": vision_weight(seed, n_embd),
    }
    nodes = [
        helper.make_node("Cast", [input_name], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "scale"], ["scaled"]),
        helper.make_node("Sub", ["scaled", "one"], ["centred"]),
        helper.make_node("Reshape", ["centred", "split"], ["patches"]),
        helper.make_node("Transpose", ["patches"], ["ordered"], perm=[0, 1, 3, 2, 4, 5]),
        helper.make_node("Reshape", ["ordered", "join"], ["rows"]),
        helper.make_node("MatMul", ["rows", "weight"], ["projected"]),
    ]
    last = "projected"
    if heavy_run or heavy_load:
        constants["zeros"] = np.zeros((768, 768), np.float32)
        constants["zero"] = np.array([0], np.int64)
    if heavy_run:
        nodes += _loop_of_products(heavy_run, constants)
        nodes.append(helper.make_node("Add", [last, "looped_sum"], ["after_loop"]))
        last = "after_loop"
    if heavy_load:
        chain = [f"fold{i}" for i in range(heavy_load)]
        for before, after in zip(["zeros", *chain], chain, strict=False):
            nodes.append(helper.make_node("MatMul", [before, "zeros"], [after]))
        nodes.append(helper.make_node("ReduceSum", [chain[-1]], ["folded"], keepdims=0))
        nodes.append(helper.make_node("Add", [last, "folded"], ["after_fold"]))
        last = "after_fold"
    nodes.append(helper.make_node("Identity", [last], [output_name]))
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(input_name, input_type, ["n", size, size, 3])],
        [helper.make_tensor_value_info(output_name, TensorProto.FLOAT, ["n", grid * grid, n_embd])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=9)


def _loop_of_products(count: int, constants: dict[str, np.ndarray]) -> list[onnx.NodeProto]:
    constants["count"] = np.array(count, np.int64)
    constants["go"] = np.array(True)
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["state_in", "zeros"], ["state_out"]),
            helper.make_node("Identity", ["go_in"], ["go_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("at", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_in", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state_in", TensorProto.FLOAT, [768, 768]),
        ],
        [
            helper.make_tensor_value_info("go_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state_out", TensorProto.FLOAT, [768, 768]),
        ],
    )
    return [
        # the start depends on the picture, so that ONNX Runtime cannot fold the loop while loading
        helper.make_node("ReduceMax", ["projected"], ["brightest"], keepdims=0),
        helper.make_node("Mul", ["zeros", "brightest"], ["start"]),
        helper.make_node("Loop", ["count", "go", "start"], ["looped"], body=body),
        helper.make_node("ReduceSum", ["looped"], ["looped_sum"], keepdims=0),
    ]


def file_entry(path: Path) -> m.FileEntry:
    data = path.read_bytes()
    return m.FileEntry(hashlib.sha256(data).hexdigest(), len(data))


def make_manifest(files: dict[str, m.FileEntry], **changes: Any) -> m.Manifest:
    """Return the tiny bundle's manifest; `changes` replace whole parts."""
    base = m.Manifest(
        schema=m.SCHEMA,
        name="tiny",
        family="test",
        license="Apache-2.0",
        sources=[m.Source("captioner", "made from a seed", "0" * 64, "Apache-2.0")],
        image=m.ImagePolicy("pad", SIZE, [127, 127, 127], "bicubic", 1),
        vision=m.Vision(
            variants=[m.VisionVariant("vision.fp32.onnx", "fp32")],
            input="pixels",
            output="visual_tokens",
            grid=[GRID, GRID],
            drop_first_patch=False,
            tokens_per_tile=N_TOKENS,
            n_embd=N_EMBD,
        ),
        lm=LanguageModelFile("lm.gguf", "F32", "llama", N_EMBD, N_VOCAB, CONTEXT, "causal"),
        prompts=m.Prompts(
            add_bos=True,
            before_image="<|im_start|>user\n",
            after_image="\n",
            before_caption="<|im_end|>\n<|im_start|>assistant\n",
            default_instruction="Describe the picture.",
            focus_instruction=" Attend to: {focus}.",
            stop=["<|im_end|>"],
            max_tokens=12,
        ),
        files=files,
        parity=m.Parity(True, False, {}, []),
        notice="",
    )
    return dataclasses.replace(base, **changes)


def seal_bundle(folder: Path, **changes: Any) -> Path:
    """Write the manifest for the files in `folder`."""
    names = [p.name for p in sorted(folder.iterdir()) if p.name != m.FILE_NAME]
    manifest = make_manifest({name: file_entry(folder / name) for name in names}, **changes)
    (folder / m.FILE_NAME).write_text(manifest.to_json(), encoding="utf-8")
    return folder


def write_bundle(
    folder: Path,
    seed: int = 0,
    *,
    script: Sequence[int] | None = None,
    model: GgufParts | None = None,
    graph: onnx.ModelProto | None = None,
    **changes: Any,
) -> Path:
    """Write a whole bundle into `folder`; `changes` replace parts of its manifest.

    A language model that `folder` already holds stays.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "lm.gguf").exists():
        (model or lm_parts(seed, script=script)).write(folder / "lm.gguf")
    graph = graph or vision_graph(seed)
    (folder / "vision.fp32.onnx").write_bytes(graph.SerializeToString())
    return seal_bundle(folder, **changes)


def known_to_run(folder: Path) -> Path:
    """Note that the bundle in `folder` runs well, as `convert` does; return `folder`."""
    from edgeprism.bundle.open import open_bundle
    from edgeprism.vision.trial import remember_captioner

    remember_captioner(open_bundle(folder))
    return folder
