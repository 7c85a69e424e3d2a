"""A part of a run: some pictures are read, captioned and written as one Parquet file.

An actor does all of it, so that no picture's bytes pass through the cluster's memory. A part has
a name of its own in its run, and its file appears when it is whole. So a part that is begun again,
after its actor was killed, is either there already or not there at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from edgeprism.errors import EdgePrismError
from edgeprism.scale.arrow import pyarrow as pa
from edgeprism.scale.captioner import Picture, RayCaptioner
from edgeprism.scale.columns import Row, rows_to_table
from edgeprism.scale.storage import Place, blocks, read_file

_READERS = 8  # files that an actor reads at a time: a bucket answers late, and many at once
_AT_A_TIME = 32  # files of a part that are in memory

_COUNTED = ["image", "image_sha256", "request", "error", "created"]  # what a summary is made of
SUMMARY = pa.schema(
    [
        ("pictures", pa.int32()),
        ("captioned", pa.int32()),
        ("duplicates", pa.int32()),  # have the words of another picture of this part
        # those without a caption, from this run or one before
        ("failures", pa.list_(pa.struct([("image", pa.string()), ("error", pa.string())]))),
        # what keeps the whole run from going on; null: nothing does
        ("fatal", pa.struct([("error", pa.string()), ("hint", pa.string()), ("code", pa.int32())])),
    ]
)


@dataclass(frozen=True)
class PartOptions:
    """What every actor of a run is told.

    Parameters:
        source, output: where pictures lie, and where Parquet files go.
        name: of this run alone; its parts' names begin with it.
        captioner: keywords of `RayCaptioner`.
    """

    source: Place
    output: Place
    name: str
    captioner: Mapping[str, Any]


class PartCaptioner:
    """Captions parts, for `map_batches`: a batch's rows are parts, with `number` and `paths`."""

    def __init__(self, options: PartOptions, known: Any = None) -> None:
        """Load the models. `known` is as of `RayCaptioner`.

        What keeps them from loading is told by every part: Ray would try another actor, and hand
        over no more than the text of a traceback.
        """
        self._options = options
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="read")
        self._broken: EdgePrismError | None = None
        try:
            self._captioner = RayCaptioner(**options.captioner, known=known)
        except EdgePrismError as error:
            self._broken = error

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Caption the parts of a batch; return a row of counts for each."""
        rows = [self._caption(part["number"], part["paths"]) for part in batch.to_pylist()]
        return pa.Table.from_pylist(rows, schema=SUMMARY)

    def _caption(self, number: int, paths: list[str]) -> Row:
        try:
            if self._broken is not None:
                raise self._broken
            return self._summary(*self._put_out(number, paths), len(paths))
        except EdgePrismError as error:
            fatal = {"error": error.message, "hint": error.hint, "code": error.exit_code}
            return {"pictures": len(paths), "captioned": 0, "duplicates": 0, "failures": [],
                    "fatal": fatal}  # fmt: skip

    def _put_out(self, number: int, paths: list[str]) -> tuple[list[Row], list[Row]]:
        """Write a part; return its rows, and those of earlier runs that have no caption.

        Raises OutputError and EngineError.
        """
        output, name = self._options.output, f"{self._options.name}-{number:06}.parquet"
        rows: list[Row] = []
        failed_before: list[Row] = []
        # if it is there, another actor wrote it, and was killed before it could say so
        written = output.has_part(name)
        if written:
            rows += output.read_part(name, _COUNTED).to_pylist()
        for some in blocks(paths, _AT_A_TIME):
            pictures = list(self._readers.map(self._read, some))
            failed_before += self._captioner.failed_before(pictures)
            if not written:
                rows += self._captioner.rows(pictures)
        if rows and not written:
            output.write_part(name, rows_to_table(rows))
        return rows, failed_before

    def _summary(self, rows: list[Row], failed_before: list[Row], pictures: int) -> Row:
        failures = [row for row in rows if row.get("error") is not None]
        known, made = self._captioner.known, set()
        captioned = duplicates = 0
        for row in rows:
            copy = row["image_sha256"], row["created"]
            if row.get("error") is not None or (
                known is not None and known.has_caption(row["image_sha256"], row["request"])
            ):
                continue
            captioned += copy not in made
            duplicates += copy in made
            made.add(copy)
        return {
            "pictures": pictures,
            "captioned": captioned,
            "duplicates": duplicates,
            "failures": [
                {"image": row["image"], "error": row["error"]} for row in failures + failed_before
            ],
            "fatal": None,
        }

    def _read(self, path: str) -> Picture:
        system, _ = self._options.source.open()
        name, data = self._options.source.name_of(path), read_file(system, path)
        return Picture(name, data) if isinstance(data, Exception) else Picture.of_file(name, data)
