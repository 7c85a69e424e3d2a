"""What a reasoner of this machine takes in memory, counted from its file's header."""

from __future__ import annotations

from pathlib import Path

from edgeprism.bundle.gguf_parts import model_bytes, read_model_header
from edgeprism.language.gpu import Gpu
from edgeprism.language.kv_memory import kv_bytes
from edgeprism.machine.device import ALL_LAYERS
from edgeprism.memory.language import LanguageUse, cells_for, language_parts
from edgeprism.memory.layers import choose_layers
from edgeprism.memory.parts import ModelParts, Part

PROMPT_TOKENS = 200  # a caption of a hundred words, and a question
ANSWER_TOKENS = 256
_EXAMPLE_TOKENS = 300  # of the worked examples of a focus, which get a short answer
_CONTEXT = "context_length"


def reasoner_parts(path: Path, name: str, gpu_layers: int, repacked: frozenset[int]) -> ModelParts:
    """Return what the reasoner at `path` takes for one question."""
    header = read_model_header(path)
    use = _use(header.metadata.get(f"{header.architecture}.{_CONTEXT}"), gpu_layers, repacked)
    parts = language_parts(header, model_bytes(path), use)
    kept = Part("kept examples", round(kv_bytes(header, _EXAMPLE_TOKENS)), "of a focus, read once")
    return ModelParts(name, "reasoner", (*parts, kept))


def reasoner_layers(path: Path, gpu: Gpu | None) -> int:
    """Return the layers of the reasoner at `path` that fit on the GPU."""
    header = read_model_header(path)
    use = _use(header.metadata.get(f"{header.architecture}.{_CONTEXT}"), ALL_LAYERS, frozenset())
    return choose_layers(header, model_bytes(path), use, gpu)


def _use(context_length: object, gpu_layers: int, repacked: frozenset[int]) -> LanguageUse:
    limit = context_length if isinstance(context_length, int) else 0
    cells = cells_for(PROMPT_TOKENS, ANSWER_TOKENS, limit)
    return LanguageUse(cells, prompt=_EXAMPLE_TOKENS, gpu_layers=gpu_layers, repacked=repacked)
