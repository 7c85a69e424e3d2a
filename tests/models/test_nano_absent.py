"""What nano learns and is measured to say of what is not there."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeprism.models import nano
from edgeprism.models.nano.recipe.learn.data import training_batch, training_scenes
from edgeprism.models.nano.recipe.measure.absent import (
    SHAPED,
    Case,
    absent_cases,
    asserts,
    caption_to_denied,
    denies,
    present_cases,
    print_table,
    to_rows,
)
from edgeprism.models.nano.recipe.measure.scoring import carries
from edgeprism.models.nano.recipe.world.absent import (
    ABSENT_KINDS,
    CLASSES,
    HELD_OUT_STRANGERS,
    OTHER_NAMES,
    STRANGERS,
    ask_absent,
    ask_class,
    ask_spoken,
    scene_to_names,
)
from edgeprism.models.nano.recipe.world.draw import Assets
from edgeprism.models.nano.recipe.world.grammar import (
    Query,
    list_then,
    make_query,
    scene_to_long,
)
from edgeprism.models.nano.recipe.world.scene import SHAPES, UNSEEN_PAIRS, Sampling, Scene
from edgeprism.models.nano.recipe.world.things import THINGS, to_plural
from edgeprism.reason.focus import FOCUS_LINKS, FOCUS_OPENINGS, focus_phrases
from edgeprism.reason.question import to_question
from edgeprism.reason.shape import phrases_to_shape
from tests.helpers.nano_scenes import item, scene

BUNDLE = Path(nano.__file__).parent / "bundle"
FLIGHT = scene(
    item("airplane", 0), item("star", 4, "shape", "red"), item("pair of scissors", 8),
    item("CAT", 7, "text"),
)  # fmt: skip
STARS = scene(
    item("star", 0, "shape", "red"), item("star", 1, "shape", "blue"), item("apple", 2),
    item("apple", 5),
)  # fmt: skip
CHART = scene(item("A", 3, "bar", "red", 4), item("B", 4, "bar", "red", 9), kind="chart")


def _scenes(count: int = 120) -> list[Scene]:
    return training_scenes(0, 0, count, Sampling(prints=2))


# --- what training has -------------------------------------------------------------------


def test_names_are_told_apart() -> None:
    strangers = {*STRANGERS, *HELD_OUT_STRANGERS}
    known = {*THINGS, *SHAPES, *CLASSES, *(n for names in OTHER_NAMES.values() for n in names)}
    assert not strangers & (known | set(map(to_plural, known)))
    assert not {n for names in OTHER_NAMES.values() for n in names} & set(THINGS)
    assert set(OTHER_NAMES) <= set(THINGS)
    assert not set(STRANGERS) & set(HELD_OUT_STRANGERS)
    assert len(HELD_OUT_STRANGERS) > 20


@pytest.mark.parametrize("kind", ABSENT_KINDS)
def test_a_focus_on_the_absent_is_answered_with_what_the_scene_lacks(kind: str) -> None:
    rng, asked = random.Random(0), 0
    for drawn in _scenes():
        query = ask_absent(kind, drawn, rng)
        if query is None:
            continue
        asked += 1
        denied = caption_to_denied(query.sentence)
        present = {f"{part} {i.name}" for i in drawn.items for part in ("bar", "row")}
        present |= scene_to_names(drawn) | set(map(to_plural, scene_to_names(drawn)))
        assert denied
        assert not set(denied) & present
        assert set(denied) <= {
            *query.names.values(),
            f"bar {denied[0][-1]}",
            f"row {denied[0][-1]}",
        }
        assert {tuple(name.split()) for name in denied}.isdisjoint(UNSEEN_PAIRS)
    assert asked > 10


def test_training_never_names_a_held_out_noun() -> None:
    pytest.importorskip("torch")
    from edgeprism.models.nano.recipe.learn.caption import scene_to_lessons

    rng = random.Random(1)
    lessons = [lesson for drawn in _scenes(400) for lesson in scene_to_lessons(drawn, rng)]
    words = {w for lesson in lessons for w in re.findall(r"[a-z]+", lesson.instruction.lower())}
    assert not words & {*HELD_OUT_STRANGERS, *map(to_plural, HELD_OUT_STRANGERS)}
    assert len(words & set(STRANGERS)) > 20
    denials = [lesson for lesson in lessons if caption_to_denied(lesson.ending)]
    assert 0.25 < len(denials) / len(lessons) < 0.5


def test_a_colour_of_a_thing_is_not_made_up_and_a_bare_shape_is_not_denied() -> None:
    rng = random.Random(0)

    def sentences(kind: str, drawn: Scene) -> set[str]:
        queries = [ask_spoken(kind, drawn, rng) for _ in range(40)]
        return {query.sentence for query in queries if query is not None}

    assert sentences("colour", FLIGHT) == {
        "There is one airplane.", "There is one pair of scissors.",
    }  # fmt: skip
    assert sentences("count", STARS) == {"There are two stars."}
    assert sentences("presence", STARS) == {"There are two stars."}
    assert sentences("presence", FLIGHT) == {
        "There is an airplane.", "There is a star.", "There is a pair of scissors.",
    }  # fmt: skip
    assert sentences("place", STARS) == set()
    assert "The airplane is at the top left." in sentences("place", FLIGHT)
    assert "The star is below and to the right of the airplane." in sentences("relation", FLIGHT)
    assert sentences("count", CHART) == set()


def test_people_call_things_by_other_names() -> None:
    rng = random.Random(0)
    queries = [ask_spoken("count", FLIGHT, rng) for _ in range(60)]
    focuses = {query.focuses[0] for query in queries if query is not None}
    assert focuses == {
        "the number of planes", "the number of aeroplanes", "the number of aircrafts",
        "the number of stars", "the number of scissors",
    }  # fmt: skip


def test_a_class_is_neither_counted_nor_denied() -> None:
    query = ask_class(FLIGHT, random.Random(0))
    assert query is not None
    assert list_then(FLIGHT, query.sentence) == scene_to_long(FLIGHT)
    assert ask_class(CHART, random.Random(0)) is None


# --- how it is measured ------------------------------------------------------------------


@pytest.mark.parametrize("kind", SHAPED)
def test_the_measured_focuses_are_such_as_the_runtime_lets_a_reasoner_write(kind: str) -> None:
    names = {"a": "apple", "b": "cup", "p": "apples", "o": "an apple", "v": "bar Q"}
    question = to_question(make_query(kind, "", "", _question(kind), **names).question)
    shape = phrases_to_shape(
        focus_phrases(question), openings=FOCUS_OPENINGS, links=FOCUS_LINKS, limit=4
    )
    for wording in SHAPED[kind]:
        assert shape.accepts(wording.format(**names)), wording


def _question(kind: str) -> str:
    return {
        "relation": "Where is the {a} relative to the {b}?", "count": "How many {p} are there?",
        "chart": "What is the value of {v}?",
    }.get(kind, "Is there {o} in the picture?")  # fmt: skip


def _absent(sentence: str, kind: str = "place") -> Query:
    return Query(kind, (), sentence, "", "no")


@pytest.mark.parametrize(
    ("sentence", "caption", "right"),
    [
        ("There is no owl.", "Two objects. There is no owl.", True),
        ("There is no owl.", "There are no owls.", True),
        ("There are no leaves.", "There is no leaf.", True),
        ("There is no owl.", "There is one owl.", False),
        ("There is no owl.", "There is no cat.", False),
        ("There is no owl.", "There is no owl and no cat.", False),
        ("There is no owl and no cat.", "There is no owl and no cat.", True),
        ("There is no owl and no cat.", "There is no cat.", False),
        ("There is no owl.", "The owl is on the left.", False),
    ],
)
def test_a_denial_names_just_what_is_absent(sentence: str, caption: str, right: bool) -> None:
    assert denies(_absent(sentence), caption) == right


def test_an_assertion_of_what_is_absent_is_seen() -> None:
    def says(sentence: str, caption: str, drawn: Scene = FLIGHT, kind: str = "place") -> bool:
        return asserts(Case(drawn, _absent(sentence, kind), "", ()), caption)

    assert says("There is no owl.", "A large owl on the left. There is no owl.")
    assert says("There are no owls.", "There are two owls.")
    assert not says("There is no owl.", "A large airplane. There is no owl.")
    dog = scene(item("hot dog", 0))
    assert not says("There is no dog.", "A large hot dog. There is no dog.", dog)
    assert says("There is no bar Q.", "A is 4 and Q is 9.", CHART, "chart")
    assert not says("There is no bar Q.", "A is 4. There is no bar Q.", CHART, "chart")


def test_true_captions_have_the_best_figures_and_others_have_not() -> None:
    absent, present = absent_cases(0, 6), present_cases(0, 4)
    true = [list_then(c.scene, c.query.sentence) for c in absent]
    assert all(denies(c.query, t) for c, t in zip(absent, true, strict=True))
    assert not any(asserts(c, t) for c, t in zip(absent, true, strict=True))
    assert not any(denies(c.query, scene_to_long(c.scene)) for c in absent)
    for case in present:
        caption = list_then(case.scene, case.query.sentence)
        assert not caption_to_denied(caption)
        assert carries(case.query, case.scene, caption)
    assert {row for case in absent for row in case.rows} >= {*ABSENT_KINDS, "all"}
    focuses = {case.focus for case in absent}
    assert len(focuses) > 0.9 * len(absent)
    assert absent == absent_cases(0, 6)


def test_rows_are_shares_with_an_interval(capsys: pytest.CaptureFixture[str]) -> None:
    query = _absent("There is no owl.")
    cases = [Case(FLIGHT, query, "", ("place", "all"))] * 3 + [Case(FLIGHT, query, "", ("all",))]
    columns = {"said": [True, True, False, False], "wrong": [False] * 4}
    table = to_rows(cases, columns, seed=0)
    assert table["place"]["said"] == pytest.approx(2 / 3)
    assert table["all"]["said"] == 0.5
    assert table["all"]["cases"] == 4
    low, high = table["all"]["interval"]  # type: ignore[misc]
    assert 0 <= low < 0.5 < high <= 1
    print_table("focus", table)
    assert "66.7%" in capsys.readouterr().out


# --- further training that leaves the vision part alone ----------------------------------


def test_a_run_that_keeps_the_vision_part_trains_the_decoder_alone(
    folder: Path, tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    from edgeprism.models.nano.recipe import train
    from edgeprism.models.nano.recipe.learn.caption import caption_loss, teach
    from edgeprism.models.nano.recipe.learn.model import Nano, NanoConfig

    torch.manual_seed(0)
    config = NanoConfig(vision_width=32, vision_layers=1, vision_heads=2, vision_ffn=32,
                        lm_width=32, lm_layers=1, lm_heads=2, lm_kv_heads=2, lm_ffn=32)  # fmt: skip
    model = Nano(config)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    batch = training_batch(Assets(folder), 0, 0, 2, Sampling(), teach)
    for keep, names in ((True, {"decoder"}), (False, {"decoder", "projector"})):
        model.load_state_dict(before)
        plan = train.Plan("caption", 3, batch=2, keep_vision=keep)
        run = train.Run(model, plan, tmp_path, torch.device("cpu"))
        run.learn(batch, caption_loss)
        after = run.averaged().state_dict()
        changed = {n.partition(".")[0] for n in after if not torch.equal(after[n], before[n])}
        assert changed == names


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder with a checkpoint of the shipped weights, and two copies of the bundle."""
    torch = pytest.importorskip("torch")
    from edgeprism.models.nano.recipe.learn.restore import bundle_to_model

    model = bundle_to_model(BUNDLE)
    state = {"model": model.state_dict(), "config": model.config.to_json()}
    torch.save(state, tmp_path / "caption.pt")
    for name in ("fresh", "kept"):
        shutil.copytree(BUNDLE, tmp_path / name)
    return tmp_path


def _edit(manifest: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    data = json.loads(manifest.read_text(encoding="utf-8"))
    edit(data)
    manifest.write_text(json.dumps(data), encoding="utf-8")


def test_a_bundle_takes_over_a_decoder_and_keeps_its_vision_files(run: Path) -> None:
    from edgeprism.models.nano.recipe.learn.replace_decoder import main

    def retrained(data: dict[str, Any]) -> None:
        data["files"]["lm.gguf"]["sha256"] = "1" * 64
        data["files"]["vision.int8.onnx"]["sha256"] = "2" * 64
        data["sources"][1]["sha256"] = "3" * 64
        data["sources"][2]["sha256"] = "4" * 64
        data["parity"]["figures"] = {name: {"top1": 0.5} for name in data["parity"]["figures"]}

    _edit(run / "fresh" / "manifest.json", retrained)
    (run / "fresh" / "lm.gguf").write_bytes(b"another decoder")
    (run / "fresh" / "vision.int8.onnx").write_bytes(b"another tower")
    arguments = [str(run / name) for name in ("caption.pt", "fresh", "kept")]
    assert main(arguments) == 0
    assert (run / "kept" / "lm.gguf").read_bytes() == b"another decoder"
    for file in ("vision.int8.onnx", "vision.int8-full.onnx"):
        assert (run / "kept" / file).read_bytes() == (BUNDLE / file).read_bytes()
    assert {p.name for p in (run / "kept").iterdir()} == {p.name for p in BUNDLE.iterdir()}
    old = json.loads((BUNDLE / "manifest.json").read_text(encoding="utf-8"))
    new = json.loads((run / "kept" / "manifest.json").read_text(encoding="utf-8"))
    assert new["files"]["lm.gguf"]["sha256"] == "1" * 64
    assert new["files"]["vision.int8.onnx"] == old["files"]["vision.int8.onnx"]
    roles = {source["role"]: source["sha256"] for source in new["sources"]}
    assert roles["llm"] == "3" * 64
    assert roles["vision"] == old["sources"][2]["sha256"]
    assert new["parity"]["figures"]["lm Q8_0"] == {"top1": 0.5}
    assert new["parity"]["figures"]["vision int8"] == old["parity"]["figures"]["vision int8"]


def test_an_averaged_decoder_lies_between_the_bundles_and_the_runs(run: Path) -> None:
    torch = pytest.importorskip("torch")
    from edgeprism.models.nano.recipe.learn.average import main
    from edgeprism.models.nano.recipe.learn.restore import bundle_to_model

    before = bundle_to_model(BUNDLE).state_dict()
    state = torch.load(run / "caption.pt", weights_only=True)
    state["model"] = {name: tensor + 1 for name, tensor in state["model"].items()}
    torch.save(state, run / "caption.pt")
    arguments = [str(run / "caption.pt"), str(BUNDLE), str(run / "out.pt"), "--share"]
    assert main([*arguments, "0.75"]) == 0
    averaged = torch.load(run / "out.pt", weights_only=True)
    assert averaged["config"] == state["config"]
    for name, tensor in averaged["model"].items():
        if name.startswith("decoder."):
            torch.testing.assert_close(tensor, before[name] + 0.75)
        else:
            assert torch.equal(tensor, state["model"][name])
    with pytest.raises(SystemExit):
        main([*arguments, "1.5"])


def test_a_trained_tower_or_another_prompt_is_refused(run: Path) -> None:
    torch = pytest.importorskip("torch")
    from edgeprism.models.nano.recipe.learn.replace_decoder import main

    def other(data: dict[str, Any]) -> None:
        data["prompts"]["max_tokens"] = 12

    arguments = [str(run / name) for name in ("caption.pt", "fresh", "kept")]
    _edit(run / "fresh" / "manifest.json", other)
    with pytest.raises(SystemExit, match="'prompts'"):
        main(arguments)
    saved = torch.load(run / "caption.pt", weights_only=True)
    saved["model"]["projector.0.bias"] += 1e-3
    torch.save(saved, run / "caption.pt")
    with pytest.raises(SystemExit, match=r"projector\.0\.bias"):
        main(arguments)
    assert (run / "kept" / "lm.gguf").read_bytes() == (BUNDLE / "lm.gguf").read_bytes()
