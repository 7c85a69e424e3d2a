"""A bundle whose image rows go through a second language model, used as any other."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeprism import caption_folder
from edgeprism.errors import ModelError, UsageError
from edgeprism.files.home import data_dir
from edgeprism.folder.events import Outcome
from edgeprism.memory.parts import CPU
from edgeprism.perceive.captioner import Captioner
from edgeprism.picture.layout import picture_to_layout
from edgeprism.segments import ImageRows
from tests.helpers import bundles
from tests.helpers.captions import caption_ids
from tests.helpers.children import in_child
from tests.helpers.experts import expert_parts, write_expert_bundle, write_model


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_expert_bundle(tmp_path_factory.mktemp("expert"))


@pytest.fixture
def captioner(bundle: Path) -> Iterator[Captioner]:
    with load(bundle) as captioner:
        yield captioner


def load(folder: Path, **options: object) -> Captioner:
    exact = {"kv_type": "f32", "flash_attention": False, **options}
    return Captioner.load(folder, device="cpu", threads=1, **exact)  # type: ignore[arg-type]


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def ids_of(captioner: Captioner, seed: int = 0) -> list[int]:
    return caption_ids(captioner, picture(seed), caption_tokens=12, stop_at_end=False)


def with_rows(bundle: Path, folder: Path, change: dict[str, Any] | None) -> Path:
    """Copy a bundle; `change` fields of `lm.rows`, or leave the expert out."""
    shutil.copytree(bundle, folder)
    (folder / "manifest.json").unlink()
    parts = expert_parts()
    rows = None if change is None else dataclasses.replace(parts["lm"].rows, **change)
    return bundles.seal_bundle(
        folder, **{**parts, "lm": dataclasses.replace(parts["lm"], rows=rows)}
    )


def test_the_expert_counts(bundle: Path, captioner: Captioner, tmp_path: Path) -> None:
    seen = [ids_of(captioner), ids_of(captioner, 1)]
    for name, change in (("plain", None), ("all", {"own_last": 0}), ("ten", {"own_last": 10})):
        with load(with_rows(bundle, tmp_path / name, change)) as other:
            seen.append(ids_of(other))
    assert len(set(map(tuple, seen))) == len(seen)


def test_rows_share_a_position_but_those_at_the_ends(captioner: Captioner) -> None:
    manifest = captioner.bundle.manifest
    (segment,) = picture_to_layout((300, 40), manifest).segments
    assert isinstance(segment, ImageRows)
    assert segment.positions is not None
    assert segment.positions.tolist() == [[0, *[1] * 14, 2]]
    for first, last, expected in ((0, 0, [0] * 16), (2, 3, [0, 1, *[2] * 11, 3, 4, 5])):
        vision = dataclasses.replace(manifest.vision, constant_rows=[first, last])
        changed = dataclasses.replace(manifest, vision=vision)
        (segment,) = picture_to_layout((300, 40), changed).segments
        assert isinstance(segment, ImageRows)
        assert segment.positions is not None
        assert segment.positions.tolist() == [expected]


def test_captions_one_by_one_and_together(bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for seed in range(5):
        Image.fromarray(picture(seed)).save(folder / f"{seed}.png")
    together: dict[str, str] = {}

    def keep(outcome: Outcome) -> None:
        assert outcome.record is not None
        together[outcome.picture.path.name] = outcome.record["caption"]

    with load(bundle) as captioner:
        plan = captioner.plan(caption_tokens=12)
        caption_folder(folder, captioner, plan=plan, use_store=False, parallel=3, on_outcome=keep)
        for path in folder.iterdir():
            assert together[path.name] == captioner.caption(path, caption_tokens=12).text
    assert len(set(together.values())) == 5


def test_fewer_visual_tokens(bundle: Path, captioner: Captioner) -> None:
    texts = []
    for limit in (3, 9, 16):
        caption = captioner.caption(picture(0), visual_tokens=limit, caption_tokens=12)
        assert caption.tokens.visual == limit
        texts.append(caption.text)
    assert len(set(texts)) == 3
    assert texts[2] == captioner.caption(picture(0), caption_tokens=12).text
    with pytest.raises(UsageError, match="2 visual tokens are too few") as caught:
        captioner.caption(picture(0), visual_tokens=2)
    assert "at least 3" in caught.value.hint


def test_the_expert_is_tried_and_watched(bundle: Path, tmp_path: Path) -> None:
    own = shutil.copytree(bundle, tmp_path / "own")
    tried = data_dir() / "tried.json"
    before = json.loads(tried.read_text()) if tried.is_file() else {}
    with load(own, kv_type="f16") as captioner:
        captioner.caption(picture(0), caption_tokens=4)
        assert len(json.loads(tried.read_text())) == len(before) + 1
        path = own / "lm.rows.gguf"
        with path.open("r+b") as file:
            file.seek(path.stat().st_size // 2)
            file.write(np.random.default_rng(3).bytes(5000))
        with pytest.raises(ModelError, match="was changed while it was in use") as caught:
            captioner.caption(picture(0), caption_tokens=4)
        assert str(path) in caught.value.message
    with pytest.raises(ModelError, match=r"lm\.rows\.gguf: its content is not what the manifest"):
        load(own).caption(picture(0))


def test_another_instruction_for_the_same_picture(bundle: Path, captioner: Captioner) -> None:
    """The cells of the picture stay; the text is that of a captioner that has not seen it."""
    encoded = captioner.encode(picture(0))
    instructions = ("Describe the sea.", "Describe the small old house.", "Describe the sea.")
    texts = [captioner.caption(encoded, instruction=text).text for text in instructions]
    assert texts[0] == texts[2] != texts[1]
    with load(bundle) as other:
        assert other.caption(picture(0), instruction=instructions[1]).text == texts[1]


def test_it_loads_again(bundle: Path) -> None:
    captioner = load(bundle)
    expected = ids_of(captioner)
    captioner.close()
    assert ids_of(captioner) == expected
    captioner.close()


def test_a_forked_child_loads_its_own(captioner: Captioner) -> None:
    expected = ids_of(captioner)
    result = in_child(lambda: repr(ids_of(captioner)), 100)
    assert (result.returncode, result.text) == (0, repr(expected))
    assert ids_of(captioner) == expected


def test_the_plan_counts_the_expert(bundle: Path, captioner: Captioner, tmp_path: Path) -> None:
    parts = {part.what: part for part in captioner.engines.memory_parts().parts}
    weights = sum(
        p.size for what, p in parts.items() if what.startswith("expert ") and "weights" in what
    )
    size = (bundle / "lm.rows.gguf").stat().st_size
    assert 0.9 * size < weights <= size
    assert parts["expert KV cache"].size == parts["KV cache"].size
    assert 0 < parts["expert buffer"].size < parts["KV cache"].size
    assert captioner.engines.model_bytes() > size
    with load(with_rows(bundle, tmp_path / "plain", None)) as plain:
        without = plain.engines.memory_parts()
        assert plain.engines.model_bytes() == captioner.engines.model_bytes() - size
    assert without.size(CPU) < captioner.engines.memory_parts().size(CPU) - size


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"layers": 1}, "qwen2vl.block_count is 1, not 2"),
        ({"kv_heads": 1}, "qwen2vl.attention.head_count_kv is 1, not 2"),
        ({"width": 64}, "qwen2vl.embedding_length is 64, not 128"),
        ({"architecture": "qwen2"}, "its architecture is 'qwen2'"),
    ],
)
def test_an_expert_of_another_model(
    change: dict[str, Any], reason: str, bundle: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "b"
    folder.mkdir()
    shutil.copy(bundle / "lm.gguf", folder)
    write_expert_bundle(folder, **change)

    def caption() -> str:
        with load(folder) as captioner:
            return captioner.caption(picture(0), caption_tokens=4).text

    result = in_child(caption, 100)  # a native abort would end it
    assert (result.error, result.returncode) == ("ModelError", 4), result
    assert reason in result.text
    assert "lm.rows.gguf" in result.text


def test_a_file_whose_header_lies_about_its_tensors(bundle: Path, tmp_path: Path) -> None:
    """The header agrees, the tensors do not: the trial's process meets it, not this one."""
    folder = tmp_path / "b"
    folder.mkdir()
    shutil.copy(bundle / "lm.gguf", folder)
    path = write_model(folder / "lm.rows.gguf", 5, layers=1, n_vocab=260)
    data = path.read_bytes()
    key = b"qwen2vl.block_count"
    at = data.index(key) + len(key) + 4
    path.write_bytes(data[:at] + (2).to_bytes(4, "little") + data[at + 4 :])
    write_expert_bundle(folder)
    with pytest.raises(ModelError, match=r"lm\.rows\.gguf: llama\.cpp cannot load it"):
        load(folder).caption(picture(0))


def test_no_caption_without_all_files(bundle: Path, tmp_path: Path) -> None:
    own = shutil.copytree(bundle, tmp_path / "own")
    os.unlink(own / "lm.rows.gguf")
    with pytest.raises(ModelError) as caught:
        load(own)
    assert any("lm.rows.gguf" in detail for detail in caught.value.details)
