"""What a bundle's manifest says of its language model: `lm`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

# The metadata of fields that came after the first version. At their defaults they are left out of
# the JSON, so that earlier versions of EdgePrism, which refuse unknown fields, read it too.
LATER = {"later": True}


@dataclass(frozen=True)
class LanguageModelFile:
    """The GGUF file and the dimensions it must have."""

    file: str
    quant: str
    architecture: str
    n_embd: int
    n_vocab: int
    context_length: int
    image_attention: str  # "causal": image rows attend to earlier positions only; or "both-ways"
    # "one-by-one": each image row is one position after the previous; or "down-across": all rows of
    # a picture have one position in time, and one each for their place down and across (M-RoPE)
    image_positions: str = dataclasses.field(default="one-by-one", metadata=LATER)
