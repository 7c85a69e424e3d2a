"""Reasoners with an adapter: what they are named, what they answer, what is kept of them."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import pytest

from edgeprism.errors import ModelError
from edgeprism.files.home import data_dir
from edgeprism.language.context import Context
from edgeprism.language.prefix_states import FOLDER
from edgeprism.language.vocabulary import Vocabulary
from edgeprism.reason.local import Reasoner
from edgeprism.reason.prompt import FOCUS_EXAMPLES
from edgeprism.records import Caption, ModelInfo, Timings, TokenCounts
from tests.helpers import bundles, elsewhere
from tests.helpers.adapters import adapter_parts, digest_of, sha256, ship, write_adapted
from tests.helpers.children import in_child

LM = bundles.lm_parts(2)
QUESTION = "Where is the red boat by the sea?"
CAPTION = Caption(
    text="A red boat lies by the sea. A cat sits near a tree.", image="a.jpg",
    image_sha256="0" * 64, finish_reason="stop", tokens=TokenCounts(16, 20, 5), timings=Timings(),
    model=ModelInfo("tiny", "0" * 64), device="cpu", instruction="Describe.", version="0",
)  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapted(tmp_path_factory.mktemp("made"), LM)


@pytest.fixture
def prompts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The text of each prompt, as the tokens say it that are computed."""
    texts: list[str] = []
    original = Context.prefill_tokens

    def prefill(self: Context, seq: int, tokens: list[int], start: int, **options: bool) -> None:
        pieces = map(self.lm.vocabulary.token_to_bytes, tokens)
        texts.append(b"".join(pieces).decode(errors="replace"))
        original(self, seq, tokens, start, **options)

    monkeypatch.setattr(Context, "prefill_tokens", prefill)
    return texts


def answers(name: str) -> tuple[str, ...]:
    reasoner = Reasoner.load(name, threads=1)
    made = [reasoner.draw_focus(QUESTION)[0]]
    made += [reasoner.answer([CAPTION], QUESTION, answer_tokens=8).text]
    made += [str(reasoner.find_evidence([CAPTION], QUESTION, "red"))]
    reasoner.close()
    return tuple(made)


# ---- what is answered


def test_answers_are_those_of_merged_weights(made: Path) -> None:
    with_adapter = answers(f"{made}/base.gguf+{made}/foreign.gguf")
    assert with_adapter == answers(str(made / "merged.gguf"))
    others = [answers(str(made / "base.gguf")), answers(f"{made}/base.gguf+{made}/other.gguf")]
    assert len({with_adapter[1], *(other[1] for other in others)}) == 3


def test_records_say_model_and_adapter(made: Path) -> None:
    base, adapter = made / "base.gguf", made / "foreign.gguf"
    reasoner = Reasoner.load(f"{base}+{adapter}", threads=1)
    expected = ModelInfo("base+foreign", digest_of(base, adapter))
    assert reasoner.model == expected  # before it is loaded
    assert reasoner.answer([CAPTION], QUESTION, answer_tokens=3).model == expected
    assert reasoner.model_bytes() == base.stat().st_size + adapter.stat().st_size
    reasoner.close()
    plain = Reasoner.load(str(base))
    assert plain.model == ModelInfo("base", sha256(base))


def test_a_pickled_reasoner_has_its_adapter(made: Path) -> None:
    reasoner = Reasoner.load(f"{made}/base.gguf+{made}/foreign.gguf", threads=1)
    again = pickle.loads(pickle.dumps(reasoner))
    said = [it.answer([CAPTION], QUESTION, answer_tokens=6).text for it in (reasoner, again)]
    assert said[0] == said[1]
    assert again.model == reasoner.model
    for it in (reasoner, again):
        it.close()


def test_after_a_fork_it_loads_anew(made: Path, tmp_path: Path) -> None:
    reasoner = Reasoner.load(f"{made}/base.gguf+{made}/foreign.gguf", threads=1)
    expected = reasoner.answer([CAPTION], QUESTION, answer_tokens=6).text
    told = tmp_path / "told"

    def ask() -> None:
        told.write_text(reasoner.answer([CAPTION], QUESTION, answer_tokens=6).text)

    assert in_child(ask).orderly
    assert told.read_text() == expected
    assert reasoner.answer([CAPTION], QUESTION, answer_tokens=6).text == expected
    reasoner.close()


def test_warm_conversations_go_through_it(made: Path) -> None:
    warm = Reasoner.load(f"{made}/base.gguf+{made}/foreign.gguf", threads=1, warm=True)
    merged = Reasoner.load(str(made / "merged.gguf"), threads=1)
    for _ in range(2):  # the second one's prompt is in the KV cache
        texts = [it.answer([CAPTION], QUESTION, answer_tokens=8).text for it in (warm, merged)]
        assert texts[0] == texts[1]
    warm.close()
    merged.close()


# ---- prompts


def test_a_taught_adapter_needs_no_worked_examples(made: Path, prompts: list[str]) -> None:
    reasoner = Reasoner.load(f"{made}/base.gguf+{made}/taught.gguf", threads=1)
    assert reasoner.knows_prompts
    focus, why_not = reasoner.draw_focus(QUESTION)
    assert focus or why_not
    reasoner.close()
    task = "Name what must be looked at to answer; do not answer."
    (prompt,) = (" ".join(prompt.split()) for prompt in prompts)
    assert prompt == f"user {task} {QUESTION} assistant"
    assert not (data_dir() / FOLDER).exists()


def test_a_taught_adapters_model_takes_the_likeliest_option(made: Path, prompts: list[str]) -> None:
    """As likely as it holds the whole text to be, not the first token alone; it sees no options."""
    options = {"A": "a red dog", "B": "a boat on the sea", "C": "a boat", "D": "the sea"}
    reasoner = Reasoner.load(f"{made}/base.gguf+{made}/taught.gguf", threads=1)
    answer = reasoner.answer([CAPTION], QUESTION, options=options)
    assert answer.text in options
    assert answer.finish_reason == "stop"
    assert answer.tokens.generated > 0
    assert "red dog" not in prompts[-1]
    # The order of the options changes nothing, and neither does the question before.
    turned = dict(zip(options, reversed(options.values()), strict=True))
    again = reasoner.answer([CAPTION], QUESTION, options=turned)
    assert turned[again.text] == options[answer.text]
    reasoner.close()


@pytest.mark.parametrize("name", ["base.gguf", "base.gguf+{}/foreign.gguf"])
def test_all_others_get_them(made: Path, prompts: list[str], name: str) -> None:
    reasoner = Reasoner.load(f"{made}/{name.format(made)}", threads=1)
    assert not reasoner.knows_prompts
    reasoner.draw_focus(QUESTION)
    reasoner.close()
    read = "".join(prompts)
    assert all(example in read and focus in read for example, focus in FOCUS_EXAMPLES)


def test_kept_states_belong_to_the_adapter(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The examples' keys and values are another adapter's, and another model's, never these."""
    names = ["base.gguf", f"base.gguf+{made}/foreign.gguf", f"base.gguf+{made}/other.gguf"]
    alone = []
    for i, name in enumerate(names):
        alone.append(answers(f"{made}/{name}"))
        assert len(list((data_dir() / FOLDER).glob("*"))) == i + 1
    # each in a folder of its own: nothing was there that could be taken by mistake
    for name, expected in zip(reversed(names), reversed(alone), strict=True):
        home = data_dir() / name.replace("/", "_")
        monkeypatch.setenv("EDGEPRISM_HOME", str(home))
        assert answers(f"{made}/{name}") == expected
        monkeypatch.setenv("EDGEPRISM_HOME", str(home.parent))


# ---- names


def test_a_file_of_the_whole_name_wins(made: Path, tmp_path: Path) -> None:
    whole = tmp_path / "base.gguf+foreign.gguf"
    shutil.copy(made / "base.gguf", whole)
    reasoner = Reasoner.load(str(whole))
    assert (reasoner.path, reasoner.adapter) == (whole, None)
    shutil.copy(made / "foreign.gguf", tmp_path / "a+b.gguf")
    reasoner = Reasoner.load(f"{whole}+{tmp_path}/a+b.gguf")
    assert (reasoner.path, reasoner.name) == (whole, "base.gguf+foreign+a+b")
    assert Reasoner.load(Path(whole)).path == whole
    with pytest.raises(ModelError, match="no such reasoner"):
        Reasoner.load(Path(f"{made}/base.gguf+{made}/foreign.gguf"))


def test_an_installed_models_name_and_a_home_folder(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (data_dir() / "models").mkdir(parents=True)
    shutil.copy(made / "base.gguf", data_dir() / "models" / "c++talker.gguf")
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copy(made / "foreign.gguf", tmp_path)
    reasoner = Reasoner.load("c++talker+~/foreign.gguf")
    assert reasoner.name == "c++talker+foreign"
    assert reasoner.adapter is not None
    assert reasoner.adapter.path == tmp_path / "foreign.gguf"
    assert Reasoner.load("c++talker+none").adapter is None
    assert Reasoner.load("c++talker").adapter is None


def test_of_what_another_program_keeps(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = elsewhere.new_home(tmp_path / "home", monkeypatch)
    store = home / ".lmstudio" / "models" / "ours" / "talk-GGUF"
    elsewhere.copy(made / "base.gguf", store / "talk.gguf")
    reasoner = Reasoner.load(f"lmstudio:ours/talk-GGUF+{made}/foreign.gguf", threads=1)
    assert reasoner.name == "lmstudio:ours/talk-GGUF+foreign"
    assert reasoner.answer([CAPTION], QUESTION, answer_tokens=3).text
    reasoner.close()


WRONG = {
    "{}/gone.gguf+{}/foreign.gguf": r"gone\.gguf: no such reasoner",
    "{}/base.gguf+{}/gone.gguf": r"gone\.gguf: no such adapter",
    "{}/base.gguf+{}": "a folder, not an adapter",
    "{}/base.gguf+foreign.gguf": r"no adapter 'foreign\.gguf' for .*base\.gguf",
    "{}/base.gguf+": "no adapter '' for",
    "nobody+none": "no reasoner 'nobody'",
    "nobody+{}/foreign.gguf": "no reasoner 'nobody'",
    "a+b": r"no reasoner 'a\+b'",
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_missing_is_said(made: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(made)
    with pytest.raises(ModelError, match=WRONG[name]):
        Reasoner.load(name.replace("{}", str(made)))


def test_an_adapter_by_a_bare_name_is_told_how_to_write_it(made: Path) -> None:
    with pytest.raises(ModelError) as caught:
        Reasoner.load(f"{made}/base.gguf+foreign.gguf")
    assert f"+.{os.sep}foreign.gguf" in caught.value.hint


# ---- files that do not fit


def test_files_that_do_not_fit_are_refused(made: Path, tmp_path: Path) -> None:
    small = bundles.lm_parts(2, shape=bundles.LmShape(n_embd=64))
    adapter_parts(small).write(tmp_path / "small.gguf")
    cases = {
        f"{made}/base.gguf+{tmp_path}/small.gguf": "no adapter for this language model: the halves",
        f"{made}/base.gguf+{made}/merged.gguf": r"merged\.gguf: a model, not a LoRA adapter",
        f"{made}/foreign.gguf": r"foreign\.gguf: a LoRA adapter, not a model",
        f"{made}/foreign.gguf+{made}/base.gguf": r"foreign\.gguf: a LoRA adapter, not a model",
    }
    for name, message in cases.items():
        reasoner = Reasoner.load(name, threads=1)
        with pytest.raises(ModelError, match=message):
            reasoner.answer([CAPTION], QUESTION)


@pytest.mark.parametrize("length", [0, 30, 700, -1])
def test_a_damaged_adapter_is_refused(made: Path, tmp_path: Path, length: int) -> None:
    path = tmp_path / "short.gguf"
    path.write_bytes((made / "taught.gguf").read_bytes()[:length])
    reasoner = Reasoner.load(f"{made}/base.gguf+{path}", threads=1)
    for ask in (lambda: reasoner.draw_focus(QUESTION), lambda: reasoner.answer([], QUESTION)):
        with pytest.raises(ModelError, match=r"short\.gguf"):
            ask()


def test_an_adapter_that_is_written_over_is_noticed(made: Path, tmp_path: Path) -> None:
    path = tmp_path / "adapter.gguf"
    shutil.copy(made / "foreign.gguf", path)
    reasoner = Reasoner.load(f"{made}/base.gguf+{path}", threads=1)
    reasoner.answer([CAPTION], QUESTION, answer_tokens=3)
    path.write_bytes((made / "other.gguf").read_bytes())
    with pytest.raises(ModelError, match=r"adapter\.gguf: was changed while it was in use"):
        reasoner.answer([CAPTION], QUESTION, answer_tokens=3)
    reasoner.close()


# ---- the adapter that ships for a reasoner of the catalogue


@pytest.fixture
def shipped(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return ship(tmp_path / "package", made, monkeypatch)


@pytest.mark.parametrize("name", ["smollm2-135m", "smollm2-135m+reader"])
def test_it_is_used_by_the_reasoners_name(made: Path, shipped: Path, name: str) -> None:
    reasoner = Reasoner.load(name, threads=1)
    assert reasoner.knows_prompts
    assert reasoner.model == ModelInfo(
        "smollm2-135m+reader", digest_of(made / "base.gguf", made / "taught.gguf")
    )
    assert Reasoner.load(reasoner.name).model == reasoner.model  # a record's name means the same
    assert reasoner.answer([CAPTION], QUESTION, answer_tokens=3).text
    reasoner.close()


def test_it_is_left_out_where_a_person_says_so(made: Path, shipped: Path) -> None:
    installed = data_dir() / "models" / "smollm2-135m.gguf"
    for name in ("smollm2-135m+none", str(installed), installed):
        reasoner = Reasoner.load(name)
        assert reasoner.model == ModelInfo("smollm2-135m", sha256(made / "base.gguf"))
        assert not reasoner.knows_prompts
    other = Reasoner.load(f"smollm2-135m+{made}/other.gguf")
    assert other.model.digest == digest_of(installed, made / "other.gguf")


def test_another_file_under_the_name_goes_without(made: Path, shipped: Path) -> None:
    bundles.write_lm(data_dir() / "models" / "smollm2-135m.gguf", chat_template=None)
    assert Reasoner.load("smollm2-135m").adapter is None
    with pytest.raises(ModelError, match="no adapter 'reader' for smollm2-135m"):
        Reasoner.load("smollm2-135m+reader")


def test_a_damaged_one_is_refused_before_an_engine_opens_it(
    shipped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = bytearray(shipped.read_bytes())
    damaged[-5] ^= 1
    shipped.write_bytes(damaged)
    monkeypatch.setattr(Vocabulary, "__init__", lambda *_: pytest.fail("an engine opened it"))
    reasoner = Reasoner.load("smollm2-135m", threads=1)
    with pytest.raises(ModelError, match="not what the catalogue says") as caught:
        reasoner.answer([CAPTION], QUESTION)
    assert "+none" in caught.value.hint
    shipped.unlink()
    with pytest.raises(ModelError, match=r"r\.gguf: missing") as caught:
        Reasoner.load("smollm2-135m")
    assert "+none" in caught.value.hint
    assert Reasoner.load("smollm2-135m+none").adapter is None
