"""pyarrow, which the extra `ray` brings; its absence in words."""

from __future__ import annotations

from edgeprism.errors import UsageError

try:
    import pyarrow
    import pyarrow.compute as compute
    import pyarrow.fs as fs
    import pyarrow.parquet as parquet
except ImportError as error:
    raise UsageError(
        "Captions in Parquet need pyarrow, which is not installed.",
        'Install it: python -m pip install "edgeprism[ray]"',
    ) from error

__all__ = ["compute", "fs", "parquet", "pyarrow"]
