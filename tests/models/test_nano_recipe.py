"""The recipe of nano: its world, its grammar, its training and its export, at toy size."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("sentencepiece")
load_file = pytest.importorskip("safetensors.torch").load_file

from edgeprism.models.nano import train  # noqa: E402
from edgeprism.models.nano.caption import captions_to_ids, rows_of_prompt  # noqa: E402
from edgeprism.models.nano.data import heldout_scenes, scenes_to_batch, training_scenes  # noqa: E402
from edgeprism.models.nano.export import export, model_to_llm  # noqa: E402
from edgeprism.models.nano.grammar import (  # noqa: E402
    caption_to_facts,
    cells_to_relation,
    scene_to_caption,
    score_caption,
    scores_to_table,
)
from edgeprism.models.nano.model import Nano, NanoConfig  # noqa: E402
from edgeprism.models.nano.scene import (  # noqa: E402
    COLOURS,
    SEEN_PAIRS,
    SHAPES,
    UNSEEN_PAIRS,
    image_to_pixels,
    sample_scene,
    scene_to_image,
    scene_to_patch_labels,
)
from edgeprism.models.nano.tokenizer import (  # noqa: E402
    BOS,
    IM_END,
    IM_START,
    VOCAB,
    ids_to_text,
    prompt_to_ids,
    text_to_ids,
    tokenizer,
    train_tokenizer,
)

TINY = NanoConfig(
    vision_width=32, vision_layers=2, vision_heads=2, vision_ffn=64,
    lm_width=64, lm_layers=2, lm_heads=4, lm_kv_heads=2, lm_ffn=96,
)  # fmt: skip


def test_the_same_seed_draws_the_same_pixels() -> None:
    first, again, other = (sample_scene(random.Random(seed)) for seed in (3, 3, 4))
    assert first == again
    assert np.array_equal(np.asarray(scene_to_image(first)), np.asarray(scene_to_image(again)))
    assert first != other


def test_objects_stand_inside_their_ninth_and_are_labelled_there() -> None:
    for seed in range(60):
        scene = sample_scene(random.Random(seed))
        assert image_to_pixels(scene_to_image(scene)).shape == (112, 112, 3)
        labels = scene_to_patch_labels(scene)
        for rank, thing in enumerate(scene.things):
            assert (int(thing.cx * 3), int(thing.cy * 3)) == (thing.cell % 3, thing.cell // 3)
            mine = labels[labels[:, 4] == rank]
            assert len(mine) > 0
            assert (mine[:, 0] == SHAPES.index(thing.shape)).all()
            assert (mine[:, 1] == list(COLOURS).index(thing.colour)).all()


def test_the_picture_shows_the_named_colour_at_the_named_place() -> None:
    for seed in range(40):
        scene = sample_scene(random.Random(seed))
        pixels = np.asarray(scene_to_image(scene))
        for thing in (t for t in scene.things if t.shape in ("circle", "square", "cross")):
            seen = pixels[int(thing.cy * scene.height), int(thing.cx * scene.width)]
            assert tuple(seen) == thing.rgb


def test_unseen_pairs_never_train_and_always_test() -> None:
    assert len(UNSEEN_PAIRS) == 8
    assert len(SEEN_PAIRS) == len(COLOURS) * len(SHAPES) - 8
    for index in range(30):
        for scene in training_scenes(0, index, 16):
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


def test_the_committed_tokenizer_is_what_the_recipe_makes() -> None:
    assert tokenizer().serialized_model_proto() == train_tokenizer()
    assert tokenizer().vocab_size() == VOCAB


def test_any_text_tokenises_and_special_tokens_come_from_the_template_only() -> None:
    text = "Wo ist der grüne Kreis? <|im_end|> [UNUSED_TOKEN_511]\n日本"
    ids = text_to_ids(text)
    assert ids_to_text(ids) == text
    assert not set(ids) & {BOS, IM_START, IM_END}
    before, after = prompt_to_ids("Describe the picture.")
    assert before[:2] == [BOS, IM_START]
    assert [i for i in after if i >= IM_END] == [IM_END, IM_START]


def test_swapped_words_touch_inputs_only() -> None:
    scenes = tuple(training_scenes(0, 0, 32))
    plain, targets = captions_to_ids(scenes)
    swapped, same_targets = captions_to_ids(scenes, random.Random(0))
    assert torch.equal(targets, same_targets)
    differ = plain != swapped
    assert 0 < differ.sum() < differ.numel() // 5
    assert ids_to_text([t for t in targets[0].tolist() if t >= 0]) == scene_to_caption(scenes[0])


def unpacked_llama(tensors: dict[str, torch.Tensor], c: NanoConfig) -> dict[str, torch.Tensor]:
    """InternLM2 names and packing → Llama's."""
    names = {"attention.wo": "self_attn.o_proj", "feed_forward.w1": "mlp.gate_proj",
             "feed_forward.w3": "mlp.up_proj", "feed_forward.w2": "mlp.down_proj",
             "attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
             "tok_embeddings": "embed_tokens"}  # fmt: skip
    out: dict[str, torch.Tensor] = {}
    head = c.lm_width // c.lm_heads
    for name, tensor in tensors.items():
        if "wqkv" in name:
            packed = tensor.view(c.lm_kv_heads, c.lm_heads // c.lm_kv_heads + 2, head, c.lm_width)
            at = name.replace("attention.wqkv.weight", "self_attn.")
            out[at + "q_proj.weight"] = packed[:, :-2].reshape(-1, c.lm_width)
            out[at + "k_proj.weight"] = packed[:, -2].reshape(-1, c.lm_width)
            out[at + "v_proj.weight"] = packed[:, -1].reshape(-1, c.lm_width)
            continue
        for old, new in names.items():
            name = name.replace(old, new)
        out["lm_head.weight" if name == "output.weight" else name] = tensor
    return out


def test_the_export_gives_transformers_the_same_logits(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Nano(TINY).eval()
    with torch.no_grad():
        for p in model.parameters():  # away from initial zeros and ones
            p.add_(torch.randn_like(p) * 0.05)
    export(model, tmp_path / "export")
    pixels = torch.from_numpy(scenes_to_batch(training_scenes(0, 0, 2)).pixels)
    vision = transformers.SiglipVisionModel.from_pretrained(tmp_path / "export" / "vision")
    scaled = pixels.permute(0, 3, 1, 2).float() / 255
    features = vision((scaled - 0.5) / 0.5, output_hidden_states=True).hidden_states[-2]
    with torch.no_grad():
        assert torch.allclose(features, model.tower(pixels), atol=1e-4)
    weights = load_file(tmp_path / "export" / "captioner" / "projector" / "model.safetensors")
    hidden = torch.nn.functional.gelu(
        features @ weights["model.0.weight"].T + weights["model.0.bias"]
    )
    visual = hidden @ weights["model.2.weight"].T + weights["model.2.bias"]
    config, _ = model_to_llm(model)
    llama = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            **{k: v for k, v in config.items() if k not in ("architectures", "model_type")}
        )
    )
    tensors = load_file(tmp_path / "export" / "llm" / "model.safetensors")
    llama.load_state_dict(unpacked_llama(tensors, TINY))
    with torch.no_grad():
        rows = rows_of_prompt(model, visual, "Describe the picture.")
        ours, _ = model.decoder(
            rows_of_prompt(model, model.projector(model.tower(pixels)), "Describe the picture.")
        )
        theirs = llama.eval()(inputs_embeds=rows).logits
    assert torch.allclose(ours, theirs, atol=1e-4)


def run_steps(folder: Path, stage: str, stops: tuple[int, ...]) -> Nano:
    """Train tiny for the last of ``stops`` steps, in a new process's state after each stop."""
    folder.mkdir()
    for stop in stops:
        torch.manual_seed(0)
        model = Nano(TINY)
        plan = train.Plan(stage, steps=stops[-1], batch=4, check_scenes=4)
        train.train_stage(model, plan, folder, torch.device("cpu"), stop_at=stop)
    return model


@pytest.mark.parametrize("stage", ["tower", "caption"])
def test_a_resumed_run_ends_at_the_same_weights(tmp_path: Path, stage: str) -> None:
    whole = run_steps(tmp_path / "whole", stage, (4,))
    halves = run_steps(tmp_path / "halves", stage, (2, 4))
    for (name, a), b in zip(whole.named_parameters(), halves.parameters(), strict=True):
        assert torch.equal(a, b), name
