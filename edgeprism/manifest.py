"""manifest.json of a bundle: read strictly, all faults at once; written by `convert`.

A bundle from a stranger is data: nothing in a manifest is executed, and every field is checked
for presence, type and value before an engine sees it.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from edgeprism.errors import ManifestError

SCHEMA = 1
FILE_NAME = "manifest.json"
MAX_MANIFEST_BYTES = 1 << 20

VISION_QUANTS = ("fp32", "fp16", "int8", "int8-full")
Record = typing.TypeVar("Record")
RESAMPLINGS = ("bicubic", "bilinear", "lanczos", "nearest")


@dataclass(frozen=True)
class FileEntry:
    """Digest and size in bytes of one file of the bundle."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Source:
    """One checkpoint that the bundle was made from."""

    role: str  # "captioner", "llm", "vision"
    name: str
    sha256: str  # over the digests of the checkpoint's files, in order of name
    license: str


@dataclass(frozen=True)
class ImagePolicy:
    """How an upright RGB picture becomes tiles of pixels."""

    mode: str  # "pad": centred on a square of `fill`, then resized; "stretch": resized as it is
    size: int  # edge of a tile in pixels
    fill: list[int]  # [r, g, b]
    resample: str
    max_tiles: int


@dataclass(frozen=True)
class VisionVariant:
    """One form of the vision graph."""

    file: str
    quant: str  # fp32 | fp16 | int8 (reduced range, safe without VNNI) | int8-full


@dataclass(frozen=True)
class Vision:
    """The graph: uint8 pixels [n, size, size, 3] → float32 visual tokens [n, tokens, n_embd]."""

    variants: list[VisionVariant]
    input: str
    output: str
    grid: list[int]  # patches [down, across]
    drop_first_patch: bool  # done inside the graph; here so that a reader can count
    tokens_per_tile: int
    n_embd: int


@dataclass(frozen=True)
class LanguageModel:
    """The GGUF file and the dimensions it must have."""

    file: str
    quant: str
    architecture: str
    n_embd: int
    n_vocab: int
    context_length: int
    image_attention: str  # "causal": image rows see only what stands before them


@dataclass(frozen=True)
class Prompts:
    """Pieces around picture and instruction.

    The prompt is: BOS? · before_image · image rows · after_image + instruction · before_caption.
    In `before_image` and `before_caption` special tokens are parsed; `after_image` is plain text
    and tokenised in one piece with the instruction, as upstream does.
    """

    add_bos: bool
    before_image: str
    after_image: str
    before_caption: str
    default_instruction: str
    focus_instruction: str  # appended for a question-related caption; holds "{focus}" once
    stop: list[str]
    max_tokens: int


@dataclass(frozen=True)
class Parity:
    """What `convert`'s gate measured; `figures` is {check: {figure: number}}."""

    passed: bool
    forced: bool
    figures: dict[str, dict[str, float]]
    failures: list[str]


@dataclass(frozen=True)
class Manifest:
    """A bundle's description. Field by field in docs of each part."""

    schema: int
    name: str
    family: str
    license: str
    sources: list[Source]
    image: ImagePolicy
    vision: Vision
    lm: LanguageModel
    prompts: Prompts
    files: dict[str, FileEntry]
    parity: Parity
    notice: str  # one line shown with the model, e.g. what it is not made for; may be empty

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n"


def manifest_from_json(text: str | bytes, where: str) -> Manifest:
    """Parse and check; raises ManifestError that lists every fault with its field's path."""
    try:
        data = json.loads(text, object_pairs_hook=_object_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise ManifestError(where, [f"not JSON: {error}"]) from error
    if isinstance(data, dict) and data.get("schema") != SCHEMA:
        found = data.get("schema", "none")
        raise ManifestError(where, [f"schema: {found!r} is not supported; known: {SCHEMA}"])
    faults: list[str] = []
    manifest = _read(Manifest, data, "", faults)
    if not faults:
        faults = _value_faults(manifest)
    if faults:
        raise ManifestError(where, faults)
    return typing.cast(Manifest, manifest)


def record_from_json(kind: type[Record], text: str | bytes, where: str) -> Record:
    """Any dataclass of plain fields, as strictly: ManifestError lists every fault at once."""
    try:
        data = json.loads(text, object_pairs_hook=_object_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise ManifestError(where, [f"not JSON: {error}"]) from error
    faults: list[str] = []
    record = _read(kind, data, "", faults)
    if faults:
        raise ManifestError(where, faults)
    return typing.cast(Record, record)


def manifest_from_bundle(bundle: Path) -> Manifest:
    """Read `bundle`/manifest.json; OSError is left to the caller, who knows what was asked for."""
    path = bundle / FILE_NAME
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise ManifestError(str(path), [f"larger than {MAX_MANIFEST_BYTES} bytes"])
    return manifest_from_json(path.read_bytes(), str(path))


def _object_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        names = [name for name, _ in pairs]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"field given twice: {', '.join(twice)}")
    return data


def _read(kind: Any, value: Any, path: str, faults: list[str]) -> Any:
    """`value` as `kind` (a dataclass, list[…], dict[str, …] or scalar), faults collected."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _read_dataclass(typing.cast(type, kind), value, path, faults)
    if origin is list:
        if not isinstance(value, list):
            return faults.append(f"{path}: a list is expected, not {_name_of(value)}")
        return [_read(arguments[0], v, f"{path}[{i}]", faults) for i, v in enumerate(value)]
    if origin is dict:
        if not isinstance(value, dict):
            return faults.append(f"{path}: an object is expected, not {_name_of(value)}")
        return {k: _read(arguments[1], v, f"{path}.{k}", faults) for k, v in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            value = float(value)
        except OverflowError:
            return faults.append(f"{path}: too large a number")
    # bool is an int in Python and must not pass for one
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        faults.append(f"{path}: {kind.__name__} is expected, not {_name_of(value)}")
    return value


def _read_dataclass(kind: type, value: Any, path: str, faults: list[str]) -> Any:
    if not isinstance(value, dict):
        return faults.append(f"{path or 'manifest'}: an object is expected, not {_name_of(value)}")
    hints = typing.get_type_hints(kind)
    lead = f"{path}." if path else ""
    faults.extend(f"{lead}{name}: unknown field" for name in value if name not in hints)
    faults.extend(f"{lead}{name}: missing" for name in hints if name not in value)
    fields = {
        name: _read(hint, value[name], f"{lead}{name}", faults)
        for name, hint in hints.items()
        if name in value
    }
    return kind(**fields) if len(fields) == len(hints) else None


def _name_of(value: Any) -> str:
    return "null" if isinstance(value, types.NoneType) else type(value).__name__


def _value_faults(m: Manifest) -> list[str]:
    """Values that have the right type and yet cannot be meant."""
    checks = [
        ("name", bool(m.name.strip()), "is empty"),
        (
            "image.mode",
            m.image.mode in ("pad", "stretch"),
            f"{m.image.mode!r}; known: pad, stretch",
        ),
        ("image.size", 1 <= m.image.size <= 4096, "must lie in 1…4096"),
        (
            "image.fill",
            len(m.image.fill) == 3 and all(0 <= v <= 255 for v in m.image.fill),
            "must be three numbers in 0…255",
        ),
        (
            "image.resample",
            m.image.resample in RESAMPLINGS,
            f"{m.image.resample!r}; known: {', '.join(RESAMPLINGS)}",
        ),
        ("image.max_tiles", m.image.max_tiles == 1, "only 1 is supported"),
        ("vision.variants", bool(m.vision.variants), "is empty"),
        (
            "vision.grid",
            len(m.vision.grid) == 2 and all(1 <= v <= 1024 for v in m.vision.grid),
            "must be two numbers in 1…1024",
        ),
        ("vision.n_embd", m.vision.n_embd == m.lm.n_embd, "differs from lm.n_embd"),
        ("lm.n_embd", 1 <= m.lm.n_embd <= 65536, "must lie in 1…65536"),
        ("lm.n_vocab", 1 <= m.lm.n_vocab <= 1 << 22, "must lie in 1…4194304"),
        ("lm.context_length", 1 <= m.lm.context_length <= 1 << 24, "must lie in 1…16777216"),
        (
            "lm.image_attention",
            m.lm.image_attention == "causal",
            f"{m.lm.image_attention!r}; known: causal",
        ),
        (
            "prompts.focus_instruction",
            m.prompts.focus_instruction.count("{focus}") == 1,
            'must hold "{focus}" exactly once',
        ),
        ("prompts.stop", all(m.prompts.stop), "holds an empty string"),
        ("prompts.max_tokens", 1 <= m.prompts.max_tokens <= 1 << 16, "must lie in 1…65536"),
    ]
    faults = [f"{path}: {text}" for path, holds, text in checks if not holds]
    return faults + _token_faults(m) + _file_faults(m)


def _token_faults(m: Manifest) -> list[str]:
    if len(m.vision.grid) != 2:
        return []  # said already
    expected = m.vision.grid[0] * m.vision.grid[1] - int(m.vision.drop_first_patch)
    if m.vision.tokens_per_tile == expected:
        return []
    return [f"vision.tokens_per_tile: {m.vision.tokens_per_tile}, but the grid makes {expected}"]


def _file_faults(m: Manifest) -> list[str]:
    faults = []
    seen: set[str] = set()
    for i, variant in enumerate(m.vision.variants):
        if variant.quant not in VISION_QUANTS:
            known = ", ".join(VISION_QUANTS)
            faults.append(f"vision.variants[{i}].quant: {variant.quant!r}; known: {known}")
        if variant.quant in seen:
            faults.append(f"vision.variants[{i}].quant: {variant.quant!r} stands twice")
        seen.add(variant.quant)
        if variant.file not in m.files:
            faults.append(f"vision.variants[{i}].file: {variant.file!r} is not among files")
    if m.lm.file not in m.files:
        faults.append(f"lm.file: {m.lm.file!r} is not among files")
    for name, entry in m.files.items():
        if not _is_plain(name):
            faults.append(f"files.{name}: must be a plain file name inside the bundle")
        if len(entry.sha256) != 64 or set(entry.sha256) - set("0123456789abcdef"):
            faults.append(f"files.{name}.sha256: must be 64 lower-case hexadecimal digits")
        if entry.size < 0:
            faults.append(f"files.{name}.size: is negative")
    return faults


def _is_plain(name: str) -> bool:
    """A file name that no system takes for a folder, a drive or a way out of the bundle."""
    if PurePosixPath(name).name != name or name in ("", "..", FILE_NAME):
        return False
    # control characters, and halves of UTF-16 pairs, which no file system can store
    return not any(c in "\\:" or c < " " or "\ud800" <= c <= "\udfff" for c in name)
