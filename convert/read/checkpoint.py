"""Tensors of a published checkpoint by name, read one at a time.

A folder may hold one safetensors file, several with an index, or the same as `.bin` (torch's own
format). Nothing is loaded up front: files are memory-mapped, so a tensor costs memory only while
it is in use, and an unused tensor is never read. `.bin` files are pickles; torch reads them with
`weights_only=True`, which refuses anything but tensors.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprism.errors import CheckpointError
from edgeprism.files.digests import sha256_of_file
from edgeprism.files.regular import open_regular, read_limited

if TYPE_CHECKING:
    import torch

MODEL_STEMS = ("model", "pytorch_model")
ADAPTER_STEMS = ("adapter_model",)
MAX_TEXT_BYTES = 128 << 20  # of a configuration or tokenizer; the largest published have 35 MB
_MAX_FRONT_MATTER_BYTES = 1 << 16
_HALF = re.compile(rb"\\u[dD][89a-fA-F]")  # an escaped half of a character, or of a pair
_NOT_FLOAT = "not a float type: "
_FLOATS = "Quantized checkpoints cannot be converted; use the float weights."


class Checkpoint:
    """The tensors of the model files in `folder`, in any of the published containers.

    Raises CheckpointError when the folder or a listed shard is missing, or a file is damaged.
    """

    def __init__(
        self,
        folder: Path,
        role: str,
        stems: tuple[str, ...] = MODEL_STEMS,
        files: Iterable[Path] = (),
    ) -> None:
        """Pass `files` if their names are not the usual ones (`stems`)."""
        self.folder = Path(folder)
        self.role = role
        self.files = list(files) or _find_weight_files(self.folder, role, stems)
        self._containers: dict[str, _Container] = {}
        for path in self.files:
            container = _open_container(path)
            self._containers.update(dict.fromkeys(container.names(), container))

    @property
    def names(self) -> set[str]:
        """The names of all tensors."""
        return set(self._containers)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of the tensor `name`."""
        return self._containers[name].shape(name)

    def sizes(self, name: str, rank: int) -> tuple[int, ...]:
        """Return the shape of the tensor `name`, from which a family reads its model's sizes.

        Raises CheckpointError unless there is such a tensor with `rank` dimensions, none empty.
        """
        shape = self.shape(name) if name in self._containers else None
        if shape is None or len(shape) != rank or 0 in shape:
            found = "missing" if shape is None else f"of shape {list(shape)}"
            raise CheckpointError(
                f"{self.folder} ({self.role}): the tensor {name} is {found}; one of {rank} "
                "dimensions is expected, which tells the sizes of the model.",
                "Use the files as they were published.",
            )
        return shape

    def kind(self, name: str) -> str:
        """Return "" if the tensor `name` holds plain float numbers, else what it is."""
        return self._containers[name].kind(name)

    def read(self, name: str) -> torch.Tensor:
        """Return the tensor in its published dtype, memory-mapped where the format allows."""
        if kind := self.kind(name):
            raise CheckpointError(
                f"{self._containers[name].path}: tensor {name} is {kind}, which is not a float "
                "type.",
                _FLOATS,
            )
        return self._containers[name].read(name)

    def read_float32(self, name: str) -> torch.Tensor:
        """The tensor `name`, in float32."""
        return self.read(name).float()

    def require(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Check that every tensor exists with its shape; one error lists all faults."""
        requirements = Requirements()
        requirements.add(self, shapes, unused=("",))  # "" matches every other tensor
        requirements.check()


class Requirements:
    """The tensors that a family needs of its checkpoints; one error lists every fault."""

    def __init__(self) -> None:
        self._checkpoints: dict[int, Checkpoint] = {}
        self._shapes: dict[int, dict[str, tuple[int, ...]]] = {}
        self._unused: dict[int, list[str]] = {}

    def add(
        self,
        checkpoint: Checkpoint,
        shapes: Mapping[str, tuple[int, ...]],
        unused: Iterable[str] = (),
    ) -> None:
        """Require the tensors of `shapes`; allow others only if a pattern of `unused` matches."""
        key = id(checkpoint)
        self._checkpoints[key] = checkpoint
        self._shapes.setdefault(key, {}).update(shapes)
        self._unused.setdefault(key, []).extend(unused)

    def check(self) -> None:
        """Raise CheckpointError for missing, misshapen and unexpected tensors, and for integers."""
        faults = [lines for key in self._checkpoints if (lines := self._faults(key))]
        if faults:
            (summary, *details), *others = faults
            details += [line for lines in others for line in lines]
            quantized = any(line.startswith(_NOT_FLOAT) for line in details)
            raise CheckpointError(
                summary,
                _FLOATS
                if quantized
                else "Check that each download is complete and that the folders belong together.",
                details,
            )

    def _faults(self, key: int) -> list[str]:
        """Return a line that counts a checkpoint's faults and a line for each; none if sound."""
        checkpoint, shapes = self._checkpoints[key], self._shapes[key]
        missing = [name for name in shapes if name not in checkpoint.names]
        misshapen = [
            f"{name}: {list(checkpoint.shape(name))}, expected {list(shape)}"
            for name, shape in shapes.items()
            if name in checkpoint.names and checkpoint.shape(name) != tuple(shape)
        ]
        patterns = self._unused[key]
        unused = re.compile("|".join(patterns) if patterns else "(?!)")
        extra = sorted(
            name for name in checkpoint.names if name not in shapes and not unused.search(name)
        )
        kinds = {name: checkpoint.kind(name) for name in shapes if name in checkpoint.names}
        strange = [f"{name} is {kind}" for name, kind in kinds.items() if kind]
        if not missing and not misshapen and not extra and not strange:
            return []
        lines = [f"missing: {name} {list(shapes[name])}" for name in missing]
        lines += [f"wrong shape: {line}" for line in misshapen]
        lines += [f"{_NOT_FLOAT}{line}" for line in strange]
        lines += [f"unexpected: {name} {list(checkpoint.shape(name))}" for name in extra]
        counts = f"{len(missing)} missing, {len(misshapen)} of another shape"
        counts += f", {len(strange)} of another type" if strange else ""
        counts += f", {len(extra)} unexpected" if extra else ""
        summary = (
            f"{checkpoint.folder} ({checkpoint.role}) does not hold the tensors that its "
            f"config.json announces ({counts}):"
        )
        return [summary, *lines]


class _Container:
    """One file of tensors."""

    path: Path

    def names(self) -> Iterable[str]:
        raise NotImplementedError

    def shape(self, name: str) -> tuple[int, ...]:
        raise NotImplementedError

    def kind(self, name: str) -> str:
        """Return "" for plain float numbers, else what the tensor is."""
        raise NotImplementedError

    def read(self, name: str) -> torch.Tensor:
        raise NotImplementedError


class _SafetensorsFile(_Container):
    def __init__(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        self.path = path
        try:
            self._file = safe_open(str(path), framework="pt")
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(
                f"{path} is not a readable safetensors file: {error}.", "Download it again."
            ) from error

    def names(self) -> Iterable[str]:
        return list(self._file.keys())

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._file.get_slice(name).get_shape())

    def kind(self, name: str) -> str:
        dtype = str(self._file.get_slice(name).get_dtype())
        if dtype in ("F64", "F32", "F16", "BF16"):
            return ""
        # "I8" and "U8" as torch calls them
        return dtype.replace("I", "int").replace("U", "uint") if dtype[0] in "IU" else dtype

    def read(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._file.get_tensor(name)
        return tensor


class _BinFile(_Container):
    def __init__(self, path: Path) -> None:
        self.path = path
        self._tensors = _load_bin(path)

    def names(self) -> Iterable[str]:
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def kind(self, name: str) -> str:
        import torch

        tensor = self._tensors[name]
        if tensor.layout != torch.strided or tensor.is_meta:
            return f"stored as {tensor.layout} on {tensor.device}"
        if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
            # a few numbers that stand for many: they would fill the memory when written out
            return "a view of fewer numbers"
        floats = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
        return "" if tensor.dtype in floats else str(tensor.dtype)

    def read(self, name: str) -> torch.Tensor:
        return self._tensors[name]


def _load_bin(path: Path) -> dict[str, torch.Tensor]:
    import zipfile

    import torch

    try:
        # Files of the old, un-zipped format cannot be mapped and are read whole.
        tensors = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except Exception as error:  # in a damaged pickle, torch stumbles over anything
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path} cannot be read as tensors alone: {first_line}",
            "Download it again; a file that holds more than tensors is refused, because "
            "unpickling it could run code.",
        ) from error
    if path.suffix == ".pt" and isinstance(tensors, dict):
        tensors = dict(_flattened(tensors, ""))
    if path.suffix == ".pth" and isinstance(tensors, dict):
        # LAVIS and MiniGPT-4 save the model beside the state of its training
        tensors = tensors.get("model", tensors)
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and torch.is_tensor(tensor) for name, tensor in tensors.items()
    ):
        raise CheckpointError(
            f"{path} is not a table of tensors by name.", "Use the published weight file."
        )
    return tensors


def _flattened(table: dict[str, Any], lead: str) -> Iterator[tuple[str, Any]]:
    """Yield the tensors of nested tables, as training runs save them; dots join the keys."""
    for name, value in table.items():
        if isinstance(value, dict):
            yield from _flattened(value, f"{lead}{name}.")
        else:
            yield f"{lead}{name}", value


def _open_container(path: Path) -> _Container:
    return _SafetensorsFile(path) if path.suffix == ".safetensors" else _BinFile(path)


def _find_weight_files(folder: Path, role: str, stems: tuple[str, ...]) -> list[Path]:
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder} ({role}) is not a folder.", "Pass the folder that holds its config.json."
        )
    candidates = [f"{stem}{suffix}" for suffix in (".safetensors", ".bin") for stem in stems]
    for name in candidates:
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _shards_of(index)
        if (folder / name).is_file():
            return [folder / name]
    raise CheckpointError(
        f"{folder} ({role}) holds no weights: expected one of {', '.join(candidates)}, or an "
        "index of shards (….index.json).",
        "Download the weight files as well as the configuration.",
    )


def _shards_of(index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map.", "Download it again.")
    shards = sorted({str(shard) for shard in weight_map.values()})
    outside = [shard for shard in shards if Path(shard).name != shard]
    if outside:
        raise CheckpointError(
            f"{index} names files outside its folder: {', '.join(outside)}.", "Download it again."
        )
    missing = [shard for shard in shards if not (index.parent / shard).is_file()]
    if missing:
        raise CheckpointError(
            f"{index} lists shards that are not there: {', '.join(missing)}.",
            "Download the missing files.",
        )
    return [index.parent / shard for shard in shards]


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in `path`; CheckpointError if it is missing or damaged."""
    try:
        text = read_limited(path, MAX_TEXT_BYTES)
        data = json.loads(text)
        if _HALF.search(text):
            # half of a character in an escape is no text: neither file nor tokenizer can hold it
            json.dumps(data, ensure_ascii=False).encode()
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path} is missing.", "Pass the folder as it was published."
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(f"{path} cannot be read: {reason}.", "Download it again.") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} is not a JSON object.", "Download it again.")
    return data


def read_config(folder: Path) -> dict[str, Any]:
    """Return the fields of `folder`'s config.json; {} if there is none.

    Raises CheckpointError for a file that cannot be read and for a model_type that is no text.
    """
    path = folder / "config.json"
    config = read_json(path) if path.is_file() else {}
    check_model_type(config, str(path))
    return config


def check_model_type(config: Mapping[str, Any], where: str) -> None:
    """Raise CheckpointError, which starts with `where`, for a model_type that is no text."""
    kind = config.get("model_type")
    if kind is not None and not isinstance(kind, str):
        raise CheckpointError(f"{where}: model_type is {kind!r}, no text.", "Download it again.")


def digest_of_files(paths: Iterable[Path]) -> str:
    """Return the sha256 of the files' sha256 digests, in order of file name."""
    total = hashlib.sha256()
    for path in sorted(set(paths), key=lambda p: p.name):
        total.update(sha256_of_file(path).encode())
    return total.hexdigest()


def license_of(folder: Path) -> str:
    """Return the `license:` of the README's front matter, or "unknown"."""
    readme = folder / "README.md"
    if not readme.is_file():
        return "unknown"
    with open_regular(readme) as file:
        beginning = file.read(_MAX_FRONT_MATTER_BYTES)
    lines = beginning.decode("utf-8", errors="replace").splitlines()
    if not lines or lines[0].strip() != "---":
        return "unknown"
    for line in lines[1:]:
        if line.strip() == "---":
            break
        key, _, value = line.partition(":")
        if key.strip() == "license" and value.strip():
            return value.strip().strip("'\"")
    return "unknown"
