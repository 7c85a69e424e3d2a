"""Training nano, at toy size: words, lessons, stages, export."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edgeprism.models.nano.recipe.learn.data import (
    Batch,
    BatchStream,
    Teach,
    heldout_scenes,
    scenes_to_batch,
    training_batch,
    training_scenes,
)
from edgeprism.models.nano.recipe.measure.scoring import score_captions
from edgeprism.models.nano.recipe.world.draw import GRID, Assets
from edgeprism.models.nano.recipe.world.grammar import sample_query
from edgeprism.models.nano.recipe.world.labels import PATCH_LABELS
from edgeprism.models.nano.recipe.world.scene import Sampling
from edgeprism.models.nano.recipe.world.things import THINGS
from tests.helpers.nano_scenes import item, scene

if TYPE_CHECKING:
    from edgeprism.models.nano.recipe.learn.model import Nano

HOW = Sampling(unseen=True)


torch = pytest.importorskip("torch")


@pytest.fixture
def tiny() -> Nano:
    from edgeprism.models.nano.recipe.learn.model import Nano, NanoConfig

    torch.manual_seed(0)
    small = {"vision_width": 32, "vision_layers": 1, "vision_heads": 2, "vision_ffn": 32}
    return Nano(
        replace(
            NanoConfig(), **small, lm_width=32, lm_layers=1, lm_heads=2, lm_kv_heads=2, lm_ffn=32
        )
    )


def test_printed_letters_are_spelt_one_by_one() -> None:
    from edgeprism.models.nano.recipe.learn import tokenizer

    for text in ('the word "PUSH"', 'the number "8811"', "Überraschung, 你好"):
        assert tokenizer.ids_to_text(tokenizer.text_to_ids(text)) == text
    assert len(tokenizer.text_to_ids('"PUSH"')) == len(tokenizer.text_to_ids('"8811"')) == 6
    assert max(len(tokenizer.text_to_ids(" " + name)) for name in THINGS) <= 4


def test_lessons_ask_in_training_wordings_only() -> None:
    from edgeprism.models.nano.recipe.learn.caption import CAPTIONS, scene_to_lessons

    rng = random.Random(0)
    for drawn_scene in training_scenes(0, 0, 60, Sampling()):
        query = sample_query(drawn_scene, rng)
        lessons = scene_to_lessons(drawn_scene, rng)
        assert len(lessons) == CAPTIONS
        assert query is None or all(
            query.focuses[-1] not in instruction for instruction, _, _ in lessons
        )


def test_letters_and_places_weigh_more_than_the_words_around_them(tiny: Nano) -> None:
    from edgeprism.models.nano.recipe.learn.caption import (
        Lesson,
        decode,
        lessons_to_ids,
        prefill_picture,
        token_loss,
    )
    from edgeprism.models.nano.recipe.learn.tokenizer import ids_to_text

    rows = torch.randn(1, GRID * GRID, 32)
    lesson = Lesson("What do you see?", 'The word "A" above a cat.', "The cat is red.")
    inputs, targets, after = lessons_to_ids([lesson])
    out, _ = decode(tiny.decoder, tiny.embed(inputs), prefill_picture(tiny, rows))
    logits = tiny.decoder.output(tiny.decoder.norm(out))[targets >= 0]
    each = torch.nn.functional.cross_entropy(logits, targets[targets >= 0], reduction="none")
    ending = after[targets >= 0]
    assert ids_to_text(targets[after].tolist()).strip() == lesson.ending
    total, weight = token_loss(logits, targets[targets >= 0], ending)
    # one letter has weight 3, one place word 2, and the tokens after the list 3
    assert float(weight.detach()) == len(each) + 2 + 1 + 2 * int(ending.sum())
    assert float(total.detach()) > float(each.detach().sum())


def test_many_captions_of_one_picture_cost_what_each_alone_costs(tiny: Nano) -> None:
    from edgeprism.models.nano.recipe.learn.caption import (
        IGNORE,
        Lesson,
        decode,
        lessons_to_ids,
        prefill_picture,
    )

    features = torch.randn(1, GRID * GRID, 32)
    lessons = [
        Lesson("Describe the picture.", "A cat."),
        Lesson("What do you see?", "There are two dogs."),
    ]

    def losses(some: list[Lesson]) -> list[float]:
        inputs, targets, _ = lessons_to_ids(some)
        cache = [
            (k.repeat(len(some), 1, 1, 1), v.repeat(len(some), 1, 1, 1))
            for k, v in prefill_picture(tiny, features)
        ]
        rows, _ = decode(tiny.decoder, tiny.embed(inputs), cache)
        logits = tiny.decoder.output(tiny.decoder.norm(rows))
        loss = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), targets, ignore_index=IGNORE, reduction="none"
        )
        return [float(x) for x in loss.sum(1).detach()]

    assert losses(lessons) == pytest.approx(losses(lessons[:1]) + losses(lessons[1:]), rel=1e-4)


def test_visual_tokens_are_taught_the_words_for_what_they_show(tiny: Nano, drawn: Assets) -> None:
    from edgeprism.models.nano.recipe.learn.caption import align_loss
    from edgeprism.models.nano.recipe.learn.tokenizer import text_to_ids

    batch = scenes_to_batch([scene(item("apple", 4))], drawn)
    size = text_to_ids(" large")[0]

    def loss(word: str) -> float:
        row = tiny.decoder.output.weight[text_to_ids(word)[0]] + tiny.decoder.output.weight[size]
        return float(align_loss(tiny, 50 * row.expand(1, GRID * GRID, -1), batch).detach())

    assert loss(" apple") < min(loss(" cat"), loss(" small"))


class InlineStream:
    """Training batches without worker processes."""

    def __init__(
        self, assets: Path, seed: int, start: int, size: int, how: Sampling, _: int, teach: Teach
    ) -> None:
        self.arguments = (assets, seed, start, size, how, teach)

    def __iter__(self) -> Iterator[Batch]:
        assets, seed, start, size, how, teach = self.arguments
        for index in count(start):
            yield training_batch(Assets(assets), seed, index, size, how, teach)

    def close(self) -> None:
        """Do nothing, because no process was started."""


def test_batches_come_in_order_from_two_processes(folder: Path) -> None:
    from edgeprism.models.nano.recipe.learn.caption import teach

    stream = BatchStream(folder, 0, 3, 2, Sampling(), workers=2, teach=teach)
    try:
        came = list(islice(stream, 3))
    finally:
        stream.close()
    expected = [tuple(training_scenes(0, index, 2, Sampling())) for index in (3, 4, 5)]
    assert [batch.scenes for batch in came] == expected
    for number, batch in enumerate(came, 3):
        lessons = teach(batch.scenes, 0, number)
        assert all(map(np.array_equal, batch.lessons, lessons))


def test_a_stopped_run_ends_as_an_uninterrupted_one(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgeprism.models.nano.recipe import train
    from edgeprism.models.nano.recipe.learn.caption import caption_loss, teach
    from edgeprism.models.nano.recipe.learn.model import Nano, NanoConfig

    # An untrained model writes captions up to the limit; another test scores captions.
    monkeypatch.setattr(train, "stage_to_functions", lambda _: (caption_loss, lambda *_: {}, teach))
    monkeypatch.setattr(train, "BatchStream", InlineStream)  # starting processes takes seconds
    small = replace(NanoConfig(), vision_width=32, vision_layers=1, vision_heads=2, vision_ffn=32,
                    lm_width=32, lm_layers=1, lm_heads=2, lm_kv_heads=2, lm_ffn=32)  # fmt: skip
    ends = []
    for name, stops in (("whole", (3,)), ("stopped", (2, 3))):
        out = tmp_path / name
        out.mkdir()
        for stop in stops:
            torch.manual_seed(0)
            model = Nano(small)
            plan = train.Plan("caption", 3, batch=2, check_every=99, check_scenes=2)
            plan_now = replace(plan, stop_at=stop)
            train.train_stage(model, plan_now, folder, out, torch.device("cpu"), float("inf"))
        ends.append(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(ends[0].values(), ends[1].values(), strict=True))


def test_the_decoder_goes_on_with_a_tower_that_was_trained_further(tmp_path: Path) -> None:
    from edgeprism.models.nano.recipe import train
    from edgeprism.models.nano.recipe.learn.model import Nano, NanoConfig

    torch.manual_seed(0)
    config = NanoConfig(vision_width=32, vision_layers=1, vision_heads=2, vision_ffn=32,
                        lm_width=32, lm_layers=1, lm_heads=2, lm_kv_heads=2, lm_ffn=32)  # fmt: skip
    before, after = Nano(config), Nano(config)
    plan, cpu = train.Plan("caption", 3), torch.device("cpu")
    train.Run(before, plan, tmp_path, cpu).save()
    expected = before.state_dict() | {
        name: tensor.clone()
        for name, tensor in after.state_dict().items()
        if name.startswith(("tower.", "heads."))
    }
    run = train.Run(after, plan, tmp_path, cpu)
    for held in (after.state_dict(), run.averaged().state_dict()):
        assert all(torch.equal(held[name], tensor) for name, tensor in expected.items())


def test_what_the_tower_tells_is_counted_by_vote(drawn: Assets) -> None:
    from edgeprism.models.nano.recipe.measure.tower import score_tower

    scenes = heldout_scenes(4, 12, Sampling(unseen=True, mixed=1.0, texts=1.0))
    labels = torch.from_numpy(scenes_to_batch(scenes, drawn).patch_labels).long()

    def told(wrong: str) -> dict[str, tuple[int, int]]:
        """Score heads that are right about every label but `wrong`."""
        heads = []
        for i, (name, classes) in enumerate(PATCH_LABELS.items()):
            true = labels[..., i].clamp(min=0)
            shifted = (true + 1) % classes if name == wrong else true
            heads.append(5.0 * torch.nn.functional.one_hot(shifted, classes))
        model = SimpleNamespace(tower=lambda pixels: pixels, heads=lambda _: heads)
        return score_tower(model, scenes, scenes, drawn)  # type: ignore[arg-type]

    all_right = told("")
    assert all(right == among > 0 for right, among in all_right.values())
    assert {"things named rightly", "numbers: all signs", "count of several"} <= set(all_right)
    assert told("identity")["things named rightly"][0] == 0
    assert told("char")["numbers: all signs"][0] == told("char")["numbers: each sign"][0] == 0
    assert told("count")["count of several"][0] == 0


def test_captions_are_written_and_scored(tiny: Nano, drawn: Assets) -> None:
    from edgeprism.models.nano.recipe.learn.caption import write_captions

    batch = scenes_to_batch(heldout_scenes(0, 2, HOW), drawn)
    texts = write_captions(tiny, torch.from_numpy(batch.pixels), ["What?", "Why?"], limit=3)
    assert len(texts) == 2
    table = score_captions(list(batch.scenes), texts)
    assert all(share == 0 for row, share in table.items() if "absent" not in row)


def test_an_export_has_what_convert_asks_for(tiny: Nano, tmp_path: Path) -> None:
    from edgeprism.models.nano.recipe.learn.export import export

    export(tiny, tmp_path / "out")
    card = json.loads((tmp_path / "out/captioner/edgeprism.json").read_text(encoding="utf-8"))
    assert card["focus_instruction"].count("{focus}") == 1
    names = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.*")}
    assert {
        "llm/tokenizer.model",
        "vision/model.safetensors",
        "captioner/projector/config.json",
    } <= names


def test_any_text_tokenises_and_special_tokens_come_from_the_template_only() -> None:
    from edgeprism.models.nano.recipe.learn.tokenizer import (
        BOS,
        IM_END,
        IM_START,
        ids_to_text,
        prompt_to_ids,
        text_to_ids,
    )

    text = "Wo ist der grüne Kreis? <|im_end|> [UNUSED_TOKEN_1277]\n日本"
    ids = text_to_ids(text)
    assert ids_to_text(ids) == text
    assert not set(ids) & {BOS, IM_START, IM_END}
    before, after = prompt_to_ids("Describe the picture.")
    assert before[:2] == [BOS, IM_START]
    assert [i for i in after if i >= IM_END] == [IM_END, IM_START]


def unpacked_llama(tensors: dict[str, Any], c: Any) -> dict[str, Any]:
    """InternLM2 names and packing → Llama's."""
    names = {"attention.wo": "self_attn.o_proj", "feed_forward.w1": "mlp.gate_proj",
             "feed_forward.w3": "mlp.up_proj", "feed_forward.w2": "mlp.down_proj",
             "attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
             "tok_embeddings": "embed_tokens"}  # fmt: skip
    out: dict[str, Any] = {}
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


def test_the_export_gives_transformers_the_same_logits(drawn: Assets, tmp_path: Path) -> None:
    from edgeprism.models.nano.recipe.learn.export import export, model_to_llm
    from edgeprism.models.nano.recipe.learn.model import Nano, NanoConfig
    from edgeprism.models.nano.recipe.learn.tokenizer import prompt_to_ids

    transformers = pytest.importorskip("transformers")
    load_file = pytest.importorskip("safetensors.torch").load_file
    torch.manual_seed(0)
    small = {"vision_width": 32, "vision_layers": 2, "vision_heads": 2, "vision_ffn": 64}
    config = NanoConfig(**small, lm_width=64, lm_layers=2, lm_heads=4, lm_kv_heads=2, lm_ffn=96)
    model = Nano(config).eval()
    with torch.no_grad():
        for p in model.parameters():  # away from initial zeros and ones
            p.add_(torch.randn_like(p) * 0.05)
    export(model, tmp_path / "export")
    pixels = torch.from_numpy(scenes_to_batch(training_scenes(0, 0, 2, Sampling()), drawn).pixels)
    vision = transformers.SiglipVisionModel.from_pretrained(tmp_path / "export" / "vision")
    scaled = pixels.permute(0, 3, 1, 2).float() / 255
    features = vision((scaled - 0.5) / 0.5, output_hidden_states=True).hidden_states[-2]
    weights = load_file(tmp_path / "export" / "captioner" / "projector" / "model.safetensors")
    hidden = features @ weights["model.0.weight"].T + weights["model.0.bias"]
    hidden = torch.nn.functional.gelu(hidden)
    visual = hidden @ weights["model.2.weight"].T + weights["model.2.bias"]
    told = {
        k: v for k, v in model_to_llm(model)[0].items() if k not in ("architectures", "model_type")
    }
    llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(**told))
    tensors = load_file(tmp_path / "export" / "llm" / "model.safetensors")
    llama.load_state_dict(unpacked_llama(tensors, config))
    before, after = (
        model.embed(torch.tensor([ids])).expand(2, -1, -1)
        for ids in prompt_to_ids("Describe the picture.")
    )
    with torch.no_grad():
        own = model.tower(pixels)
        assert torch.allclose(features, own, atol=1e-4)
        ours, _ = model.decoder(torch.cat((before, model.projector(own), after), 1))
        theirs = llama.eval()(inputs_embeds=torch.cat((before, visual, after), 1)).logits
    assert torch.allclose(ours, theirs, atol=1e-4)
