"""A function for Spark's `mapInPandas` and `mapInArrow`, with the class that Ray's actors use."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from edgeprism.errors import UsageError
from edgeprism.scale.arrow import pyarrow as pa
from edgeprism.scale.captioner import RayCaptioner
from edgeprism.scale.columns import SCHEMA

_NAMES = {
    pa.int32(): "int", pa.int64(): "bigint", pa.float32(): "float", pa.string(): "string",
    pa.timestamp("us", tz="UTC"): "timestamp",
}  # fmt: skip
# Spark keeps its Python processes from task to task: so a model is loaded once in each
_captioners: dict[str, RayCaptioner] = {}


def spark_schema() -> str:
    """Return the columns of a caption as Spark writes a schema."""
    return ", ".join(f"`{column.name}` {_type(column.type)}" for column in SCHEMA)


def spark_captioner(**options: Any) -> Callable[[Iterator[Any]], Iterator[Any]]:
    """Return the function; its batches have a picture's file in `content`, its name in `path`.

    Args:
        **options: Keywords of `RayCaptioner`. Give `cores`: Spark does not say what a task has.

    Raises:
        UsageError: By the function, where the data frame lacks one of the columns.

    Examples:
        >>> from edgeprism.scale.spark import spark_captioner, spark_schema
        >>> files = spark.read.format("binaryFile").load("photos").select("path", "content")
        >>> caption = spark_captioner(model="nano", cores=1)
        >>> files.mapInPandas(caption, spark_schema()).write.parquet("captions")
    """

    def caption(batches: Iterator[Any]) -> Iterator[Any]:
        for batch in batches:
            _check_columns(batch)
            table = _captioner(options)(batch)
            if isinstance(batch, pa.RecordBatch):
                yield from table.to_batches()
            else:
                yield _to_pandas(table)

    return caption


def _check_columns(batch: Any) -> None:
    """Raise UsageError, with what Spark does about it, for a batch without files or names."""
    is_arrow = isinstance(batch, pa.RecordBatch)
    names = [str(name) for name in (batch.schema.names if is_arrow else batch.columns)]
    if "path" not in names or not {"content", "bytes"} & set(names):
        raise UsageError(
            f"The data frame needs the columns path and content; it has {', '.join(names)}.",
            'spark.read.format("binaryFile").load(…).select("path", "content") has them.',
        )


def _captioner(options: dict[str, Any]) -> RayCaptioner:
    key = json.dumps(options, sort_keys=True)
    if key not in _captioners:
        _captioners[key] = RayCaptioner(**options)
    return _captioners[key]


def _to_pandas(table: pa.Table) -> Any:
    """Return a data frame whose integers stay integers where some are missing."""
    import pandas as pd

    whole = {pa.int32(): pd.Int32Dtype(), pa.int64(): pd.Int64Dtype()}
    return table.to_pandas(types_mapper=whole.get)


def _type(kind: Any) -> str:
    if pa.types.is_list(kind):
        return f"array<{_type(kind.value_type)}>"
    if pa.types.is_struct(kind):
        return f"struct<{', '.join(f'{field.name}: {_type(field.type)}' for field in kind)}>"
    return _NAMES[kind]
