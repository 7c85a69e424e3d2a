"""One plain decoder with random weights, in the files that each engine reads.

What makes the files (torch and others) is imported when one is made, so that the memory of an
engine's process is the engine's.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgeprism.convert.language.model import LmParts

ORT, LLAMA = "ONNX Runtime", "llama.cpp"
# what is compared with what: weights of about as many bits each
ONNX_QUANTS = ("4 bits", "8 bits")
GGUF_QUANTS = ("Q4_0", "Q4_K_M", "Q8_0")
PAIRS = (("4 bits", "Q4_0"), ("4 bits", "Q4_K_M"), ("8 bits", "Q8_0"))
# InternLM2-1.8B, as in PrismCaptioner-2B
LAYERS, WIDTH, HEADS, WIDE = 24, 2048, 16, 8192
_FIRST = "blk.0."


@dataclass(frozen=True)
class Files:
    """The files of a decoder of so many layers in `work`; `make` makes those that are missing."""

    work: Path
    n_layers: int = LAYERS

    def gguf(self, quant: str) -> Path:
        """Return the file that llama.cpp reads."""
        return self.work / f"decoder-{self.n_layers}-{quant}.gguf"

    def graph(self, quant: str) -> Path:
        """Return the graph that ONNX Runtime reads; its weights lie beside it."""
        return self.work / f"decoder-{self.n_layers}-{quant.replace(' ', '-')}.onnx"

    def size(self, engine: str, quant: str) -> int:
        """Return the bytes of what an engine reads."""
        if engine == LLAMA:
            return self.gguf(quant).stat().st_size
        graph = self.graph(quant)
        return sum(path.stat().st_size for path in (graph, Path(f"{graph}.data")))

    def make(self) -> None:
        """Write a random checkpoint and, from it, the files that are missing."""
        graphs = [quant for quant in ONNX_QUANTS if not self.graph(quant).exists()]
        ggufs = [quant for quant in GGUF_QUANTS if not self.gguf(quant).exists()]
        if not graphs and not ggufs:
            return
        from benchmarks.decoders.graph import export_decoder
        from edgeprism.convert.language.write_gguf import write_gguf
        from edgeprism.progress import Progress

        parts = self._parts()
        with self._unfinished() as unfinished:
            if graphs:
                export_decoder(parts, graphs, unfinished.graph)
        for quant in ggufs:
            with self._unfinished() as unfinished:
                write_gguf(unfinished.gguf(quant), quant, parts, "decoder", Progress())
        shutil.rmtree(parts.checkpoint.folder)

    @contextlib.contextmanager
    def _unfinished(self) -> Iterator[Files]:
        """Give a folder for files that take their places when the block ends without an error."""
        folder = self.work / "unfinished"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        yield Files(folder, self.n_layers)
        for path in sorted(folder.iterdir(), reverse=True):  # a graph's weights before the graph
            path.rename(self.work / path.name)
        folder.rmdir()

    def _parts(self) -> LmParts:
        """Return a language model whose layers all have the weights of the one that is written."""
        import torch

        from benchmarks.checkpoints.one_tile import write_internlm2

        folder = self.work / "checkpoint"
        if not folder.exists():
            with self._unfinished() as unfinished:
                made = unfinished.work / folder.name
                made.mkdir()
                write_internlm2(made, 1, WIDTH, HEADS, WIDE, torch.Generator().manual_seed(0))
        one = open_parts(folder)
        ends = [tensor for tensor in one.tensors if not tensor.name.startswith(_FIRST)]
        layer = [tensor for tensor in one.tensors if tensor.name.startswith(_FIRST)]
        layers = [
            replace(tensor, name=tensor.name.replace(_FIRST, f"blk.{i}."))
            for i in range(self.n_layers)
            for tensor in layer
        ]
        config = replace(one.config, n_layers=self.n_layers)
        return replace(one, config=config, tensors=[*ends, *layers])


def open_parts(folder: Path) -> LmParts:
    """Open an InternLM2 in its published layout, or a Llama."""
    import json

    from edgeprism.convert.language import internlm2
    from edgeprism.convert.language.model import open_language_model
    from edgeprism.convert.language.vocabulary import TokenRules
    from edgeprism.convert.read.checkpoint import Checkpoint

    config = json.loads((folder / "config.json").read_text())
    rules = internlm2.TOKENS if config["model_type"] == "internlm2" else TokenRules(eos="</s>")
    checkpoint = Checkpoint(folder, "language model")
    return open_language_model(checkpoint, config, str(folder), folder, rules)
