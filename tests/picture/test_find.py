"""Which pictures: folders, patterns and lists, in a stable order, with nothing lost."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeprism.errors import UsageError
from edgeprism.picture.find import PICTURE_SUFFIXES, PictureFile, find_pictures
from tests.helpers import ordinary_user


def make(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def found(*arguments: object, **options: object) -> list[str]:
    return [str(p.path) for p in find_pictures(arguments, **options)]  # type: ignore[arg-type]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---- folders


def test_files_come_before_sub_folders_both_by_case_folded_name(here: Path) -> None:
    make(here, "in/b.jpg", "in/A.jpg", "in/a.jpg", "in/C.png", "in/Z/1.gif", "in/y/2.gif",
         "in/äh.webp", "in/a0/x.jpg")  # fmt: skip
    assert found("in") == [
        "in/A.jpg", "in/a.jpg", "in/b.jpg", "in/C.png", "in/äh.webp",
        "in/a0/x.jpg", "in/y/2.gif", "in/Z/1.gif",
    ]  # fmt: skip


def test_only_picture_suffixes_count_whatever_their_case_and_the_others_are_counted(
    here: Path,
) -> None:
    make(here, *(f"in/{n}{s.upper() if n % 2 else s}" for n, s in enumerate(PICTURE_SUFFIXES)))
    make(here, "in/notes.txt", "in/jpg", "in/a.jpg.txt", "in/deep/Thumbs.db")
    search = find_pictures(["in"])
    assert len(list(search)) == len(PICTURE_SUFFIXES)
    assert search.skipped == 4


def test_hidden_files_and_folders_are_passed_over_unless_named(here: Path) -> None:
    make(here, "in/.a.jpg", "in/.trash/b.jpg", "in/c.jpg")
    assert found("in") == ["in/c.jpg"]
    assert found("in/.a.jpg", "in/.trash") == ["in/.a.jpg", "in/.trash/b.jpg"]


def test_a_folder_with_a_pictures_name_is_walked(here: Path) -> None:
    make(here, "in/sea.jpg/1.png")
    assert found("in") == ["in/sea.jpg/1.png"]


def test_root_and_relative_for_mirrored_outputs(here: Path) -> None:
    make(here, "one/a/x.jpg", "two/a/x.jpg", "y.jpg")
    (single,) = find_pictures(["one"])
    assert (single.root, str(single.relative), single.argument) == (Path("one"), "a/x.jpg", "one")
    several = list(find_pictures(["one", "two", "y.jpg"]))
    assert [str(p.relative) for p in several] == ["one/a/x.jpg", "two/a/x.jpg", "y.jpg"]
    assert [p.root for p in several] == [Path("one"), Path("two"), None]


def test_no_two_pictures_of_a_search_share_a_relative_path(here: Path) -> None:
    make(here, "p/photos/x.jpg", "q/photos/x.jpg", "q/x.jpg", "p/deep/er/x.jpg")
    search = find_pictures(["p/photos", "q/photos/x.jpg", "q/x.jpg", "p/deep/*", "p/../q"])
    relatives = [str(p.relative) for p in search]
    assert sorted(relatives) == ["p/deep/er/x.jpg", "p/photos/x.jpg", "q/photos/x.jpg", "q/x.jpg"]


def test_relative_of_a_picture_that_was_not_searched_for() -> None:
    assert PictureFile(Path("a/b/c.jpg"), None, "a/b/c.jpg").relative == Path("c.jpg")
    assert PictureFile(Path("a/b/c.jpg"), Path("a"), "a").relative == Path("b/c.jpg")
    nothing_shared = PictureFile(Path("/a/c.jpg"), None, "/a/c.jpg", Path())
    assert nothing_shared.relative == Path("a/c.jpg")


def test_the_working_directory_and_its_parent(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(here, "in/a.jpg", "b.jpg")
    assert found(".") == ["b.jpg", "in/a.jpg"]
    monkeypatch.chdir(here / "in")
    assert [str(p.relative) for p in find_pictures([".."])] == ["b.jpg", "in/a.jpg"]


# ---- links


def test_linked_files_are_followed_and_dangling_ones_not_lost(here: Path) -> None:
    make(here, "elsewhere/real.jpg")
    (here / "in").mkdir()
    (here / "in/link.jpg").symlink_to(here / "elsewhere/real.jpg")
    (here / "in/dangling.jpg").symlink_to("nowhere")
    (here / "in/itself.png").symlink_to("itself.png")
    (here / "in/dangling").symlink_to("nowhere")
    search = find_pictures(["in"])
    assert [p.path.name for p in search] == ["dangling.jpg", "itself.png", "link.jpg"]
    assert search.skipped == 1


def test_folder_loops_end_and_every_picture_comes_once_under_its_own_path(here: Path) -> None:
    make(here, "in/a.jpg", "in/sub/b.jpg", "in/sub/deep/c.jpg", "outside/d.jpg")
    (here / "in/0parent").symlink_to(here)
    (here / "in/0self").symlink_to(".")
    (here / "in/0sub").symlink_to("sub/deep")
    (here / "in/sub/up").symlink_to("..")
    (here / "in/sub/out").symlink_to(here / "outside")
    assert found("in") == [
        "in/a.jpg", "in/sub/b.jpg", "in/sub/deep/c.jpg", "in/0parent/outside/d.jpg",
    ]  # fmt: skip


def test_folders_full_of_links_to_each_other_do_not_multiply(here: Path) -> None:
    for n in range(30):
        make(here, f"in/{n:02}/{n}.jpg")
        for other in range(30):
            (here / f"in/{n:02}/to{other}").symlink_to(here / f"in/{other:02}")
    start = time.perf_counter()
    assert len(found("in")) == 30
    assert len(found("in/**/*.jpg")) == 30
    assert time.perf_counter() - start < 5


def test_a_parent_reached_through_a_link_is_no_repetition(here: Path) -> None:
    make(here, "far/away/x.jpg", "far/a.jpg", "a.jpg")
    (here / "link").symlink_to(here / "far/away")
    search = find_pictures(["a.jpg", "link/../a.jpg", "far/../a.jpg"])
    assert [str(p.path) for p in search] == ["a.jpg", "link/../a.jpg"]
    assert search.repeated == 1


# ---- what cannot be read


def test_unreadable_folders_are_reported_and_the_rest_is_found(here: Path) -> None:
    with ordinary_user.folder() as folder:
        make(folder, "a.jpg", "closed/b.jpg", "z/c.jpg")
        (folder / "closed").chmod(0)
        with ordinary_user.rights():
            search = find_pictures([folder])
            assert [p.path.name for p in search] == ["a.jpg", "c.jpg"]
        (folder / "closed").chmod(0o700)
        ((path, reason),) = [(bad.path, bad.reason) for bad in search.unreadable]
        assert path == folder / "closed"
        assert "denied" in reason


def test_a_folder_that_vanishes_during_the_search_is_reported(here: Path) -> None:
    make(here, "in/a.jpg", "in/b/c.jpg", "in/d/e.jpg")
    search = find_pictures(["in"])
    assert next(search).path.name == "a.jpg"
    (here / "in/b/c.jpg").unlink()
    (here / "in/b").rmdir()
    assert [p.path.name for p in search] == ["e.jpg"]
    assert [bad.path for bad in search.unreadable] == [Path("in/b")]


def test_a_tree_too_deep_for_a_path_is_reported(here: Path) -> None:
    make(here, "in/top.jpg")
    deepest = os.open("in", os.O_RDONLY)
    for _ in range(25):
        os.mkdir("d" * 200, dir_fd=deepest)
        below = os.open("d" * 200, os.O_RDONLY, dir_fd=deepest)
        os.close(deepest)
        deepest = below
    os.close(deepest)
    search = find_pictures(["in"])
    assert [p.path.name for p in search] == ["top.jpg"]
    assert "too long" in search.unreadable[0].reason
    subprocess.run(["rm", "-rf", "in"], check=True)


# ---- files named directly


def test_named_files_come_as_they_are_missing_or_oddly_named(here: Path) -> None:
    make(here, "scan.dat")
    assert found("scan.dat", "gone.jpg", "no/such/x") == ["scan.dat", "gone.jpg", "no/such/x"]


def test_the_same_path_comes_once(here: Path) -> None:
    make(here, "in/a.jpg", "in/b.jpg")
    search = find_pictures(["in/b.jpg", "in", "./in/../in/a.jpg", here / "in", "-", "-"])
    assert [str(p.path) for p in search] == ["in/b.jpg", "in/a.jpg", "-"]
    assert search.repeated == 3


def test_standard_input_is_one_picture() -> None:
    (picture,) = find_pictures(["-"])
    assert picture.is_stdin
    assert picture.argument == "-"
    with pytest.raises(UsageError, match="both"):
        find_pictures(["-"], files_from="-")


def test_an_empty_argument_does_not_mean_the_whole_folder(here: Path) -> None:
    with pytest.raises(UsageError):
        find_pictures([""])


def test_limit_stops_early_and_reads_no_further(here: Path) -> None:
    make(here, "in/a.jpg", "in/b.jpg", "in/c/d.jpg")
    search = find_pictures(["in", "nowhere.jpg"], limit=2)
    assert [p.path.name for p in search] == ["a.jpg", "b.jpg"]
    assert list(search) == []
    with pytest.raises(UsageError, match="limit"):
        find_pictures(["in"], limit=0)


# ---- patterns


def test_patterns_are_sorted_and_their_folders_walked(here: Path) -> None:
    make(here, "in/b1.jpg", "in/B2.jpg", "in/a.jpg", "in/.h.jpg", "in/bx/c.png", "in/b.txt")
    search = find_pictures(["in/[bB]*"])
    assert [str(p.path) for p in search] == ["in/b1.jpg", "in/B2.jpg", "in/bx/c.png"]
    assert search.skipped == 1
    assert found("in/?.jpg") == ["in/a.jpg"]
    assert found("in/.*.jpg") == ["in/.h.jpg"]


def test_two_stars_stand_for_any_number_of_folders(here: Path) -> None:
    make(here, "in/a.jpg", "in/x/b.jpg", "in/x/y/c.jpg", "in/x/y/c.png", "in/.h/d.jpg")
    assert found("in/**/*.jpg") == ["in/a.jpg", "in/x/b.jpg", "in/x/y/c.jpg"]
    assert found("**/y/*") == ["in/x/y/c.jpg", "in/x/y/c.png"]
    assert found("in/**/**/c.*") == ["in/x/y/c.jpg", "in/x/y/c.png"]
    assert found("in/x/**") == ["in/x/b.jpg", "in/x/y/c.jpg", "in/x/y/c.png"]


def test_a_suffix_spelled_out_means_those_files(here: Path) -> None:
    make(here, "in/1.dat", "in/2.dat", "in/3.jpg")
    assert found("in/*.dat") == ["in/1.dat", "in/2.dat"]


def test_a_file_whose_name_looks_like_a_pattern(here: Path) -> None:
    make(here, "a[1].jpg", "a1.jpg", "what?.jpg")
    assert found("a[1].jpg", "what?.jpg") == ["a[1].jpg", "what?.jpg"]


@pytest.mark.parametrize("pattern", ["in/*.png", "in/*.t*", "nowhere/*", "in/[", "**/nothing"])
def test_a_pattern_without_a_picture_is_told_before_any_work(here: Path, pattern: str) -> None:
    make(here, "in/a.jpg", "in/a.txt")
    with pytest.raises(UsageError) as error:
        find_pictures(["in", pattern])
    assert pattern in error.value.message


# ---- lists


def test_a_list_with_every_kind_of_line(here: Path) -> None:
    make(here, "in/a b.jpg", "in/c.jpg", "folder/d.jpg", "-", "*.jpg")
    lines = "\ufeffin/a b.jpg\r\n\n   \nin/c.jpg\nfolder\nin/c.jpg\n-\n*.jpg\nmissing.jpg"
    (here / "list").write_bytes(lines.encode())
    search = find_pictures([], files_from="list")
    assert [str(p.path) for p in search] == [
        "in/a b.jpg", "in/c.jpg", "folder/d.jpg", "-", "*.jpg", "missing.jpg",
    ]  # fmt: skip
    assert search.repeated == 1
    assert not any(p.is_stdin for p in find_pictures([], files_from="list"))


def test_a_list_on_standard_input_ended_by_nul(here: Path) -> None:
    make(here, "new\nline.jpg", " .jpg")
    stream = io.BytesIO(b"new\nline.jpg\0\0 .jpg\0caf\xe9.jpg")
    search = find_pictures(["first.jpg"], files_from="-", null=True, stdin=stream)
    paths = [p.path for p in search]
    assert paths == [Path("first.jpg"), Path("new\nline.jpg"), Path(" .jpg"), Path("caf\udce9.jpg")]
    assert os.fsencode(paths[3]) == b"caf\xe9.jpg"


def test_a_name_that_is_no_utf_8_is_found_in_its_folder(here: Path) -> None:
    (here / "in").mkdir()
    Path(os.fsdecode(os.fsencode(here / "in") + b"/caf\xe9.jpg")).touch()
    assert [os.fsencode(name) for name in found("in")] == [b"in/caf\xe9.jpg"]


@pytest.mark.parametrize(
    ("content", "told"), [(b"a.jpg\0b.jpg\0", "`null`"), ("a.jpg".encode("utf-16"), "UTF-8")]
)
def test_a_list_in_another_form_is_refused(here: Path, content: bytes, told: str) -> None:
    (here / "list").write_bytes(content)
    with pytest.raises(UsageError) as error:
        find_pictures([], files_from="list")
    assert told in error.value.hint


def test_list_options_that_cannot_work(here: Path) -> None:
    with pytest.raises(UsageError, match=r"no-list.*No such file"):
        find_pictures([], files_from="no-list")
    with pytest.raises(UsageError, match="`files_from`"):
        find_pictures(["a.jpg"], null=True)


def test_nothing_at_all_is_no_error(here: Path) -> None:
    (here / "list").write_bytes(b"\n\n")
    make(here, "in/notes.txt")
    assert found("in", files_from="list") == []


# ---- cost


def test_listing_takes_microseconds_a_file(here: Path) -> None:
    for folder in range(4):
        (here / f"in/{folder}").mkdir(parents=True)
        for number in range(1000):
            os.mknod(f"in/{folder}/IMG_{number}.jpg")
    start = time.process_time()
    assert sum(1 for _ in find_pictures(["in"])) == 4_000
    assert time.process_time() - start < 0.2  # 2 s for 40,000; measured: 0.8 s on a busy core


def test_listing_loads_no_picture_library() -> None:
    code = (
        "import sys; from edgeprism.picture.find import find_pictures; list(find_pictures(['.']));"
        "print([m for m in ('numpy', 'PIL', 'onnxruntime', 'llama_cpp') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_folders_are_read_as_the_iteration_goes_on(here: Path) -> None:
    make(here, "in/a.jpg", "in/b/c.jpg")
    search: Iterator[PictureFile] = find_pictures(["in"])
    next(search)
    make(here, "in/b/late.jpg")
    assert [p.path.name for p in search] == ["c.jpg", "late.jpg"]
