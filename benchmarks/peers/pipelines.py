"""Whole pipelines of others that do not hold these weights, and why."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from benchmarks.peers.weights import Weights

# family → the architecture and the model_type by which a published checkpoint says what it is
_NAMES = {
    "smolvlm": ("Idefics3ForConditionalGeneration", "idefics3"),
    "prismcaptioner": ("PrismCaptioner", "prismcaptioner"),
    "llava": ("LlavaLlamaForCausalLM", "llava_llama"),
    "internvl": ("InternVLChatModel", "internvl_chat"),
}
_NOT_TRIED = "it names {}, but nobody has exported these weights for it yet"


def pipelines_left_out(weights: Weights) -> dict[str, str]:
    """Return {pipeline: why it is left out}, from what the installed packages name."""
    architecture, model_type = _NAMES[weights.family]
    return {
        "onnxruntime-genai": _why("onnxruntime_genai", "models/builder.py", architecture),
        "OpenVINO GenAI": _why("openvino_genai", "libopenvino_genai.so*", model_type),
    }


def _why(package: str, pattern: str, name: str) -> str:
    """Look whether a package's own list of models, in the file of `pattern`, holds `name`."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return f"it is not installed (pip install {package.replace('_', '-')})"
    files = list(Path(spec.submodule_search_locations[0]).glob(pattern))
    if not files:
        return f"its list of models, {pattern}, was not found"
    if any(name.encode() in path.read_bytes() for path in files):
        return _NOT_TRIED.format(name)
    return f"it does not name {name}, so it cannot run the whole captioner"
