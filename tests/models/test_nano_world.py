"""The world of nano: its pictures, its captions and their scores."""

from __future__ import annotations

import io
import random
import shutil
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeprism.models.nano.recipe.learn.data import (
    heldout_scenes,
    scenes_to_batch,
    training_scenes,
)
from edgeprism.models.nano.recipe.measure.scoring import carries, score_caption, score_captions
from edgeprism.models.nano.recipe.world import assets as assets_module
from edgeprism.models.nano.recipe.world import plain_grammar
from edgeprism.models.nano.recipe.world.draw import (
    FRAME,
    GRID,
    Assets,
    image_to_pixels,
    scene_to_image,
)
from edgeprism.models.nano.recipe.world.grammar import (
    ASK,
    NOTHING,
    Query,
    list_then,
    scene_to_long,
    scene_to_short,
)
from edgeprism.models.nano.recipe.world.labels import (
    IDENTITIES,
    PATCH_LABELS,
    scene_to_patch_labels,
)
from edgeprism.models.nano.recipe.world.photographs import Package, photographs
from edgeprism.models.nano.recipe.world.scene import (
    UNSEEN_PAIRS,
    Sampling,
    is_held_out,
    scene_to_groups,
    to_pairing,
)
from edgeprism.models.nano.recipe.world.sheets import sample_nothing
from edgeprism.models.nano.recipe.world.things import THINGS, to_plural
from tests.helpers.nano_scenes import item, scene

HOW = Sampling(unseen=True)


PICNIC = scene(
    item("apple", 0), item("star", 4, "shape", "red"), item("apple", 5), item("CAT", 7, "text")
)
CHART = scene(item("A", 3, "bar", "red", 4), item("B", 4, "bar", "red", 9), kind="chart")


# --- the world ---------------------------------------------------------------------------


def test_the_same_seed_draws_the_same_picture(drawn: Assets) -> None:
    one, two = (training_scenes(0, 5, 6, Sampling()) for _ in range(2))
    assert one == two
    for a, b in zip(one, two, strict=True):
        assert scene_to_image(a, drawn).tobytes() == scene_to_image(b, drawn).tobytes()


def test_training_never_shows_what_is_held_out() -> None:
    for index in range(40):
        for drawn_scene in training_scenes(0, index, 10, Sampling()):
            groups = [g.first for g in scene_to_groups(drawn_scene)]
            assert not {(i.colour, i.name) for i in groups} & UNSEEN_PAIRS
            assert not any(is_held_out(i.name) for i in groups if i.kind == "text")
            things = sorted(i.name for i in groups if i.kind == "thing")
            pairs = [to_pairing(a, b) for n, a in enumerate(things) for b in things[n + 1 :]]
            assert not any(map(is_held_out, pairs))
            assert all(i.look != 5 for i in groups if i.kind == "thing")  # the held-out style


def test_every_kind_of_scene_becomes_pixels_and_labels_in_range(drawn: Assets) -> None:
    batch = scenes_to_batch(heldout_scenes(0, 40, Sampling(crowded=0.3)), drawn)
    assert {s.kind for s in batch.scenes} == {"mixed", "chart", "table", "nothing"}
    assert batch.pixels.shape == (40, FRAME, FRAME, 3)
    assert batch.patch_labels.shape == (40, GRID * GRID, len(PATCH_LABELS))
    assert (batch.patch_labels.max((0, 1)) < list(PATCH_LABELS.values())).all()


def test_photographs_are_shown_in_parts_where_there_are_any(folder: Path, tmp_path: Path) -> None:
    scene = sample_nothing(random.Random(1), "photograph")
    stand_in = scene_to_image(scene, Assets(folder))
    shutil.copy(folder / "sprites.npy", tmp_path)
    (tmp_path / "photographs" / "train").mkdir(parents=True)
    red = Image.new("RGB", (300, 200), (250, 0, 0))
    red.save(tmp_path / "photographs" / "train" / "red.jpg")
    pixels = np.asarray(scene_to_image(replace(scene, blemished=False), Assets(tmp_path)))
    assert pixels.shape == np.asarray(stand_in).shape
    assert np.ptp(pixels.reshape(-1, 3), axis=0).max() <= 4, "one colour, like the photograph"
    assert np.ptp(np.asarray(stand_in)) > 20


def test_a_photographs_package_is_read_from_where_it_says() -> None:
    package = Package("debian", "walls", "1", "CC0-1.0", "test", "usr/share/a", "*.jpg")
    files = {
        "usr/share/a/contents/images/big.jpg": b"larger",
        "usr/share/a/contents/images/small.jpg": b"small",
        "usr/share/b/contents/images/other.jpg": b"x",
    }
    assert list(photographs(package, files)) == [("a.jpg", b"small")]
    named = replace(package, files="big.jpg")
    assert list(photographs(named, files)) == [("big.jpg", b"larger")]


def test_patches_know_what_lies_under_them() -> None:
    labels = scene_to_patch_labels(PICNIC).reshape(GRID, GRID, -1)
    names = list(PATCH_LABELS)
    centre = dict(zip(names, labels[4, 4], strict=True))
    assert IDENTITIES[centre["identity"]] == "star"
    assert (centre["rank"], centre["count"]) == (2, 0)
    corner = dict(zip(names, labels[1, 1], strict=True))
    assert (IDENTITIES[corner["identity"]], corner["rank"], corner["count"]) == ("apple", 1, 1)
    assert (
        "".join("ABCDEFGHIJKLMNOPQRSTUVWXYZ"[c] for c in labels[7, 3:6, names.index("char")])
        == "CAT"
    )
    assert dict(zip(names, labels[0, 8], strict=True))["rank"] == 0  # background


def test_pixels_are_padded_to_a_square(drawn: Assets) -> None:
    wide = replace(scene(), width=200, height=100)
    pixels = image_to_pixels(scene_to_image(wide, drawn))
    assert (pixels[0] == 127).all()
    assert (pixels[FRAME // 2] == 250).all()


# --- the words ---------------------------------------------------------------------------


def test_captions() -> None:
    assert scene_to_long(PICNIC) == (
        "Four objects on a white background: two large apples at the top left and on the right, "
        'a large red star in the centre and the word "CAT" at the bottom. '
        "The red star is above the word."
    )
    assert scene_to_short(PICNIC) == 'Two apples, a red star and the word "CAT".'
    assert (
        scene_to_long(CHART)
        == "A bar chart with two bars on a white background: A is 4 and B is 9."
    )
    assert scene_to_long(scene(kind="nothing")) == NOTHING
    assert [to_plural(n) for n in ("leaf", "bus", "pair of glasses", "butterfly")] == [
        "leaves", "buses", "pairs of glasses", "butterflies",
    ]  # fmt: skip


def test_several_words_in_a_scene_are_all_read_and_never_told_apart_by_place() -> None:
    both = scene(item("CAT", 0, kind="text"), item("apple", 4), item("UP", 8, kind="text"))
    assert scene_to_long(both).endswith(
        'the word "CAT" at the top left, a large apple in the centre and the word "UP" at the'
        " bottom right."
    )
    query = ASK["text"](both, random.Random(0))
    assert query is not None
    assert query.sentence == 'The text reads "CAT" and "UP".'
    assert carries(query, both, scene_to_long(both))
    assert not carries(query, both, 'The word "CAT".')
    assert ASK["relation"](both, random.Random(0)) is None
    many = training_scenes(0, 0, 60, Sampling(mixed=1.0, texts=1.0, prints=3))
    words = [sum(i.kind == "text" for i in drawn.items) for drawn in many]
    assert max(words) == 3
    assert set(words) <= {0, 1, 2, 3}


def test_the_first_nanos_scenes_keep_their_captions() -> None:
    for drawn_scene in heldout_scenes(3, 20, Sampling(mixed=0, plain=1.0)):
        assert drawn_scene.plain is not None
        assert scene_to_long(drawn_scene) == plain_grammar.scene_to_caption(drawn_scene.plain)


def test_a_true_caption_has_every_row_right_and_a_false_one_not() -> None:
    scenes = heldout_scenes(1, 120, HOW)
    table = score_captions(scenes, [scene_to_long(s) for s in scenes])
    assert table.pop("named though absent") == 0
    assert set(table.values()) == {1.0}
    wrong = score_caption(PICNIC, 'Three apples, a blue star, a cat and the word "DOG".')
    assert wrong["named"] == [True]
    assert sorted(wrong["named though absent"]) == [False, True]
    assert wrong["colour"] == wrong["count"] == wrong["relation"] == wrong["word exact"] == [False]
    assert wrong["relation of items named"] == []
    turned = score_caption(PICNIC, "The word is above the red star.")
    assert turned["relation"] == turned["relation of items named"] == [False]
    near = score_caption(CHART, "A bar chart: A is 5 and B is 7.")
    assert near["bar within one step"] == [True, False]


@pytest.mark.parametrize("kind", ASK)
def test_what_a_focus_names_is_carried_by_its_caption_only(kind: str) -> None:
    rng = random.Random(1)
    count = 0
    for drawn_scene in heldout_scenes(5, 80, HOW):
        query = ASK[kind](drawn_scene, rng)
        if query is not None:
            count += 1
            assert carries(query, drawn_scene, list_then(drawn_scene, query.sentence))
            assert not carries(query, drawn_scene, NOTHING)
    assert count > 3


def test_a_generic_caption_carries_what_it_says() -> None:
    several = ASK["count"](PICNIC, random.Random(4))
    assert several is not None
    assert carries(several, PICNIC, scene_to_long(PICNIC)) == (several.answer != "no")
    absent = Query("presence", ("a cat",), "There is no cat.", "Is there a cat?", "no")
    assert not carries(absent, PICNIC, scene_to_long(PICNIC))


@pytest.mark.parametrize(
    ("kind", "answer", "text", "right"),
    [
        ("colour", "red", "The star is red.", True),
        ("colour", "red", "Red or blue.", False),
        ("count", "two", "There are 2 apples.", True),
        ("count", "two", "Three.", False),
        ("relation", "above and to the left of", "It is above, to the left.", True),
        ("relation", "above", "below", False),
        ("text", "CAT", 'It reads "cat".', True),
        ("presence", "no", "No, there is none.", True),
        ("presence", "yes", "No.", False),
        ("chart", "7", "The value of A is 7.", True),
        ("chart", "7", "70", False),
    ],
)
def test_answers_are_judged_by_what_they_say(
    kind: str, answer: str, text: str, right: bool
) -> None:
    from edgeprism.models.nano.recipe.measure.ask import is_right

    assert is_right(Query(kind, (), "", "What?", answer), text) == right


# --- the assets --------------------------------------------------------------------------


def test_names_are_plain_and_many() -> None:
    assert len(THINGS) >= 120
    assert all(name == name.lower() and name.replace(" ", "").isalpha() for name in THINGS)


def test_an_alias_is_followed_and_a_changed_licence_refused() -> None:
    icons = {"icons": {"a": {"body": "<x/>"}}, "aliases": {"b": {"parent": "a"}}, "width": 8}
    assert "<x/>" in assets_module.icon_to_svg(icons, "b")
    with pytest.raises(SystemExit, match="GPL"):
        assets_module.check_licence("GPL-3.0", "MIT", "some-icons")


def test_a_package_is_read_from_what_npm_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    def pack(command: list[str], cwd: str, **_: object) -> None:
        assert command[-1] == "some-icons@1.0"
        with tarfile.open(Path(cwd) / "some-icons-1.0.tgz", "w:gz") as packed:
            entry = tarfile.TarInfo("package/info.json")
            entry.size = 2
            packed.addfile(entry, io.BytesIO(b"{}"))

    monkeypatch.setattr(subprocess, "run", pack)
    assert assets_module.fetch_package("some-icons", "1.0") == {"info.json": b"{}"}
