"""BERT's decoder with attention to rows, as BLIP publishes it → the weights of the graphs.

Source of the names: transformers' `modeling_blip_text.py`; salesforce/BLIP has the same.
"""

from __future__ import annotations

from edgeprism.convert.language.decoder import DecoderConfig
from edgeprism.convert.read.checkpoint import Checkpoint
from edgeprism.convert.vision.weights import (
    VisionWeights,
    Weight,
    Weights,
    linear_weights,
    norm_weights,
    same,
)

# DecoderLayer's module → its name in a layer
_LINEAR = {
    "q": "attention.self.query", "k": "attention.self.key", "v": "attention.self.value",
    "out": "attention.output.dense", "cross_q": "crossattention.self.query",
    "cross_out": "crossattention.output.dense",
}  # fmt: skip
_NORMS = {
    "norm_out": "attention.output.LayerNorm", "norm_cross": "crossattention.output.LayerNorm",
    "norm_last": "output.LayerNorm",
}  # fmt: skip
_CROSS = ("crossattention.self.key", "crossattention.self.value")
_EMBEDDINGS, _HEAD = "bert.embeddings.", "cls.predictions."


def decoder_weights(config: DecoderConfig, checkpoint: Checkpoint, lead: str) -> VisionWeights:
    """Return the weights of `DecoderGraph`; `lead` stands before their names."""
    e, f = config.n_embd, config.n_ffn
    words = {f"{lead}{_EMBEDDINGS}word_embeddings.weight": (config.n_vocab, e)}
    places = {f"{lead}{_EMBEDDINGS}position_embeddings.weight": (config.context_length, e)}
    bias = {_bias_name(checkpoint, lead): (config.n_vocab,)}
    graph: Weights = {
        "words": Weight(checkpoint, words, same),
        "places": Weight(checkpoint, places, same),
        "bias": Weight(checkpoint, bias, same),
        **norm_weights("norm_first", checkpoint, f"{lead}{_EMBEDDINGS}LayerNorm", e),
        **linear_weights("head", checkpoint, f"{lead}{_HEAD}transform.dense", e, e),
        **norm_weights("norm_head", checkpoint, f"{lead}{_HEAD}transform.LayerNorm", e),
    }
    for i in range(config.n_layers):
        source = _layer(lead, i)
        for module, name in _LINEAR.items():
            graph |= linear_weights(f"layers.{i}.{module}", checkpoint, f"{source}{name}", e, e)
        for module, name in _NORMS.items():
            graph |= norm_weights(f"layers.{i}.{module}", checkpoint, f"{source}{name}", e)
        wide = {"fc1": ("intermediate.dense", e, f), "fc2": ("output.dense", f, e)}
        for module, (name, *widths) in wide.items():
            graph |= linear_weights(f"layers.{i}.{module}", checkpoint, f"{source}{name}", *widths)
    return VisionWeights({"": graph})


def cross_weights(config: DecoderConfig, checkpoint: Checkpoint, lead: str) -> VisionWeights:
    """Return the weights of `CrossGraph`: keys, then values, of each layer."""
    graph: Weights = {}
    for i in range(config.n_layers):
        for place, name in enumerate(_CROSS):
            module, source = f"layers.{2 * i + place}", f"{_layer(lead, i)}{name}"
            widths = (config.row_width, config.n_embd)
            graph |= linear_weights(module, checkpoint, source, *widths)
    return VisionWeights({"": graph})


def decoder_unused(lead: str) -> tuple[str, ...]:
    """Return patterns of tensors that may be there: copies of others, and numbers of places."""
    return (rf"^{lead}{_HEAD}decoder\.(weight|bias)$", rf"^{lead}{_HEAD}bias$", r"position_ids$")


def _layer(lead: str, i: int) -> str:
    return f"{lead}bert.encoder.layer.{i}."


def _bias_name(checkpoint: Checkpoint, lead: str) -> str:
    """Return the name of the output's bias: files without copies hold one of the two."""
    name = f"{lead}{_HEAD}bias"
    copy = f"{lead}{_HEAD}decoder.bias"
    return copy if name not in checkpoint.names and copy in checkpoint.names else name
