"""`edgeprism setup`: what fits this machine, fetched from a stand-in hub, and used at once."""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import constants

from edgeprism.bundle.defaults import default_model
from edgeprism.cli.main import run
from edgeprism.convert.mmproj import obstacles
from edgeprism.files.home import data_dir
from edgeprism.install import extras, setup
from edgeprism.install import hub as install_hub
from edgeprism.install import offers as offers_module
from edgeprism.install.inventory import ModelEntry
from edgeprism.install.known_rates import best_rates, known_rates
from edgeprism.install.licenses import license_terms
from edgeprism.install.offers import PATIENCE_S, choose_offers
from edgeprism.install.setup import suggest_captioner
from edgeprism.machine import facts
from edgeprism.machine.rates import Rates, assumed_rates, measure_rates
from edgeprism.memory import plan as memory_plan
from edgeprism.models.catalogue import Work, read_catalogue
from tests.helpers import bundles
from tests.helpers.elsewhere import ollama_model, other_lm
from tests.helpers.gguf_repositories import LM, MMPROJ, chat_files, pair_files
from tests.helpers.hub import StandInHub

Captured = pytest.CaptureFixture[str]
GB = 10**9
AS_FETCHED = ("--encoder", "mtmd")  # no graph is built of it, which takes seconds
FAST, SLOW = Rates(200.0, 20.0), Rates(2.0, 1.0)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInHub]:
    """A hub that has every repository of the catalogue's GGUF models, with tiny models inside."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 4096)
    monkeypatch.setattr(install_hub, "_PAUSES_S", (0, 0, 0))
    # whatever else this machine does now, the models of this hub are offered
    monkeypatch.setattr(setup, "measure_rates", lambda _seconds: Rates(150.0, 15.0))
    files = {"captioner": pair_files(tmp_path), "reasoner": chat_files(tmp_path)}
    models = read_catalogue().gguf.values()
    with StandInHub({model.repo: dict(files[model.kind]) for model in models}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        yield hub


@pytest.fixture
def ollama(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ollama's models, no network, and a machine that need not be measured."""
    monkeypatch.setattr(setup, "measure_rates", lambda _seconds: FAST)
    monkeypatch.setenv("EDGEPRISM_OFFLINE", "1")
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    return tmp_path / "ollama"


def add_to(ollama: Path, name: str, model: Path) -> None:
    ollama_model(ollama, f"registry.ollama.ai/library/{name}/latest", model=model)


def entry(
    name: str,
    size: int,
    *,
    kind: str = "captioner",
    state: str = "available",
    license: str = "MIT",
) -> ModelEntry:
    return ModelEntry(name, kind, state, size, license, "", memory=int(1.25 * size), disk=size)


# ---- from nothing to captions


def test_setup_then_captions_without_a_question(
    hub: StandInHub, tmp_path: Path, photo: Path, capfd: Captured
) -> None:
    assert run(["setup", "--yes"]) == 0
    said = capfd.readouterr()
    captioner, reasoner = default_model("captioner"), default_model("reasoner")
    assert {captioner, reasoner} <= read_catalogue().gguf.keys()
    assert f"{captioner} is now the captioner that commands use." in said.err
    assert "GFLOP/s" in said.out
    assert "s a picture" in said.out
    folder = tmp_path / "Photos"
    folder.mkdir()
    photo.rename(folder / photo.name)
    asked = len(hub.requests)
    assert run(["caption", str(folder), "--jsonl"]) == 0
    record = json.loads(capfd.readouterr().out)
    assert record["caption"]
    assert record["model"]["name"] == captioner
    assert len(hub.requests) == asked  # captioning needs no network
    # what is here is offered again, and nothing is fetched
    assert run(["setup", "--yes"]) == 0
    assert "on this disk" in capfd.readouterr().out
    assert len(hub.requests) == asked


def test_without_a_terminal_and_yes_nothing_changes(hub: StandInHub, capfd: Captured) -> None:
    assert run(["setup"]) == 0
    assert "Nothing was changed" in capfd.readouterr().err
    assert run(["setup", "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["machine"]["cores"] == facts.available_cores()
    assert told["machine"]["rates"]["gflops"] > 0
    for kind, most in (("captioners", 4), ("reasoners", 3)):
        assert 1 <= len(told[kind]) <= most
        for offer in told[kind]:
            assert offer["fetch_bytes"] > 0
            assert offer["seconds"] > 0
            assert offer["license"]
            assert not offer["installed"]
    assert told["chosen"] == {}
    assert hub.requests == []
    assert default_model("captioner") == "nano"


def test_a_hub_that_breaks_off(hub: StandInHub, capfd: Captured) -> None:
    hub.gated = set(hub.repositories)
    assert run(["setup", "--yes"]) == 1
    assert capfd.readouterr().err.count("access") == 2  # the other model was tried, too
    assert default_model("captioner") == "nano"


def test_a_hub_that_cannot_be_reached_is_asked_once(
    hub: StandInHub, monkeypatch: pytest.MonkeyPatch, capfd: Captured
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert run(["setup", "--yes", "--json"]) == 1
    said = capfd.readouterr()
    assert [failure["kind"] for failure in json.loads(said.out)["failed"]] == ["captioner"]
    assert said.err.count("error: ") == 1
    assert "was not tried: the hub cannot be reached." in said.err
    assert "Try it" not in said.err


def test_offline_offers_what_is_here(
    hub: StandInHub, monkeypatch: pytest.MonkeyPatch, scripted_gguf: Path, capfd: Captured
) -> None:
    monkeypatch.setenv("EDGEPRISM_OFFLINE", "1")
    assert run(["setup", "--yes"]) == 4
    assert "EDGEPRISM_OFFLINE is set" in capfd.readouterr().err
    assert run(["models", "add", str(scripted_gguf), "talker"]) == 0
    capfd.readouterr()
    assert run(["setup", "--yes"]) == 0
    said = capfd.readouterr().err
    assert "talker is now the reasoner that commands use.\n" in said
    assert "Try it: edgeprism caption drawing.png" in said  # nano stays
    assert default_model("reasoner") == "talker"
    assert hub.requests == []
    assert run(["use", "http://127.0.0.1:1/v1"]) == 0
    capfd.readouterr()
    assert run(["setup", "--yes"]) == 0
    assert "talker is now the reasoner that commands use instead of http://127" in (
        capfd.readouterr().err
    )


def test_without_the_extra_that_fetches(
    monkeypatch: pytest.MonkeyPatch, photo: Path, capfd: Captured
) -> None:
    monkeypatch.setattr(setup, "has_module", lambda _module: False)
    assert run(["setup", "--yes"]) == 4
    assert "edgeprism[pairs]" in capfd.readouterr().err
    assert run(["caption", str(photo)]) == 0
    assert "edgeprism setup" in capfd.readouterr().err


def test_what_another_program_keeps_is_used_where_it_is(
    ollama: Path, tmp_path: Path, photo: Path, capfd: Captured
) -> None:
    files = pair_files(tmp_path)
    lm, mmproj = tmp_path / "lm.gguf", tmp_path / "mmproj.gguf"
    lm.write_bytes(files[LM])
    mmproj.write_bytes(files[MMPROJ])
    ollama_model(ollama, "registry.ollama.ai/library/eyes/latest", model=lm, projector=mmproj)
    assert run(["setup", "--yes"]) == 0
    assert default_model("captioner").startswith("ollama:eyes")
    capfd.readouterr()
    assert run(["caption", str(photo)]) == 0
    assert capfd.readouterr().out.strip()


@pytest.fixture
def mute_and_talker(ollama: Path, tmp_path: Path) -> None:
    """Two reasoners: llama.cpp does not know the template of the one that is offered first."""
    mute = other_lm(tmp_path / "mute.gguf", general__license=("string", "mit"),
                    tokenizer__chat_template=("string", "{{ unheard of }}"))  # fmt: skip
    add_to(ollama, "mute", mute)
    add_to(ollama, "talker", bundles.lm_parts(4).write(tmp_path / "talker.gguf"))


@pytest.mark.usefixtures("mute_and_talker")
def test_a_model_that_cannot_be_run_is_not_the_default(capfd: Captured) -> None:
    assert run(["setup", "--only", "reasoner", "--yes", "--json"]) == 0
    said = capfd.readouterr()
    told = json.loads(said.out)
    assert [offer["name"] for offer in told["reasoners"]] == [
        "ollama:mute:latest", "ollama:talker:latest"
    ]  # fmt: skip
    assert told["chosen"] == {"reasoner": "ollama:talker:latest"}
    assert [failure["name"] for failure in told["failed"]] == ["ollama:mute:latest"]
    assert "template" in told["failed"][0]["error"]
    assert "ollama:mute" in said.err
    assert "Taking ollama:talker:latest instead." in said.err
    assert default_model("reasoner") == "ollama:talker:latest"


@pytest.mark.usefixtures("mute_and_talker")
def test_a_person_is_asked_again(monkeypatch: pytest.MonkeyPatch, capfd: Captured) -> None:
    typed = io.StringIO("1\n1\n")
    monkeypatch.setattr(typed, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdin", typed)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "dumb")
    assert run(["setup", "--only", "reasoner"]) == 0
    assert capfd.readouterr().out.count("1.  ollama:talker:latest") == 1
    assert default_model("reasoner") == "ollama:talker:latest"


def test_where_nothing_runs_the_default_stays(
    ollama: Path, tmp_path: Path, capfd: Captured
) -> None:
    mute = other_lm(tmp_path / "m.gguf", tokenizer__chat_template=("string", "{{ unheard of }}"))
    add_to(ollama, "mute", mute)
    before = default_model("reasoner")
    assert run(["setup", "--only", "reasoner", "--yes"]) == 2
    assert "is now" not in capfd.readouterr().err
    assert default_model("reasoner") == before


def test_a_licence_that_restricts_use_is_not_taken_without_a_person(
    ollama: Path, tmp_path: Path, capfd: Captured
) -> None:
    lm = other_lm(tmp_path / "lm.gguf", general__license=("string", "other"),
                  general__license__name=("string", "qwen-research"))  # fmt: skip
    add_to(ollama, "q", lm)
    before = default_model("reasoner")
    assert run(["setup", "--only", "reasoner", "--yes"]) == 4
    said = capfd.readouterr()
    assert "qwen-research: restricts its use" in said.out
    assert "edgeprism use ollama:q:latest" in said.err
    assert default_model("reasoner") == before
    assert run(["use", "ollama:q"]) == 0
    capfd.readouterr()
    assert run(["setup", "--only", "reasoner", "--yes"]) == 4
    said = capfd.readouterr()
    assert "edgeprism use" not in said.err
    assert "ollama:q:latest is the default reasoner already" in said.err


def test_a_half_fetched_captioner_is_no_reasoner(
    hub: StandInHub, tmp_path: Path, capfd: Captured
) -> None:
    assert run(["pull", "smolvlm-256m", *AS_FETCHED]) == 0
    assert run(["models", "remove", "smolvlm-256m", "--yes"]) == 0
    mmproj = next((tmp_path / "hf").rglob("mmproj*.gguf"))
    mmproj.unlink()
    capfd.readouterr()
    assert run(["setup", "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert not [offer for offer in told["reasoners"] if "SmolVLM" in offer["name"]]


def test_what_lies_in_the_hubs_cache_is_not_fetched_again(
    hub: StandInHub, monkeypatch: pytest.MonkeyPatch, capfd: Captured
) -> None:
    assert run(["pull", "smolvlm-256m", *AS_FETCHED]) == 0
    assert run(["models", "remove", "smolvlm-256m", "--yes"]) == 0
    monkeypatch.setenv("EDGEPRISM_OFFLINE", "1")
    capfd.readouterr()
    assert run(["setup", "--only", "captioner", "--yes", "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert [(o["name"], o["fetch_bytes"]) for o in told["captioners"]] == [("smolvlm-256m", 0)]
    assert told["chosen"] == {"captioner": "smolvlm-256m"}
    assert default_model("captioner") == "smolvlm-256m"


# ---- which are offered


def test_the_largest_that_is_quick_enough_then_a_larger_and_a_faster_one() -> None:
    work = {
        n: Work(g, 300, p, 0.2) for n, g, p in (("s", 200, 0.1), ("m", 900, 0.5), ("l", 9000, 3))
    }
    entries = [entry("s", GB // 4), entry("m", GB // 2), entry("l", 2 * GB)]
    offers = choose_offers("captioner", entries, work, FAST, offline=False)
    assert [offer.name for offer in offers] == ["m", "l", "s"]
    seconds = [offer.seconds or 0.0 for offer in offers]
    assert seconds[2] < seconds[0] <= PATIENCE_S < seconds[1]
    slow = choose_offers("captioner", entries, work, SLOW, offline=False)
    assert slow[0].name == "s"  # nothing is quick enough here
    assert choose_offers("captioner", entries, work, FAST, offline=True) == []
    assert choose_offers("reasoner", entries, work, FAST, offline=False) == []


def test_a_projector_with_a_graph_is_foretold_to_be_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(projector: str) -> float:
        work = {"m": Work(9000, 300, 0.5, 0.2, projector)}
        (offer,) = choose_offers("captioner", [entry("m", GB // 2)], work, FAST, offline=False)
        return offer.seconds or 0.0

    by_mtmd = seconds("glm4v")
    assert all(seconds(projector) < by_mtmd for projector in obstacles.PROJECTORS)
    assert seconds("") == by_mtmd
    monkeypatch.setattr(offers_module, "has_module", lambda _module: False)  # nothing makes graphs
    assert seconds("gemma3") == by_mtmd


def test_what_is_here_goes_first_and_what_does_not_fit_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory_plan, "memory_limit", lambda: facts.MemoryLimit(2 * GB, "a test"))
    work = {"far": Work(200, 300, 0.1, 0.2)}
    entries = [entry("far", GB // 4), entry("mine", GB // 2, state="installed"),
               entry("huge", 9 * GB, state="installed"), entry("nano", GB // 99, state="built-in"),
               entry("broken", GB // 9, state="damaged")]  # fmt: skip
    offers = choose_offers("captioner", entries, work, FAST, offline=False)
    assert [(offer.name, offer.fetch_bytes) for offer in offers] == [("mine", 0), ("far", GB // 4)]


@pytest.mark.parametrize(
    ("name", "terms"),
    [
        ("Apache-2.0", "permissive"), ("apache-2.0", "permissive"), ("MIT License", "permissive"),
        ("bsd-3-clause", "permissive"), ("CC-BY-4.0", "permissive"), ("CC0-1.0", "permissive"),
        ("a-research/eyes: Apache-2.0; b/words: MIT", "permissive"),
        ("gemma", "own terms"), ("llama3.2", "own terms"), ("creativeml-openrail-m", "own terms"),
        ("qwen-research", "restricted"), ("cc-by-nc-4.0", "restricted"),
        ("MIT, for non-commercial use", "restricted"), ("a/b: MIT; c/d: amlr", "restricted"),
        ("", "unknown"), ("other", "unknown"), ("not recorded: see the model page", "unknown"),
        ("mit-lab/eyes", "unknown"), ("cc-by-sa-4.0", "unknown"),
    ],
)  # fmt: skip
def test_what_a_licence_allows(name: str, terms: str) -> None:
    assert license_terms(name) == terms


def test_a_licence_of_freer_terms_goes_first() -> None:
    work = {n: Work(200, 300, p, 0.2) for n, p in (("a", 0.1), ("b", 0.3), ("c", 0.5), ("d", 0.7))}
    free, gemma = entry("a", GB // 4), entry("b", GB // 3, license="gemma")
    unknown = entry("c", GB // 2, license="")
    research = entry("d", GB, license="qwen-research")

    def names(*entries: ModelEntry) -> list[str]:
        offers = choose_offers("captioner", entries, work, FAST, offline=False)
        return [offer.name for offer in offers]

    assert names(research, unknown, gemma, free)[0] == "a"
    assert names(research, unknown, gemma) == ["b", "c"]
    assert names(research, unknown) == ["c", "d"]
    assert names(research) == ["d"]
    # what is here goes first, unless its licence restricts it
    here = replace(gemma, state="installed"), replace(research, state="installed")
    assert names(*here, free) == ["b", "a", "d"]
    assert names(replace(unknown, state="installed"), here[0]) == ["b", "c"]


def test_a_neighbour_that_is_hardly_faster_is_left_out() -> None:
    work = {n: Work(g, 300, 0.5, 0.2) for n, g in (("tie", 900), ("best", 900), ("near", 800))}
    work["quick"] = Work(100, 300, 0.1, 0.2)
    near, *two = [entry(name, GB // 2) for name in ("near", "tie", "best")]
    quick = entry("quick", GB // 4)

    def names(*entries: ModelEntry) -> list[str]:
        offers = choose_offers("captioner", entries, work, FAST, offline=False)
        return [offer.name for offer in offers]

    assert names(near, *two) == ["tie"]
    assert names(quick, near, *two) == ["tie", "quick"]
    assert names(*reversed(two), near, quick) == ["tie", "quick"]  # ties by name


def test_one_of_those_that_must_be_converted_follows_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    work = {n: Work(g, 300, p, 0.2) for n, g, p in (("m", 900, 0.5), ("l", 9000, 3))}
    work |= {n: Work(g, 4, 0.1, 0.1, graph=True, caption_tokens=12)
             for n, g in (("quick", 100), ("exact", 400))}  # fmt: skip
    ready = [entry("m", GB // 2), entry("l", 2 * GB)]
    converted = [replace(entry(name, GB), convert_memory=2 * GB) for name in ("exact", "quick")]

    def offers(*entries: ModelEntry) -> list[tuple[str, int | None]]:
        chosen = choose_offers("captioner", entries, work, FAST, offline=False)
        return [(offer.name, offer.convert_memory_bytes) for offer in chosen]

    assert offers(*converted, *ready) == [("m", None), ("l", None), ("quick", 2 * GB)]
    assert offers(*converted) == [("quick", 2 * GB)]
    assert offers(replace(converted[1], license="qwen-research")) == []
    here = replace(converted[0], state="installed", convert_memory=None)
    assert offers(here, converted[1]) == [("exact", None), ("quick", 2 * GB)]
    # a machine that could run it, but not convert it
    monkeypatch.setattr(
        memory_plan, "memory_limit", lambda: facts.MemoryLimit(3 * GB // 2, "a test")
    )
    assert offers(*converted, ready[0]) == [("m", None)]


def test_what_a_conversion_takes_is_said_beforehand(
    hub: StandInHub, monkeypatch: pytest.MonkeyPatch, capfd: Captured
) -> None:
    assert run(["setup", "--only", "captioner"]) == 0
    told = capfd.readouterr().out
    (row,) = [line for line in told.splitlines() if "blip-base " in line and "s a picture" in line]
    assert "1.0 GB to fetch and convert" in row
    assert "To convert blip-base takes about 1.6 GB of memory and PyTorch\n" in told
    monkeypatch.setattr(extras, "missing_for_convert", lambda: ["torch>=2.8"])
    assert run(["setup", "--only", "captioner"]) == 0
    told = capfd.readouterr().out
    command = f'{sys.executable} -m pip install "edgeprism[convert]"'
    assert f"PyTorch, and first: {command}\n" in told
    assert run(["setup", "--only", "captioner", "--json"]) == 0
    offers = json.loads(capfd.readouterr().out)["captioners"]
    assert offers[-1]["name"] == "blip-base"
    memory = [offer["convert_memory_bytes"] for offer in offers]
    assert memory == [None] * (len(offers) - 1) + [1_600_000_000]
    assert hub.requests == []


def test_the_best_rates_of_the_latest_runs_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    assert known_rates() == assumed_rates()
    assert best_rates(Rates(100.0, 9.0)) == Rates(100.0, 9.0)
    assert best_rates(Rates(80.0, 12.0)) == Rates(100.0, 12.0)
    assert known_rates() == Rates(100.0, 12.0)
    monkeypatch.setattr(facts, "cpu_name", lambda: "another")
    assert not known_rates().measured
    assert best_rates(Rates(5.0, 5.0)) == Rates(5.0, 5.0)
    for damage in ("5", '{"gflops": 4}', "[]", "[[9, 8]]", "[[1e9, -1, 1e999]]", "[[1e9, 4, []]]"):
        key = f"another, cores: {facts.available_cores()}"
        (data_dir() / "machine.json").write_text(f"{{{json.dumps(key)}: {damage}}}")
        assert not known_rates().measured
    assert best_rates(Rates(6.0, 6.0)) == Rates(6.0, 6.0)


def test_a_machine_that_became_slower_for_good_is_known_as_slow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fast, slow = Rates(100.0, 20.0), Rates(30.0, 9.0)
    best_rates(fast)
    for _ in range(4):
        assert best_rates(slow) == known_rates() == fast
    assert best_rates(slow) == known_rates() == slow  # the fast run is not among the latest five
    best_rates(fast)
    later = time.time() + 40 * 24 * 3600
    monkeypatch.setattr(time, "time", lambda: later)
    assert known_rates() == fast  # nothing newer is known
    assert best_rates(slow) == known_rates() == slow


def test_nano_names_what_setup_proposes(
    photo: Path, monkeypatch: pytest.MonkeyPatch, capfd: Captured
) -> None:
    proposed: list[str] = []
    for speed in (1.0, 20.0, 3.0):
        rates = Rates(30.0 * speed, 3.0 * speed)
        monkeypatch.setattr(setup, "measure_rates", lambda _seconds, rates=rates: rates)
        assert run(["setup", "--only", "captioner", "--json"]) == 0
        (first, *_) = json.loads(capfd.readouterr().out)["captioners"]
        assert run(["caption", str(photo)]) == 0
        assert f"edgeprism pull {first['name']} " in capfd.readouterr().err
        proposed.append(first["name"])
    assert proposed[0] != proposed[1] == proposed[2]


def test_times_follow_the_rates() -> None:
    work = {"a": Work(400, 500, 1.0, 0.0)}
    (offer,) = choose_offers("captioner", [entry("a", GB)], work, Rates(100, 10), offline=False)
    # encode 400/80, prefill 1,000/120, 80 tokens of 1 GB at 6.5 GB/s
    assert offer.seconds == pytest.approx(400 / 80 + 1000 / 120 + 80 / 6.5)


def test_rates_are_positive_and_within_reason() -> None:
    rates = measure_rates(0.2)
    assert 0.1 < rates.gflops < 1e6
    assert 0.1 < rates.read_gbs < 1e4


# ---- a hand where one is lost


def test_nano_names_a_captioner_of_photographs(photo: Path, capfd: Captured) -> None:
    offer = suggest_captioner()
    assert offer is not None
    assert run(["caption", str(photo)]) == 0
    said = capfd.readouterr()
    assert "nothing" in said.out
    (line,) = said.err.splitlines()
    assert f"edgeprism pull {offer.name}" in line
    assert run(["caption", str(photo), "-q"]) == 0
    assert capfd.readouterr().err == ""
    assert run(["caption", "--example"]) == 0
    assert capfd.readouterr().err == ""


def test_a_folder_of_photographs_gets_one_line(photo: Path, capfd: Captured) -> None:
    for number in range(3):
        (photo.parent / f"{number}.png").write_bytes(photo.read_bytes())
    assert run(["caption", str(photo.parent)]) == 0
    assert capfd.readouterr().err.count("edgeprism pull") == 1


def test_a_model_that_is_here_is_named_instead(
    photo: Path, scripted_bundle: Path, capfd: Captured
) -> None:
    assert run(["models", "add", str(scripted_bundle), "mine"]) == 0
    capfd.readouterr()
    assert run(["caption", str(photo)]) == 0
    assert "edgeprism use mine" in capfd.readouterr().err
