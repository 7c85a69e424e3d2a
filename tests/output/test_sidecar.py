"""Sidecars: names never collide, foreign files stay, XMP merging changes no other byte."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from edgeprism.errors import OutputError
from edgeprism.output.sidecar import TxtSidecar, XmpSidecar
from edgeprism.output.xmp import merge_description, read_description
from edgeprism.output.xmp_tree import XmpError
from edgeprism.picture.find import PictureFile, find_pictures
from tests.helpers import ordinary_user
from tests.helpers.outputs import KnownOutputs

RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
DC = "{http://purl.org/dc/elements/1.1/}"
OWN = "{urn:edgeprism:1#}"
LANG = "{http://www.w3.org/XML/1998/namespace}lang"
MODEL = {"name": "nano", "digest": "cd" * 32, "vision_quant": "int8", "lm_quant": "q8_0"}

LIGHTROOM = """\
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="Adobe XMP Core 7.0-c000 1.000000, 0000/00/00">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    xmlns:dc="http://purl.org/dc/elements/1.1/"
    xmlns:crs="http://ns.adobe.com/camera-raw-settings/1.0/"
   xmp:Rating="4"
   xmp:CreatorTool="Adobe Photoshop Lightroom Classic 14.1 (Macintosh)"
   crs:Exposure2012="+0.35"
   crs:LookName="a &gt; b, '/>'">
   <dc:subject>
    <rdf:Bag>
     <rdf:li>Hafen</rdf:li>
     <rdf:li>x-default</rdf:li>
    </rdf:Bag>
   </dc:subject>
   <!-- a comment of <dc:description> -->
   <dc:description>
    <rdf:Alt>
     <rdf:li xml:lang="x-default">Möwe &amp; Boot</rdf:li>
     <rdf:li xml:lang="de-DE">Möwe</rdf:li>
    </rdf:Alt>
   </dc:description>
   <crs:ToneCurvePV2012>
    <rdf:Seq>
     <rdf:li>0, 0</rdf:li>
    </rdf:Seq>
   </crs:ToneCurvePV2012>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
"""

DARKTABLE = """\
<?xml version="1.0" encoding="UTF-8"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="XMP Core 4.4.0-Exiv2">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:exif="http://ns.adobe.com/exif/1.0/"
    xmlns:darktable="http://darktable.sf.net/"
   exif:DateTimeOriginal="2025:07:04 12:00:00.000"
   darktable:xmp_version="5"
   darktable:iop_order_list="">
   <darktable:history>
    <rdf:Seq>
     <rdf:li
      darktable:num="0"
      darktable:operation="colorin"
      darktable:params="gz48eJzjZhgFowABWAbaAaNgwAEAEDgABg=="/>
    </rdf:Seq>
   </darktable:history>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
"""

COMPACT = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    "<R:RDF xmlns:R='http://www.w3.org/1999/02/22-rdf-syntax-ns#'>"
    "<R:Description xmlns:d='http://purl.org/dc/elements/1.1/' R:about='uuid:1' d:format='a>b'/>"
    "</R:RDF>" + " " * 200 + '<?xpacket end="w"?>'
)


def record(text: str = "a red dog") -> dict[str, Any]:
    return {"caption": text, "image": "photo.jpg", "image_sha256": "ab" * 32, "model": MODEL,
            "instruction": "Describe <this> & that.", "version": "0.1.0"}  # fmt: skip


def picture(path: Path) -> PictureFile:
    return PictureFile(path, None, str(path))


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"\xff\xd8 the picture")
    os.utime(path, (1, 1))
    return path


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def targets(folder: Path, *pictures: str, kind: Any = TxtSidecar, **options: Any) -> list[str]:
    for name in pictures:
        (folder / name).touch()
    return [kind(**options).target(picture(folder / name)).name for name in pictures]


# ---- names


def test_the_usual_names(tmp_path: Path) -> None:
    assert targets(tmp_path, "a.jpg", "b.c.png", "ü.HEIC") == ["a.txt", "b.c.txt", "ü.txt"]
    assert targets(tmp_path, "a.jpg", kind=XmpSidecar) == ["a.xmp"]


@pytest.mark.parametrize(
    ("pictures", "sidecars"),
    [
        (["a.jpg", "a.png"], ["a.jpg.txt", "a.png.txt"]),
        (["A.jpg", "a.png"], ["A.jpg.txt", "a.png.txt"]),
        (["a.jpg", "a.jpg.png"], ["a.txt", "a.jpg.png.txt"]),
        (["caf\u00e9.jpg", "cafe\u0301.png"], ["caf\u00e9.jpg.txt", "cafe\u0301.png.txt"]),
        (["a.jpg", "a.dat"], ["a.txt", "a.dat.txt"]),
        (["a.txt"], ["a.txt.txt"]),
        (["noending"], ["noending.txt"]),
    ],
)
def test_pictures_that_would_share_a_name(
    tmp_path: Path, pictures: list[str], sidecars: list[str]
) -> None:
    assert targets(tmp_path, *pictures) == sidecars
    assert targets(tmp_path, *reversed(pictures)) == sidecars[::-1]


def test_names_that_differ_in_case_alone_stay_apart_on_a_disk_that_ignores_case(
    tmp_path: Path,
) -> None:
    names = targets(tmp_path, "A.jpg", "a.jpg", "a.JPG")
    assert len({name.casefold() for name in names}) == 3


def test_no_two_pictures_of_a_folder_ever_share_a_sidecar(tmp_path: Path) -> None:
    """Random folders of confusable names, on a disk that ignores case."""
    pick = random.Random(5)
    stems, ends = ("a", "A", "a.jpg", "a.JPG", "b", "ß", "ss", "a.txt"), (".jpg", ".png", ".JPG")
    for number in range(60):
        folder = tmp_path / str(number)
        folder.mkdir()
        every = {pick.choice(stems) + pick.choice(ends) for _ in range(pick.randint(1, 12))}
        names = targets(folder, *sorted(every))
        assert len({name.casefold() for name in names}) == len(every), sorted(every)
        assert not {name.casefold() for name in names} & {name.casefold() for name in every}


def test_a_name_that_grows_too_long_is_shortened_the_same_way_each_time(tmp_path: Path) -> None:
    twins = ["é" * 125 + ".jpg", "é" * 125 + ".png"]
    names = targets(tmp_path, *twins)
    assert names == targets(tmp_path, *twins)
    assert len(set(names)) == 2
    for name, its in zip(names, twins, strict=True):
        assert name.endswith(".txt")
        assert len(os.fsencode(name)) <= 255
        written = TxtSidecar().write(record(), picture(tmp_path / its))
        assert written.path == tmp_path / name
        assert written.path.read_text("utf-8") == record()["caption"] + "\n"


def test_no_sidecar_for_standard_input() -> None:
    (stdin,) = find_pictures(["-"])
    with pytest.raises(OutputError, match="standard input"):
        TxtSidecar().write(record(), stdin)


# ---- .txt


def test_beside_the_picture_which_is_never_touched(photo: Path) -> None:
    before = photo.stat()
    result = TxtSidecar().write(record("Ein Hund, süß"), picture(photo))
    assert result.path == photo.with_suffix(".txt")
    assert result.path.read_text("utf-8") == "Ein Hund, süß\n"
    assert result.sha256 == hashlib.sha256(result.path.read_bytes()).hexdigest()
    after = photo.stat()
    assert (after.st_mtime_ns, after.st_atime_ns, after.st_ino) == (
        before.st_mtime_ns, before.st_atime_ns, before.st_ino,
    )  # fmt: skip
    assert names(photo.parent) == ["photo.jpg", "photo.txt"]


def test_writing_the_same_again_changes_nothing(photo: Path) -> None:
    for kind in (TxtSidecar, XmpSidecar):
        first = kind().write(record(), picture(photo))
        status = first.path.stat()
        again = kind().write(record(), picture(photo))
        assert (again.sha256, again.path) == (first.sha256, first.path)
        assert first.path.stat() == status


def test_beside_the_link_not_its_target(photo: Path, tmp_path: Path) -> None:
    links = tmp_path / "links"
    links.mkdir()
    (links / "nice.jpg").symlink_to(photo)
    TxtSidecar().write(record(), picture(links / "nice.jpg"))
    assert names(links) == ["nice.jpg", "nice.txt"]
    assert names(tmp_path) == ["links", "photo.jpg"]


def test_a_mirrored_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("in/a.jpg", "in/deep/er/b.jpg", "in/deep/b.png", "in/deep/b.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    sidecar = TxtSidecar(out_dir="out")
    paths = [sidecar.write(record(), picture).path for picture in find_pictures(["in"])]
    assert [str(path.relative_to(tmp_path)) for path in paths] == [
        "out/a.txt", "out/deep/b.jpg.txt", "out/deep/b.png.txt", "out/deep/er/b.txt",
    ]  # fmt: skip
    assert names(tmp_path / "in") == ["a.jpg", "deep"]


def test_a_file_of_someone_else_stays_unless_told_otherwise(photo: Path) -> None:
    notes = photo.with_suffix(".txt")
    notes.write_text("my own notes")
    with pytest.raises(OutputError) as error:
        TxtSidecar().write(record(), picture(photo))
    assert str(notes) in error.value.message
    assert "`overwrite`" in error.value.hint
    assert notes.read_text() == "my own notes"
    TxtSidecar(overwrite=True).write(record(), picture(photo))
    assert notes.read_text("utf-8") == record()["caption"] + "\n"


def test_our_own_file_is_replaced_until_someone_changes_it(photo: Path) -> None:
    sidecar = TxtSidecar(outputs=KnownOutputs())
    sidecar.write(record("one"), picture(photo))
    second = sidecar.write(record("two"), picture(photo))
    assert second.path.read_text() == "two\n"
    second.path.write_text("corrected by hand")
    with pytest.raises(OutputError, match="changed since"):
        sidecar.write(record("three"), picture(photo))


def test_relative_pictures_are_known_by_their_absolute_sidecar(
    photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photo.parent)
    outputs = KnownOutputs()
    photo.with_suffix(".txt").write_text("?")
    with pytest.raises(OutputError):
        TxtSidecar(outputs=outputs).write(record(), picture(Path("photo.jpg")))
    assert outputs.lookups == [photo.with_suffix(".txt")]


@pytest.mark.parametrize("content", [b"\xff\xd8\xff\x00\x00 a picture", b"x" * (2 << 20)])
def test_even_overwriting_spares_what_is_no_caption(photo: Path, content: bytes) -> None:
    photo.with_suffix(".txt").write_bytes(content)
    with pytest.raises(OutputError, match="is not a caption"):
        TxtSidecar(overwrite=True).write(record(), picture(photo))
    assert photo.with_suffix(".txt").read_bytes() == content


@pytest.mark.parametrize("kind", [TxtSidecar, XmpSidecar])
def test_nothing_is_written_through_a_link_or_read_from_a_pipe(kind: Any, photo: Path) -> None:
    precious = photo.parent / "precious"
    precious.write_text("precious")
    place = photo.with_suffix(kind.suffix)
    place.symlink_to(precious)
    with pytest.raises(OutputError, match="link"):
        kind(overwrite=True).write(record(), picture(photo))
    place.unlink()
    os.mkfifo(place)
    with pytest.raises(OutputError, match="not a regular file"):
        kind(overwrite=True).write(record(), picture(photo))
    assert precious.read_text() == "precious"


def test_a_read_only_folder_is_named_and_out_dir_is_the_way_out() -> None:
    with ordinary_user.folder() as folder:
        (folder / "in").mkdir()
        (folder / "out").mkdir(0o777)
        (folder / "out").chmod(0o777)
        (folder / "in/photo.jpg").touch()
        (folder / "in").chmod(0o555)
        with ordinary_user.rights():
            for kind in (TxtSidecar, XmpSidecar):
                with pytest.raises(OutputError) as error:
                    kind().write(record(), picture(folder / "in/photo.jpg"))
                assert str(folder / "in") in error.value.message
                assert "`out_dir`" in error.value.hint
                mirrored = kind(out_dir=folder / "out")
                assert mirrored.write(record(), picture(folder / "in/photo.jpg")).path.is_file()


def test_an_out_dir_that_cannot_be_one(photo: Path) -> None:
    with pytest.raises(OutputError, match=r"photo\.txt"):
        TxtSidecar(out_dir=photo).write(record(), picture(photo))
    folder = photo.with_suffix(".txt")
    folder.mkdir()
    with pytest.raises(OutputError, match="not a regular file"):
        TxtSidecar(overwrite=True).write(record(), picture(photo))


def test_leftovers_of_sidecars_go_and_other_files_stay(photo: Path) -> None:
    gone = 2**22 + 1  # beyond the highest process id of Linux
    for name in (f".photo.txt.edgeprism.partial-{gone}", f".other.txt.edgeprism.partial-{gone}"):
        (photo.parent / name).write_text("half")
    staying = [f".film.mp4.edgeprism.partial-{gone}", f".film.mp4.partial-{gone}", ".hidden.txt",
               f".photo.txt.partial-{gone}", f".x.txt.old-{gone}", f".x.txt.partial-{gone}",
               ]  # fmt: skip
    for name in staying:
        (photo.parent / name).write_text("somebody's")
    TxtSidecar().write(record(), picture(photo))
    assert names(photo.parent) == [*staying, "photo.jpg", "photo.txt"]


# ---- XMP


def descriptions(data: bytes) -> dict[str, str]:
    """The descriptions by language, as any RDF reader finds them."""
    root = ElementTree.fromstring(data)
    items = root.iterfind(f".//{DC}description/{RDF}Alt/{RDF}li")
    return {item.attrib[LANG]: item.text or "" for item in items}


def without(data: bytes, *tags: str) -> list[tuple[str, dict[str, str], str]]:
    """The document without elements of those names, to compare what must stay the same."""

    def walk(element: ElementTree.Element) -> Iterator[tuple[str, dict[str, str], str]]:
        if element.tag not in tags:
            yield element.tag, dict(element.attrib), (element.text or "").strip()
            for child in element:
                yield from walk(child)

    return list(walk(ElementTree.fromstring(data)))


def test_a_new_sidecar_holds_description_and_provenance(photo: Path) -> None:
    text = 'Ein <Hund> & "Katze"\nauf dem 🛶 ]]>'
    result = XmpSidecar().write(record(text), picture(photo))
    data = result.path.read_bytes()
    assert result.path.name == "photo.xmp"
    assert data.startswith('<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'.encode())
    assert data.endswith(b'<?xpacket end="w"?>\n')
    assert descriptions(data) == {"x-default": text}
    own = ElementTree.fromstring(data).find(f".//{OWN}captioner")
    assert own is not None
    fields = {child.tag.removeprefix(OWN): child.text for child in own}
    assert fields["model"] == "nano"
    assert fields["modelDigest"] == "cd" * 32
    assert fields["instruction"] == "Describe <this> & that."


@pytest.mark.parametrize("source", [LIGHTROOM, DARKTABLE, COMPACT])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_merging_keeps_everything_else(source: str, encoding: str) -> None:
    if encoding.startswith(("utf-16", "utf-32")):
        source = source.replace(' encoding="UTF-8"', "")
    before = source.encode(encoding)
    after = merge_description(before, "a red dog", {"model": "nano"})
    known = after.decode(encoding).encode()
    assert descriptions(known)["x-default"] == "a red dog"
    own = (f"{DC}description", f"{OWN}captioner")
    assert without(known, *own) == without(source.encode(), *own)
    assert after[:2] == before[:2]  # the byte-order mark
    again = merge_description(after, "a red dog", {"model": "nano"})
    assert again == after
    other = merge_description(after, "a blue cat", {"model": "large"})
    assert read_description(other).text == "a blue cat"
    # A second merge adds nothing.
    assert merge_description(other, "a red dog", {"model": "nano"}) == after


def test_every_other_byte_of_a_lightroom_sidecar_stays(photo: Path) -> None:
    place = photo.with_suffix(".xmp")
    place.write_bytes(LIGHTROOM.encode())
    place.chmod(0o640)
    XmpSidecar(overwrite=True).write(record(), picture(photo))
    data = place.read_text("utf-8")
    assert place.stat().st_mode & 0o777 == 0o640
    assert descriptions(data.encode()) == {"x-default": "a red dog", "de-DE": "Möwe"}
    rest, own = data.split("\n   <edgeprism:captioner")
    own = own.split("</edgeprism:captioner>")[1]
    assert rest + own == LIGHTROOM.replace("Möwe &amp; Boot", "a red dog")


def test_the_packet_wrapper_and_its_padding_stay() -> None:
    after = merge_description(COMPACT.encode(), "a red dog", {}).decode()
    head, tail = COMPACT.split("/></R:RDF>")
    assert after.startswith(head + ">")
    assert after.endswith("</R:Description></R:RDF>" + tail)


def block(inner: str, attributes: str = "") -> bytes:
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
        'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" '
        'xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:o="http://other/">'
        f'<rdf:Description rdf:about="" {attributes}>{inner}</rdf:Description>'
        "</rdf:RDF></x:xmpmeta>"
    ).encode()


@pytest.mark.parametrize(
    ("source", "before", "after"),
    [
        (block("<dc:description><rdf:Alt><rdf:li xml:lang='X-Default'/></rdf:Alt>"
               "</dc:description>"), "", {"x-default": "new"}),
        (block("<dc:description><rdf:Alt><rdf:li xml:lang='fr'>un</rdf:li></rdf:Alt>"
               "</dc:description>"), "", {"x-default": "new", "fr": "un"}),
        (block("<dc:description><rdf:Alt/></dc:description>"), "", {"x-default": "new"}),
        (block("<dc:description/>"), "", {"x-default": "new"}),
        (block("<dc:description>plain</dc:description>"), "plain", {"x-default": "new"}),
        (block("<dc:description><rdf:Bag><rdf:li>in a bag</rdf:li></rdf:Bag></dc:description>"),
         "in a bag", {"x-default": "new"}),
        (block("", "o:description='theirs' dc:description = 'short > form'"), "short > form",
         {"x-default": "new"}),
        (block("<dc:description><rdf:Alt><rdf:li xml:lang='x-default'><![CDATA[<old>]]>&#33;"
               "</rdf:li></rdf:Alt></dc:description>"), "<old>!", {"x-default": "new"}),
        (block("<o:x><dc:description>inner</dc:description></o:x>"), "", {"x-default": "new"}),
        (block("").replace(b'<rdf:Description rdf:about="" ></rdf:Description>', b""), "",
         {"x-default": "new"}),
        (b"<RDF xmlns='http://www.w3.org/1999/02/22-rdf-syntax-ns#'/>", "", {"x-default": "new"}),
        (b"<RDF xmlns='http://www.w3.org/1999/02/22-rdf-syntax-ns#'><Description><description "
         b"xmlns='http://purl.org/dc/elements/1.1/'><Alt xmlns="
         b"'http://www.w3.org/1999/02/22-rdf-syntax-ns#'><li xml:lang='x-default'>old</li></Alt>"
         b"</description></Description></RDF>", "old", {"x-default": "new"}),
    ],
)  # fmt: skip
def test_other_forms_of_a_description(source: bytes, before: str, after: dict[str, str]) -> None:
    assert read_description(source).text == before
    merged = merge_description(source, "new", {"model": "nano"})
    assert descriptions(merged) == after
    assert read_description(merged).by_edgeprism
    own = (f"{DC}description", f"{OWN}captioner")
    if before != "short > form" and b"<rdf:Description" in source:
        assert without(merged, *own) == without(source, *own)
    assert merge_description(merged, "new", {"model": "nano"}) == merged


def test_a_persons_description_stays_unless_told_otherwise(photo: Path) -> None:
    place = photo.with_suffix(".xmp")
    place.write_bytes(LIGHTROOM.encode())
    with pytest.raises(OutputError, match="description") as error:
        XmpSidecar().write(record(), picture(photo))
    assert "`overwrite`" in error.value.hint
    assert place.read_bytes() == LIGHTROOM.encode()


def test_our_description_is_replaced_until_someone_changes_it(photo: Path) -> None:
    place = photo.with_suffix(".xmp")
    place.write_bytes(DARKTABLE.encode())
    XmpSidecar().write(record("one"), picture(photo))
    XmpSidecar().write(record("two"), picture(photo))
    assert descriptions(place.read_bytes()) == {"x-default": "two"}
    edited = place.read_bytes().replace(b">two<", b">two, says Ann<")
    place.write_bytes(edited)
    with pytest.raises(OutputError):
        XmpSidecar().write(record("three"), picture(photo))
    assert place.read_bytes() == edited


def test_our_text_is_known_after_another_program_wrote_the_file_anew() -> None:
    merged = merge_description(None, "a red dog", {"model": "nano"})
    rewritten = ElementTree.tostring(ElementTree.fromstring(merged), encoding="utf-8")
    assert b"ns0:" in rewritten
    assert read_description(rewritten).by_edgeprism
    # Exiv2 writes a structure of plain fields in the short form, Adobe's toolkit in either.
    short = '<e:captioner xmlns:e="urn:edgeprism:1#" e:model="nano" e:textSha256="{}"/>'
    inner = (
        '<e:captioner xmlns:e="urn:edgeprism:1#"><rdf:Description e:model="nano">'
        "<e:textSha256>{}</e:textSha256></rdf:Description></e:captioner>"
    )
    description = (
        "<dc:description><rdf:Alt><rdf:li xml:lang='x-default'>hi</rdf:li></rdf:Alt>"
        "</dc:description>"
    )
    for form in (short, inner):
        source = block(description + form.format(hashlib.sha256(b"hi").hexdigest()))
        assert read_description(source).by_edgeprism
        assert merge_description(source, "hi", {"model": "nano"}) == source
        assert merge_description(source, "hi", {"model": "large"}) != source
        changed = merge_description(source, "ho", {"model": "nano"})
        assert changed.count(b":captioner") == 2
        assert descriptions(changed) == {"x-default": "ho"}


BOMB = b"""<?xml version="1.0"?>
<!DOCTYPE lolz [<!ENTITY a "lol"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>
<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">&b;</rdf:RDF>"""


@pytest.mark.parametrize(
    "source",
    [
        b"\0", b"not XML", b"<a>", LIGHTROOM.encode()[:-20], LIGHTROOM.encode("latin-1"),
        b"<html/>", BOMB, BOMB.decode().encode("utf-16"), b"\xff\xfe\x00", b"<a:b/>",
        b"<!DOCTYPE x SYSTEM 'file:///etc/passwd'>" + LIGHTROOM.encode(),
        LIGHTROOM.encode().replace(b"</x:xmpmeta>", b"</x:xmpmeta><again/>"),
        b" " * ((32 << 20) + 1),
    ],
)  # fmt: skip
def test_what_is_no_sound_xmp_is_named_and_untouched(photo: Path, source: bytes) -> None:
    place = photo.with_suffix(".xmp")
    place.write_bytes(source)
    for overwrite in (False, True):
        with pytest.raises(OutputError) as error:
            XmpSidecar(overwrite=overwrite).write(record(), picture(photo))
        assert str(place) in error.value.message
    assert place.read_bytes() == source


def test_a_layout_that_cannot_be_changed_safely_is_refused_not_broken() -> None:
    rebound = block(
        "<dc:description><rdf:Alt xmlns:rdf='http://other/'/></dc:description>"
        "<dc:description xmlns:dc='http://other/'/>"
    )
    try:
        merged = merge_description(rebound, "new", {})
    except XmpError:
        return
    assert descriptions(merged) == {"x-default": "new"}


def test_great_depth_and_width_are_no_trouble() -> None:
    deep = block("<o:x>" * 200_000 + "</o:x>" * 200_000)
    assert read_description(merge_description(deep, "new", {})).text == "new"
    wide = block("", " ".join(f"o:a{n}='{'v' * 50}'" for n in range(20_000)))
    assert read_description(merge_description(wide, "new", {})).text == "new"


@pytest.mark.parametrize(
    "text", ["", "a\x00b\x1b\ufffe\udc80", " padded ", "a\r\nb\rc", "]]>&amp;"]
)
def test_any_caption_makes_well_formed_xml(photo: Path, text: str) -> None:
    result = XmpSidecar().write(record(text), picture(photo))
    (description,) = descriptions(result.path.read_bytes()).values()
    assert description.replace("\ufffd", "?") == (
        text.replace("\r\n", "\n").replace("\r", "\n").translate(
            dict.fromkeys((0, 0x1B, 0xFFFE, 0xDC80), "?")
        )
    )  # fmt: skip
    status = result.path.stat()
    XmpSidecar().write(record(text), picture(photo))
    assert result.path.stat() == status, "the same text again writes nothing"


def test_damage_at_any_place_never_goes_unnoticed() -> None:
    """A document damaged at random is refused, or merged into one that reads back."""
    pick = random.Random(11)
    source = LIGHTROOM.encode()
    for _ in range(400):
        damaged = bytearray(source)
        for _ in range(pick.randint(1, 3)):
            start = pick.randrange(len(damaged))
            end = start + pick.choice((0, 1, 5))
            damaged[start:end] = pick.choice((b"", b"<", b'"', b"/>", b"x"))
        try:
            merged = merge_description(bytes(damaged), "new", {})
        except XmpError:
            continue
        assert read_description(merged).text == "new"
        assert ElementTree.fromstring(merged) is not None
