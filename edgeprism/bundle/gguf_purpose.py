"""What a GGUF file is for, by its header: why it is no language model that llama.cpp can run."""

from __future__ import annotations

from edgeprism.bundle.gguf import GgufHeader
from edgeprism.bundle.gguf_checks import purpose_faults

# ollama/ollama, convert/: architectures that only Ollama's own engine knows by these names
_OLLAMA_ONLY = ("mllama", "gptoss", "qwen25vl", "deepseekocr", "glmocr", "nemotron_h_omni")
# ollama/ollama, server/create.go (isEmbeddedCompatibilityTensor): towers for pictures and sound,
# and what joins them to the language model. llama.cpp has them in an mmproj file.
_TOWERS = ("v.", "mm.", "a.")
_OTHERS = {
    "adapter": "a LoRA adapter, not a model",
    "mmproj": "an mmproj file, not a language model",
    "imatrix": "an importance matrix for quantizing, not a model",
}


def no_language_model(header: GgufHeader) -> str:
    """Return why llama.cpp cannot write text with the model of this header; "" if it may."""
    metadata, name = header.metadata, header.architecture
    kind = str(metadata.get("general.type", ""))
    if "adapter.type" in metadata:
        kind = "adapter"
    elif name == "clip":
        kind = "mmproj"
    if kind in _OTHERS:
        return _OTHERS[kind]
    if any(tensor.startswith(_TOWERS) for tensor in header.tensors):
        return (
            "its vision tower lies inside the language model's file, which only Ollama's own "
            "engine reads; llama.cpp takes a pair, with the tower in an mmproj file"
        )
    if name in _OLLAMA_ONLY:
        return f"its architecture {name} is known to Ollama's own engine only"
    if metadata.get(f"{name}.pooling_type", 0) != 0:
        return "it is made for embeddings or ranking, not for writing text"
    if faults := purpose_faults(header):
        return f"it has {faults[0]}"
    if not header.n_vocab:
        return "it holds no vocabulary, so it is no language model"
    return "" if header.tensors else "it holds a vocabulary and no weights"
