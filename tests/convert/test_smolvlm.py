"""SmolVLM and Idefics3 as published, against transformers' class, processor and tokenizer."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiled
import torch
from PIL import Image
from tiny_lm import write_any_tokenizer
from tokenizers import Tokenizer
from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3ImageProcessor
from transformers.models.idefics3 import modeling_idefics3
from transformers.models.idefics3.processing_idefics3 import get_image_prompt_string

from edgeprism.convert import vision_graph
from edgeprism.convert.families import smolvlm
from edgeprism.convert.options import ConvertOptions
from edgeprism.convert.progress import Progress
from edgeprism.errors import CheckpointError

FAKE, GLOBAL, END = "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"


@dataclasses.dataclass(frozen=True)
class Spec:
    """A tiny model; each differs from the others in what published ones differ in."""

    name: str
    tokenizer: str
    tied: bool
    cell: int
    tile: int
    patch: int
    longest: int
    model_type: str = "idefics3"


SPECS = [
    Spec("smolvlm", "smollm", tied=False, cell=2, tile=32, patch=4, longest=128),
    Spec("tied", "smollm", tied=True, cell=4, tile=32, patch=4, longest=96, model_type="smolvlm"),
    Spec("idefics3", "llama3", tied=False, cell=1, tile=30, patch=10, longest=100),
]


@dataclasses.dataclass
class Made:
    """A checkpoint's folder and its model with positions counted plainly."""

    spec: Spec
    folder: Path
    model: Any

    def seen(self, *pictures: Image.Image) -> tiled.Seen:
        processor = Idefics3ImageProcessor.from_pretrained(self.folder)
        inputs = processor([list(pictures)], return_tensors="pt", return_row_col_info=True)
        grids = zip(inputs.pop("rows")[0], inputs.pop("cols")[0], strict=True)
        with torch.inference_mode():
            features = self.model.model.get_image_features(**inputs)
        start = "<|im_start|>" if self.spec.tokenizer == "smollm" else "<|begin_of_text|>"
        per_tile = features.shape[1]
        shown = "".join(
            get_image_prompt_string(*grid, per_tile, FAKE, "<image>", GLOBAL) for grid in grids
        )
        prompt = f"{start}User:{shown}{tiled.INSTRUCTION}{END}\nAssistant:"
        tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        ids = torch.tensor([tokenizer.encode(prompt, add_special_tokens=False).ids])
        said = tiled.generated(
            self.model, input_ids=ids, attention_mask=torch.ones_like(ids), **inputs
        )
        return tiled.Seen(features.flatten(0, 1).numpy(), said)


def write(folder: Path, spec: Spec) -> Made:
    folder.mkdir(parents=True)
    write_any_tokenizer(folder, spec.tokenizer)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    side = -(-spec.longest // spec.tile)
    places = [f"<row_{r}_col_{c}>" for r in range(1, side + 1) for c in range(1, side + 1)]
    tokenizer.add_special_tokens([FAKE, "<image>", GLOBAL, END, *places])
    tokenizer.save(str(folder / "tokenizer.json"))
    text = {
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048,
        "vocab_size": tokenizer.get_vocab_size() + 3, "rope_theta": 100000.0,
        "tie_word_embeddings": spec.tied, "pad_token_id": 0,
    }  # fmt: skip
    seen = {
        "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3,
        "num_attention_heads": 4, "image_size": spec.tile, "patch_size": spec.patch,
    }  # fmt: skip
    config = Idefics3Config(
        text_config=text, vision_config=seen, scale_factor=spec.cell,
        image_token_id=tokenizer.token_to_id("<image>"), tie_word_embeddings=spec.tied,
    )  # fmt: skip
    model = Idefics3ForConditionalGeneration(config).eval()
    tiled.fill(model, len(spec.name), spec.tied)
    model.tie_weights()
    model.save_pretrained(folder, max_shard_size="200KB")
    Idefics3ImageProcessor(
        size={"longest_edge": spec.longest}, max_image_size={"longest_edge": spec.tile},
        image_mean=[0.5] * 3, image_std=[0.5] * 3,
    ).save_pretrained(folder)  # fmt: skip
    path = folder / "config.json"
    written = json.loads(path.read_text())
    written["model_type"] = spec.model_type
    written["vision_config"]["model_type"] = "idefics3"  # as the published files say
    path.write_text(json.dumps(written))
    embeddings = model.model.vision_model.embeddings
    embeddings.forward = lambda pixel_values, patch_attention_mask: (
        embeddings.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        + embeddings.position_embedding.weight
    )
    return Made(spec, folder, model)


@pytest.fixture(scope="module")
def made_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Spec], Made]:
    return tiled.made_once(write, tmp_path_factory, "smolvlm")


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_rows_and_text_are_transformers(
    spec: Spec, made_of: Callable[[Spec], Made], tmp_path: Path
) -> None:
    made = made_of(spec)
    bundle = tiled.converted(smolvlm, made.folder, tmp_path / "b")
    tiled.same_as_reference(made, bundle)
    tiled.several_as_reference(made.seen, bundle)


def test_positions_are_plain_in_the_published_precision() -> None:
    """Why the reference counts them so: float32 alone rounds them one place ahead."""
    for n in (26, 32):  # of Idefics3 and SmolVLM
        boundaries = torch.arange(1 / n, 1.0, 1 / n)
        fractions = torch.arange(n, dtype=torch.bfloat16) / n * (1 - 1e-6)
        buckets = torch.bucketize(fractions, boundaries, right=True)
        if n == 32:
            assert buckets.tolist() == list(range(n))
        released = torch.arange(0, 1 - 1e-6, 1 / n)  # as the models' first release has it
        assert torch.bucketize(released, boundaries, right=True).tolist() == list(range(n))
    assert hasattr(modeling_idefics3, "Idefics3VisionEmbeddings")


# ---- mistakes that the comparison must see


def _cells_turned(patch: pytest.MonkeyPatch) -> None:
    right = vision_graph.join_cells

    def wrong(x: torch.Tensor, s: int) -> torch.Tensor:
        made = right(x, s)
        return made.unflatten(-1, (s, s, -1)).transpose(2, 3).flatten(2)

    patch.setattr(vision_graph, "join_cells", wrong)


def _cells_down_first(patch: pytest.MonkeyPatch) -> None:
    right = vision_graph.join_cells

    def wrong(x: torch.Tensor, s: int) -> torch.Tensor:
        made = right(x, s)
        side = int(made.shape[1] ** 0.5)
        return made.unflatten(1, (side, side)).transpose(1, 2).flatten(1, 2)

    patch.setattr(vision_graph, "join_cells", wrong)


def _other_gelu(patch: pytest.MonkeyPatch) -> None:
    right = vision_graph.gelu
    patch.setattr(vision_graph, "gelu", lambda x, _: right(x, "gelu"))


def _last_norm_twice(patch: pytest.MonkeyPatch) -> None:
    right = vision_graph.Tower.forward
    patch.setattr(vision_graph.Tower, "forward", lambda s, x: s.norm_last(right(s, x)))


def _places_turned(patch: pytest.MonkeyPatch) -> None:
    wrong = dataclasses.replace(smolvlm.MARKERS, before_tile=f"{FAKE}<row_{{column}}_col_{{row}}>")
    patch.setattr(smolvlm, "MARKERS", wrong)


def _one_line_feed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(smolvlm, "MARKERS", dataclasses.replace(smolvlm.MARKERS, between=""))


MISTAKES = [_cells_turned, _cells_down_first, _other_gelu, _last_norm_twice, tiled.tiles_down_first,
            tiled.overview_first, _places_turned, _one_line_feed]  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__.strip("_"))
def test_mistakes_are_seen(
    mistake: tiled.Mistake,
    made_of: Callable[[Spec], Made],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, picture = made_of(SPECS[0]), tiled.pictures()[1]
    expected = made.seen(picture)
    mistake(monkeypatch)
    bundle = tiled.converted(smolvlm, made.folder, tmp_path / "b")
    assert not tiled.equal(tiled.seen_by_bundle(bundle, picture), expected)


# ---- what is refused


def refused(folder: Path, out: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        smolvlm.convert(out, ConvertOptions(("fp32",), "F32"), Progress(), folder)
    assert not out.exists()
    assert list(out.parent.glob(f".{out.name}*")) == []
    return caught.value.message


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("config.json", {"model_type": "llava"}, "expected: model_type idefics3 or smolvlm"),
        ("config.json", {"scale_factor": 3}, "does not divide 8 patches"),
        ("preprocessor_config.json", {"do_image_splitting": False}, "do_image_splitting"),
        ("preprocessor_config.json", {"max_image_size": {"longest_edge": 40}}, "takes 32"),
        ("preprocessor_config.json", {"size": {"longest_edge": 32}}, "size"),
        ("preprocessor_config.json", {"size": {"height": 9, "width": 9}}, "size"),
        ("preprocessor_config.json", {"resample": 9}, "resample 9"),
    ],
)
def test_what_would_be_computed_differently_is_refused(
    made_of: Callable[[Spec], Made], tmp_path: Path, file: str, change: dict[str, Any], said: str
) -> None:
    folder = tmp_path / "c"
    folder.mkdir()
    for path in made_of(SPECS[0]).folder.iterdir():
        (folder / path.name).symlink_to(path)
    data = json.loads((folder / file).read_text())
    (folder / file).unlink()
    (folder / file).write_text(json.dumps({**data, **change}))
    assert said in refused(folder, tmp_path / "b")


def test_a_tokenizer_without_the_markers_is_refused(
    made_of: Callable[[Spec], Made], tmp_path: Path
) -> None:
    folder = tmp_path / "c"
    folder.mkdir()
    for path in made_of(SPECS[0]).folder.iterdir():
        (folder / path.name).symlink_to(path)
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").write_text(text.replace("<row_2_col_3>", "<row_2_col_x>"))
    assert "no token is named <row_2_col_3>" in refused(folder, tmp_path / "b")
