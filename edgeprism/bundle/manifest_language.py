"""What a bundle's manifest says of its language model: `lm`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from edgeprism.bundle.gguf_parts import part_names

# The metadata of fields that came after the first version. At their defaults they are left out of
# the JSON, so that earlier versions of EdgePrism, which refuse unknown fields, read it too.
LATER = {"later": True}


@dataclass(frozen=True)
class RowWeights:
    """The weights that a picture's rows go through, where text goes through others.

    `by` says how they differ from the language model's own:

    - "adapter": `file` is a GGUF with low-rank matrices (LoRA), whose products are added to those
      of the model's matrices for a picture's rows, and for no token of text.
    - "expert": `file` is a second language model in GGUF, alike in all that decides what keys and
      values are. Rows go through it, and the language model goes on from their keys and values:
      text and rows meet nowhere else.
    """

    by: str
    file: str
    # with "expert": how many of a picture's rows, at its end, go through the language model itself
    own_last: int = dataclasses.field(default=0, metadata=LATER)


@dataclass(frozen=True)
class Decoder:
    """ONNX graphs that write the text, in place of the weights of the GGUF file.

    With `cross` there are two. They are for language models whose layers attend to a picture's rows
    beside the text (cross-attention): the rows have no place among the tokens. The GGUF file then
    holds the vocabulary alone. The graphs' inputs and outputs have fixed names; N counts layers
    from 0:

    - `cross`: rows float32 [1, rows, vision.n_embd] → `cross_key_N`, `cross_value_N` float32
      [1, n_heads, rows, head_dim], once for a picture.
    - `file`: the tokens `ids` [batch, n] at `positions` [batch, n], all int64; `last` int32
      [batch], the index of each sequence's last cell; `total` int32 [1], the largest of these plus
      1; `wanted` int64 [m], the tokens whose logits are asked for; `n_rows` int64 [batch], how many
      rows of each sequence count; `key_N`, `value_N` float32 [batch, n_heads, cells, head_dim], to
      which the tokens are added, and the pictures' `cross_key_N`, `cross_value_N`. Outputs:
      `logits` float32 [batch, m, n_vocab], and `new_key_N`, `new_value_N`, the cells afterwards.

    Without `cross` a picture's rows stand among the tokens, as in other language models. The GGUF
    file then holds the table of embeddings, too, by which tokens become rows. In place of `ids`,
    `positions`, `n_rows` and the pictures' keys and values, `file` takes `rows` float32 [batch, n,
    lm.n_embd], whose positions follow from `last`.
    """

    file: str
    cross: str  # "": there is no such graph
    n_layers: int
    n_heads: int
    head_dim: int
    # how the text is put together from the vocabulary's pieces: "", as they are; "wordpiece", as
    # BERT's tokenizer does, without the blanks before full stops and around apostrophes
    clean_up: str = ""


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
    # "one-by-one": each image row is one position after the previous; "down-across": all rows of a
    # picture have one position in time, and one each for their place down and across (M-RoPE); or
    # "shared": all rows of a picture have one position, but `Vision.constant_rows` one each, and
    # yet a row attends to those before it alone (M-RoPE, whose other axes tell the order)
    image_positions: str = dataclasses.field(default="one-by-one", metadata=LATER)
    # the model has an encoder, which reads the whole prompt before the decoder writes; all rows of
    # a prompt then look at each other
    encodes: bool = dataclasses.field(default=False, metadata=LATER)
    # None: a picture's rows go through the same weights as text
    rows: RowWeights | None = dataclasses.field(default=None, metadata=LATER)
    # None: the GGUF file has the weights, and llama.cpp runs it
    decoder: Decoder | None = dataclasses.field(default=None, metadata=LATER)

    @property
    def files(self) -> list[str]:
        """The names of all GGUF files: the parts of `file`, and that of `rows`.

        Raises ModelError for a name of a part that is not the first, as `part_names` does.
        """
        return [*part_names(self.file), *([self.rows.file] if self.rows else [])]
