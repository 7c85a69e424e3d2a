"""`edgeprism caption --ray`: what is refused before a cluster is looked for, and who loads Ray."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

from edgeprism.cli.main import run
from edgeprism.errors import OutputError, UsageError
from edgeprism.scale.cluster import ClusterOptions
from edgeprism.scale.columns import REFUSED, SCHEMA, UNREAD, failure_to_row, rows_to_table
from edgeprism.scale.spark import spark_captioner, spark_schema
from edgeprism.scale.storage import Place
from tests.scale.test_engine import OF_CAPTIONER, pictures


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a", "--ray", "local"], "Give --parquet FOLDER too."),
        (["a", "--parquet", "out"], "Give --ray local too"),
        (["a", "--actors", "2"], "Give --ray too."),
        (["a", "b", "--ray", "local", "--parquet", "out"], "one folder or one prefix"),
        (
            ["a", "--ray", "local", "--parquet", "out", "--txt"],
            "--txt has no effect there.\n  hint: Leave it out.\n",
        ),
        (
            ["a", "--ray", "local", "--parquet", "out", "--txt", "--shard", "1/2"],
            "--txt and --shard have no effect there.\n  hint: Leave them out. The cluster itself "
            "gives every actor its part.\n",
        ),
        (
            ["a", "--ray", "local", "--parquet", "out", "--shard", "1/2", "--csv", "--xmp"],
            "--csv, --xmp and --shard have no effect",
        ),
        (["a", "--ray", "local", "--parquet", ""], "Give --parquet FOLDER too."),
        (["", "--ray", "local", "--parquet", "out"], "An empty text names no folder."),
        (
            ["a", "--ray", "local", "--parquet", "out", "--threads", "2"],
            "hint: Leave it out. Actors get CPUs with --actor-cpus.\n",
        ),
        (
            ["a", "--ray", "local", "--parquet", "out", "--limit", "9", "--dry-run"],
            "hint: Leave them out. To caption some pictures, name a folder that has no others. To "
            "try it, name a folder with a few hundred of the pictures.\n",
        ),
        (["nowhere", "--ray", "local", "--parquet", "out"], "nowhere: cannot be listed"),
        (["ftp://host/a", "--ray", "local", "--parquet", "out"], "ftp://host/a: cannot be opened"),
    ],
)
def test_what_cannot_work_is_refused_at_once(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert run(["caption", *arguments]) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_file_for_the_output_is_refused_before_a_cluster_is_looked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures(1, tmp_path)
    file = tmp_path / "captions.parquet"
    file.write_bytes(b"somebody's own")
    for named in (str(file), file.as_uri()):
        arguments = ["caption", str(tmp_path), "--parquet", named]
        assert run([*arguments, "--ray", "127.0.0.1:9"]) == 1
        said = capsys.readouterr().err
        assert f"{named}: is a file, not a folder." in said
        assert "Name a folder of its own" in said
    assert file.read_bytes() == b"somebody's own"
    with pytest.raises(UsageError, match="names no folder"):
        Place.of("")


def test_what_can_be_known_is_told_before_a_cluster_is_started(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster takes half a minute to start, and its captions would be lost."""
    import ray

    def start(**_: object) -> None:
        raise AssertionError("a cluster was started")

    monkeypatch.setattr(ray, "init", start)
    source = tmp_path / "pictures"
    source.mkdir()
    pictures(1, source)
    arguments = ["caption", str(source), "--ray", "local", "--parquet"]
    assert run([*arguments, str(tmp_path / "out"), "--model", "no-such-model"]) == 4
    assert "Model 'no-such-model' is neither" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "below" / "out"
    assert run([*arguments, str(out)]) == 1
    said = capsys.readouterr().err
    assert f"error: {out}: cannot be" in said
    assert ".part" not in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "pictures"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="has no folder that takes no file")
def test_an_output_that_cannot_be_written_is_told_by_its_name() -> None:
    for name in ("/proc", "/proc/captions", "/proc/a/b"):
        with pytest.raises(OutputError) as caught:
            Place.of(name).check_writable()
        assert caught.value.message == f"{name}: cannot be written: No such file or directory."


def test_a_place_is_tried_without_a_trace(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "a" / "b"):
        Place.of(place).check_writable()
        Place.of(place.as_uri()).check_writable()
    assert list(tmp_path.iterdir()) == []


def test_a_bucket_that_does_not_answer_is_no_wrong_use(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    bucket = "s3://bucket/photos?endpoint_override=127.0.0.1:9&scheme=http&region=none"
    assert run(["caption", bucket, "--ray", "local", "--parquet", "out"]) == 5
    assert "photos?endpoint_override=127.0.0.1:9&scheme=http" in capsys.readouterr().err


def test_a_cluster_that_does_not_answer_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures(1, tmp_path)
    arguments = ["caption", str(tmp_path), "--parquet", str(tmp_path / "out")]
    assert run([*arguments, "--ray", "127.0.0.1:9"]) == 5
    assert "There is no Ray cluster at 127.0.0.1:9" in capsys.readouterr().err


def test_a_cluster_that_does_not_answer_leaves_the_output_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures(1, tmp_path)
    rows = [failure_to_row(name, None, "request", UNREAD, "not there", "") for name in "ab"]
    out = Place.of(tmp_path / "out")
    out.write_part("part-1.parquet", rows_to_table(rows))
    out.write_part(
        "part-2.parquet",
        rows_to_table([*rows, failure_to_row("c", "cc", "request", REFUSED, "none", "")]),
    )
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert len(before) == 2
    arguments = ["caption", str(tmp_path), "--parquet", str(tmp_path / "out")]
    assert run([*arguments, "--ray", "127.0.0.1:9"]) == 5
    assert "There is no Ray cluster at 127.0.0.1:9" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


_INTERRUPTED = """
import os, signal, sys, time
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)
from edgeprism.cli.main import main
from edgeprism.folder.run import FolderResult
from edgeprism.scale import cluster
from edgeprism.scale.columns import rows_to_table

def work(source, output, options, captioner, *, on_start, on_begin, on_progress):
    on_start()
    on_begin(FolderResult(3))
    if sys.argv[3] == "once":
        output.write_part("part-1.parquet", rows_to_table([]))
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
    finally:
        if sys.argv[3] == "twice":
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except KeyboardInterrupt:
                time.sleep(0.5)
                os._exit(1)  # as Ray does where a thread uses it after its end
        time.sleep(2)  # as long as a cluster takes to end
        Path(sys.argv[2]).touch()

cluster.caption_on_cluster = work
main(["caption", sys.argv[1], "--ray", "local", "--parquet", sys.argv[2] + ".out"])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="has no such signals")
@pytest.mark.parametrize("signals", ["once", "twice", "early"])
def test_ctrl_c_lets_the_cluster_end_and_a_second_one_does_not(
    signals: str, tmp_path: Path
) -> None:
    pictures(1, tmp_path)
    ended = tmp_path / "ended"
    done = subprocess.run(
        [sys.executable, "-c", _INTERRUPTED, str(tmp_path), str(ended), signals],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 130
    assert "Traceback" not in done.stderr
    assert ended.exists() == (signals != "twice")
    start, *told = done.stderr.splitlines()
    assert start == "starting a cluster on this machine, which takes 20 seconds or more"
    assert (
        told
        == {
            "once": [
                f"Interrupted: {ended}.out has every part that was finished.",
                "  hint: The same command goes on from here.",
            ],
            "twice": [],
            "early": [
                f"Interrupted before a part was finished: {ended}.out has no captions yet.",
                "  hint: The same command begins again.",
            ],
        }[signals]
    )


def test_without_the_extra_the_command_says_what_to_install(tmp_path: Path) -> None:
    for missing in ("pyarrow", "ray"):
        code = (
            f"import sys; sys.modules[{missing!r}] = None\n"
            "from edgeprism.cli.main import run\n"
            f"sys.exit(run(['caption', {str(tmp_path)!r}, '--ray', 'local', '--parquet', "
            f"{str(tmp_path / 'out')!r}]))"
        )
        pictures(1, tmp_path)
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
        assert done.returncode == 2, done.stderr
        assert 'pip install "edgeprism[ray]"' in done.stderr


def test_without_ray_nothing_of_it_is_loaded(tmp_path: Path, scripted_bundle: Path) -> None:
    pictures(1, tmp_path)
    code = (
        "import sys\nfrom edgeprism.cli.main import run\n"
        f"assert run(['caption', {str(tmp_path)!r}, '--shard', '1/1', '--model', "
        f"{str(scripted_bundle)!r}]) == 0\n"
        "assert not {'ray', 'pyarrow', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(
    "wrong", [{"actors": 0}, {"cpus": -1}, {"cpus": 0}, {"gpus": 1.5}, {"part": 0}]
)
def test_impossible_actors_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        ClusterOptions(**wrong)  # type: ignore[arg-type]
    assert ClusterOptions(cpus=0, gpus=0.25).gpus == 0.25


def test_a_bucket_is_searched_as_a_folder_is(tmp_path: Path) -> None:
    (tmp_path / "below" / ".hidden").mkdir(parents=True)
    for name in ("b.jpg", "a.png", "below/c.webp", "below/.hidden/d.jpg", "below/.e.jpg", "f.NEF"):
        (tmp_path / name).write_bytes(b"x")
    paths, passed = Place.of(tmp_path.as_uri()).pictures()
    assert [Path(p).relative_to(tmp_path).as_posix() for p in paths] == [
        "a.png", "b.jpg", "below/c.webp",
    ]  # fmt: skip
    assert passed.total == 3
    one, _ = Place.of(tmp_path / "b.jpg").pictures()
    assert one == [str(tmp_path / "b.jpg")]
    assert Place("s3://bucket/prefix").name_of("bucket/prefix/a.png") == "s3://bucket/prefix/a.png"


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems take names in UTF-8 alone")
def test_odd_entries_of_a_folder_cost_no_run(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(b"x")
    (tmp_path / "loop").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe.png")
    paths, passed = Place.of(tmp_path).pictures()
    assert paths == [str(tmp_path / "a.png")]
    assert passed.total == 2


@pytest.mark.parametrize("form", ["pandas", "arrow"])
def test_spark_gets_what_ray_gets(form: str, random_bundle: Path, tmp_path: Path) -> None:
    files = [*pictures(3, tmp_path), ("broken.png", b"no picture")]
    table = pa.table({"path": [n for n, _ in files], "content": [d for _, d in files]})
    caption = spark_captioner(
        model=str(random_bundle), caption_tokens=8, parallel=2, cores=1, **OF_CAPTIONER
    )
    batches: Iterator[object] = iter(table.to_batches() if form == "arrow" else [table.to_pandas()])
    (answer,) = list(caption(batches))
    assert list(answer.schema.names if form == "arrow" else answer.columns) == SCHEMA.names
    widths = answer.to_pydict()["width"] if form == "arrow" else answer["width"].tolist()
    assert widths[:3] == [30, 30, 30]
    assert spark_schema().count("`") == 2 * len(SCHEMA.names)


@pytest.mark.parametrize("form", ["pandas", "arrow"])
@pytest.mark.parametrize("missing", ["path", "content"])
def test_spark_is_told_which_columns_it_needs(form: str, missing: str) -> None:
    """Before a model is loaded, and with Spark's advice, not Ray's."""
    columns = {"path": ["a.png"], "content": [b"x"], "length": [1]}
    table = pa.table({name: column for name, column in columns.items() if name != missing})
    batches: Iterator[object] = iter(table.to_batches() if form == "arrow" else [table.to_pandas()])
    with pytest.raises(UsageError, match="needs the columns path and content; it has ") as caught:
        next(spark_captioner(model="no-such-model")(batches))
    assert "binaryFile" in caught.value.hint
    assert "ray" not in str(caught.value)
    assert str(caught.value).count("needs the columns") == 1


def test_a_null_path_names_no_picture(random_bundle: Path, tmp_path: Path) -> None:
    files = [data for _, data in pictures(3, tmp_path)]
    frame = pd.DataFrame({"path": ["s3://b/a.png", None, float("nan")], "content": files})
    caption = spark_captioner(
        model=str(random_bundle), caption_tokens=8, parallel=2, cores=1, **OF_CAPTIONER
    )
    (answer,) = list(caption(iter([frame])))
    assert answer["image"].tolist() == ["s3://b/a.png", "picture 1", "picture 2"]
