"""A captioner whose language model has an encoder: captions alone, together, and in a fork."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeprism.bundle import manifest as m
from edgeprism.bundle.manifest_language import LanguageModelFile
from edgeprism.cli.main import run
from edgeprism.errors import ModelError, PromptTooLongError, UsageError
from edgeprism.folder.batch import Batch
from edgeprism.perceive.captioner import Captioner
from edgeprism.picture.find import PictureFile
from edgeprism.reason.local import Reasoner
from tests.helpers import bundles
from tests.helpers.captions import caption_ids
from tests.helpers.tiny_t5 import END, N_VOCAB, TinyT5, write_t5, write_t5_gguf

WIDTH, N_TOKENS = 64, 24
INSTRUCTION = "Describe the picture."
LM = LanguageModelFile("lm.gguf", "F32", "t5", WIDTH, N_VOCAB, 512, "both-ways", encodes=True)
VISION = m.Vision(
    variants=[m.VisionVariant("vision.fp32.onnx", "fp32")], input="pixels", output="visual_tokens",
    grid=[bundles.GRID, bundles.GRID], drop_first_patch=False, tokens_per_tile=bundles.N_TOKENS,
    n_embd=WIDTH,
)  # fmt: skip
PROMPTS = m.Prompts(
    add_bos=False, before_image="", after_image="", before_caption="</s>",
    default_instruction=INSTRUCTION, focus_instruction=" Attend to: {focus}.", stop=[],
    max_tokens=N_TOKENS,
)  # fmt: skip


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> TinyT5:
    return write_t5(tmp_path_factory.mktemp("t5"), seed=5)


def write_bundle(folder: Path, t5: TinyT5, **changes: Any) -> Path:
    folder.mkdir()
    write_t5_gguf(folder / "lm.gguf", t5)
    graph = bundles.vision_graph(n_embd=WIDTH)
    parts = {"lm": LM, "vision": VISION, "prompts": PROMPTS}
    return bundles.write_bundle(folder, graph=graph, **{**parts, **changes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, t5: TinyT5) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle") / "b", t5)


def load(folder: Path, **options: Any) -> Captioner:
    return Captioner.load(folder, **{"device": "cpu", "kv_type": "f32", **options})


def picture(seed: int) -> np.ndarray:
    shape = (bundles.SIZE, bundles.SIZE, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def reference(t5: TinyT5, rows: np.ndarray, instruction: str, said: list[int]) -> list[int]:
    ids = [*t5.tokenizer.encode(instruction), END]
    return t5.as_ggml().greedy(np.concatenate([rows, t5.embed(ids)]), N_TOKENS, said=said)


def test_captions_are_transformers(folder: Path, t5: TinyT5) -> None:
    said = []
    with load(folder) as captioner:
        for seed in range(3):
            encoded = captioner.encode(picture(seed))
            for focus in (None, "the red dog"):
                plan = captioner.plan(focus=focus)
                ids = caption_ids(captioner, encoded, focus=focus, stop_at_end=False)
                assert ids == reference(t5, encoded.visual_tokens, plan.instruction, ids)
                said.append(tuple(ids))
        tokens = captioner.caption(picture(0)).tokens
        assert (tokens.visual, tokens.prompt) == (
            bundles.N_TOKENS, len(t5.tokenizer.encode(INSTRUCTION)) + 1,
        )  # fmt: skip
    assert len(set(said)) == len(said)


@pytest.mark.parametrize("parallel", [1, 3])
def test_a_folder_says_what_each_says_alone(folder: Path, tmp_path: Path, parallel: int) -> None:
    paths = [tmp_path / f"{seed}.png" for seed in range(5)]
    for seed, path in enumerate(paths):
        Image.fromarray(picture(seed)).save(path)
    with load(folder) as captioner:
        wanted = [captioner.caption(path).text for path in paths]
        batch = Batch(captioner, captioner.plan(), parallel=parallel, lanes=1)
        outcomes = list(batch.run(PictureFile(path, Path(path.name), path.name) for path in paths))
        assert [outcome.record and outcome.record["caption"] for outcome in outcomes] == wanted
    assert len(set(wanted)) == len(wanted)


def test_too_long_an_instruction_is_told_with_its_numbers(folder: Path) -> None:
    with (
        load(folder) as captioner,
        pytest.raises(PromptTooLongError, match=r"\d+ tokens; the model reads at most 512"),
    ):
        captioner.caption(picture(0), instruction="red dog " * 600)


def test_a_quantized_cache_is_refused(folder: Path) -> None:
    with load(folder, kv_type="q8_0") as captioner, pytest.raises(UsageError, match="q8_0"):
        captioner.caption(picture(0))


def test_the_plan_counts_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--plan", str(folder), "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    parts = {part["what"]: part["size"] for part in plan["models"][1]["parts"]}
    cells = 512  # a block for the prompt and the caption, and one more
    assert parts["KV cache"] == 2 * 3 * 4 * 32 * cells * 2
    assert parts["scores"] > N_VOCAB * bundles.N_TOKENS * 4


FORK = """
import os, sys
from pathlib import Path
from edgeprism import Captioner
captioner = Captioner.load(sys.argv[1], device="cpu", threads=1)
print(captioner.caption(sys.argv[2]).text)
child = os.fork()
if child == 0:
    print(captioner.caption(sys.argv[2]).text)
    sys.stdout.flush()
    os._exit(0)
os.waitpid(child, 0)
print(captioner.caption(sys.argv[2]).text)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_fork_says_the_same(folder: Path, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    Image.fromarray(picture(1)).save(photo)
    done = subprocess.run(
        [sys.executable, "-u", "-c", FORK, str(folder), str(photo)],
        capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert len(set(lines)) == 1


def test_a_reasoner_with_an_encoder_is_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match="through an encoder"):
        Reasoner.load(folder / "lm.gguf").complete([], max_tokens=1)


def test_a_manifest_that_contradicts_its_file_is_refused(tmp_path: Path, t5: TinyT5) -> None:
    silent = dataclasses.replace(LM, encodes=False, image_attention="causal")
    bundle = write_bundle(tmp_path / "b", t5, lm=silent)
    with load(bundle) as captioner, pytest.raises(ModelError, match="through an encoder"):
        captioner.caption(picture(0))


# ---- the comparison sees mistakes


def test_a_prompt_without_its_end_is_seen(tmp_path: Path, t5: TinyT5) -> None:
    prompts = dataclasses.replace(PROMPTS, before_caption="")
    with load(write_bundle(tmp_path / "b", t5, prompts=prompts)) as captioner:
        encoded = captioner.encode(picture(0))
        ids = caption_ids(captioner, encoded, stop_at_end=False)
        assert ids != reference(t5, encoded.visual_tokens, INSTRUCTION, ids)
