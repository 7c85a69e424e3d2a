"""A captioner for each way in which a language side can run, by name.

A new engine, or a new feature of one, is one line of ENGINES: what writes a bundle whose captions
depend on the picture and on the instruction. `tests/perceive/test_engines.py` then tries on it what
every captioner can do.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

from edgeprism.bundle.manifest import Markers
from edgeprism.convert.language import opt
from edgeprism.convert.language.model import open_language_model
from edgeprism.convert.language.write_gguf import write_gguf
from edgeprism.convert.read.checkpoint import Checkpoint
from edgeprism.progress import Progress
from tests.helpers import bundles
from tests.helpers.tiny_lm import write_lm


def _plain(folder: Path) -> Path:
    return bundles.write_bundle(folder, seed=1)


def _positions_in_a_table(folder: Path) -> Path:
    """OPT, whose prompt begins with the picture: no position behind the table's last is one."""
    published, bundle = folder / "published", folder / "bundle"
    write_lm(published, "opt")
    config = json.loads((published / "config.json").read_text())
    checkpoint = Checkpoint(published, "language model")
    parts = open_language_model(checkpoint, config, "config.json", published, opt.TOKENS)
    bundle.mkdir()
    write_gguf(bundle / "lm.gguf", "F32", parts, "tiny", Progress())
    usual, n_embd = bundles.make_manifest({}), parts.config.n_embd
    return bundles.write_bundle(
        bundle,
        graph=bundles.vision_graph(n_embd=n_embd),
        vision=dataclasses.replace(usual.vision, n_embd=n_embd),
        lm=dataclasses.replace(
            usual.lm,
            architecture=parts.config.architecture,
            n_embd=n_embd,
            n_vocab=parts.config.n_vocab,
            context_length=parts.config.context_length,
        ),
        prompts=dataclasses.replace(
            usual.prompts,
            add_bos=False,
            before_image="",
            after_image="",
            before_caption="",
            markers=Markers("", "", "", "", "", opt.BEGIN),
            stop=["\n"],
        ),
    )


ENGINES: dict[str, Callable[[Path], Path]] = {
    "llama.cpp": _plain,
    "llama.cpp, positions in a table": _positions_in_a_table,
}
