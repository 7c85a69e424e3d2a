"""A checkpoint with BLIP-base's or -large's dimensions and random weights, in transformers' layout.

The vocabulary has BERT's special tokens at their numbers, letters and their continuations, and made
words; the published one is not at hand.
"""

from __future__ import annotations

import string
from pathlib import Path

import torch
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
)

_PIECES = 30522
_TOWERS = {"base": (768, 12, 12, 3072), "large": (1024, 24, 16, 4096)}


def write_blip(folder: Path, _n_layers: int, *, size: str = "base") -> None:
    """Write `folder`/captioner; its decoder always has twelve layers."""
    width, layers, heads, wide = _TOWERS[size]
    config = BlipConfig(
        text_config={"num_attention_heads": 12},
        vision_config={"hidden_size": width, "num_hidden_layers": layers,
                       "num_attention_heads": heads, "intermediate_size": wide},
    )  # fmt: skip
    torch.manual_seed(0)
    model = BlipForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, _deviation(name, parameter))
    out = folder / "captioner"
    out.mkdir(parents=True)
    (out / "vocab.txt").write_text("".join(f"{piece}\n" for piece in _pieces()), encoding="utf-8")
    model.save_pretrained(out)
    tokenizer = BertTokenizer(str(out / "vocab.txt"))
    BlipProcessor(BlipImageProcessor(), tokenizer).save_pretrained(out)


def _deviation(name: str, parameter: torch.Tensor) -> float:
    """Return how far its numbers deviate; the table of words makes the logits, too."""
    if "text_decoder" in name and "embeddings" in name:
        return 0.05
    return 0.5 if "embedding" in name else float(parameter[0].numel() ** -0.5)


def _pieces() -> list[str]:
    special = ["[PAD]", *(f"[unused{i}]" for i in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [*string.ascii_lowercase, *string.digits, *".,!?'-:;()/"]
    known = [*special, *letters, *(f"##{letter}" for letter in letters), "picture", "of"]
    return [*known, *(f"word{i}" for i in range(_PIECES - len(known)))]
