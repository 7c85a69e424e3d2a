"""A language model in one GGUF file or in several: `x-00001-of-00003.gguf` and so on.

llama.cpp opens the first part and finds the others by their names. So every part counts: for the
header, for the digest, and for the size.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from edgeprism.bundle.gguf import GgufHeader, read_gguf_header
from edgeprism.errors import ModelError
from edgeprism.files.digests import file_digest

MAX_PARTS = 1_000  # the largest published models have fewer than 200
_NAME = re.compile(r"(.*)-([0-9]{5})-of-([0-9]{5})\.gguf", re.DOTALL)
_HINT = "Keep all parts in one folder, under the names that they were published with."


def part_names(name: str) -> list[str]:
    """Return the names of a model's parts in order, from the first one's; most have one part.

    Raises ModelError if `name` is not the first part's, or announces over a thousand parts.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        return [name]
    stem, place, count = match[1], int(match[2]), int(match[3])
    if place != 1 or not count:
        raise ModelError(
            f"{name}: not the first part of its model.", f"Name {stem}-00001-of-{match[3]}.gguf."
        )
    if count > MAX_PARTS:
        raise ModelError(
            f"{name}: announces {count:,} parts, and at most {MAX_PARTS:,} are read.",
            "Get the model in fewer parts, or join them with llama.cpp's llama-gguf-split.",
        )
    return [f"{stem}-{i:05}-of-{match[3]}.gguf" for i in range(1, count + 1)]


def parts_by_model(names: Iterable[str]) -> list[list[str]]:
    """Return the given names by model, each model's in order, whether all its parts are there.

    The time is that of sorting the names, whatever number of parts they announce.
    """
    models: dict[tuple[str, str], list[str]] = {}
    for name in sorted(names):
        match = _NAME.fullmatch(name)
        models.setdefault((match[1], match[3]) if match else (name, ""), []).append(name)
    return list(models.values())


def missing_parts(parts: Sequence[str], most: int = 3) -> list[str]:
    """Return up to `most` names of parts that are not among one model's of `parts_by_model`.

    A model that announces over a thousand parts always lacks one.
    """
    match = _NAME.fullmatch(parts[0])
    if match is None:
        return []
    count, there = int(match[3]), set(parts)
    wanted = (f"{match[1]}-{i:05}-of-{match[3]}.gguf" for i in range(1, count + 1))
    missing = list(itertools.islice((name for name in wanted if name not in there), most))
    return missing or ([f"a count of at most {MAX_PARTS:,} parts"] if count > MAX_PARTS else [])


def is_first_part(name: str) -> bool:
    """Return whether `name` is that of a model's only or first part."""
    match = _NAME.fullmatch(name)
    return match is None or int(match[2]) == 1


def part_paths(path: Path) -> list[Path]:
    """Return the paths of a model's parts in order; raises ModelError as `part_names`."""
    return [path.with_name(name) for name in part_names(path.name)]


def model_digest(path: Path, *, again: bool = False) -> str:
    """Return the sha256 of a model's file; of several parts that of their digests, a line each.

    `again` as for `file_digest`. Raises ModelError if a part is missing or cannot be read.
    """
    return parts_to_digest([file_digest(part, again=again) for part in part_paths(path)])


def parts_to_digest(digests: Sequence[str]) -> str:
    """Return a model's digest from those of its parts, which are given in order."""
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("".join(f"{digest}\n" for digest in digests).encode()).hexdigest()


def model_bytes(path: Path) -> int:
    """Return the size of a model's files together; raises ModelError if a part is missing."""
    try:
        return sum(part.stat().st_size for part in part_paths(path))
    except OSError as error:
        raise ModelError(f"{error.filename}: {error.strerror}.", _HINT) from error


def read_model_header(path: Path, *, tokens: bool = False) -> GgufHeader:
    """Read the headers of all parts; return the first one's with the tensors of all.

    Its `starts` are those of the first part's own tensors.
    `tokens` as for `read_gguf_header`. Raises ModelError if a part is missing, damaged, or belongs
    to another model.
    """
    first = read_gguf_header(path, tokens=tokens)
    paths = part_paths(path)
    headers = [first, *(read_gguf_header(part) for part in paths[1:])]
    tensors: dict[str, tuple[int, ...]] = {}
    types: dict[str, int] = {}
    for place, (part, header) in enumerate(zip(paths, headers, strict=True)):
        count, number = (_whole(header, f"split.{name}") for name in ("count", "no"))
        if (count or 1, number) != (len(paths), place):
            raise ModelError(
                f"{part}: says that it is part {number + 1} of {count or 1}, not part {place + 1} "
                f"of {len(paths)}, as its name does.",
                _HINT,
            )
        if twice := tensors.keys() & header.tensors.keys():
            raise ModelError(f"{part}: holds {min(twice)}, as an earlier part does.", _HINT)
        tensors |= header.tensors
        types |= header.tensor_types
    announced = _whole(first, "split.tensors.count")
    if len(paths) > 1 and announced != len(tensors):
        raise ModelError(
            f"{path}: its parts hold {len(tensors)} tensors, not the {announced} announced.", _HINT
        )
    return dataclasses.replace(first, tensors=tensors, tensor_types=types)


def _whole(header: GgufHeader, key: str) -> int:
    value = header.metadata.get(key, 0)
    return value if isinstance(value, int) else -1
