"""What a reasoner of this machine takes in memory, counted from its file's header."""

from __future__ import annotations

from pathlib import Path

from edgeprism.bundle.gguf_parts import model_bytes, part_paths, read_model_header
from edgeprism.language.gpu import Gpu
from edgeprism.language.kv_memory import kv_bytes
from edgeprism.machine.device import ALL_LAYERS
from edgeprism.memory.language import LanguageUse, cells_for, language_parts
from edgeprism.memory.layers import choose_layers
from edgeprism.memory.parts import ModelParts, Part
from edgeprism.memory.remembered_parts import remembered_parts

PROMPT_TOKENS = 200  # a caption of a hundred words, and a question
ANSWER_TOKENS = 256
_EXAMPLE_TOKENS = 300  # of the worked examples of a focus, which get a short answer
_CONTEXT = "context_length"


def reasoner_parts(path: Path, name: str, gpu_layers: int, repacked: frozenset[int]) -> ModelParts:
    """Return what the reasoner at `path` takes for one question."""

    def count() -> tuple[Part, ...]:
        header = read_model_header(path)
        use = _use(header.metadata.get(f"{header.architecture}.{_CONTEXT}"), gpu_layers, repacked)
        parts = language_parts(header, model_bytes(path), use)
        examples = round(kv_bytes(header, _EXAMPLE_TOKENS))
        return (*parts, Part("kept examples", examples, "of a focus, read once"))

    parts = remembered_parts(part_paths(path), (gpu_layers, sorted(repacked)), count)
    return ModelParts(name, "reasoner", parts)


def reasoner_layers(path: Path, gpu: Gpu | None) -> int:
    """Return the layers of the reasoner at `path` that fit on the GPU."""
    header = read_model_header(path)
    use = _use(header.metadata.get(f"{header.architecture}.{_CONTEXT}"), ALL_LAYERS, frozenset())
    return choose_layers(header, model_bytes(path), use, gpu)


def _use(context_length: object, gpu_layers: int, repacked: frozenset[int]) -> LanguageUse:
    limit = context_length if isinstance(context_length, int) else 0
    cells = cells_for(PROMPT_TOKENS, ANSWER_TOKENS, limit)
    return LanguageUse(cells, prompt=_EXAMPLE_TOKENS, gpu_layers=gpu_layers, repacked=repacked)
