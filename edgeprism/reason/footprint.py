"""What a reasoner of this machine takes in memory, counted from its file's header."""

from __future__ import annotations

from pathlib import Path

from edgeprism.bundle.adapter_checks import knows_prompts, read_adapter_header
from edgeprism.bundle.gguf import GgufHeader
from edgeprism.bundle.gguf_parts import model_bytes, part_paths, read_model_header
from edgeprism.language.gpu import Gpu
from edgeprism.language.kv_memory import kv_bytes
from edgeprism.machine.device import ALL_LAYERS
from edgeprism.memory.language import LanguageUse, adapter_parts, cells_for, language_parts
from edgeprism.memory.layers import choose_layers
from edgeprism.memory.parts import ModelParts, Part
from edgeprism.memory.remembered_parts import remembered_parts

PROMPT_TOKENS = 200  # a caption of a hundred words, and a question
ANSWER_TOKENS = 256
_EXAMPLE_TOKENS = 300  # of the worked examples of a focus, which get a short answer
_CONTEXT = "context_length"


def reasoner_parts(
    path: Path, adapter: Path | None, name: str, gpu_layers: int, repacked: frozenset[int]
) -> ModelParts:
    """Return what the reasoner at `path` takes for one question, with its adapter if it has one."""

    def count() -> tuple[Part, ...]:
        header = read_model_header(path)
        use = _use(header.metadata.get(f"{header.architecture}.{_CONTEXT}"), gpu_layers, repacked)
        parts = language_parts(header, model_bytes(path), use)
        if adapter is not None:
            parts += _adapter(adapter, header, use)
            if knows_prompts(read_adapter_header(adapter)):
                return parts
        examples = round(kv_bytes(header, _EXAMPLE_TOKENS))
        return (*parts, Part("kept examples", examples, "of a focus, read once"))

    files = [*part_paths(path), *([adapter] if adapter else [])]
    parts = remembered_parts(files, (gpu_layers, sorted(repacked), adapter is not None), count)
    return ModelParts(name, "reasoner", parts)


def reasoner_layers(path: Path, adapter: Path | None, gpu: Gpu | None) -> int:
    """Return the layers of the reasoner at `path` that fit on the GPU."""
    header = read_model_header(path)
    use = _use(header.metadata.get(f"{header.architecture}.{_CONTEXT}"), ALL_LAYERS, frozenset())

    def beside(so_many: LanguageUse) -> tuple[Part, ...]:
        return _adapter(adapter, header, so_many) if adapter else ()

    return choose_layers(header, model_bytes(path), use, gpu, beside=beside)


def _adapter(adapter: Path, model: GgufHeader, use: LanguageUse) -> tuple[Part, ...]:
    why = "matrices beside the model's own"
    return adapter_parts(read_adapter_header(adapter), model, use, "adapter", why)


def _use(context_length: object, gpu_layers: int, repacked: frozenset[int]) -> LanguageUse:
    limit = context_length if isinstance(context_length, int) else 0
    cells = cells_for(PROMPT_TOKENS, ANSWER_TOKENS, limit)
    return LanguageUse(cells, prompt=_EXAMPLE_TOKENS, gpu_layers=gpu_layers, repacked=repacked)
