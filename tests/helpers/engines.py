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
from edgeprism.bundle.manifest_language import LanguageModelFile, RowWeights
from edgeprism.convert.language import opt
from edgeprism.convert.language.model import open_language_model
from edgeprism.convert.language.write_gguf import write_gguf
from edgeprism.convert.read.checkpoint import Checkpoint
from edgeprism.progress import Progress
from tests.helpers import bundles, tiny_decoder
from tests.helpers.adapters import adapter_parts
from tests.helpers.experts import write_expert_bundle
from tests.helpers.family_checks import converted
from tests.helpers.tiny_fuyu import write_fuyu
from tests.helpers.tiny_lm import write_lm
from tests.helpers.tiny_t5 import N_VOCAB, write_t5, write_t5_gguf


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


def _rows_by_an_adapter(folder: Path) -> Path:
    model = bundles.lm_parts(1)
    adapter_parts(model).write(folder / "lm.rows.gguf")
    rows = RowWeights("adapter", "lm.rows.gguf")
    lm = dataclasses.replace(bundles.make_manifest({}).lm, rows=rows)
    return bundles.write_bundle(folder, model=model, lm=lm)


def _encoded_first(folder: Path) -> Path:
    """T5, whose prompt ends with the end of a text."""
    bundle, n_embd = folder / "bundle", 64
    bundle.mkdir()
    write_t5_gguf(bundle / "lm.gguf", write_t5(folder / "published", seed=5))
    usual = bundles.make_manifest({})
    return bundles.write_bundle(
        bundle,
        graph=bundles.vision_graph(n_embd=n_embd),
        vision=dataclasses.replace(usual.vision, n_embd=n_embd),
        lm=LanguageModelFile("lm.gguf", "F32", "t5", n_embd, N_VOCAB, 512, "both-ways",
                             encodes=True),
        prompts=dataclasses.replace(
            usual.prompts, add_bos=False, before_image="", after_image="", before_caption="</s>"
        ),
    )  # fmt: skip


def _by_onnx(folder: Path) -> Path:
    """A decoder that attends to the picture; its tokens are letters and few words."""
    prompts = dataclasses.replace(
        bundles.make_manifest({}).prompts, before_image="", after_image="", before_caption="",
        stop=[], focus_instruction=" of {focus}", default_instruction="a picture of",
    )  # fmt: skip
    return tiny_decoder.write_bundle(folder, 1, prompts=prompts)


def _by_onnx_among_the_tokens(folder: Path) -> Path:
    """Fuyu as published, converted: pictures of any shape, whose rows take positions."""
    return converted(write_fuyu(folder / "published"), folder / "bundle")


ENGINES: dict[str, Callable[[Path], Path]] = {
    "llama.cpp": _plain,
    "llama.cpp, positions in a table": _positions_in_a_table,
    "llama.cpp, rows by an adapter": _rows_by_an_adapter,
    "llama.cpp, rows by an expert": write_expert_bundle,
    "llama.cpp, encoded first": _encoded_first,
    "ONNX Runtime": _by_onnx,
    "ONNX Runtime, rows among the tokens": _by_onnx_among_the_tokens,
}
