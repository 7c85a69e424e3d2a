"""What a search passes over: litter of systems and programs, other kinds of files, exclusions."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from edgeprism.errors import ImageError, UsageError
from edgeprism.picture.find import PictureSearch, find_pictures
from edgeprism.picture.read import read_picture
from tests.helpers.searching import find, make


def searched(*arguments: str, **options: object) -> PictureSearch:
    search = find_pictures(arguments, **options)  # type: ignore[arg-type]
    list(search)
    return search


# ---- patterns and names with brackets


def test_a_folder_of_that_very_name_is_meant(cwd: Path) -> None:
    make(cwd, "photos [2024]/a.jpg", "photos [2024]/b[1].jpg", "photos 2/wrong.jpg",
         "photos [2024]/[x]/c.jpg", "photos [2024] Rome/d.jpg")  # fmt: skip
    assert find("photos [2024]/*.jpg") == ["photos [2024]/a.jpg", "photos [2024]/b[1].jpg"]
    assert find(f"{cwd}/photos [2024]/*.jpg") == [
        f"{cwd}/photos [2024]/a.jpg", f"{cwd}/photos [2024]/b[1].jpg",
    ]  # fmt: skip
    assert find("photos [2024]/[x]/*") == ["photos [2024]/[x]/c.jpg"]
    assert find("photos [2024]/b[1].*") == ["photos [2024]/b[1].jpg"]
    assert find("photos [2024] R*/*.jpg") == ["photos [2024] Rome/d.jpg"]
    assert find("*/[x]/*.jpg") == ["photos [2024]/[x]/c.jpg"]
    assert find("**/photos [2024]/*.jpg") == ["photos [2024]/a.jpg", "photos [2024]/b[1].jpg"]


def test_brackets_are_a_pattern_where_no_such_name_exists(cwd: Path) -> None:
    make(cwd, "day 1/a.jpg", "day 2/b.jpg", "day 3/c.jpg")
    assert find("day [12]/*.jpg") == ["day 1/a.jpg", "day 2/b.jpg"]
    with pytest.raises(UsageError, match="no picture matches"):
        find("day [89]/*.jpg")


def test_results_are_mirrored_below_the_folder_that_is_meant(cwd: Path) -> None:
    make(cwd, "photos [2024]/x/a.jpg")
    (picture,) = find_pictures(["photos [2024]/*/*.jpg"])
    assert str(picture.relative) == "x/a.jpg"


# ---- litter


@pytest.mark.parametrize(
    "folder",
    ["@eaDir", "#recycle", "#snapshot", "@Recycle", "@Recently-Snapshot", "@tmp", "$RECYCLE.BIN",
     "$Recycle.Bin", "RECYCLER", "System Volume Information", "lost+found", "found.000",
     "__MACOSX", ".Trash-1000", ".Trashes", ".thumbnails", ".stfolder", ".stversions",
     ".@__thumb", "Katalog Previews.lrdata", "Katalog Smart Previews.lrdata",
     "Network Trash Folder", "~snapshot", "appdata_oc4x1y", "files_trashbin", "THMBNL"],
)  # fmt: skip
def test_folders_of_systems_and_programs_are_passed_over_and_counted(
    cwd: Path, folder: str
) -> None:
    make(cwd, f"in/{folder}/a.jpg", f"in/sub/{folder}/deep/b.jpg", "in/sub/c.jpg")
    search = find_pictures(["in"])
    assert [str(p.path) for p in search] == ["in/sub/c.jpg"]
    assert search.passed.in_closed == 2
    assert f"2 files in 2 folders not searched ({folder})" in search.passed.describe()
    assert find("in/**/*.jpg") == ["in/sub/c.jpg"]
    assert find("in/*/*.jpg") == ["in/sub/c.jpg"]
    # unless they are what is named
    assert find(f"in/{folder}") == [f"in/{folder}/a.jpg"]
    assert find(f"in/{folder}/a.jpg") == [f"in/{folder}/a.jpg"]


def test_a_nas_with_many_snapshots_is_not_counted_to_the_end(
    cwd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(cwd, "in/a.jpg", *(f"in/#snapshot/{day}/{n}.jpg" for day in range(4) for n in range(9)))
    monkeypatch.setattr("edgeprism.picture.passed.MAX_COUNTED", 20)
    search = searched("in")
    assert search.passed.in_closed < 20
    assert search.passed.describe().startswith("more than 1")
    monkeypatch.setattr("edgeprism.picture.passed.MAX_COUNTED", 40)
    assert searched("in").passed.describe() == "36 files in 1 folder not searched (#snapshot)"


def test_a_summary_names_some_of_many_folders(cwd: Path) -> None:
    make(cwd, *(f"in/.h{n:02}/a.jpg" for n in range(50)))
    words = searched("in").passed.describe()
    assert words.startswith("50 files in 50 folders not searched (.h")
    assert words.endswith(", …)")
    assert len(words) < 130


def test_of_a_photo_library_only_the_originals_are_searched(cwd: Path) -> None:
    make(cwd, "in/My.photoslibrary/originals/0/a.jpg", "in/My.photoslibrary/database/b.jpg",
         "in/My.photoslibrary/resources/derivatives/0/a_1.jpg",
         "in/Old.photolibrary/Masters/2012/c.jpg", "in/Old.photolibrary/Thumbnails/c.jpg",
         "in/resources/d.jpg")  # fmt: skip
    search = find_pictures(["in"])
    assert [str(p.path) for p in search] == [
        "in/My.photoslibrary/originals/0/a.jpg", "in/Old.photolibrary/Masters/2012/c.jpg",
        "in/resources/d.jpg",
    ]  # fmt: skip
    assert search.passed.in_closed == 3


@pytest.mark.parametrize("folder", ["recycle", "snapshots", "@eaDir2", "thumbnails", "Trash",
                                    "lrdata", "Previews"])  # fmt: skip
def test_folders_with_similar_names_are_searched(cwd: Path, folder: str) -> None:
    make(cwd, f"in/{folder}/a.jpg")
    assert find("in") == [f"in/{folder}/a.jpg"]


def test_files_of_systems_are_told_apart_from_other_files(cwd: Path) -> None:
    make(cwd, "in/a.jpg", "in/._a.jpg", "in/._notes", "in/.DS_Store", "in/Thumbs.db",
         "in/.picasa.ini", "in/Picasa.ini", "in/desktop.ini", "in/.hidden.png",
         "in/what.dat")  # fmt: skip
    search = searched("in")
    assert search.passed.describe() == "7 system files, 1 hidden file, 1 other file"
    assert search.skipped == 9


def test_what_is_passed_over_and_found_makes_up_all_files(cwd: Path) -> None:
    make(cwd, "in/a.jpg", "in/b/@eaDir/a.jpg/x.jpg", "in/b/.hid/y/z", "in/c.NEF", "in/c.xmp",
         "in/d/e.txt", "in/.DS_Store", "in/f.mov", "in/g", "in/drafts.png")  # fmt: skip
    (cwd / "in/b/loop").symlink_to("..")
    (cwd / "in/h.jpg").symlink_to("a.jpg")
    search = find_pictures(["in"], exclude=["drafts*"])
    n_pictures = len(list(search))
    assert n_pictures + search.skipped == sum(len(files) for _, _, files in os.walk("in"))


# ---- other kinds


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("a.nef a.CR2 a.cr3 a.Arw a.DNG a.raf a.rw2 a.orf a.pef a.srw a.x3f a.3fr a.iiq a.rwl "
         "a.erf a.mrw a.dcr a.kdc a.mef a.mos a.nrw a.sr2 a.gpr", "23 RAW files"),
        ("a.jxl", "1 JPEG XL file"),
        ("a.jp2 a.J2K a.jpx", "3 JPEG 2000 files"),
        ("a.psd a.svg a.xcf a.tga a.exr", "5 files in picture formats that are not read"),
        ("a.mov a.MP4 a.avi a.mkv a.mts a.3gp a.webm", "7 videos"),
        ("a.pdf a.docx", "2 documents"),
        ("a.txt a.html", "2 texts"),
        ("a.mp3 a.wav", "2 sound files"),
        ("a.zip", "1 archive"),
        ("a a.xyz", "2 other files"),
    ],
    ids=lambda value: value.split()[-2] if " " in value else value,
)  # fmt: skip
def test_kinds_by_name(cwd: Path, names: str, words: str) -> None:
    make(cwd, *(f"in/{name}" for name in names.split()))
    assert searched("in").passed.describe() == words


def test_sidecars_are_told_apart_from_texts_of_their_own(cwd: Path) -> None:
    make(cwd, "in/a.jpg", "in/b.NEF", "in/c.mov", "in/a.txt", "in/a.jpg.txt", "in/A.TXT",
         "in/a.jpg.supplemental-metadata.json", "in/b.xmp", "in/b.NEF.xmp", "in/b.pp3",
         "in/c.mov.json", "in/orphan.xmp", "in/a.aae", "in/notes.txt", "in/metadata.json",
         "in/sub/a.txt")  # fmt: skip
    words = searched("in").passed.describe()
    assert words == "10 sidecars, 3 texts, 1 RAW file, 1 video"


def test_every_suffix_that_is_read_is_found(cwd: Path) -> None:
    """Pillow's own table of suffixes says which belong to the formats that are read."""
    Image.init()
    (cwd / "in").mkdir()
    readable = set()
    for suffix, form in Image.registered_extensions().items():
        if form in ("JPEG", "MPO", "PNG", "GIF", "BMP", "PPM", "TIFF", "WEBP", "AVIF"):
            readable.add(f"in/a{suffix}")
    for suffix in (".heic", ".heif", ".hif", ".jfi", ".jif", ".pjpeg", ".dib", ".jps"):
        readable.add(f"in/a{suffix}")
    make(cwd, *readable)
    assert set(find("in")) == readable


@pytest.mark.parametrize("suffix", [".jpe", ".mpo", ".JFIF", ".pgm", ".apng", ".dib"])
def test_files_with_such_a_suffix_are_read(cwd: Path, suffix: str) -> None:
    form = {".pgm": "PPM", ".apng": "PNG", ".dib": "BMP"}.get(suffix, "JPEG")
    Image.new("RGB", (8, 6), "red").save(cwd / f"a{suffix}", form)
    (found,) = find_pictures([cwd])
    assert read_picture(found.path).size == (8, 6)


@pytest.mark.parametrize(
    ("name", "words", "cure"),
    [
        ("a.CR3", "by its name a RAW file", "darktable-cli"),
        ("b.mp4", "by its name a video", "ffmpeg"),
        ("c.zip", "by its name an archive", "unpack"),
        ("d.dat", "not a picture that can be read", "Give a JPEG"),
    ],
)
def test_a_file_of_another_kind_that_is_named_is_told_as_what_it_is(
    cwd: Path, name: str, words: str, cure: str
) -> None:
    (cwd / name).write_text("no picture")
    with pytest.raises(ImageError, match=words) as error:
        read_picture(cwd / name)
    assert cure.lower() in error.value.hint.lower()


def test_a_raw_file_whose_preview_is_read_says_so(cwd: Path) -> None:
    Image.new("RGB", (16, 12), "red").save(cwd / "DSC_9.NEF", "TIFF")
    assert "may be a thumbnail" in read_picture(cwd / "DSC_9.NEF").notes[0]
    assert read_picture((cwd / "DSC_9.NEF").read_bytes()).notes == ()


# ---- exclusions


def test_exclude_is_a_line_of_gitignore_for_each_argument(cwd: Path) -> None:
    make(cwd, "in/a.jpg", "in/b.png", "in/sub/c.png", "in/sub/d.jpg", "in/private/e.jpg",
         "other/sub/f.jpg", "other/private/g.jpg")  # fmt: skip
    assert find("in", exclude=["*.png"]) == ["in/a.jpg", "in/private/e.jpg", "in/sub/d.jpg"]
    assert find("in", exclude=["/*.png", "private/"]) == ["in/a.jpg", "in/sub/c.png",
                                                         "in/sub/d.jpg"]  # fmt: skip
    assert find("in", "other", exclude=["private", "*.png"]) == ["in/a.jpg", "in/sub/d.jpg",
                                                                "other/sub/f.jpg"]  # fmt: skip
    assert find("in/**/*.*", exclude=["sub"]) == ["in/a.jpg", "in/b.png", "in/private/e.jpg"]
    assert find("in/a.jpg", "in/b.png", "in/private", exclude=["b.*", "private/"]) == ["in/a.jpg"]
    assert find("in", exclude=["in/private", f"{cwd}/in/sub/"]) == ["in/a.jpg", "in/b.png"]
    assert find("in", exclude=["*", "!*/", "!d.jpg"]) == ["in/sub/d.jpg"]
    (cwd / "list").write_text("in/b.png\nin/private/e.jpg\nin/a.jpg\n")
    assert find(files_from="list", exclude=["private", "*.png"]) == ["in/a.jpg"]


def test_exclude_takes_a_name_as_it_is_written(cwd: Path) -> None:
    make(cwd, "in/photos [2024]/a.jpg", "in/#old/b.jpg", "in/photos 2/c.jpg", "in/[/d.jpg")
    assert find("in", exclude=["photos [2024]", "#old", "["]) == []
    assert find("in", exclude=["photos [2024]"]) == ["in/#old/b.jpg", "in/[/d.jpg"]
    assert find("in", exclude=["in/photos [2024]"]) == [
        "in/#old/b.jpg", "in/[/d.jpg", "in/photos 2/c.jpg",
    ]  # fmt: skip


def test_excluded_files_and_folders_are_counted(cwd: Path) -> None:
    make(cwd, "in/a.jpg", "in/b.png", "in/c.nef", "in/private/d.jpg")
    search = searched("in", exclude=["*.png", "*.nef", "private"])
    assert search.passed.describe() == "2 excluded files, 1 excluded folder unopened"


def test_ignore_files(cwd: Path) -> None:
    make(cwd, "in/a.jpg", "in/b.png", "in/x/c.png", "in/x/d.png", "in/y/e.png", "in/y/tmp/f.jpg")
    (cwd / "in/.edgeprismignore").write_bytes(b"\xef\xbb\xbf*.png\r\n# all\r\ntmp/\r\n")
    (cwd / "in/x/.edgeprismignore").write_text("!c.png\n")
    assert find("in") == ["in/a.jpg", "in/x/c.png"]
    assert find("in/**/*.png") == ["in/x/c.png"]
    assert find("in/y") == [], "the rules of folders above hold"
    assert find("in/y/*.png", "in/y/../x") == ["in/y/../x/c.png"]
    assert find("in/b.png") == ["in/b.png"], "a file that is named is meant"
    assert find("in", exclude=["c.png"]) == ["in/a.jpg"]


def test_a_folder_whose_ignore_file_cannot_be_read_is_reported_not_captioned(cwd: Path) -> None:
    make(cwd, "in/a.jpg", "in/x/c.jpg")
    make(cwd, "in/y/d.jpg")
    (cwd / "in/x/.edgeprismignore").mkdir()
    os.mkfifo(cwd / "in/y/.edgeprismignore")
    search = find_pictures(["in"])
    assert [str(p.path) for p in search] == ["in/a.jpg"]
    assert [bad.path for bad in search.unreadable] == [Path("in/x"), Path("in/y")]
    make(cwd, "in/x/z/e.jpg")
    with pytest.raises(UsageError, match="edgeprismignore: cannot be read"):
        find("in/x/z")


def test_nomedia_closes_a_folder_below_what_is_named(cwd: Path) -> None:
    make(cwd, "in/a.jpg", "in/x/.nomedia", "in/x/b.jpg", "in/x/deep/c.jpg", "in/y/d.jpg")
    search = searched("in")
    assert find("in") == ["in/a.jpg", "in/y/d.jpg"]
    assert search.passed.describe() == "3 files in 1 folder not searched (.nomedia)"
    assert find("in/*/*.jpg", "in/*/*/*.jpg") == ["in/y/d.jpg"]
    assert find("in/x") == ["in/x/b.jpg", "in/x/deep/c.jpg"]
