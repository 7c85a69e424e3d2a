"""Open the language model that a manifest describes."""

from __future__ import annotations

from pathlib import Path

from edgeprism.bundle.manifest_language import LanguageModelFile
from edgeprism.language.model import LanguageModel
from edgeprism.machine.cancel import Cancel


def open_language_model(
    path: Path,
    expected: LanguageModelFile,
    *,
    rows: Path | None = None,
    gpu_layers: int = 0,
    threads: int = 1,
    cancel: Cancel | None = None,
) -> LanguageModel:
    """Load a captioner's language model.

    Parameters:
        path: its GGUF file.
        expected: what the manifest says of it.
        rows: the file of `expected.rows`; None without.

    Raises ModelError if a file is damaged, or is not what the manifest says.
    """
    if expected.rows is None or rows is None or expected.rows.by == "adapter":
        return LanguageModel(
            path,
            expected=expected,
            rows=rows,
            gpu_layers=gpu_layers,
            threads=threads,
            cancel=cancel,
        )
    from edgeprism.language.row_expert import ModelWithExpert  # few models need it

    return ModelWithExpert(
        path,
        rows,
        expected.rows.own_last,
        expected=expected,
        gpu_layers=gpu_layers,
        threads=threads,
        cancel=cancel,
    )
