"""What a language model takes in memory, counted from its header before llama.cpp loads it.

Source of the counts: llama.cpp's model loader, graph allocator and repacked buffers (public), as
llama-cpp-python 0.3.36 builds them. `benchmarks/memory/plan.py` compares them with what is taken.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace

from edgeprism.bundle.gguf import Array, GgufHeader
from edgeprism.language.engine import reserved_outputs
from edgeprism.language.kv_memory import kv_bytes
from edgeprism.memory.parts import CPU, GPU, Part

CELLS_ROUND = 256  # llama.cpp pads a KV cache to this
ROWS_AT_ONCE = 512  # of a prompt, at least
_FLOAT = 4
_REPACKED_ROWS = 8  # a matrix is laid out anew where its rows are a multiple of this
_BLOCK = re.compile(r"(?:enc\.|dec\.)?blk\.(\d+)\.")
_TOKEN_BYTES = 200  # of one token in llama.cpp's vocabulary: two maps and the text
_MERGE_BYTES = 180  # of one merge of a byte-pair vocabulary
_QUANTIZED_ROW = 1.1  # bytes of one number of a row that is quantized for a product
# how often scores stand there with relative positions: the bias in two orders, and the products
_BIASED = 3
_ENGINE_BYTES = 4_400_000  # graphs, schedules and buffers whose size hardly depends on the model


@dataclass(frozen=True)
class LanguageUse:
    """How a language model is used.

    Parameters:
        cells: of the KV cache, for all sequences together.
        rows_at_once: how many rows of a prompt go through the model at once.
        prompt: rows of the prompt, if these are fewer: of the buffer no more is touched. 0: more.
        sequences: how many texts are written at once.
        kv_type: number type of the KV cache.
        flash_attention: whether attention keeps no scores.
        gpu_layers: how many layers are on the GPU, from the last; the output counts as one.
        repacked: ggml's numbers of the types that this CPU's engine lays out anew.
    """

    cells: int
    rows_at_once: int = ROWS_AT_ONCE
    prompt: int = 0
    sequences: int = 1
    kv_type: str = "f16"
    flash_attention: bool = True
    gpu_layers: int = 0
    repacked: Collection[int] = ()


def language_parts(header: GgufHeader, file_bytes: int, use: LanguageUse) -> tuple[Part, ...]:
    """Return what a language model takes whose file, or parts, have `file_bytes` in all."""
    parts = [*_weights(header, file_bytes, use), *_cache(header, use), *_buffers(header, use)]
    parts.append(Part("vocabulary", _vocabulary(header), f"{header.n_vocab} tokens and merges"))
    return tuple(part for part in parts if part.size)


def adapter_parts(
    adapter: GgufHeader, model: GgufHeader, use: LanguageUse, what: str, why: str
) -> tuple[Part, ...]:
    """Return what an adapter of the language model `model` takes: each half lies by its matrix.

    `what` and `why` are the parts' own.
    """
    on_gpu = sum(
        adapter.tensor_bytes(name) for name in adapter.tensors if _on_gpu(model, name, use)
    )
    on_cpu = sum(map(adapter.tensor_bytes, adapter.tensors)) - on_gpu
    parts = (Part(what, on_gpu, why, GPU), Part(what, on_cpu, why))
    return tuple(part for part in parts if part.size)


def cells_for(prompt: int, answer: int, context_length: int) -> int:
    """Return the cells of a KV cache for a prompt and an answer, as the generator makes it."""
    needed = min(prompt + answer, context_length) if context_length else prompt + answer
    return (-(-needed // CELLS_ROUND) + 1) * CELLS_ROUND


def layer_count(header: GgufHeader) -> int:
    """Return the number of the model's layers, without the output."""
    return _number(header, "block_count")


def expert_parts(header: GgufHeader, file_bytes: int, use: LanguageUse) -> tuple[Part, ...]:
    """Return what an expert for image rows takes beside the language model that is used so.

    Its context holds one sequence at a time. What it holds of a prompt goes through a buffer to the
    language model.
    """
    alone = replace(use, cells=use.cells // max(1, use.sequences), sequences=1)
    parts = [
        replace(part, what=f"expert {part.what}")
        for part in language_parts(header, file_bytes, alone)
    ]
    handed = round(kv_bytes(header, use.prompt or alone.cells, use.kv_type))
    return (*parts, Part("expert buffer", handed, "keys and values of a prompt, handed over"))


def layers_that_fit(
    header: GgufHeader,
    file_bytes: int,
    use: LanguageUse,
    room: int,
    beside: Callable[[LanguageUse], Iterable[Part]] = lambda _: (),
) -> int:
    """Return how many layers of a model fit into `room` bytes of a GPU, the output included.

    The last layers go first, as in llama.cpp. One more than the model's layers means all. `beside`
    returns what else is taken where the model is used so.
    """
    for layers in range(layer_count(header) + 1, 0, -1):
        so_many = replace(use, gpu_layers=layers)
        parts = (*language_parts(header, file_bytes, so_many), *beside(so_many))
        if sum(part.size for part in parts if part.place == GPU) <= room:
            return layers
    return 0


# ---- weights


def _weights(header: GgufHeader, file_bytes: int, use: LanguageUse) -> list[Part]:
    used, copied, on_gpu = 0, 0, 0
    for name in header.tensors:
        size = header.tensor_bytes(name)
        if _on_gpu(header, name, use):
            on_gpu += size
        elif _is_repacked(header, name, use):
            copied += size
        else:
            used += size
    if not _has_output(header):  # the embeddings serve as output, too
        name = "token_embd.weight"
        if _on_gpu(header, "output.weight", use):
            on_gpu += header.tensor_bytes(name) if name in header.tensors else 0
        elif name in header.tensors and _repackable(header, name, use):
            copied += header.tensor_bytes(name)
    return [
        Part("language weights", on_gpu, f"{_layers_on_gpu(header, use)} layers", GPU),
        Part("language weights", used, "read in place from the file, which is mapped"),
        Part("repacked weights", copied, "copies in the layout that this CPU multiplies fastest"),
        Part(
            # all pages are read in at first, and dropped as their weights are copied
            "file mapped while loading", max(0, file_bytes - used - copied),
            "beyond the weights that stay in memory", needed=False,
        ),
    ]  # fmt: skip


def _on_gpu(header: GgufHeader, name: str, use: LanguageUse) -> bool:
    layers = layer_count(header)
    first = layers + 1 - use.gpu_layers
    match = _BLOCK.match(name)
    if match:
        return int(match[1]) >= first
    # what stands before the first layer stays on the CPU, what stands behind the last is output
    return use.gpu_layers > 0 and name.startswith("output")


def _layers_on_gpu(header: GgufHeader, use: LanguageUse) -> str:
    total = layer_count(header) + 1
    return f"{min(use.gpu_layers, total)} of {total}"


def _is_repacked(header: GgufHeader, name: str, use: LanguageUse) -> bool:
    is_matrix = name == "output.weight" or _BLOCK.match(name)
    return bool(is_matrix) and name.endswith(".weight") and _repackable(header, name, use)


def _repackable(header: GgufHeader, name: str, use: LanguageUse) -> bool:
    shape = header.tensors[name]
    return (
        len(shape) > 1
        and header.tensor_types[name] in use.repacked
        and shape[1] % _REPACKED_ROWS == 0
    )


def _encodes(header: GgufHeader) -> bool:
    return any(name.startswith("enc.") for name in header.tensors)


def _has_output(header: GgufHeader) -> bool:
    return "output.weight" in header.tensors


# ---- KV cache and buffers


def _cache(header: GgufHeader, use: LanguageUse) -> list[Part]:
    layers = layer_count(header)
    whole = kv_bytes(header, use.cells, use.kv_type)
    share = min(max(use.gpu_layers - 1, 0), layers) / layers if layers else 0.0
    why = f"{use.cells} cells of {use.kv_type}"
    return [
        Part("KV cache", round(whole * share), why, GPU),
        Part("KV cache", round(whole * (1 - share)), why),
    ]


def _buffers(header: GgufHeader, use: LanguageUse) -> list[Part]:
    place = GPU if use.gpu_layers else CPU
    encodes = _encodes(header)
    at_once = use.cells // max(1, use.sequences) if encodes else use.rows_at_once
    rows = min(at_once, use.prompt or at_once)
    # of a model with an encoder, each sequence has a context of its own
    contexts = use.sequences if encodes else 1
    on_cpu = contexts * _compute_bytes(header, use, rows)
    # a GPU's memory is taken whether it is touched or not
    compute = contexts * _compute_bytes(header, use, at_once) if use.gpu_layers else on_cpu
    logits = header.n_vocab * reserved_outputs(use.sequences) * _FLOAT
    if encodes:  # each row that the encoder makes is an output, and has room for logits
        logits = (header.n_vocab + header.n_embd) * rows * contexts * _FLOAT
    quantized = int(rows * _feed_forward(header) * _QUANTIZED_ROW)
    parts = [
        Part("compute buffer", compute, f"{rows} rows of a prompt at once", place),
        Part("scores", logits, f"of {header.n_vocab} tokens for each text"),
        Part("engine", _ENGINE_BYTES + quantized, "graphs, and rows as they are multiplied"),
    ]
    if use.gpu_layers and use.gpu_layers <= layer_count(header):
        parts.append(Part("compute buffer", on_cpu, "for the layers that stay on the CPU"))
    return parts


def _compute_bytes(header: GgufHeader, use: LanguageUse, rows: int) -> int:
    """Return the bytes of the buffer in which a layer's numbers stand while it is computed."""
    width = header.n_embd
    cells = use.cells // max(1, use.sequences)
    heads = _largest(header, "attention.head_count")
    shared = _largest(header, "attention.head_count_kv") or heads
    head = _number(header, "attention.key_length") or width // max(1, heads)
    # input, what goes past the layer, its normed form and its result stand there all the time
    around = 4 * width
    # gate, up and their product
    feeding = 3 * _feed_forward(header)
    # queries, keys and values; and, without flash attention, each row's scores of all cells
    scores = 0 if use.flash_attention else heads * cells
    outputs = reserved_outputs(use.sequences)
    if _encodes(header):
        scores, outputs, cells = _BIASED * heads * rows, rows, rows
    attending = (heads + 2 * shared) * head + scores
    layer = rows * (around + max(feeding, attending)) * _FLOAT
    outputs = (rows * width + outputs * header.n_vocab) * _FLOAT
    mask = rows * cells * (2 if use.flash_attention else 4)
    return int(max(layer, outputs) + mask)


def _feed_forward(header: GgufHeader) -> int:
    return _largest(header, "feed_forward_length")


def _vocabulary(header: GgufHeader) -> int:
    merges = header.metadata.get("tokenizer.ggml.merges")
    n_merges = merges.length if isinstance(merges, Array) else 0
    return header.n_vocab * _TOKEN_BYTES + n_merges * _MERGE_BYTES


def _number(header: GgufHeader, key: str) -> int:
    value = header.metadata.get(f"{header.architecture}.{key}")
    return value if isinstance(value, int) else 0


def _largest(header: GgufHeader, key: str) -> int:
    """Return a value that is one for all layers, or the largest of one for each layer."""
    value = header.metadata.get(f"{header.architecture}.{key}")
    if isinstance(value, Array):
        return max((item for item in value.items if isinstance(item, int)), default=0)
    return value if isinstance(value, int) else 0
