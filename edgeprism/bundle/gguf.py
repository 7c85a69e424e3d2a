"""The header of a GGUF file, checked in Python before llama.cpp opens the file.

llama.cpp reports most faults by returning nothing, and some by ending the process. This reader
first compares each count and offset with the file's size, so it refuses a truncated or forged
file with a reason. Format: the GGUF specification (ggml's docs/gguf.md), versions 3 and 2.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeprism.errors import COPY_AGAIN, ModelError
from edgeprism.files.regular import open_regular
from edgeprism.files.safe_text import short_line

_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
STRING, _ARRAY, FLOAT32 = 8, 9, 6
BYTES = (0, 1)  # types of items
_ARRAY_START = 16  # of an array's items: the types of the value and of its items, their number
CHARSMAP = "tokenizer.ggml.precompiled_charsmap"
_MAX_ITEMS = 4096  # numeric arrays up to this length keep their items; longer ones: vocabulary data
# {ggml type: (elements per block, bytes per block)}; the size of other types is not checked
_BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34),
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210),
    20: (32, 18), 23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8),
    30: (1, 2),
}  # fmt: skip
_MAX_DIMENSIONS = 4
_MAX_NAME = 63  # bytes of a tensor's name: ggml's GGML_MAX_NAME, less the end
_SHOWN = 80  # characters of a key that an error repeats
_LENGTH = struct.Struct("<Q")  # of a string
# general.file_type: llama.cpp's llama_ftype
_QUANTS = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K",
    11: "Q3_K_S", 12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S",
    17: "Q5_K_M", 18: "Q6_K", 32: "BF16",
}  # fmt: skip


@dataclass(frozen=True)
class Array:
    """An array of the metadata: the GGUF type of its items, its length, and a short one's numbers.

    `items` is empty for strings and for arrays of more than `_MAX_ITEMS` numbers.
    """

    kind: int
    length: int
    items: tuple[Any, ...] = ()


@dataclass(frozen=True)
class GgufHeader:
    """The header of a GGUF file: metadata by key, tensors by name."""

    metadata: dict[str, Any]
    tensors: dict[str, tuple[int, ...]]  # name → shape, fastest dimension first
    tensor_types: dict[str, int]  # name → ggml type
    tokens: tuple[bytes, ...] = ()  # the vocabulary; empty unless read with `tokens=True`
    starts: dict[str, int] = field(default_factory=dict)  # name → where its data begins in the file
    kinds: dict[str, int] = field(default_factory=dict)  # metadata's key → GGUF type of its value
    charsmap: bytes = b""  # how the vocabulary rewrites characters; read together with `tokens`

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the model's architecture."""
        return str(self.metadata.get("general.architecture", ""))

    @property
    def n_embd(self) -> int:
        """The width of the model's token embeddings; 0 if the file does not say."""
        value = self.metadata.get(f"{self.architecture}.embedding_length")
        return value if isinstance(value, int) else 0

    def tensor_bytes(self, name: str) -> int:
        """Return the bytes of a tensor's data; 0 for a type whose size is not known."""
        per_block, block_bytes = _BLOCKS.get(self.tensor_types[name], (1, 0))
        return math.prod(self.tensors[name]) // per_block * block_bytes

    @property
    def n_vocab(self) -> int:
        """The number of tokens in the vocabulary."""
        value = self.metadata.get("tokenizer.ggml.tokens")
        return value.length if isinstance(value, Array) else 0

    @property
    def quant(self) -> str:
        """The quantization of most weights, in llama.cpp's spelling; "" if the file says none."""
        kind = self.metadata.get("general.file_type")
        return _QUANTS.get(kind, "") if isinstance(kind, int) else ""

    @property
    def chat_template(self) -> str | None:
        """The chat template in the metadata; None if there is none."""
        template = self.metadata.get("tokenizer.chat_template")
        return template if isinstance(template, str) else None


def bytes_per_block(kind: int) -> int:
    """Return the bytes of a block of a ggml type; 0 for a type whose size is not known."""
    return _BLOCKS.get(kind, (1, 0))[1]


def read_gguf_header(path: Path, *, tokens: bool = False, what: str = "model") -> GgufHeader:
    """Read the header of the GGUF file at `path`; `tokens` keeps the vocabulary's strings too.

    `what` is what errors call the file. Raises ModelError, which names the file, for anything that
    is not a whole GGUF file.
    """
    try:
        with open_regular(path) as file:
            if not os.fstat(file.fileno()).st_size:
                raise ValueError("the file is empty")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Reader(data, tokens).header()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ModelError(
            f"{path}: not a whole GGUF {what}: {reason}.", COPY_AGAIN.replace("model", what)
        ) from error


def license_in_header(header: GgufHeader) -> str:
    """Return the licence that a GGUF file names, "" if it names none."""
    name = str(header.metadata.get("general.license") or "")
    if name == "other":
        name = str(header.metadata.get("general.license.name") or name)
    return name[:200]


class _Reader:
    """A cursor over the file; raises ValueError, with the position, instead of leaving the file."""

    def __init__(self, data: mmap.mmap, keep_tokens: bool) -> None:
        self.data, self.keep_tokens = data, keep_tokens
        self.offset = 0
        self.tokens: list[bytes] = []
        self.charsmap = b""

    def header(self) -> GgufHeader:
        if self.data[:4] != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        self.offset = 4
        version = self.scalar("I")
        if version not in (2, 3):
            raise ValueError(f"GGUF version {version} (known: 2, 3)")
        n_tensors, n_metadata = self.scalar("Q"), self.scalar("Q")
        metadata: dict[str, Any] = {}
        kinds: dict[str, int] = {}
        for _ in range(n_metadata):
            key = self.string()
            if key in metadata:
                raise ValueError(f"{short_line(key, _SHOWN)} stands twice")
            keep = self.tokens if self.keep_tokens and key == "tokenizer.ggml.tokens" else None
            start = self.offset
            kinds[key] = self.scalar("I")
            metadata[key] = self.value(kinds[key], keep)
            if self.keep_tokens and key == CHARSMAP:
                self.charsmap = self.data[start + _ARRAY_START : self.offset]
        tensors, types, extents = self.tensors(n_tensors)
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise ValueError(f"alignment {alignment!r}")
        start = -(-self.offset // alignment) * alignment
        for name, (_, end) in extents.items():
            if start + end > len(self.data):
                raise ValueError(f"cut short: {name} ends after the file's {len(self.data)} bytes")
        starts = {name: start + begin for name, (begin, _) in extents.items()}
        return GgufHeader(
            metadata, tensors, types, tuple(self.tokens), starts, kinds, self.charsmap
        )

    def tensors(
        self, count: int
    ) -> tuple[dict[str, tuple[int, ...]], dict[str, int], dict[str, tuple[int, int]]]:
        """Return three dicts by tensor name: shape, type, and extent of its data.

        Extents [begin, end) count from the first byte after the header.
        """
        shapes: dict[str, tuple[int, ...]] = {}
        types: dict[str, int] = {}
        extents: dict[str, tuple[int, int]] = {}
        for _ in range(count):
            name = self.tensor_name()
            n_dimensions = self.scalar("I")
            if not 1 <= n_dimensions <= _MAX_DIMENSIONS or name in shapes:
                raise ValueError(f"tensor {name!r} is malformed")
            shape = tuple(self.scalar("Q") for _ in range(n_dimensions))
            kind, offset = self.scalar("I"), self.scalar("Q")
            elements = 1
            for length in shape:
                elements *= length
            per_block, block_bytes = _BLOCKS.get(kind, (1, 0))
            if shape[0] % per_block or not elements:
                raise ValueError(f"tensor {name!r} has shape {shape}, impossible for its type")
            shapes[name], types[name] = shape, kind
            extents[name] = offset, offset + elements // per_block * block_bytes
        return shapes, types, extents

    def value(self, kind: int, keep: list[bytes] | None = None) -> Any:
        """Read a value of GGUF type `kind`; append the strings of an array to `keep`."""
        if kind == STRING:
            return self.string()
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind != _ARRAY:
            raise ValueError(f"metadata of unknown type {kind}")
        item, count = self.scalar("I"), self.scalar("Q")
        items: tuple[Any, ...] = ()
        if item == STRING:
            self.strings(count, keep)
        elif item in _SCALARS:
            start, code = self.offset, _SCALARS[item]
            self.skip(count * struct.calcsize(code))
            if count <= _MAX_ITEMS:
                items = struct.unpack_from(f"<{count}{code}", self.data, start)
        else:
            raise ValueError(f"an array of unknown type {item}")
        return Array(item, count, items)

    def strings(self, count: int, keep: list[bytes] | None) -> None:
        """Pass over the strings of an array. A vocabulary has 300,000, so the loop is bare."""
        data, offset, length_at = self.data, self.offset, _LENGTH.unpack_from
        try:
            if keep is None:
                for _ in range(count):
                    offset += length_at(data, offset)[0] + 8
            else:
                for _ in range(count):
                    start, offset = offset + 8, offset + length_at(data, offset)[0] + 8
                    if offset > len(data):
                        break  # before what may be gigabytes of weights is kept as a token
                    keep.append(data[start:offset])
        except (struct.error, OverflowError):  # the length before was too large
            offset = len(data) + 1
        if offset > len(data):
            raise ValueError("cut short inside an array of strings")
        self.offset = offset

    def scalar(self, code: str) -> Any:
        start = self.offset
        self.skip(struct.calcsize(code))
        return struct.unpack_from(f"<{code}", self.data, start)[0]

    def string(self) -> str:
        length, start = self.scalar("Q"), self.offset
        self.skip(length)
        return self.data[start : start + length].decode("utf-8", errors="replace")

    def tensor_name(self) -> str:
        start = self.offset
        name = self.string()
        n_bytes = self.offset - start - _LENGTH.size
        if n_bytes > _MAX_NAME:  # llama.cpp refuses it, and an error would repeat all of it
            raise ValueError(f"a tensor's name has {n_bytes} bytes, at most {_MAX_NAME} are known")
        return name

    def skip(self, length: int) -> None:
        if length > len(self.data) - self.offset:
            raise ValueError(f"cut short at byte {self.offset}")
        self.offset += length
