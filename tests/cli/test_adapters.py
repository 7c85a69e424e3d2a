"""Adapters of reasoners at the command line, and in a server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgeprism.cli.main import run
from edgeprism.evaluation.questions import QuestionFile
from edgeprism.evaluation.results import Results
from edgeprism.files.home import data_dir
from tests.helpers import bundles
from tests.helpers.adapters import digest_of, sha256, ship, write_adapted
from tests.helpers.eval_files import lettered, write_rows
from tests.helpers.serving import as_data_url, serving

LM = bundles.lm_parts(2)
QUESTION = "Where is the red boat?"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapted(tmp_path_factory.mktemp("made"), LM)


@pytest.fixture
def shipped(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return ship(tmp_path / "package", made, monkeypatch)


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command; return what it printed."""

    def call(*words: str, code: int = 0) -> str:
        assert run([*words]) == code, capsys.readouterr().err
        return capsys.readouterr().out

    return call


def test_ask(made: Path, photo: Path, scripted_bundle: Path, printed: Any) -> None:
    ask = ["ask", str(photo), QUESTION, "--model", str(scripted_bundle), "--threads", "1"]
    ask += ["--answer-tokens", "8", "--json"]
    records = {
        name: json.loads(printed(*ask, "--reasoner", name.format(made)))
        for name in ("{0}/base.gguf", "{0}/merged.gguf", "{0}/base.gguf+{0}/foreign.gguf")
    }
    plain, merged, adapted = records.values()
    assert adapted["answer"] == merged["answer"] != plain["answer"]
    assert adapted["reasoner"]["name"] == "base+foreign"
    assert adapted["reasoner"]["digest"] == digest_of(made / "base.gguf", made / "foreign.gguf")
    assert plain["reasoner"]["digest"] == sha256(made / "base.gguf")


def test_chat(made: Path, chat: Any, capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    for name in ("{0}/base.gguf+{0}/foreign.gguf", "{0}/merged.gguf"):
        options = ["--threads", "1", "--answer-tokens", "8"]
        assert chat(f"{QUESTION}\nWhere is it?\n", "--reasoner", name.format(made), *options) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]


def test_eval_keeps_answers_apart(
    made: Path, tmp_path: Path, scripted_bundle: Path, printed: Any
) -> None:
    data, out = write_rows(tmp_path / "d.tsv", [lettered(n) for n in range(1, 3)]), tmp_path / "o"
    evaluate = ["eval", "--data", str(data), "--out", str(out), "--captioner", str(scripted_bundle)]
    evaluate += ["--threads", "1", "--max-tokens", "6", "--answer-tokens", "6", "--reasoner"]
    counts = []
    for name in ("base.gguf", f"base.gguf+{made}/foreign.gguf", f"base.gguf+{made}/foreign.gguf"):
        printed(*evaluate, f"{made}/{name}")
        with Results(out, QuestionFile(data).tsv.md5()) as results:
            found = results._db.execute(
                "SELECT count(*) FROM records WHERE kind IN ('focus', 'answer')"
            )
            counts.append(found.fetchone()[0])
    assert counts[0] > 0
    assert counts[1:] == [2 * counts[0]] * 2  # nothing is taken over; what is done stays done


def test_the_plan_counts_it(made: Path, printed: Any) -> None:
    plan = ["doctor", "--plan", "nano", "--json", "--reasoner"]
    parts = {}
    for name in ("base.gguf", f"base.gguf+{made}/foreign.gguf", f"base.gguf+{made}/taught.gguf"):
        found = json.loads(printed(*plan, f"{made}/{name}"))
        (reasoner,) = (model for model in found["models"] if model["role"] == "reasoner")
        parts[name] = {part["what"]: part["size"] for part in reasoner["parts"]}
    plain, foreign, taught = parts.values()
    tensors = sum(a.nbytes for a in _tensors(made / "foreign.gguf"))
    assert foreign == {**plain, "adapter": tensors}
    assert taught == {k: v for k, v in foreign.items() if k != "kept examples"}


def _tensors(path: Path) -> list[Any]:
    import gguf

    return [tensor.data for tensor in gguf.GGUFReader(path).tensors]


def test_as_a_default(
    made: Path, printed: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (data_dir() / "models").mkdir(parents=True)
    (data_dir() / "models" / "talker.gguf").write_bytes((made / "base.gguf").read_bytes())
    monkeypatch.chdir(made)
    assert f"reasoner: talker+{made}/foreign.gguf\n" in printed("use", "talker+./foreign.gguf")
    assert "talker (" not in printed("doctor")
    assert f"{made}/foreign.gguf)" in printed("doctor")
    entries = json.loads(printed("models", "list", "--json"))
    assert {e["name"] for e in entries if e["default"] and e["kind"] == "reasoner"} == {"talker"}
    printed("config", "set", "reasoner", "./base.gguf+./other.gguf")
    assert "reasoner: " + f"{made}/base.gguf+{made}/other.gguf\n" in printed("use")
    printed("use", "talker+none")
    assert run(["use", "talker+./gone.gguf"]) == 4
    assert "gone.gguf: no such adapter" in capsys.readouterr().err
    assert run(["config", "set", "model", "talker+none"]) == 4
    assert "is a reasoner, not a captioner" in capsys.readouterr().err
    printed("models", "remove", "talker", "--yes")
    assert "reasoner: smollm2-135m\n" in printed("use")


def test_the_one_that_ships_is_shown_verified_and_examined(shipped: Path, printed: Any) -> None:
    facts = json.loads(printed("models", "show", "smollm2-135m", "--json"))
    assert (facts["adapter"]["name"], facts["adapter"]["file"]) == ("reader", "reader/r.gguf")
    assert str(shipped) in printed("doctor")
    checks = printed("models", "verify", "smollm2-135m", "--json")
    assert shipped.name in checks
    shipped.write_bytes(shipped.read_bytes()[:-1] + b"!")
    printed("models", "verify", "smollm2-135m", code=4)
    assert "not what the catalogue says" in printed("doctor", code=4)


def test_a_server_answers_through_it(made: Path, photo: Path, scripted_bundle: Path) -> None:
    answers = {}
    for name in ("{0}/base.gguf", "{0}/base.gguf+{0}/foreign.gguf", "{0}/merged.gguf"):
        reasoner = name.format(made)
        with serving(model=str(scripted_bundle), reasoner=reasoner) as server:
            listed = [model["id"] for model in server.get("/v1/models").data["data"]]
            both = f"{scripted_bundle}+{reasoner}"
            assert both in listed
            content = [
                {"type": "text", "text": QUESTION},
                {"type": "image_url", "image_url": {"url": as_data_url(photo.read_bytes())}},
            ]
            body = {
                "model": both,
                "max_tokens": 8,
                "messages": [{"role": "user", "content": content}],
            }
            reply = server.post("/v1/chat/completions", body)
            assert reply.status == 200, reply.body
            answers[name] = reply.data["choices"][0]["message"]["content"]
    plain, adapted, merged = answers.values()
    assert adapted == merged != plain
