"""The adapter that ships: what its file says, and what the card says of it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import gguf

from edgeprism.models import reader

FOLDER = Path(reader.__file__).parent
ADAPTER = FOLDER / "smollm2-135m-reader.gguf"
# SmolLM2-135M: rows and columns of each matrix of a layer
MATRICES = {
    "attn_q": (576, 576), "attn_k": (192, 576), "attn_v": (192, 576), "attn_output": (576, 576),
    "ffn_gate": (1536, 576), "ffn_up": (1536, 576), "ffn_down": (576, 1536),
}  # fmt: skip
LAYERS, RANK = 30, 16


def test_the_adapter_has_a_pair_for_every_matrix_of_smollm2_135m() -> None:
    file = gguf.GGUFReader(ADAPTER)
    expected = {}
    for layer in range(LAYERS):
        for name, (rows, columns) in MATRICES.items():
            expected[f"blk.{layer}.{name}.weight.lora_a"] = [columns, RANK]
            expected[f"blk.{layer}.{name}.weight.lora_b"] = [RANK, rows]
    assert {t.name: [int(n) for n in t.shape] for t in file.tensors} == expected
    fields = {name: field.contents() for name, field in file.fields.items()}
    assert fields["general.type"] == "adapter"
    assert fields["adapter.type"] == "lora"
    assert fields["general.architecture"] == "llama"
    assert fields["adapter.lora.alpha"] == 2 * RANK
    assert fields["general.license"] == "apache-2.0"
    assert fields["edgeprism.reader"] == 1


def test_the_adapter_is_small_and_the_card_names_it() -> None:
    data = ADAPTER.read_bytes()
    assert len(data) <= 8_000_000
    card = (FOLDER / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert hashlib.sha256(data).hexdigest() in card
    assert f"{len(data):,} bytes" in card
