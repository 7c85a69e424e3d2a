"""BLIP-2 with FlanT5 in both layouts: its bundle says what transformers' classes say."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeprism.bundle.read_manifest import manifest_from_bundle
from edgeprism.convert.options import ConvertOptions
from tests.helpers.captions import caption_ids
from tests.helpers.converting import convert_family
from tests.helpers.family_checks import N_TOKENS, loaded
from tests.helpers.tiny_blip2 import Blip2T5Case, write_blip2_t5
from tests.helpers.tiny_captioners import INSTRUCTION, pictures

LAYOUTS = ("transformers", "lavis", "lavis-coco")
EXACT = ConvertOptions(vision_quants=("fp32",), lm_quant="F32", force=True)
CaseOf = Callable[[str], Blip2T5Case]
BundleOf = Callable[[str], Path]


@pytest.fixture(scope="module")
def case_of(tmp_path_factory: pytest.TempPathFactory) -> CaseOf:
    return cache(
        lambda layout: write_blip2_t5(tmp_path_factory.mktemp("c") / layout, layout=layout)
    )


@pytest.fixture(scope="module")
def bundle_of(tmp_path_factory: pytest.TempPathFactory, case_of: CaseOf) -> BundleOf:
    def convert(layout: str) -> Path:
        out = tmp_path_factory.mktemp("b") / layout
        convert_family("blip2", out, EXACT, case_of(layout).settings)
        return out

    return cache(convert)


def check_texts(case: Blip2T5Case, bundle: Path) -> None:
    """The bundle's texts are the reference's, but where ggml's rounding ties two tokens."""
    with loaded(bundle) as captioner:
        for picture in pictures():
            for instruction in (INSTRUCTION, ""):
                said = caption_ids(captioner, picture, instruction=instruction,
                                   caption_tokens=N_TOKENS, stop_at_end=False)  # fmt: skip
                assert said == case.greedy(picture, instruction, N_TOKENS, said)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_bundle_says_what_the_reference_says(
    layout: str, case_of: CaseOf, bundle_of: BundleOf
) -> None:
    case, bundle = case_of(layout), bundle_of(layout)
    with loaded(bundle) as captioner:
        for picture in pictures():
            expected = case.visual_tokens(picture)
            tolerance = 1e-4 * float(np.abs(expected).max())
            np.testing.assert_allclose(
                captioner.encode(picture).visual_tokens, expected, atol=tolerance
            )
    check_texts(case, bundle)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_manifest_says_how_the_prompt_stands(layout: str, bundle_of: BundleOf) -> None:
    manifest = manifest_from_bundle(bundle_of(layout))
    prompts = manifest.prompts
    assert (manifest.lm.encodes, manifest.lm.image_attention) == (True, "both-ways")
    assert (prompts.add_bos, prompts.markers, prompts.before_caption) == (False, None, "</s>")
    assert (prompts.stop, prompts.default_instruction) == ([], "")


@pytest.mark.parametrize(
    "change", [{"before_caption": ""}, {"before_image": "</s>"}, {"before_caption": "</s></s>"}]
)
def test_a_wrong_prompt_is_seen(
    change: dict[str, Any], tmp_path: Path, case_of: CaseOf, bundle_of: BundleOf
) -> None:
    shutil.copytree(bundle_of("transformers"), tmp_path / "b")
    manifest = manifest_from_bundle(tmp_path / "b")
    prompts = dataclasses.replace(manifest.prompts, **change)
    changed = dataclasses.replace(manifest, prompts=prompts)
    (tmp_path / "b" / "manifest.json").write_text(changed.to_json(), encoding="utf-8")
    with pytest.raises(AssertionError):
        check_texts(case_of("transformers"), tmp_path / "b")
