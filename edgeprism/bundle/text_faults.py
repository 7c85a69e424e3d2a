"""Faults of a manifest's fields about text in the vision graph (`Vision.text`)."""

from __future__ import annotations

from edgeprism.bundle.manifest import Manifest

TOKENIZERS = ("wordpiece",)
TRUNCATIONS = ("left", "right")
MAX_IDS = 4096  # of an instruction; published models take 512
_LEAST_IDS = 3  # the two marks and a piece
_MOST = 1 << 16  # features of a tile, and numbers of a feature


def text_faults(m: Manifest) -> list[str]:
    """Return the faults of `vision.text`, and of fields that do not go with it."""
    text = m.vision.text
    if text is None:
        return []
    names = (text.input, text.ids, text.output)
    checks = [
        ("tokenizer", text.tokenizer in TOKENIZERS,
         f"{text.tokenizer!r}; known: {', '.join(TOKENIZERS)}"),
        ("vocabulary", text.vocabulary in m.files, f"{text.vocabulary!r} is not among files"),
        ("max_ids", _LEAST_IDS <= text.max_ids <= MAX_IDS, f"must lie in {_LEAST_IDS}…{MAX_IDS}"),
        ("truncation", text.truncation in TRUNCATIONS,
         f"{text.truncation!r}; known: {', '.join(TRUNCATIONS)}"),
        ("features", 1 <= text.features <= _MOST, f"must lie in 1…{_MOST}"),
        ("width", 1 <= text.width <= _MOST, f"must lie in 1…{_MOST}"),
        ("input", all(names) and len(set(names)) == len(names),
         "input, ids and output must be three different names"),
    ]  # fmt: skip
    faults = [f"vision.text.{name}: {said}" for name, holds, said in checks if not holds]
    others = [
        ("vision.newline", not m.vision.newline, "must be empty with vision.text"),
        ("vision.separator", not m.vision.separator, "must be empty with vision.text"),
        ("vision.drop_first_patch", not m.vision.drop_first_patch, "not with vision.text"),
        ("image.free", m.image.free is None, "not with vision.text"),
        ("image.tiling.order", m.image.tiling is None or m.image.tiling.order == "tiles",
         "must be tiles with vision.text"),
        ("prompts.several", m.prompts.several is None, "not with vision.text"),
        ("video", m.video is None, "not with vision.text"),
    ]  # fmt: skip
    return faults + [f"{path}: {said}" for path, holds, said in others if not holds]


def connector_faults(m: Manifest) -> list[str]:
    """Return the faults of the second graphs' files."""
    faults = []
    for i, variant in enumerate(m.vision.variants):
        path, name = f"vision.variants[{i}].connector", variant.connector
        if m.vision.text is None:
            faults += [f"{path}: needs vision.text"] if name else []
        elif not name:
            faults.append(f"{path}: is missing, but there is vision.text")
        elif name.lower().endswith(".ort"):
            faults.append(f"{path}: {name!r} is no name of an ONNX graph")
        elif name not in m.files:
            faults.append(f"{path}: {name!r} is not among files")
        elif name == variant.file:
            faults.append(f"{path}: is the file of the first graph")
    return faults
