"""Qwen-VL and Qwen-VL-Chat as published, against a reference in torch."""

from __future__ import annotations

import base64
import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from edgeprism.bundle.read_manifest import manifest_from_bundle
from edgeprism.convert.language import qwen
from edgeprism.convert.options import ConvertOptions
from edgeprism.convert.vision import config, graph, interleaved, resampler, weights
from edgeprism.errors import CheckpointError, ParityError, UsageError
from tests.helpers.captions import caption_ids
from tests.helpers.changed_config import changed_copy
from tests.helpers.converting import convert_family
from tests.helpers.family_checks import (
    N_TOKENS,
    check_pixels,
    check_rows_and_texts,
    converted,
    error_of,
    loaded,
    thirds_of_the_matrix,
)
from tests.helpers.tiny_captioners import INSTRUCTION, Case, pictures
from tests.helpers.tiny_qwen_vl import write_qwen_vl

Plant = Callable[[pytest.MonkeyPatch], None]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    folder = tmp_path_factory.mktemp("qwen-vl")
    return {
        "chat": write_qwen_vl(folder / "chat"),
        "base": write_qwen_vl(folder / "base", chat=False, seed=43),
    }


@pytest.fixture(scope="module")
def bundles(cases: dict[str, Case], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("bundles")
    return {name: converted(case, out / name) for name, case in cases.items()}


@pytest.mark.parametrize("name", ["chat", "base"])
def test_the_bundle_says_what_the_reference_says(
    name: str, cases: dict[str, Case], bundles: dict[str, Path]
) -> None:
    check_rows_and_texts(cases[name].reference, bundles[name])
    check_pixels(cases[name].reference, bundles[name])


def test_several_pictures_are_numbered(cases: dict[str, Case], bundles: dict[str, Path]) -> None:
    reference = dataclasses.replace(cases["chat"].reference, between="</img>\nPicture 2: <img>")
    first, second = pictures()[:2]
    with loaded(bundles["chat"]) as captioner:
        for shown in ([first, second], [second, first]):
            ids = caption_ids(
                captioner, shown, instruction=INSTRUCTION, caption_tokens=N_TOKENS,
                stop_at_end=False,
            )  # fmt: skip
            assert ids == reference.greedy(shown[0], N_TOKENS, shown[1])
    with loaded(bundles["base"]) as captioner, pytest.raises(UsageError, match="one picture"):
        captioner.caption([first, second])


def test_the_manifest_ends_prompts_where_the_published_code_changes(
    bundles: dict[str, Path],
) -> None:
    chat, base = (manifest_from_bundle(bundles[name]) for name in ("chat", "base"))
    assert chat.lm.context_length == base.lm.context_length == 2048
    assert chat.vision.grid == [1, 256]
    assert not chat.prompts.add_bos
    assert base.prompts.default_instruction == "Describe the image in English:"
    assert base.prompts.default_instruction != chat.prompts.default_instruction
    assert chat.prompts.stop == ["<|im_end|>", "<|endoftext|>"]


# ---- mistakes that the comparison must notice


def _positions_smoothed(patch: pytest.MonkeyPatch) -> None:
    right = weights.resized_positions
    patch.setattr(
        interleaved, "resized_positions", lambda rows, grid: right(rows, grid, antialias=True)
    )


def _quick_gelu(patch: pytest.MonkeyPatch) -> None:
    right = graph.gelu
    patch.setattr(graph, "gelu", lambda x, _name: right(x, "quick_gelu"))


def _no_first_norm(patch: pytest.MonkeyPatch) -> None:
    right = config.TowerConfig

    def planted(**fields: Any) -> config.TowerConfig:
        return right(**{**fields, "norm_first": False})

    patch.setattr(config, "TowerConfig", planted)


def _values_with_places(patch: pytest.MonkeyPatch) -> None:
    def planted(self: resampler.Resampler, x: torch.Tensor, *_: Any) -> torch.Tensor:
        c, n = self.config, x.shape[0]
        seen = self.norm_kv(self.kv(x)) + self.position
        q, k, v = (
            part.reshape(n, -1, c.n_heads, c.n_embd // c.n_heads).transpose(1, 2)
            for part in (self.queries.expand(n, -1, -1), self.k(seen), self.v(seen))
        )
        y = torch.softmax(q @ k.transpose(2, 3), dim=-1) @ v
        y = self.out(y.transpose(1, 2).reshape(n, c.n_queries, c.n_embd))
        rows: torch.Tensor = self.proj(self.norm_post(y))
        return rows

    patch.setattr(resampler.Resampler, "forward", planted)


def _one_head(patch: pytest.MonkeyPatch) -> None:
    right = resampler.ResamplerConfig

    def planted(*fields: Any) -> resampler.ResamplerConfig:
        return dataclasses.replace(right(*fields), n_heads=1)

    patch.setattr(resampler, "ResamplerConfig", planted)


MISTAKES: list[Plant] = [thirds_of_the_matrix, _positions_smoothed, _quick_gelu, _no_first_norm,
                         _values_with_places, _one_head]  # fmt: skip


def test_without_a_mistake_the_error_is_small(cases: dict[str, Case]) -> None:
    assert error_of(cases["chat"]) < 1e-5


@pytest.mark.parametrize("plant", MISTAKES, ids=lambda plant: plant.__name__.strip("_"))
def test_planted_mistakes_are_seen(
    plant: Plant, cases: dict[str, Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    assert error_of(cases["chat"]) > 1e-4


def test_the_gate_sees_gate_and_up_changed_over(
    cases: dict[str, Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = qwen.gguf_tensors
    names = {"ffn_up": "ffn_gate", "ffn_gate": "ffn_up"}

    def planted(*arguments: Any) -> Any:
        for tensor in right(*arguments):
            lead, _, rest = tensor.name.rpartition("ffn_")
            other = names.get(f"ffn_{rest.removesuffix('.weight')}")
            yield dataclasses.replace(tensor, name=f"{lead}{other}.weight") if other else tensor

    monkeypatch.setattr(qwen, "gguf_tensors", planted)
    with pytest.raises(ParityError, match="does not compute"):
        converted(cases["chat"], tmp_path / "b")
    assert not (tmp_path / "b").exists()


# ---- refusals


def refused(folder: Path, out: Path, **settings: Any) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        convert_family(
            "qwen-vl", out, ConvertOptions(("fp32",), "F32"), {"captioner": folder, **settings}
        )
    assert not out.exists()
    return caught.value


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"no_bias": False, "rotary_pct": 0.5, "surprise": 3},
         ("no_bias = False", "rotary_pct = 0.5", "surprise = 3")),
        ({"kv_channels": 32}, ("is not hidden_size",)),
        ({"intermediate_size": 641}, ("641 is odd",)),
        ({"seq_length": None}, ("seq_length is missing",)),
        ({"layer_norm_epsilon": "tiny", "rotary_emb_base": float("inf")},
         ("layer_norm_epsilon = 'tiny'", "rotary_emb_base = inf")),
        ({"visual": {"image_start_id": 7}}, ("image_start_id is 7",)),
        ({"visual": {"output_dim": 128, "heads": 5}}, ("output_dim 128", "width 64 is no")),
        ({"visual": {"layers": 0, "mlp_ratio": None}}, ("layers = 0", "mlp_ratio = None")),
        ({"visual": {"post_resampler": True}}, ("post_resampler",)),
        ({"visual": {"mlp_ratio": float("nan")}}, ("mlp_ratio = nan",)),
        ({"visual": {"n_queries": 64}}, ("attn_pool.query: [256, 256], expected [64, 256]",)),
        ({"visual": {"layers": 3}}, ("does not hold the tensors",)),
        ({"quantization_config": {"bits": 4}}, ("quantization_config",)),
        ({"vocab_size": 900}, ("more than the",)),
    ],
)  # fmt: skip
def test_what_contradicts_the_published_layout_is_refused(
    fields: dict[str, Any], expected: tuple[str, ...], cases: dict[str, Case], tmp_path: Path
) -> None:
    folder = changed_copy(cases["chat"].settings["captioner"], tmp_path / "c", fields)
    error = refused(folder, tmp_path / "b")
    text = " ".join([error.message, *error.details])
    assert all(part in text for part in expected), text


def test_which_of_the_two_must_be_known(cases: dict[str, Case], tmp_path: Path) -> None:
    folder = changed_copy(cases["chat"].settings["captioner"], tmp_path / "c", {})
    (folder / "generation_config.json").unlink()
    error = refused(folder, tmp_path / "b")
    assert "generation_config.json: it is missing" in error.message
    (folder / "generation_config.json").write_text('{"chat_format": ["chatml"]}')
    assert "chat_format is ['chatml']" in refused(folder, tmp_path / "b").message
    assert "`conversation`" in error.hint
    with pytest.raises(UsageError, match="vicuna is not known"):
        convert_family(
            "qwen-vl", tmp_path / "b", ConvertOptions(("fp32",), "F32"),
            {"captioner": folder, "conversation": "vicuna"},
        )  # fmt: skip


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda lines: [*lines[:-1], b"????? 12"], "cannot be read"),
        (lambda lines: lines[:50] + lines[51:], "ranks do not count"),
        (lambda lines: [*lines[1:], b"AAAB %d" % len(lines)], "ranks do not count"),
        (lambda lines: [*lines, base64.b64encode(b"\x00zq") + b" %d" % len(lines)], "no merge"),
        (lambda _: [], "has no piece for 256"),
    ],
)
def test_a_damaged_vocabulary_is_refused(
    damage: Callable[[list[bytes]], list[bytes]],
    expected: str,
    cases: dict[str, Case],
    tmp_path: Path,
) -> None:
    folder = changed_copy(cases["chat"].settings["captioner"], tmp_path / "c", {})
    path = folder / "qwen.tiktoken"
    lines = path.read_bytes().splitlines()
    path.unlink()
    path.write_bytes(b"\n".join(damage(lines)))
    assert expected in refused(folder, tmp_path / "b").message


def test_another_qwen_is_told_apart(tmp_path: Path, cases: dict[str, Case]) -> None:
    folder = tmp_path / "c"
    shutil.copytree(cases["chat"].settings["captioner"], folder)
    data = json.loads((folder / "config.json").read_text())
    del data["visual"]
    (folder / "config.json").write_text(json.dumps(data))
    assert "is not a checkpoint of qwen-vl" in refused(folder, tmp_path / "b").message
