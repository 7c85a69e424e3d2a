r"""Records → text, JSON lines, a JSON array or CSV, on a stream or in an atomically written file.

All outputs are valid UTF-8. A byte of a file's name that is not UTF-8 becomes its surrogate's
escape (`\udcff`), which a JSON reader turns back into the same name.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from edgeprism.errors import OutputError
from edgeprism.files.atomic import AtomicFile, clear_leftovers, output_error
from edgeprism.files.safe_text import json_text, printable, printable_line
from edgeprism.output.written import remember_written
from edgeprism.picture.find import PictureFile
from edgeprism.picture.kinds import has_picture_suffix
from edgeprism.records import Caption

Record = Caption | Mapping[str, Any]
Target = str | os.PathLike[str] | IO[str] | IO[bytes]

CSV_COLUMNS = (
    "image", "caption", "finish_reason", "image_sha256", "instruction", "model", "model_digest",
    "vision_quant", "lm_quant", "device", "tokens_visual", "tokens_prompt", "tokens_generated",
    "total_ms", "version",
)  # fmt: skip
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


class RecordOutput:
    """Writes records one by one; `finish` completes the output, `discard` abandons it.

    `target` is an open stream or a file's path. A file keeps its old content until `finish`. On a
    stream, `discard` cannot take records back; it only closes a JSON array. As a context manager
    the output finishes, or discards after an exception.
    """

    def __init__(self, target: Target) -> None:
        """Open the target. Raises OutputError if it cannot be written, before any work is done."""
        self._sink = _open_sink(target)
        self._sha256 = hashlib.sha256()
        self._ended = False

    def write(self, record: Record, picture: PictureFile | None = None) -> None:
        """Write one record and flush it; raises OutputError."""
        self._put(self._to_text(record_to_dict(record)))

    def finish(self) -> None:
        """Complete the output; a file replaces its old content now. Raises OutputError."""
        if not self._ended:
            self._ended = True
            self._put(self._last())
            self._sink.commit()
            if isinstance(self._sink, AtomicFile):
                remember_written(self._sink.path, self._sha256.hexdigest())

    def discard(self) -> None:
        """Abandon the output; a file keeps its old content."""
        if not self._ended:
            self._ended = True
            # The caller discards because of an earlier error, which says more than this one.
            with suppress(OSError, OutputError):
                if isinstance(self._sink, _Stream):
                    self._put(self._last())
                self._sink.discard()

    def __enter__(self) -> RecordOutput:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: object, __: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish()
        else:
            self.discard()

    def _to_text(self, record: dict[str, Any]) -> str:
        raise NotImplementedError

    def _last(self) -> str:
        return ""

    def _put(self, text: str) -> None:
        if text:
            data = text.encode("utf-8", "backslashreplace")
            self._sha256.update(data)
            self._sink.write(data)


class TextOutput(RecordOutput):
    """A line `picture: caption` for each picture; for a single one (`several=False`) the caption.

    Control characters are escaped, because a file's name must not control the terminal.
    """

    def __init__(self, target: Target, *, several: bool = True) -> None:
        super().__init__(target)
        self._several = several

    def _to_text(self, record: dict[str, Any]) -> str:
        caption = printable(str(record["caption"]))
        if not self._several:
            return caption + "\n"
        name = printable_line(str(record["image"]))
        return f"{name}: {' '.join(caption.splitlines())}\n"


class JsonLinesOutput(RecordOutput):
    """One JSON object per line."""

    def _to_text(self, record: dict[str, Any]) -> str:
        return json_text(record) + "\n"


class FailureOutput(RecordOutput):
    """One JSON object per line in ASCII, for failures: image, error, hint."""

    def _to_text(self, record: dict[str, Any]) -> str:
        return json.dumps(record, ensure_ascii=True) + "\n"


class JsonOutput(RecordOutput):
    """A JSON array; for a single picture (`several=False`) the object alone."""

    def __init__(self, target: Target, *, several: bool = True) -> None:
        super().__init__(target)
        self._several = several
        self._count = 0

    def _to_text(self, record: dict[str, Any]) -> str:
        text = json_text(record, indent=2)
        if not self._several:
            return text + "\n"
        self._count += 1
        indented = text.replace("\n", "\n  ")
        return ("[\n  " if self._count == 1 else ",\n  ") + indented

    def _last(self) -> str:
        if not self._several:
            return ""
        return "\n]\n" if self._count else "[]\n"


class CsvOutput(RecordOutput):
    """RFC 4180 with the header CSV_COLUMNS, CRLF after each row, UTF-8 without a byte-order mark.

    Names and captions come from strangers, so a text that a spreadsheet would run as a formula (it
    begins with = + - @, a tab or a carriage return) gets an apostrophe in front. Programs that
    need the exact text should read JSON lines.
    """

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self._shown = bool(getattr(target, "isatty", bool)())
        self._put(csv_row(CSV_COLUMNS))

    def _to_text(self, record: dict[str, Any]) -> str:
        model, tokens = record.get("model", {}), record.get("tokens", {})
        timings = record.get("timings_ms", {})
        flat = {
            **record,
            "model": model.get("name", ""),
            "model_digest": model.get("digest", ""),
            "vision_quant": model.get("vision_quant", ""),
            "lm_quant": model.get("lm_quant", ""),
            **{f"tokens_{kind}": tokens.get(kind, "") for kind in ("visual", "prompt")},
            "tokens_generated": tokens.get("generated", ""),
            "total_ms": timings.get("total", ""),
        }
        cells = (flat.get(column, "") for column in CSV_COLUMNS)
        return csv_row(printable_line(str(cell)) if self._shown else cell for cell in cells)


def record_to_dict(record: Record) -> dict[str, Any]:
    """Return the record that `edgeprism caption --json` prints."""
    return record.to_dict() if isinstance(record, Caption) else dict(record)


class _Stream:
    """Standard output, a pipe or a device, where a write cannot be taken back."""

    def __init__(self, stream: Any, name: str, *, owned: bool = False) -> None:
        self._name, self._owned, self._stream = name, owned, stream
        # Write to the bytes below the text layer, which encodes for the terminal, not as UTF-8.
        buffer = getattr(stream, "buffer", None)
        self._takes_text = buffer is None and isinstance(stream, io.TextIOBase)
        self._target = stream if buffer is None else buffer

    def write(self, data: bytes) -> None:
        try:
            self._stream.flush()  # text that the caller printed before comes first
            self._target.write(data.decode("utf-8") if self._takes_text else data)
            self._target.flush()
        except BrokenPipeError:
            raise  # the command line ends quietly when the reader of its pipe has gone
        except OSError as error:
            raise output_error(Path(self._name), error) from error

    def commit(self) -> None:
        if self._owned:
            self._stream.close()

    discard = commit


def _open_sink(target: Target) -> AtomicFile | _Stream:
    if not isinstance(target, (str, os.PathLike)):
        return _Stream(target, str(getattr(target, "name", "the stream")))
    path = Path(target)
    if has_picture_suffix(path.name):
        raise OutputError(f"{path}: has a picture's suffix.", "Choose another name for the output.")
    try:
        if path.is_dir():
            raise OutputError(f"{path}: is a folder.", "Name a file in it.")
        if path.exists() and not path.is_file():
            # Renaming a file over /dev/null or a pipe would replace the device itself.
            return _Stream(open(path, "wb"), str(path), owned=True)
        place = Path(os.path.realpath(path))  # keeps a link and replaces the file it leads to
    except (OSError, ValueError) as error:
        raise output_error(path, error) from error
    file = AtomicFile(place)
    with suppress(PermissionError):  # a folder may be writable but not readable
        clear_leftovers(place.parent, os.listdir(place.parent), of=place.name)
    return file


def csv_row(cells: Iterable[Any]) -> str:
    """Write a line of CSV (RFC 4180) whose texts a spreadsheet does not take for formulas."""
    row = io.StringIO()
    csv.writer(row, lineterminator="\r\n").writerow(map(_harmless, cells))
    return row.getvalue()


def _harmless(value: Any) -> Any:
    if isinstance(value, str) and value.startswith(_FORMULA_STARTS):
        return "'" + value
    return value
