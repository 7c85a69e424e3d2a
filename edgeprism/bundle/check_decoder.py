"""The faults of a manifest's `lm.decoder`, each with its field's path."""

from __future__ import annotations

from edgeprism.bundle.manifest import Manifest

CLEAN_UPS = ("", "wordpiece")
_MOST_LAYERS, _MOST_HEADS, _WIDEST_HEAD = 512, 1024, 1024


def decoder_faults(m: Manifest) -> list[str]:
    """Return the faults of the graphs that write the text, if there are any."""
    decoder = m.lm.decoder
    if decoder is None:
        return []
    checks = [
        ("n_layers", 1 <= decoder.n_layers <= _MOST_LAYERS, f"must lie in 1…{_MOST_LAYERS}"),
        ("n_heads", 1 <= decoder.n_heads <= _MOST_HEADS, f"must lie in 1…{_MOST_HEADS}"),
        ("head_dim", 1 <= decoder.head_dim <= _WIDEST_HEAD, f"must lie in 1…{_WIDEST_HEAD}"),
        (
            "clean_up",
            decoder.clean_up in CLEAN_UPS,
            f"{decoder.clean_up!r}; known: {', '.join(map(repr, CLEAN_UPS))}",
        ),
        ("file", decoder.file != decoder.cross, "is lm.decoder.cross, too"),
    ]
    faults = [f"lm.decoder.{path}: {text}" for path, holds, text in checks if not holds]
    for field, name in (("file", decoder.file), ("cross", decoder.cross)):
        if field == "cross" and not name:
            continue
        if name not in m.files:
            faults.append(f"lm.decoder.{field}: {name!r} is not among files")
        if name.lower().endswith(".ort"):
            faults.append(f"lm.decoder.{field}: {name!r} is no name of an ONNX graph")
    if not decoder.cross and m.vision.n_embd != m.lm.n_embd:
        faults.append("vision.n_embd: differs from lm.n_embd, without lm.decoder.cross")
    if m.vision.mmproj is not None:
        faults.append("lm.decoder: not with vision.mmproj, whose rows llama.cpp takes")
    if m.lm.image_attention != "causal" or m.lm.image_positions != "one-by-one":
        faults.append("lm.decoder: its rows have no positions, or one each, so lm.image_attention "
                      "must be causal and lm.image_positions one-by-one")  # fmt: skip
    if m.lm.rows is not None or m.lm.encodes:
        faults.append("lm.decoder: not with lm.rows or lm.encodes, which llama.cpp runs")
    if m.video is not None:
        faults.append("lm.decoder: not with video")
    return faults
