"""Model files that another program changes while a captioner or a reasoner uses them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeprism import Captioner, Reasoner, caption_folder
from edgeprism.errors import ModelError
from edgeprism.language.chat import Message


@pytest.fixture
def bundle(random_bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(random_bundle, tmp_path / "bundle")


@pytest.fixture
def own_captioner(bundle: Path) -> Iterator[Captioner]:
    with Captioner.load(bundle, threads=1) as captioner:
        yield captioner


def write_over(path: Path) -> None:
    """Replace the second half of a file, where a GGUF has its weights; its size stays."""
    half = path.stat().st_size // 2
    with path.open("r+b") as file:
        file.seek(half)
        file.write(np.random.default_rng(3).bytes(path.stat().st_size - half))


@pytest.mark.parametrize("file", ["lm.gguf", "vision.fp32.onnx"])
def test_no_caption_comes_from_a_file_that_was_written_over(
    own_captioner: Captioner, bundle: Path, photo: Path, file: str
) -> None:
    own_captioner.caption(photo, caption_tokens=4)
    write_over(bundle / file)
    for _ in range(2):
        with pytest.raises(ModelError, match="was changed while it was in use") as caught:
            own_captioner.caption(photo, caption_tokens=4)
        assert str(bundle / file) in caught.value.message


def test_the_store_gets_no_caption_from_a_file_that_was_written_over(
    own_captioner: Captioner, bundle: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(5)
    for number in range(3):
        pixels = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    sound = shutil.copy(bundle / "lm.gguf", tmp_path)
    plan = own_captioner.plan(caption_tokens=8)
    own_captioner.caption(folder / "0.png", caption_tokens=1)  # loads the engines
    write_over(bundle / "lm.gguf")
    with pytest.raises(ModelError, match=r"lm\.gguf: was changed while it was in use"):
        caption_folder(folder, own_captioner, plan=plan)
    own_captioner.close()
    shutil.copy(sound, bundle / "lm.gguf")
    result = caption_folder(folder, own_captioner, plan=plan)
    assert (result.captioned, result.known) == (3, 0)


def test_a_reasoner_gives_no_answer_from_a_file_that_was_written_over(bundle: Path) -> None:
    path = bundle / "lm.gguf"
    reasoner = Reasoner.load(path, threads=1, chat_format="chatml")
    question = [Message("user", "Is there a boat?")]
    reasoner.complete(question, max_tokens=3)
    write_over(path)
    with pytest.raises(ModelError, match=r"lm\.gguf: was changed while it was in use"):
        reasoner.complete(question, max_tokens=3)
    reasoner.close()


def _renamed_over(path: Path) -> None:
    other = path.with_name("other")
    shutil.copy(path, other)
    write_over(other)
    other.replace(path)


HARMLESS: dict[str, Callable[[Path], object]] = {
    "a new date": os.utime,
    "a new link": lambda path: os.link(path, path.with_name("link")),
    "other permissions": lambda path: path.chmod(0o600),
    "another file under its name": _renamed_over,
    "the name is gone": Path.unlink,
}


@pytest.mark.parametrize("change", HARMLESS)
def test_the_same_content_goes_on(
    own_captioner: Captioner, bundle: Path, photo: Path, change: str
) -> None:
    before = own_captioner.caption(photo, caption_tokens=8).text
    HARMLESS[change](bundle / "lm.gguf")
    assert own_captioner.caption(photo, caption_tokens=8).text == before


def test_a_reasoner_that_loads_again_tells_the_new_files_digest(
    bundle: Path, scripted_gguf: Path
) -> None:
    path = bundle / "lm.gguf"
    reasoner = Reasoner.load(path, threads=1, chat_format="chatml")
    question = [Message("user", "Is there a boat?")]
    reasoner.complete(question, max_tokens=1)
    before = reasoner.model.digest
    shutil.copy(scripted_gguf, bundle / "other")
    (bundle / "other").replace(path)
    assert reasoner.model.digest == before
    reasoner.close()
    reasoner.complete(question, max_tokens=1)
    assert reasoner.model.digest != before
    reasoner.close()


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="descriptors are counted in /proc")
def test_no_descriptor_is_left(bundle: Path, photo: Path) -> None:
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    with Captioner.load(bundle, threads=1) as captioner:
        captioner.caption(photo, caption_tokens=1)
    before = count()
    for _ in range(3):
        with Captioner.load(bundle, threads=1) as captioner:
            captioner.caption(photo, caption_tokens=1)
    assert count() == before
