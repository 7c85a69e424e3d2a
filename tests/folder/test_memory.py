"""What a run over many pictures keeps in memory."""

from __future__ import annotations

import gc
import tracemalloc
from pathlib import Path

from edgeprism.folder.run import FolderOptions, FolderRun
from edgeprism.perceive.captioner import Captioner


def test_failures_keep_little_memory(scripted_captioner: Captioner, tmp_path: Path) -> None:
    """Tracebacks and causes would be ten kilobytes for each."""
    for number in range(900):
        (tmp_path / f"{number:03}.jpg").write_text("no picture")
    sizes = []
    tracemalloc.start()
    try:
        with FolderRun([tmp_path], scripted_captioner, None, FolderOptions(parallel=1)) as run:
            for count, _ in enumerate(run):
                if count in (299, 899):
                    gc.collect()
                    sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert len(run.result.failures) == 900
    assert (sizes[1] - sizes[0]) / 600 < 2500
    error = run.result.failures[0].error
    assert (error.__traceback__, error.__cause__, error.__context__) == (None, None, None)
    assert "000.jpg: not a picture" in error.message
