"""The language engine for a manifest: llama.cpp runs a GGUF file, ONNX Runtime a decoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from edgeprism.language.model import LanguageModel
from edgeprism.machine.cancel import Cancel

if TYPE_CHECKING:
    from edgeprism.bundle.manifest import Manifest
    from edgeprism.bundle.manifest_language import LanguageModelFile
    from edgeprism.language.engine import LanguageEngine


def open_language(
    manifest: Manifest,
    find: Callable[[str], Path],
    *,
    gpu_layers: int,
    threads: int,
    cancel: Cancel | None = None,
) -> LanguageEngine:
    """Load the engine of a bundle's language model.

    Args:
        manifest: The bundle's manifest.
        find: Gives the path of a file that the manifest names.
        gpu_layers: How many layers llama.cpp puts on the GPU.
        threads: CPU threads.
        cancel: Ends its runs.

    Raises:
        ModelError: A file is damaged, or not what the manifest says.
    """
    spec = manifest.lm
    if spec.decoder is not None and not spec.decoder.cross:
        from edgeprism.language.row_decoder import RowDecoder  # few models need it

        graph = find(spec.decoder.file)
        return RowDecoder(find(spec.file), graph, expected=spec, threads=threads, cancel=cancel)
    if spec.decoder is not None:
        from edgeprism.language.onnx_decoder import OnnxDecoder  # few models need it

        return OnnxDecoder(
            find(spec.file),
            find(spec.decoder.file),
            find(spec.decoder.cross),
            expected=spec,
            row_width=manifest.vision.n_embd,
            threads=threads,
            cancel=cancel,
        )
    rows = find(spec.rows.file) if spec.rows else None
    if spec.rows is None or rows is None or spec.rows.by == "adapter":
        return LanguageModel(
            find(spec.file),
            expected=spec,
            rows=rows,
            gpu_layers=gpu_layers,
            threads=threads,
            cancel=cancel,
        )
    from edgeprism.language.row_expert import ModelWithExpert  # few models need it

    return ModelWithExpert(
        find(spec.file),
        rows,
        spec.rows.own_last,
        expected=spec,
        gpu_layers=gpu_layers,
        threads=threads,
        cancel=cancel,
    )


def language_files(manifest: Manifest) -> list[str]:
    """Return the names of the files that this engine loads, but the other parts of a GGUF file."""
    lm = manifest.lm
    return [lm.file, *([lm.rows.file] if lm.rows else []), *decoder_graphs(lm)]


def decoder_graphs(lm: LanguageModelFile) -> list[str]:
    """Return the names of the graphs that write the text; none if llama.cpp writes it."""
    return [*filter(None, (lm.decoder.file, lm.decoder.cross))] if lm.decoder else []
