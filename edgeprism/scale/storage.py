"""Pictures and Parquet files in folders and buckets, through `pyarrow.fs`: file, s3, gs, abfs."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import platform
import re
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgeprism.errors import EXIT_UNAVAILABLE, EdgePrismError, OutputError, UsageError
from edgeprism.files.atomic import is_running
from edgeprism.picture.find import find_pictures
from edgeprism.picture.kinds import HIDDEN, OTHER, Kind, has_picture_suffix
from edgeprism.picture.passed import PassedOver
from edgeprism.picture.source import MAX_FILE_BYTES
from edgeprism.scale.arrow import fs, parquet
from edgeprism.scale.arrow import pyarrow as pa
from edgeprism.scale.columns import SCHEMA, SCHEMA_VERSION

_SUFFIX = ".parquet"
# of object stores, where a file appears when it is closed, and a move is a copy
_WHOLE_FILES = ("s3", "gcs")
# a file while it is written: readers of Parquet pass names with a dot before them over
_PARTIAL = re.compile(r"\.(?P<part>.+\.parquet)\.((?P<host>.+)\.)?(?P<pid>\d+)\.partial")
_LOCAL = "local"  # the type of this machine's file system
_ABANDONED_S = 3600.0  # a part is written in seconds; clocks of machines may differ by minutes
# pyarrow hands over and takes names in UTF-8 alone
_FAULTS = (OSError, UnicodeError, pa.ArrowException)
_NO_UTF8 = Kind("file whose name is not UTF-8", "files whose names are not UTF-8")


class StorageError(EdgePrismError):
    """A bucket does not answer, or refuses this machine."""

    exit_code = EXIT_UNAVAILABLE


@dataclass(frozen=True)
class Place:
    """A folder, or a prefix of a bucket. It can be pickled, and opens its file system anew."""

    uri: str  # as it was given; a local folder is absolute
    given: str = field(default="", compare=False)  # "": not told

    @classmethod
    def of(cls, uri: str | os.PathLike[str]) -> Place:
        """Return the place that a path or URI means.

        Raises UsageError for an unknown scheme, and for an empty text; StorageError for a bucket
        that does not answer.
        """
        text = os.fspath(uri)
        if not text:
            raise UsageError(
                "An empty text names no folder.", "Write . for the folder where you are."
            )
        place = cls(text if "://" in text else os.path.abspath(text), text)
        place.open()
        return place

    def open(self) -> tuple[Any, str]:
        """Return its `pyarrow.fs.FileSystem` and its path in there. Raises as `of`."""
        return _opened(self.uri)

    def __str__(self) -> str:
        return self.uri

    # ---- pictures

    def pictures(self) -> tuple[list[str], PassedOver]:
        """Return the paths of all pictures below, sorted, and what else there is.

        Hidden files are passed over, as a search on this machine does, and files whose names are
        not UTF-8, which no cluster passes on. Raises UsageError if the place does not exist, or may
        not be listed, StorageError if a bucket does not answer.
        """
        system, path = self.open()
        try:
            info = system.get_file_info(path)
            if info.type == fs.FileType.File:
                return [path], PassedOver()
            if info.type == fs.FileType.Directory and "://" not in self.uri:
                return _local_pictures(path)
            selector = fs.FileSelector(path, recursive=True)
            files = [f for f in system.get_file_info(selector) if f.type == fs.FileType.File]
        except _FAULTS as error:
            kind = StorageError if _is_remote(system, error) else UsageError
            raise kind(
                f"{self}: cannot be listed: {_why(error)}.",
                "Check the name, and whether this machine's credentials may list it.",
            ) from error
        passed = PassedOver()
        pictures: list[str] = []
        others: list[str] = []
        for file in files:
            if "/." in file.path[len(path) :]:
                passed.add(file.base_name, HIDDEN)
            else:
                (pictures if has_picture_suffix(file.path) else others).append(file.path)
        passed.add_others([name.rpartition("/")[2] for name in others], pictures)
        return sorted(pictures), passed

    def name_of(self, path: str) -> str:
        """Return what a path in this place's file system is called in rows."""
        scheme, slashes, _ = self.uri.partition("://")
        return f"{scheme}{slashes}{path}" if slashes and scheme != "file" else path

    def shown(self, name: str) -> str:
        """Return a picture's name for messages: below a local folder as that was given."""
        if not self.given or "://" in self.uri:
            return name
        if name == self.uri:
            return self.given
        above = self.uri.rstrip(os.sep) + os.sep
        return os.path.join(self.given, name[len(above) :]) if name.startswith(above) else name

    # ---- Parquet files

    def parts(self) -> list[str]:
        """Return the names of the Parquet files; none if the place does not exist yet.

        Raises OutputError if it is a file, or cannot be listed.
        """
        system, path = self.open()
        selector = fs.FileSelector(path, allow_not_found=True)
        try:
            if system.get_file_info(path).type == fs.FileType.File:
                raise OutputError(
                    f"{self}: is a file, not a folder.",
                    "Name a folder of its own, which gets Parquet files, or one that is not there.",
                )
            found = system.get_file_info(selector)
        except _FAULTS as error:
            raise OutputError(
                f"{self}: cannot be listed: {_why(error)}.", "Check who may read it."
            ) from error
        names = (f.base_name for f in found if f.type == fs.FileType.File)
        return sorted(n for n in names if n.endswith(_SUFFIX) and not n.startswith((".", "_")))

    def read_part(self, name: str, columns: Sequence[str]) -> pa.Table:
        """Read columns of a Parquet file. Raises OutputError if it is damaged, or another's."""
        system, path = self.open()
        try:
            with system.open_input_file(f"{path}/{name}") as file:
                table = parquet.ParquetFile(file)
                said = (
                    (table.schema_arrow.metadata or {})
                    .get(b"edgeprism.schema", b"")
                    .decode("utf-8", "replace")
                )
                if said != str(SCHEMA_VERSION):
                    raise OutputError(
                        f"{self}/{name}: holds no captions of this form"
                        + (f" but of form {said}." if said else "."),
                        "Name an output folder of its own.",
                    )
                if not _has_columns(table.schema_arrow, columns):
                    raise OutputError(
                        f"{self}/{name}: says that it holds captions, but has other columns.",
                        "Name an output folder of its own.",
                    )
                return table.read(columns=list(columns))
        except _FAULTS as error:
            raise OutputError(
                f"{self}/{name}: cannot be read: {_why(error)}.",
                "Delete it if it is damaged: its pictures are captioned again.",
            ) from error

    def has_part(self, name: str) -> bool:
        """Return whether there is a Parquet file of this name."""
        system, path = self.open()
        try:
            return bool(system.get_file_info(f"{path}/{name}").type == fs.FileType.File)
        except _FAULTS as error:
            raise OutputError(
                f"{self}/{name}: cannot be looked for: {_why(error)}.",
                "Check who may read it.",
            ) from error

    def check_writable(self) -> None:
        """Raise OutputError unless files can be written, before hours of work are lost.

        It is tried, not guessed. A local folder that does not exist yet is judged by the nearest
        one above it that does, so that nothing is left.
        """
        system, path = self.open()
        try:
            if system.type_name == _LOCAL:
                while not os.path.lexists(path):
                    path = os.path.dirname(path)
                with tempfile.TemporaryFile(dir=path):
                    return
            if system.type_name not in _WHOLE_FILES:
                system.create_dir(path, recursive=True)
            trial = f"{path}/.trial-{uuid.uuid4().hex[:12]}"  # readers of Parquet pass it over
            system.open_output_stream(trial).close()
            with contextlib.suppress(*_FAULTS):  # who may write may not be one who may delete
                system.delete_file(trial)
        except _FAULTS as error:
            raise OutputError(
                f"{self}: cannot be written: {_why(error)}.",
                "Check who may write there, the disk, and a bucket's credentials.",
            ) from error

    def write_part(self, name: str, table: pa.Table) -> None:
        """Write a Parquet file, which appears when it is whole. Raises OutputError."""
        data = io.BytesIO()
        parquet.write_table(table, data, compression="zstd")
        system, path = self.open()
        target = f"{path}/{name}"
        try:
            if system.type_name in _WHOLE_FILES:
                with system.open_output_stream(target) as file:
                    file.write(data.getbuffer())
                return
            system.create_dir(path, recursive=True)
            partial = f"{path}/.{name}.{platform.node()}.{os.getpid()}.partial"
            try:
                with system.open_output_stream(partial) as file:
                    file.write(data.getbuffer())
                system.move(partial, target)
            except BaseException:
                with contextlib.suppress(*_FAULTS):  # there is none, or what failed fails again
                    system.delete_file(partial)
                raise
        except _FAULTS as error:
            raise OutputError(
                f"{self}/{name}: cannot be written: {_why(error)}.",
                "Check the disk, the bucket and its credentials.",
            ) from error

    def remove_partials(self, run: str | None = None) -> None:
        """Delete the files that killed processes left half-written.

        Those are files of a process of this machine that has ended, and files of other machines
        that are an hour old. With `run`, a run whose processes write no more, they are all whose
        name begins with it. What another run writes stays.
        """
        system, path = self.open()
        if system.type_name in _WHOLE_FILES:
            return
        # A file that cannot be deleted, or is gone meanwhile, keeps nobody from reading the others.
        with contextlib.suppress(*_FAULTS):
            for file in system.get_file_info(fs.FileSelector(path, allow_not_found=True)):
                match = _PARTIAL.fullmatch(file.base_name)
                if match and (_is_abandoned(file, match) if run is None else
                              match["part"].startswith(f"{run}-")):  # fmt: skip
                    system.delete_file(file.path)

    def delete_part(self, name: str) -> None:
        """Delete a Parquet file. Raises OutputError."""
        system, path = self.open()
        try:
            system.delete_file(f"{path}/{name}")
        except _FAULTS as error:
            raise OutputError(
                f"{self}/{name}: cannot be deleted: {_why(error)}.",
                "Check who may write there.",
            ) from error


def _is_abandoned(file: Any, match: re.Match[str]) -> bool:
    """Return whether nobody can write a half-written file any more."""
    if match["host"] == platform.node() and not is_running(int(match["pid"])):
        return True
    return bool(time.time() - (file.mtime_ns or 0) / 1e9 > _ABANDONED_S)


def _has_columns(schema: pa.Schema, columns: Sequence[str]) -> bool:
    """Return whether a file has these columns, with texts where rows of captions have them."""
    texts = (pa.string(), pa.large_string())
    return all(
        name in schema.names
        and (SCHEMA.field(name).type != pa.string() or schema.field(name).type in texts)
        for name in columns
    )


def _local_pictures(path: str) -> tuple[list[str], PassedOver]:
    search = find_pictures([path])  # enters no folder twice, by links neither
    pictures = []
    for name in (str(file.path) for file in search):
        if not os.path.isfile(name):  # to open a pipe would wait for ever
            search.passed.add(name, OTHER)
        elif not name.isascii() and name != name.encode("utf-8", "replace").decode():
            search.passed.add(name, _NO_UTF8)
        else:
            pictures.append(name)
    return sorted(pictures), search.passed


def read_file(system: Any, path: str) -> bytes | Exception:
    """Return a file's bytes, no more than a picture may have and one; else why there are none."""
    try:
        with system.open_input_stream(path) as file:
            return bytes(file.read(MAX_FILE_BYTES + 1))
    except _FAULTS as error:
        return OSError(f"cannot be read: {_why(error)}.")


def blocks(paths: Sequence[str], size: int) -> Iterator[list[str]]:
    """Cut paths into lists of `size`, the last one shorter."""
    for start in range(0, len(paths), size):
        yield list(paths[start : start + size])


@functools.lru_cache(maxsize=8)
def _opened(uri: str) -> tuple[Any, str]:
    if "://" not in uri:
        return fs.LocalFileSystem(), uri
    try:
        system, path = fs.FileSystem.from_uri(uri)
    except OSError as error:
        raise StorageError(
            f"{uri}: cannot be opened: {_why(error)}.",
            "Check the network, the bucket's name, and this machine's credentials.",
        ) from error
    except _FAULTS as error:
        raise UsageError(
            f"{uri}: cannot be opened: {_why(error)}.",
            "Give a folder, or s3://bucket/prefix, gs://…, abfs://….",
        ) from error
    return system, path.rstrip("/")


def _is_remote(system: Any, error: BaseException) -> bool:
    """Return whether a file system of other machines failed, not a name in it."""
    return system.type_name != _LOCAL and not isinstance(error, FileNotFoundError)


def _why(error: BaseException) -> str:
    """Return what is wrong without the file's name, which pyarrow writes in the middle."""
    if number := getattr(error, "errno", None):
        return os.strerror(number)
    return str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
