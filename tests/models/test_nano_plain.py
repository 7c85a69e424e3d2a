"""The plain world of nano: its scenes, pictures, captions and scores."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np

from edgeprism.models.nano.recipe.measure.plain import heldout_scenes
from edgeprism.models.nano.recipe.world.plain_grammar import (
    caption_to_facts,
    cells_to_relation,
    scene_to_caption,
    score_caption,
    scores_to_table,
)
from edgeprism.models.nano.recipe.world.plain_scene import (
    COLOURS,
    SEEN_PAIRS,
    SHAPES,
    UNSEEN_PAIRS,
    sample_scene,
    scene_to_image,
)


def test_the_same_seed_draws_the_same_pixels() -> None:
    first, again, other = (sample_scene(random.Random(seed)) for seed in (3, 3, 4))
    assert first == again
    assert np.array_equal(np.asarray(scene_to_image(first)), np.asarray(scene_to_image(again)))
    assert first != other


def test_objects_stand_inside_their_ninth() -> None:
    for seed in range(60):
        scene = sample_scene(random.Random(seed))
        for thing in scene.things:
            assert (int(thing.cx * 3), int(thing.cy * 3)) == (thing.cell % 3, thing.cell // 3)


def test_the_picture_shows_the_named_colour_at_the_named_place() -> None:
    for seed in range(40):
        scene = sample_scene(random.Random(seed))
        pixels = np.asarray(scene_to_image(scene))
        for thing in (t for t in scene.things if t.shape in ("circle", "square", "cross")):
            pixel = pixels[int(thing.cy * scene.height), int(thing.cx * scene.width)]
            assert tuple(pixel) == thing.rgb


def test_unseen_pairs_never_train_and_always_test() -> None:
    assert len(UNSEEN_PAIRS) == 8
    assert len(SEEN_PAIRS) == len(COLOURS) * len(SHAPES) - 8
    for seed in range(480):
        scene = sample_scene(random.Random(seed))
        assert not {(t.colour, t.shape) for t in scene.things} & UNSEEN_PAIRS
    for i, scene in enumerate(heldout_scenes(0, 40)):
        shown = {(t.colour, t.shape) for t in scene.things} & UNSEEN_PAIRS
        assert len(shown) == (1 if i % 2 == 0 else 0)


def test_a_true_caption_reads_back_without_a_mistake() -> None:
    scenes = heldout_scenes(5, 200)
    captions = [scene_to_caption(s) for s in scenes]
    table = scores_to_table([score_caption(*x) for x in zip(scenes, captions, strict=True)], scenes)
    assert table.pop("invented objects per caption") == 0
    assert set(table.values()) == {1.0}
    facts = caption_to_facts(captions[0])
    assert [(c.colour, c.shape, c.size, c.cell) for c in facts.claims] == [
        (t.colour, t.shape, t.size, t.cell) for t in scenes[0].things
    ]


def test_each_kind_of_mistake_is_counted() -> None:
    scene = next(s for s in heldout_scenes(6, 50) if len(s.things) == 2)
    a, b = scene.things
    wrong_shape = next(s for s in SHAPES if s not in (a.shape, b.shape))
    wrong = scene_to_caption(replace(scene, things=(replace(a, shape=wrong_shape), b)))
    score = score_caption(scene, wrong)
    assert [o.named for o in score.objects] == [False, True]
    assert (score.invented, score.relation, score.flawless) == (1, False, False)
    moved = scene_to_caption(replace(scene, things=(a, replace(b, cell=(b.cell + 1) % 9))))
    assert [o.place for o in score_caption(scene, moved).objects] == [True, False]
    nothing = score_caption(scene, "I cannot see anything.")
    assert not any(o.named for o in nothing.objects)
    assert (nothing.count, nothing.background, nothing.relation) == (False, False, False)


def test_relations_follow_the_ninths() -> None:
    assert cells_to_relation(0, 8) == "above and to the left of"
    assert cells_to_relation(5, 4) == "to the right of"
    assert cells_to_relation(7, 1) == "below"
