"""A bundle generates the same tokens as its published checkpoint."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edgeprism.convert.language import internlm2
from edgeprism.convert.read.lora import LoraAdapter
from edgeprism.convert.vision import graph
from edgeprism.language.model import LanguageModel
from edgeprism.language.request import Rows, segments_to_parts
from edgeprism.perceive.captioner import Captioner
from edgeprism.perceive.prompt import caption_to_segments
from tests.helpers.captions import caption_ids
from tests.helpers.checkpoints import Folders, Spec, describe, write_checkpoint
from tests.helpers.converting import convert
from tests.helpers.published import INSTRUCTION, Mistakes, Reference, pictures

N_TOKENS = 64
SPECS = (
    Spec(adapter="output", container="sharded", spare_vocab=7, projector_tail=True, seed=1),
    Spec(lm_layers=3, kv_heads=4, vision_layers=2, adapter="layers", container="single", seed=3),
    Spec(
        lm_layers=1,
        heads=8,
        kv_heads=2,
        hidden=96,
        vision_layers=4,
        image_size=70,
        adapter="output",
        container="bin",
        add_dummy_prefix=True,
        bare_tower=True,
        seed=3,
    ),
    Spec(heads=6, kv_heads=1, hidden=96, adapter="none", container="sharded", seed=2),
)

Bundles = Callable[..., Path]
Checkpoints = Callable[[Spec], Folders]
References = dict[Spec, tuple[Reference, list[list[int]]]]


@functools.cache
def captions_of(bundle: Path) -> list[list[int]]:
    """Return greedy ids without rounding: float32 cache, no flash attention."""
    with Captioner.load(bundle, device="cpu", kv_type="f32", flash_attention=False) as captioner:
        return [
            caption_ids(
                captioner,
                picture,
                instruction=INSTRUCTION,
                caption_tokens=N_TOKENS,
                stop_at_end=False,
            )
            for picture in pictures()
        ]


@pytest.fixture(scope="module")
def references(checkpoint_of: Checkpoints) -> References:
    tensors = {}
    for spec in SPECS:
        reference = Reference(checkpoint_of(spec))
        tensors[spec] = reference, [reference.greedy(p, N_TOKENS) for p in pictures()]
    return tensors


@pytest.mark.parametrize("spec", SPECS, ids=describe)
def test_the_reference_is_worth_comparing_with(spec: Spec, references: References) -> None:
    texts = references[spec][1]
    assert all(len(set(ids)) >= 16 for ids in texts)
    assert len({tuple(ids) for ids in texts}) == len(texts)


@pytest.mark.parametrize("spec", SPECS, ids=describe)
def test_float32_bundle_gives_the_same_tokens(
    spec: Spec, references: References, bundle_of: Bundles
) -> None:
    assert captions_of(bundle_of(spec)) == references[spec][1]


@pytest.mark.parametrize("spec", SPECS, ids=describe)
def test_f16_agrees_wherever_the_reference_is_clear(
    spec: Spec, references: References, bundle_of: Bundles
) -> None:
    reference, texts = references[spec]
    bundle = bundle_of(spec, lm_quant="F16")
    n_clear = 0
    for picture, ids in zip(pictures(), texts, strict=True):
        expected = reference.forced_logits(picture, ids)
        actual = forced_logits(bundle, picture, ids)
        # F16 rounds by 2⁻¹¹; two dozen such roundings, amplified, move a logit by 2 % at most
        noise = 0.02 * expected.std(axis=-1)
        best_two = np.partition(expected, -2, axis=-1)[:, -2:]
        clear = best_two[:, 1] - best_two[:, 0] > 2 * noise
        assert (actual.argmax(axis=-1) == expected.argmax(axis=-1))[clear].all()
        n_clear += int(clear.sum())
    assert n_clear > 2 * N_TOKENS


def forced_logits(bundle: Path, picture: Image.Image, ids: list[int]) -> np.ndarray:
    """Return logits [len(ids), n_vocab] that predict each of `ids`, from the runtime's engines."""
    with Captioner.load(bundle, device="cpu") as captioner:
        encoded = captioner.encode(picture)
        prompts = captioner.bundle.manifest.prompts
    lm = LanguageModel(bundle / "lm.gguf")
    before, rows, after = segments_to_parts(
        lm,
        caption_to_segments(prompts, INSTRUCTION, encoded.layout),
        encoded.visual_tokens,
        add_bos=True,
    )
    context = lm.context(1024, kv_type="f32", flash_attention=False, all_logits=True)
    assert isinstance(before, list)
    assert isinstance(rows, Rows)
    assert isinstance(after, list)
    context.prefill_tokens(0, before, 0, logits=False)
    context.prefill_rows(0, rows.values, len(before))
    logits = context.logits_of_tokens([*after, *ids[:-1]], start=len(before) + len(rows))
    context.close()
    lm.close()
    return logits[-len(ids) :]


def test_the_first_patch_can_be_kept(bundle_of: Bundles, checkpoint_of: Checkpoints) -> None:
    spec = SPECS[0]
    reference = Reference(checkpoint_of(spec), Mistakes(drop_first=False))
    expected = [reference.greedy(p, N_TOKENS) for p in pictures()]
    assert captions_of(bundle_of(spec, keep_first_patch=True)) == expected


def test_rslora_scales_by_the_root(tmp_path: Path) -> None:
    spec = SPECS[0]
    folders = write_checkpoint(tmp_path / "c", spec)
    path = folders.captioner / "llm_adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "use_rslora": True}))
    reference = Reference(folders, Mistakes(lora_scale=spec.alpha / spec.rank**0.5))
    expected = [reference.greedy(p, N_TOKENS) for p in pictures()]
    assert captions_of(convert(folders, tmp_path / "out")) == expected


# ---- the comparison notices mistakes


@pytest.mark.parametrize(
    "mistakes",
    [
        Mistakes(drop_first=False),
        Mistakes(pad=128),
        Mistakes(pad=0),
        Mistakes(lora_scale=1.0),
        Mistakes(skip_head_adapter=True),
        Mistakes(gelu="tanh"),
    ],
    ids=str,
)
def test_a_reference_with_a_mistake_differs(
    mistakes: Mistakes, bundle_of: Bundles, checkpoint_of: Checkpoints
) -> None:
    reference = Reference(checkpoint_of(SPECS[0]), mistakes)
    expected = [reference.greedy(p, N_TOKENS) for p in pictures()]
    assert captions_of(bundle_of(SPECS[0])) != expected


def _unpermuted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(internlm2, "permute_for_rope", lambda rows, _heads: rows)


def _tanh_projector(monkeypatch: pytest.MonkeyPatch) -> None:
    gelu = torch.nn.functional.gelu
    monkeypatch.setattr(graph, "gelu", lambda x, _activation: gelu(x, approximate="tanh"))


def _scale_one(monkeypatch: pytest.MonkeyPatch) -> None:
    merge = LoraAdapter.merge

    def merge_unscaled(self: LoraAdapter, name: str, weight: torch.Tensor) -> torch.Tensor:
        self.scale = 1.0
        return merge(self, name, weight)

    monkeypatch.setattr(LoraAdapter, "merge", merge_unscaled)


def _no_head(monkeypatch: pytest.MonkeyPatch) -> None:
    merge = LoraAdapter.merge

    def merge_body(self: LoraAdapter, name: str, weight: torch.Tensor) -> torch.Tensor:
        return weight if name == "output.weight" else merge(self, name, weight)

    monkeypatch.setattr(LoraAdapter, "merge", merge_body)


@pytest.fixture(params=[_unpermuted, _tanh_projector, _scale_one, _no_head])
def planted(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    request.param(monkeypatch)


@pytest.mark.usefixtures("planted")
def test_a_converter_with_a_mistake_differs(
    references: References, checkpoint_of: Checkpoints, tmp_path: Path
) -> None:
    out = convert(checkpoint_of(SPECS[0]), tmp_path / "out", force=True)
    assert captions_of(out) != references[SPECS[0]][1]
