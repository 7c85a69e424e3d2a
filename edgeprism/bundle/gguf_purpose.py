"""What a GGUF file is for, by its header: why it is no language model that llama.cpp can run."""

from __future__ import annotations

from edgeprism.bundle.gguf import GgufHeader
from edgeprism.bundle.gguf_checks import purpose_faults

# ollama/ollama, convert/: architectures that only Ollama's own engine knows by these names
_OLLAMA_ONLY = ("mllama", "gptoss", "qwen25vl", "deepseekocr", "glmocr", "nemotron_h_omni")
# ollama/ollama, server/create.go (isEmbeddedCompatibilityTensor): towers for pictures and sound,
# and what joins them to the language model. llama.cpp has them in an mmproj file.
_TOWERS = ("v.", "mm.", "a.")
ADAPTER = "adapter"
_OTHERS = {
    ADAPTER: "a LoRA adapter, not a model",
    "mmproj": "an mmproj file, not a language model",
    "imatrix": "an importance matrix for quantizing, not a model",
}


def purpose_in_header(header: GgufHeader) -> str:
    """Return what a GGUF file says that it is where it is no model: as "adapter" or "mmproj"."""
    if "adapter.type" in header.metadata:
        return ADAPTER
    if header.architecture == "clip":
        return "mmproj"
    kind = str(header.metadata.get("general.type", ""))
    return kind if kind in _OTHERS else ""


def no_model(header: GgufHeader) -> str:
    """Return what a GGUF file is that is no model, in words; "" for what may be one."""
    return _OTHERS.get(purpose_in_header(header), "")


def no_language_model(header: GgufHeader) -> str:
    """Return why llama.cpp cannot write text with the model of this header; "" if it may."""
    metadata, name = header.metadata, header.architecture
    if other := no_model(header):
        return other
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
