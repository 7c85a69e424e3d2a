"""The rule that chooses a model's files, over names as publishers give them."""

from __future__ import annotations

import time

import pytest

from edgeprism.bundle.choose_gguf import Choice, choose_files, quant_in_name
from edgeprism.bundle.gguf_parts import part_names
from edgeprism.errors import ModelError, UsageError

MB, GB = 10**6, 10**9
# names in the style of ggml-org, with sizes of that order
SMOLVLM = {
    ".gitattributes": 1500,
    "README.md": 900,
    "SmolVLM-500M-Instruct-Q8_0.gguf": 437 * MB,
    "SmolVLM-500M-Instruct-f16.gguf": 820 * MB,
    "mmproj-SmolVLM-500M-Instruct-Q8_0.gguf": 109 * MB,
    "mmproj-SmolVLM-500M-Instruct-f16.gguf": 199 * MB,
}
# in the style of unsloth: mmproj files without the model's name, parts in a folder, an imatrix
GEMMA = {
    "BF16/gemma-3-27b-it-BF16-00001-of-00002.gguf": 49 * GB,
    "BF16/gemma-3-27b-it-BF16-00002-of-00002.gguf": 5 * GB,
    "gemma-3-27b-it-Q4_K_M.gguf": 16 * GB,
    "gemma-3-27b-it-Q8_0.gguf": 28 * GB,
    "gemma-3-27b-it-UD-Q4_K_XL.gguf": 17 * GB,
    "gemma-3-27b-it-UD-IQ1_S.gguf": 6 * GB,
    "imatrix_unsloth.gguf": 13 * MB,
    "mmproj-BF16.gguf": 860 * MB,
    "mmproj-F16.gguf": 859 * MB,
    "mmproj-F32.gguf": 1690 * MB,
}


def test_a_small_model_is_taken_at_8_bits_with_its_half_precision_tower() -> None:
    assert choose_files(SMOLVLM) == Choice(
        ("SmolVLM-500M-Instruct-Q8_0.gguf",),
        "mmproj-SmolVLM-500M-Instruct-f16.gguf",
        "Q8_0", "F16", 636 * MB,
    )  # fmt: skip


def test_a_large_model_is_taken_at_4_bits() -> None:
    choice = choose_files(GEMMA)
    assert choice.files == ("gemma-3-27b-it-Q4_K_M.gguf", "mmproj-F16.gguf")


@pytest.mark.parametrize(
    ("quant", "lm"),
    [
        ("q8_0", ("gemma-3-27b-it-Q8_0.gguf",)),
        ("ud-q4_k_xl", ("gemma-3-27b-it-UD-Q4_K_XL.gguf",)),
        ("UD-IQ1_S", ("gemma-3-27b-it-UD-IQ1_S.gguf",)),
        ("bf16", tuple(f"BF16/gemma-3-27b-it-BF16-0000{i}-of-00002.gguf" for i in (1, 2))),
        ("gemma-3-27b-it-Q8_0.gguf", ("gemma-3-27b-it-Q8_0.gguf",)),
    ],
)
def test_a_wanted_quantization_or_file(quant: str, lm: tuple[str, ...]) -> None:
    assert choose_files(GEMMA, quant).lm == lm


def test_what_is_wanted_and_not_there_lists_what_is() -> None:
    with pytest.raises(UsageError, match="No language model in Q2_K") as caught:
        choose_files(SMOLVLM, "Q2_K")
    assert caught.value.hint == "Quantizations: F16, Q8_0."
    with pytest.raises(UsageError, match=r"No language model other\.gguf") as caught:
        choose_files(SMOLVLM, "other.gguf")
    assert caught.value.details == (
        "SmolVLM-500M-Instruct-Q8_0.gguf", "SmolVLM-500M-Instruct-f16.gguf",
    )  # fmt: skip
    with pytest.raises(UsageError):  # an mmproj is no language model
        choose_files(SMOLVLM, "mmproj-SmolVLM-500M-Instruct-Q8_0.gguf")


def test_a_model_in_parts_needs_all_of_them() -> None:
    first, second = sorted(name for name in GEMMA if name.startswith("BF16/"))
    cut = {name: size for name, size in GEMMA.items() if name != second}
    with pytest.raises(UsageError) as caught:
        choose_files(cut, "BF16")
    assert caught.value.details == (f"{first}: without {second}",)
    assert choose_files(cut).quant == "Q4_K_M"
    for left in (first, second):
        with pytest.raises(ModelError, match="No complete language model") as refused:
            choose_files({left: GB, "mmproj-F16.gguf": GB})
        other = {first: second, second: first}[left]
        assert refused.value.details == (f"{left}: without {other}",)


@pytest.mark.parametrize(
    ("names", "lm", "mmproj"),
    [
        # moondream's names do not share a beginning; there is one of each
        (["moondream2-text-model-f16_ct-vicuna.gguf", "moondream2-mmproj-f16-20250414.gguf"], 0, 1),
        # MiniCPM-V: an original under another name beside the quantized files
        (["ggml-model-Q4_K_M.gguf", "Model-7.6B-F16.gguf", "ggml-model-Q4_0.gguf",
          "mmproj-model-f16.gguf"], 0, 3),
        # JoyCaption: the older name of a quantization
        (["Joy-Q4_K.gguf", "Joy-Q8_0.gguf", "Joy-F16.gguf", "joy-llava-mmproj-model-f16.gguf"],
         0, 3),
        # of several towers the one named like the model
        (["a-Q4_K_M.gguf", "mmproj-b-F16.gguf", "mmproj-a-Q8_0.gguf"], 0, 2),
        (["a-Q4_K_M.gguf", "mmproj-a-F32.gguf", "a.mmproj-Q8_0.gguf"], 0, 2),
        # side roles do not count beside a model, and a copy in a folder below neither
        (["a-Q4_K_M.gguf", "a-lora-Q8_0.gguf", "old/a-Q4_K_M.gguf", "a.imatrix.gguf"], 0, None),
        (["a-lora-merged-Q4_K_M.gguf"], 0, None),
        (["plain.gguf"], 0, None),
        (["a-IQ3_XXS.gguf", "a-Q2_K.gguf", "a-IQ4_XS.gguf"], 2, None),
        (["Q6_K/a.gguf", "Q3_K_M/a.gguf"], 0, None),  # the folder says the quantization
    ],
)  # fmt: skip
def test_names_as_they_are_published(names: list[str], lm: int, mmproj: int | None) -> None:
    choice = choose_files(dict.fromkeys(names, 3 * GB))
    assert choice.lm == (names[lm],)
    assert choice.mmproj == ("" if mmproj is None else names[mmproj])


@pytest.mark.parametrize(
    "names",
    [
        ["gemma-3-1b-it-Q4_K_M.gguf", "gemma-3-4b-it-Q4_K_M.gguf"],
        ["gemma-3-1b-it-Q8_0.gguf", "gemma-3-4b-it-Q4_K_M.gguf"],
        ["x/a-Q8_0.gguf", "y/a-Q8_0.gguf"],
        ["a-IQ1_S.gguf", "a-IQ1_M.gguf"],  # neither is in the order of preference
    ],
)
def test_several_models_are_never_guessed_among(names: list[str]) -> None:
    with pytest.raises(ModelError, match="Several models fit") as caught:
        choose_files(dict.fromkeys(names, MB))
    assert caught.value.details == tuple(sorted(names))
    assert choose_files(dict.fromkeys(names, MB), names[1]).lm == (names[1],)


def test_several_towers_that_fit_equally() -> None:
    names = dict.fromkeys(["a-Q8_0.gguf", "mmproj-b.gguf", "mmproj-c.gguf"], MB)
    with pytest.raises(ModelError, match="Several models fit") as caught:
        choose_files(names)
    assert caught.value.details == ("mmproj-b.gguf", "mmproj-c.gguf")


@pytest.mark.parametrize(
    ("names", "summary", "listed"),
    [
        ({}, "No GGUF file", ()),
        ({"model.safetensors": MB, "a.gguf.part1of2": MB}, "No GGUF file is there, only:",
         ("a.gguf.part1of2", "model.safetensors")),
        ({"mmproj-a-F16.gguf": MB}, "No complete language model", ("mmproj-a-F16.gguf",)),
        ({"imatrix.gguf": MB}, "No complete language model", ("imatrix.gguf",)),
        ({"a-00001-of-00000.gguf": MB}, "No complete language model", ("a-00001-of-00000.gguf",)),
    ],
)  # fmt: skip
def test_nothing_fits(names: dict[str, int], summary: str, listed: tuple[str, ...]) -> None:
    with pytest.raises(ModelError, match=summary) as caught:
        choose_files(names)
    assert caught.value.details == listed


def test_a_long_list_is_cut() -> None:
    with pytest.raises(ModelError) as caught:
        choose_files({f"m{i:03}-Q8_0.gguf": MB for i in range(50)})
    assert caught.value.details[-1] == "and 30 more"


@pytest.mark.parametrize(
    ("name", "quant"),
    [
        ("a-fp16.gguf", "F16"), ("a.bf16.gguf", "BF16"), ("a-q4_k_m.gguf", "Q4_K_M"),
        ("a.i1-IQ3_XXS.gguf", "IQ3_XXS"), ("a-Q4_0_4_4.gguf", "Q4_0_4_4"), ("a-Q8.gguf", "Q8"),
        ("Q8-fan-Q4_K_S.gguf", "Q4_K_S"), ("a-Q4KM.gguf", ""), ("xF16.gguf", ""),
        ("a-Q5_K_M-imat.gguf", "Q5_K_M"), ("a-MXFP4.gguf", "MXFP4"), ("TQ1_0/a.gguf", "TQ1_0"),
    ],
)  # fmt: skip
def test_quantizations_in_names(name: str, quant: str) -> None:
    assert quant_in_name(name) == quant


def test_names_that_announce_very_many_parts_cost_nothing() -> None:
    """Each of these names would stand for 99,999 or 1,000 names, if anything built them."""
    names = {f"m{i}-00001-of-99999.gguf": MB for i in range(1000)}
    names |= {f"n{i}-00001-of-01000.gguf": MB for i in range(5000)}
    start = time.process_time()
    with pytest.raises(ModelError, match="No complete language model") as caught:
        choose_files(names)
    assert time.process_time() - start < 3
    assert len(caught.value.details) == 20
    assert "m0-00001-of-99999.gguf: without m0-00002-of-99999.gguf" in caught.value.details[0]


def test_at_most_a_thousand_parts() -> None:
    whole = {f"x-Q8_0-{i:05}-of-01000.gguf": MB for i in range(1, 1001)}
    assert choose_files(whole).lm == tuple(whole)
    longer = {f"x-Q8_0-{i:05}-of-01001.gguf": MB for i in range(1, 1002)}
    with pytest.raises(ModelError, match="No complete language model") as caught:
        choose_files(longer)
    assert "at most 1,000 parts" in caught.value.details[0]
    with pytest.raises(ModelError, match="announces 1,001 parts"):
        part_names(next(iter(longer)))
