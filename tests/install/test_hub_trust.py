"""A hub that lies about names, digests, commits and sizes: nothing outside its cache is touched."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import file_download

from edgeprism.errors import PullError
from edgeprism.install import hub_bounds
from edgeprism.install.cache_folder import repository_folder
from edgeprism.install.hub import Fetched, fetch_files, list_repository
from edgeprism.progress import Progress
from tests.helpers.hub import StandInHub, commit_of

REPO, NAME = "maker/model", "weights.gguf"
FILES = {NAME: bytes(range(256)) * 200}


pytestmark = pytest.mark.usefixtures("plain_client")


@pytest.fixture(name="hub")
def _hub() -> Iterator[StandInHub]:
    with StandInHub({REPO: FILES}) as hub:
        yield hub


def fetch(hub: StandInHub, cache: Path) -> Fetched:
    progress = Progress()
    listing = list_repository(
        REPO, "main", progress, extra="pairs", endpoint=hub.endpoint, cache=cache
    )
    return fetch_files(listing, [NAME], progress)


def refused(hub: StandInHub, tmp_path: Path) -> PullError:
    """Return the error of a fetch, after which all outside the repository's cache is as it was."""
    cache = tmp_path / "cache"
    with pytest.raises(PullError) as caught:
        fetch(hub, cache)
    assert REPO in caught.value.summary
    outside = [
        path
        for path in tmp_path.rglob("*")
        if path.is_file()
        and not path.is_relative_to(repository_folder(REPO, cache))
        and path.suffix != ".lock"
        and path.name != "CACHEDIR.TAG"  # newer versions of the library write one into the cache
    ]
    assert [path.name for path in outside] == ["thesis.txt"]
    assert outside[0].read_text() == "years of work"
    return caught.value


@pytest.fixture(name="thesis", autouse=True)
def _thesis(tmp_path: Path) -> Path:
    path = tmp_path / "thesis.txt"
    path.write_text("years of work")
    return path


@pytest.mark.parametrize("etag", ["{thesis}", "{folder}/new.sh", "../../../new.sh", "..", "ab"])
def test_an_etag_is_no_path(tmp_path: Path, thesis: Path, hub: StandInHub, etag: str) -> None:
    hub.headers["ETag"] = f'"{etag.format(thesis=thesis, folder=tmp_path)}"'
    assert "ETag" in refused(hub, tmp_path).summary
    assert not hub.downloads(NAME)


@pytest.mark.parametrize("commit", ["../../../../new", "{folder}/new", "f" * 40])
@pytest.mark.parametrize("lost", [False, True])
def test_a_commit_in_a_header_is_no_path(
    tmp_path: Path, hub: StandInHub, commit: str, lost: bool
) -> None:
    hub.headers["X-Repo-Commit"] = commit.format(folder=tmp_path)
    if lost:
        hub.lost.add(NAME)  # the library keeps a note of that, too
    assert "another commit" in refused(hub, tmp_path).summary
    assert not (repository_folder(REPO, tmp_path / "cache") / "refs").exists()


@pytest.mark.parametrize("sha", ["../../../../new", "{folder}/new", "", None, "\x1b[31m", 7])
def test_a_commit_of_a_listing_is_40_digits(tmp_path: Path, hub: StandInHub, sha: Any) -> None:
    hub.info["sha"] = sha.format(folder=tmp_path) if isinstance(sha, str) else sha
    error = refused(hub, tmp_path)
    assert "commit" in error.summary
    assert error.summary.isprintable()


@pytest.mark.parametrize(
    "name",
    [
        "../../../new.gguf", "/new.gguf", "a/../../new.gguf", "a//b.gguf", "./a.gguf", "",
        "a\0b.gguf", "a\\..\\b.gguf", "C:a.gguf", "a\x1b[31m.gguf", "a\ud800.gguf", "a" * 5000,
        "/".join(["a" * 99] * 20), 7, None,
    ],
)  # fmt: skip
def test_names_that_no_file_has(tmp_path: Path, hub: StandInHub, name: Any) -> None:
    hub.info["siblings"] = [{"rfilename": name, "size": 1000, "blobId": "b" * 40}]
    error = refused(hub, tmp_path)
    assert error.summary.isprintable()
    assert len(error.summary) < 200
    assert [method for method, *_ in hub.requests] == ["GET"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": "many"}, {"size": -5}, {"size": 10**30}, {"size": 1e308}, {"size": True},
        {"blobId": "../../new"}, {"blobId": "B" * 39}, {"blobId": 7},
        {"lfs": {"sha256": 7, "size": 9, "pointerSize": 1}},
        {"lfs": {"sha256": "../../../etc/passwd", "size": 9, "pointerSize": 1}},
        {"lfs": {"sha256": "a\0b", "size": 9, "pointerSize": 1}}, {"lfs": [7]},
    ],
)  # fmt: skip
def test_records_of_another_form(tmp_path: Path, hub: StandInHub, wrong: dict[str, Any]) -> None:
    hub.info["siblings"] = [{"rfilename": NAME, "size": 1000, "blobId": "b" * 40} | wrong]
    assert refused(hub, tmp_path).summary.isprintable()


def test_a_link_out_of_the_cache_is_not_followed(
    tmp_path: Path, thesis: Path, hub: StandInHub
) -> None:
    folder = repository_folder(REPO, tmp_path / "cache") / "snapshots" / commit_of(FILES)
    folder.mkdir(parents=True)
    (folder / NAME).symlink_to(thesis)
    assert str(thesis) in refused(hub, tmp_path).summary


def test_a_larger_file_than_listed_is_not_begun(tmp_path: Path, hub: StandInHub) -> None:
    hub.sizes[NAME] = 1000
    assert "listed with 1000 bytes" in refused(hub, tmp_path).summary
    assert not hub.downloads(NAME)


def test_no_more_bytes_than_listed_are_kept(tmp_path: Path, hub: StandInHub) -> None:
    hub.surplus[NAME] = 50_000_000
    assert "sends more" in refused(hub, tmp_path).summary
    assert len(hub.downloads(NAME)) == 1
    blobs = repository_folder(REPO, tmp_path / "cache") / "blobs"
    assert sum(path.stat().st_size for path in blobs.iterdir()) == 0
    hub.surplus.clear()
    fetched = fetch(hub, tmp_path / "cache")
    assert fetched.files[0].sha256 == hashlib.sha256(FILES[NAME]).hexdigest()


@pytest.mark.parametrize("function", ["get_hf_file_metadata", "http_get"])
def test_a_library_that_cannot_be_checked_is_not_used(
    tmp_path: Path, hub: StandInHub, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    monkeypatch.delattr(file_download, function)
    with pytest.raises(PullError, match=function):
        fetch(hub, tmp_path / "cache")
    assert [path for _, path, _ in hub.requests] == [f"/api/models/{REPO}/revision/main"]


def test_other_users_of_the_library_are_left_alone(tmp_path: Path, hub: StandInHub) -> None:
    fetch(hub, tmp_path / "cache")
    hub.headers["X-Repo-Commit"] = "f" * 40
    path = huggingface_hub.hf_hub_download(
        REPO, NAME, endpoint=hub.endpoint, cache_dir=tmp_path / "other"
    )
    assert Path(path).read_bytes() == FILES[NAME]


# ---- answers without end


def test_a_listing_without_end(tmp_path: Path, hub: StandInHub) -> None:
    hub.endless = b" " * (1 << 20)
    assert "exceeds 32 MB" in refused(hub, tmp_path).summary
    assert len(hub.requests) == 1  # another try would be the same
    assert hub.sent < 48 << 20


def test_a_listing_in_drips_ends_in_time(
    tmp_path: Path, hub: StandInHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_bounds, "ANSWER_S", 0.5)
    hub.endless, hub.pause = b" ", 0.05
    start = time.monotonic()
    assert "not complete after 0.5 s" in refused(hub, tmp_path).summary
    assert time.monotonic() - start < 5
    hub.endless = b""


@pytest.mark.parametrize("of_a_file", [False, True])
def test_a_refusal_without_end_is_told_as_the_refusal(
    tmp_path: Path, hub: StandInHub, of_a_file: bool
) -> None:
    cache, progress = tmp_path / "cache", Progress()
    listing = list_repository(
        REPO, "main", progress, extra="pairs", endpoint=hub.endpoint, cache=cache
    )
    hub.endless = b"x" * 1000
    if of_a_file:
        hub.refusals = [200, 403]  # its HEAD is answered
        with pytest.raises(PullError, match="HTTP 403"):
            fetch_files(listing, [NAME], progress)
    else:
        hub.gated.add(REPO)
        assert "access" in refused(hub, tmp_path).summary
    assert hub.sent < 16 << 20


def test_a_listing_nested_without_end(tmp_path: Path, hub: StandInHub) -> None:
    hub.listing = b"[" * 200_000
    assert "nested without end" in refused(hub, tmp_path).summary


def test_redirects_without_end_are_followed_once(
    tmp_path: Path, hub: StandInHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def redirected(*_: object, **__: object) -> str:
        calls.append(1)
        raise RecursionError

    monkeypatch.setattr(file_download, "get_hf_file_metadata", redirected)
    assert "redirects without end" in refused(hub, tmp_path).summary
    assert len(calls) == 1
