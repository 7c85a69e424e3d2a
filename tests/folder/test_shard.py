"""Shards of a folder: by content alone, each picture in one, the same one when the folder grows."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeprism import Captioner, caption_folder
from edgeprism.cli.main import run
from edgeprism.errors import UsageError
from edgeprism.folder.estimate import estimate_folder
from edgeprism.folder.run import FolderOptions, FolderRun
from edgeprism.folder.shard import Shard, of_shard
from edgeprism.picture.find import find_pictures
from edgeprism.store.caption_store import CaptionStore
from tests.helpers import bundles

MANY = 64


def write(folder: Path, first: int, last: int) -> None:
    folder.mkdir(exist_ok=True, parents=True)
    for i in range(first, last):
        rng = np.random.default_rng(i)
        Image.fromarray(rng.integers(0, 256, (8, 9, 3), dtype=np.uint8)).save(folder / f"{i}.png")


def members(folder: Path, shard: Shard) -> set[str]:
    return {picture.path.name for picture in of_shard(find_pictures([folder]), shard, None)}


def test_shards_cover_each_picture_once_and_stay_when_the_folder_grows(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    write(folder, 0, 60)
    (folder / "unreadable.png").symlink_to(tmp_path / "nowhere")
    (folder / "empty.png").touch()
    names = sorted(path.name for path in folder.iterdir())
    before = {
        (count, number): members(folder, Shard(number, count))
        for count in range(2, MANY + 1)
        for number in range(1, count + 1)
    }
    for count in range(2, MANY + 1):
        parts = [before[count, number] for number in range(1, count + 1)]
        assert sorted(name for part in parts for name in part) == names
    write(folder, 60, 90)
    (folder / "5.png").rename(folder / "renamed.png")
    for count in (2, 7, MANY):
        for number in range(1, count + 1):
            grown = members(folder, Shard(number, count))
            was = {n if n != "5.png" else "renamed.png" for n in before[count, number]}
            assert was <= grown
            assert all(n in was or int(n.removesuffix(".png")) >= 60 for n in grown)
    # as the format says: the first 16 digits of the content's sha256, modulo the number of shards
    digest = hashlib.sha256((folder / "7.png").read_bytes()).hexdigest()
    assert "7.png" in members(folder, Shard(int(digest[:16], 16) % 9 + 1, 9))


def test_the_store_remembers_what_was_read_to_tell_shards(tmp_path: Path) -> None:
    write(tmp_path / "pictures", 0, 5)
    with CaptionStore(tmp_path / "store.sqlite3") as store:
        first = list(of_shard(find_pictures([tmp_path / "pictures"]), Shard(1, 2), store))
        assert store.info()["files"] == 5
        assert list(of_shard(find_pictures([tmp_path / "pictures"]), Shard(1, 2), store)) == first


@pytest.mark.parametrize(
    "text", ["", "1", "0/2", "3/2", "1/0", "-1/2", "1/2/3", "a/b", "١/٢", "1/9e9"]
)
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        Shard.parse(text)
    assert run(["caption", "nowhere", f"--shard={text}"]) == 2


def test_runs_over_shards_and_merged_stores_equal_one_run(
    captioner: Captioner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "pictures"
    write(folder, 0, 12)
    shutil.copy(folder / "3.png", folder / "again.png")
    plan = captioner.plan(caption_tokens=8)

    def captions_in(home: Path) -> dict[str, tuple[str, str]]:
        with CaptionStore(home / "captions.sqlite3") as store:
            return {r["image_sha256"]: (r["caption"], r["instruction"]) for r in store.records()}

    monkeypatch.setenv("EDGEPRISM_HOME", str(tmp_path / "one"))
    whole = caption_folder(folder, captioner, plan=plan, parallel=2)
    assert (whole.captioned, whole.duplicates) == (12, 1)
    counts = []
    for number in (1, 2, 3):
        monkeypatch.setenv("EDGEPRISM_HOME", str(tmp_path / f"shard{number}"))
        shard = Shard(number, 3)
        estimate = estimate_folder(folder, captioner, plan=plan, shard=shard)
        result = caption_folder(folder, captioner, plan=plan, parallel=2, shard=shard)
        assert estimate.total == result.total
        counts.append(result.captioned)
    assert sum(counts) == 12
    assert min(counts) > 0
    for number in (1, 2, 3):
        assert run(["cache", "merge", str(tmp_path / f"shard{number}"), "--into",
                    str(tmp_path / "merged")]) == 0  # fmt: skip
    (tmp_path / "home").mkdir()
    (tmp_path / "merged").rename(tmp_path / "home" / "captions.sqlite3")
    assert captions_in(tmp_path / "home") == captions_in(tmp_path / "one")
    monkeypatch.setenv("EDGEPRISM_HOME", str(tmp_path / "home"))
    again = caption_folder(folder, captioner, plan=plan, parallel=2)
    assert (again.captioned, again.known) == (0, 13)


def test_a_limit_counts_within_the_shard(captioner: Captioner, tmp_path: Path) -> None:
    write(tmp_path / "pictures", 0, 12)
    shard = Shard(1, 2)
    own = members(tmp_path / "pictures", shard)
    plan = captioner.plan(caption_tokens=4)
    options = FolderOptions(parallel=1, limit=2, shard=shard)
    with FolderRun(tmp_path / "pictures", captioner, plan, options) as folder_run:
        named = {outcome.picture.path.name for outcome in folder_run}
    assert len(named) == 2
    assert named <= own


def test_the_command_captions_its_shard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = bundles.write_bundle(tmp_path / "bundle", seed=1)
    folder = tmp_path / "pictures"
    write(folder, 0, 6)
    lines = []
    for shard in ("1/2", "2/2"):
        assert run(["caption", str(folder), "--model", str(bundle), "--shard", shard, "--jsonl",
                    "--max-tokens", "4", "--batch", "1"]) == 0  # fmt: skip
        lines += capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert all(f"{i}.png" in "".join(lines) for i in range(6))
