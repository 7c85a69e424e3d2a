"""The language-model engine: tokens and text, chat templates, contexts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeprism.bundle.open import open_bundle
from edgeprism.errors import Interrupted, ModelError, PromptTooLongError, TemplateError
from edgeprism.language.chat import Message
from edgeprism.language.model import LanguageModel
from edgeprism.machine.cancel import Cancel
from tests.helpers import bundles
from tests.helpers.children import in_child

SPECIAL = {0, 1, 2, bundles.IM_START, bundles.IM_END}
CHAT = [Message("system", "Be brief."), Message("user", "Hi?")]


def text_of(lm: LanguageModel, ids: list[int]) -> str:
    return b"".join(lm.vocabulary.token_to_bytes(i) for i in ids).decode("utf-8")


@pytest.mark.parametrize(
    "text",
    ["a dog", "<|im_end|>", "x<|im_start|>system\n", "</s><s><unk>", "é 写 🚤", "", "\n\n  \t",
     "<0x41>", "\ufffd", "a\0b", "[" * 3000],
)  # fmt: skip
def test_text_is_text(random_lm: LanguageModel, text: str) -> None:
    ids = random_lm.vocabulary.tokenize(text)
    assert not SPECIAL & set(ids)
    assert text_of(random_lm, ids).removeprefix(" ") == text.removeprefix(" ")


def test_the_templates_pieces_parse_special_tokens(random_lm: LanguageModel) -> None:
    ids = random_lm.vocabulary.tokenize("<|im_end|>\n<|im_start|>assistant\n", parse_special=True)
    assert [i for i in ids if i in SPECIAL] == [bundles.IM_END, bundles.IM_START]
    assert ids[-1] == bundles.LINE_FEED
    assert text_of(random_lm, [bundles.IM_END]) == ""


def test_half_a_surrogate_pair_does_no_harm(random_lm: LanguageModel) -> None:
    assert text_of(random_lm, random_lm.vocabulary.tokenize("a\udcffb")).endswith("a?b")


def test_beginning_and_end(random_lm: LanguageModel) -> None:
    assert random_lm.vocabulary.bos() == [1]
    assert random_lm.vocabulary.adds_bos()
    assert random_lm.vocabulary.is_end(bundles.IM_END)
    assert not random_lm.vocabulary.is_end(bundles.LINE_FEED)


# ---- chat templates


def with_template(tmp_path: Path, template: str | None) -> LanguageModel:
    return LanguageModel(bundles.write_lm(tmp_path / "chat.gguf", chat_template=template))


def test_a_known_template(random_lm: LanguageModel) -> None:
    assert random_lm.vocabulary.render_chat(CHAT) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_long_and_non_ascii_messages(random_lm: LanguageModel) -> None:
    content = "写é" * 5000
    assert content in random_lm.vocabulary.render_chat([Message("user", content)])


@pytest.mark.parametrize("template", [None, "", "{{ messages | some_filter }}", "{% raw"])
def test_an_unknown_template_lists_the_formats(tmp_path: Path, template: str | None) -> None:
    lm = with_template(tmp_path, template)
    with pytest.raises(TemplateError, match=r"chat\.gguf") as caught:
        lm.vocabulary.render_chat(CHAT)
    assert caught.value.exit_code == 2
    for name in ("chatml", "llama3", "gemma"):
        assert name in caught.value.hint
    assert "<|im_start|>user" in lm.vocabulary.render_chat(CHAT, "chatml")
    lm.close()


def test_a_template_is_never_executed(tmp_path: Path) -> None:
    """The template would loop and start a program if anything ran it."""
    evil = "{% for i in range(10**9) %}{{ cycler.__init__.__globals__.os.popen('id') }}{% endfor %}"
    lm = with_template(tmp_path, evil)
    with pytest.raises(TemplateError):
        lm.vocabulary.render_chat(CHAT)
    lm.close()


def test_an_unknown_chat_format(random_lm: LanguageModel) -> None:
    with pytest.raises(TemplateError, match="chat format 'nonsense'") as caught:
        random_lm.vocabulary.render_chat(CHAT, "nonsense")
    assert "chatml" in caught.value.hint


# ---- loading and contexts


def test_a_cancelled_load(scripted_gguf: Path) -> None:
    cancel = Cancel()
    cancel.set()
    with pytest.raises(Interrupted):
        LanguageModel(scripted_gguf, cancel=cancel)


def test_a_cancelled_prefill(scripted_gguf: Path) -> None:
    cancel = Cancel()
    lm = LanguageModel(scripted_gguf, cancel=cancel)
    context = lm.context(256)
    cancel.set()
    with pytest.raises(Interrupted):
        context.prefill_tokens(0, [1, 5, 6], 0)
    cancel.clear()
    context.prefill_tokens(0, [1, 5, 6], 0)
    context.close()
    lm.close()


def test_rows_of_another_width(random_lm: LanguageModel) -> None:
    context = random_lm.context(256)
    for rows in (np.zeros((4, 64), np.float32), np.zeros(bundles.N_EMBD, np.float32)):
        with pytest.raises(ModelError, match="do not fit a language model of width 128"):
            context.prefill_rows(0, rows, 0)
    context.close()


def test_unknown_kv_type(random_lm: LanguageModel) -> None:
    with pytest.raises(ModelError, match="'q3' is not known"):
        random_lm.context(256, kv_type="q3")


def test_tokens_that_the_vocabulary_lacks(random_lm: LanguageModel) -> None:
    context = random_lm.context(256)
    for token in (-5, bundles.N_VOCAB, 2**31 - 1):
        with pytest.raises(ModelError):
            context.prefill_tokens(0, [1, token], 0)
    context.close()


def test_teacher_forcing_gives_the_logits_of_stepping(random_lm: LanguageModel) -> None:
    tokens = [1, *bundles.piece_ids("▁a", "▁red", "▁dog", "▁on", "▁the", "▁sea")]
    settings: dict[str, Any] = {"kv_type": "f32", "flash_attention": False}
    forced = random_lm.context(256, all_logits=True, **settings)
    at_once = forced.logits_of_tokens(tokens)
    stepped = random_lm.context(256, **settings)
    one_by_one = []
    for position, token in enumerate(tokens):
        stepped.step([(0, token, position)])
        one_by_one.append(stepped.logits())
    np.testing.assert_allclose(at_once, np.stack(one_by_one), rtol=0, atol=2e-3)
    assert (at_once.argmax(1) == np.stack(one_by_one).argmax(1)).all()
    forced.close()
    stepped.close()


def test_a_full_context_is_an_error(random_lm: LanguageModel) -> None:
    for n_ctx in (256, 512, 1024):
        context = random_lm.context(n_ctx)
        with pytest.raises(PromptTooLongError, match="is full"):
            context.prefill_tokens(0, [5] * (n_ctx + 200), 0)
        context.close()


def test_more_than_the_context_at_once_is_an_error_too(random_lm: LanguageModel) -> None:
    """llama.cpp would end the process at a batch that is longer than the context."""

    def prefill() -> None:
        random_lm.context(256).prefill_tokens(0, [5] * 400, 0)

    assert in_child(prefill).error == "PromptTooLongError"


def test_closing_twice(scripted_gguf: Path) -> None:
    lm = LanguageModel(scripted_gguf)
    context = lm.context(256)
    for _ in range(2):
        context.close()
    for _ in range(2):
        lm.close()


def test_native_libraries_are_silent(
    scripted_gguf: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    lm = LanguageModel(scripted_gguf)
    lm.context(256).close()
    lm.close()
    assert capfd.readouterr() == ("", "")


def test_weights_are_not_laid_out_for_amx(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """llama.cpp's AMX code crashes if the compiler has dropped the tiles' configuration."""
    monkeypatch.setenv("EDGEPRISM_NATIVE_LOG", "1")
    monkeypatch.setattr("edgeprism.language.model.has_amx", lambda: True)
    bundle = open_bundle("nano")
    LanguageModel(bundle.file(bundle.manifest.lm.file)).close()  # Q8_0 has an AMX layout
    err = capfd.readouterr().err
    assert "CPU_Mapped model buffer" in err or "CPU model buffer" in err
    assert "AMX model buffer" not in err
    assert "REPACK model buffer" not in err


def test_native_logs_on_request(
    scripted_gguf: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEPRISM_NATIVE_LOG", "1")
    LanguageModel(scripted_gguf).close()
    out, err = capfd.readouterr()
    assert out == ""
    assert "llama_model_loader" in err


# ---- the memory of a KV cache, before it is taken

SHAPES: dict[str, dict[str, tuple[str, Any]]] = {
    "as many shared heads": {},
    "fewer shared heads": {"attention.head_count_kv": ("uint32", 2)},
    "narrower heads": {"attention.key_length": ("uint32", 16),
                       "attention.value_length": ("uint32", 16),
                       "rope.dimension_count": ("uint32", 16)},
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("kv_type", ["f16", "f32"])
def test_the_planned_kv_memory_is_what_llama_cpp_takes(
    name: str, kv_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    parts = bundles.lm_parts(1)
    parts.metadata |= {f"llama.{key}": value for key, value in SHAPES[name].items()}
    n_kv = parts.metadata["llama.attention.head_count_kv"][1]
    widths = [parts.metadata.get(f"llama.attention.{part}_length", ("", 32))[1]
              for part in ("key", "value")]  # fmt: skip
    for i in range(2):
        for part, rows in (("q", 4 * widths[0]), ("k", n_kv * widths[0]), ("v", n_kv * widths[1])):
            shape = (rows, bundles.N_EMBD)
            parts.tensors[f"blk.{i}.attn_{part}.weight"] = np.zeros(shape, np.float32)
        shape = (bundles.N_EMBD, 4 * widths[1])
        parts.tensors[f"blk.{i}.attn_output.weight"] = np.zeros(shape, np.float32)
    lm = LanguageModel(parts.write(tmp_path / "lm.gguf"), threads=1)
    monkeypatch.setenv("EDGEPRISM_NATIVE_LOG", "1")
    lm.context(4096, n_seq=2, kv_type=kv_type).close()
    monkeypatch.delenv("EDGEPRISM_NATIVE_LOG")
    (taken,) = re.findall(r"kv_cache: size =\s+([\d.]+) MiB", capfd.readouterr().err)
    assert 4096 * lm.kv_bytes_per_token(kv_type) / 2**20 == pytest.approx(float(taken), abs=0.01)
    lm.close()
