"""A Ray cluster of several actors on this machine: same captions, kills, poison, resuming."""

from __future__ import annotations

import contextlib
import os
import platform
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray
import ray.data

from edgeprism import Captioner
from edgeprism.cli.main import run
from edgeprism.errors import EdgePrismError
from edgeprism.folder.batch import Batch
from edgeprism.folder.run import FolderResult
from edgeprism.picture.find import find_pictures
from edgeprism.scale.captioner import RayCaptioner
from edgeprism.scale.cluster import ClusterOptions, caption_on_cluster
from edgeprism.scale.columns import UNREAD, failure_to_row, rows_to_table
from edgeprism.scale.connection import ClusterError
from edgeprism.scale.engine import EngineError
from edgeprism.scale.storage import Place
from tests.helpers import poison
from tests.scale.test_engine import OF_CAPTIONER, pictures

ACTORS = 2
OPTIONS: dict[str, Any] = {"caption_tokens": 8, "parallel": 2, **OF_CAPTIONER}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One cluster for all tests; `poison.picture()` ends each process that captions it."""
    site = poison.plant(tmp_path_factory.mktemp("poison") / "site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEPRISM_HOME", str(tmp_path_factory.mktemp("actors")))
        patch.setenv("PYTHONPATH", str(site))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        for _ in range(3):  # on a busy machine Ray gives up before its own processes have started
            with contextlib.suppress(Exception):
                ray.init(num_cpus=ACTORS + 1, include_dashboard=False, log_to_driver=False,
                         logging_level="ERROR", object_store_memory=100 << 20)  # fmt: skip
                break
        assert ray.is_initialized()
        ray.data.DataContext.get_current().enable_progress_bars = False
        yield
        ray.shutdown()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eighteen pictures, a broken one, and another file."""
    found = tmp_path / "pictures"
    found.mkdir()
    pictures(18, found)
    (found / "broken.png").write_bytes(b"no picture")
    (found / "notes.md").touch()
    return found


def texts(captioner: Captioner, folder: Path) -> dict[str, str | None]:
    """The captions that the folder engine makes, by path."""
    batch = Batch(captioner, captioner.plan(caption_tokens=8), parallel=2)
    outcomes = batch.run(find_pictures([folder]))
    return {str(o.picture.path): o.record["caption"] if o.record else None for o in outcomes}


def put_out(output: Path) -> dict[str, str | None]:
    """The captions of an output, by path; fails where a path has two rows."""
    table = pq.read_table(output)
    rows = table.to_pylist()
    found = {row["image"]: row["caption"] for row in rows}
    assert len(found) == len(rows), "a picture has two rows"
    assert all((row["caption"] is None) == (row["error"] is not None) for row in rows)
    return found


def caption(folder: Path, output: Path, bundle: Path, **cluster: Any) -> FolderResult:
    return caption_on_cluster(
        Place.of(folder), Place.of(output), ClusterOptions(actors=ACTORS, **cluster),
        {"model": str(bundle), **OPTIONS},
    )  # fmt: skip


def workers() -> list[int]:
    """The processes of this test's own actors: descendants of this process, by Ray's name."""
    parents, names = {}, {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            parents[int(entry.name)] = int(fields[1])
            names[int(entry.name)] = (entry / "cmdline").read_text()

    def is_own(pid: int) -> bool:
        while pid > 1:
            if pid == os.getpid():
                return True
            pid = parents.get(pid, 0)
        return False

    return [pid for pid, name in names.items() if name.startswith("ray::Map") and is_own(pid)]


def test_actors_caption_as_the_folder_engine_does(
    cluster: None, captioner: Captioner, random_bundle: Path, folder: Path, tmp_path: Path
) -> None:
    table = ray.data.read_binary_files(str(folder), include_paths=True, file_extensions=["png"])
    captioned = table.repartition(6).map_batches(
        RayCaptioner,
        fn_constructor_kwargs={"model": str(random_bundle), **OPTIONS},
        batch_size=4,
        batch_format="pyarrow",
        num_cpus=1,
        concurrency=ACTORS,
    )
    captioned.write_parquet(str(tmp_path / "out"))
    expected = texts(captioner, folder)
    assert len(expected) == 19
    assert put_out(tmp_path / "out") == expected


def test_read_images_gives_the_captions_of_pixels(
    cluster: None, captioner: Captioner, random_bundle: Path, folder: Path
) -> None:
    (folder / "broken.png").unlink()
    rows = ray.data.read_images(str(folder), mode="RGB", include_paths=True,
                                file_extensions=["png"]).map_batches(
        RayCaptioner,
        fn_constructor_kwargs={"model": str(random_bundle), **OPTIONS},
        batch_size=8, batch_format="pyarrow", num_cpus=1, concurrency=1,
    ).take_all()  # fmt: skip
    assert {row["image"]: row["caption"] for row in rows} == texts(captioner, folder)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")
def test_killed_actors_lose_and_repeat_nothing(
    cluster: None, captioner: Captioner, random_bundle: Path, folder: Path, tmp_path: Path
) -> None:
    kills: list[float] = []
    ended, rng = threading.Event(), random.Random(4)

    def kill() -> None:
        while len(kills) < 3 and not ended.wait(rng.uniform(0.2, 1.0)):
            if found := workers():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(rng.choice(found), signal.SIGKILL)
                    kills.append(time.monotonic())

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        result = caption(folder, tmp_path / "out", random_bundle, part=2)
    finally:
        ended.set()
        killer.join()
    assert kills
    assert (result.captioned, len(result.failures), result.done) == (18, 1, 19)
    assert put_out(tmp_path / "out") == texts(captioner, folder)
    assert all(p.suffix == ".parquet" for p in (tmp_path / "out").iterdir())


def test_a_poisonous_picture_costs_itself_alone(
    cluster: None, captioner: Captioner, random_bundle: Path, folder: Path, tmp_path: Path
) -> None:
    (folder / "deadly.png").write_bytes(poison.picture())
    result = caption(folder, tmp_path / "out", random_bundle, part=5)
    assert (result.captioned, len(result.failures)) == (18, 2)
    expected = texts(captioner, folder)
    assert expected[str(folder / "deadly.png")]
    assert put_out(tmp_path / "out") == {**expected, str(folder / "deadly.png"): None}


def test_a_second_run_makes_what_is_missing(
    cluster: None, captioner: Captioner, random_bundle: Path, folder: Path, tmp_path: Path
) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    for name in ("p3.png", "p4.png", "p5.png"):
        (folder / name).rename(hidden / name)
    first = caption(folder, tmp_path / "out", random_bundle, part=4)
    for path in hidden.iterdir():
        path.rename(folder / path.name)
    ended = f".part-1-000001.parquet.{platform.node()}.{2**22 + 1}.partial"
    (tmp_path / "out" / ended).write_bytes(b"PAR1")
    second = caption(folder, tmp_path / "out", random_bundle, part=4)
    assert not (tmp_path / "out" / ended).exists()
    assert (first.total, first.captioned, first.known) == (16, 15, 0)
    assert (second.total, second.captioned, second.known) == (19, 3, 15)
    assert [str(f.path) for f in second.failures] == [str(folder / "broken.png")]  # as before
    assert put_out(tmp_path / "out") == texts(captioner, folder)


def test_the_command_writes_parquet_and_says_what_failed(
    cluster: None, random_bundle: Path, folder: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "out"
    command = [
        *("caption", folder.as_uri(), "--ray", "auto", "--parquet", str(out), "--actors", "1"),
        *("--model", str(random_bundle), "--max-tokens", "8", "--batch", "2"),
    ]
    assert run(command) == 3
    said = capsys.readouterr()
    assert "19 pictures: 18 captioned, 0 known already, 1 failed" in said.err
    broken = f"error: {folder / 'broken.png'}: not a picture that can be read"
    assert broken in said.err
    assert "20 files in all, 1 passed over" in said.err
    assert said.out == ""
    assert run(command) == 3  # as in a folder run, which tells it every time
    said = capsys.readouterr()
    assert "19 pictures: 0 captioned, 18 known already, 1 failed" in said.err
    assert broken in said.err
    assert len(put_out(out)) == 19


def test_errors_of_the_model_and_of_the_cluster_are_told(
    cluster: None, random_bundle: Path, folder: Path, tmp_path: Path
) -> None:
    unread = failure_to_row(str(folder / "p1.png"), None, "request", UNREAD, "not there", "")
    place = Place.of(tmp_path / "out")
    place.write_part("part-1.parquet", rows_to_table([unread]))
    before = (tmp_path / "out" / "part-1.parquet").read_bytes()
    with pytest.raises(EngineError, match="no-such-model") as caught:
        caption(folder, tmp_path / "out", tmp_path / "no-such-model")
    assert caught.value.exit_code == 4
    with pytest.raises(ClusterError, match="no room for an actor of 64 CPUs"):
        caption(folder, tmp_path / "out", tmp_path, cpus=64)
    assert [path.read_bytes() for path in (tmp_path / "out").iterdir()] == [before]
    assert caption(folder, tmp_path / "out", random_bundle).captioned == 18
    assert put_out(tmp_path / "out")[str(folder / "p1.png")] is not None
    (tmp_path / "file").touch()
    with pytest.raises(EdgePrismError, match=r"file/out.* cannot be (written|listed|looked for)"):
        caption(folder, tmp_path / "file" / "out", random_bundle)
