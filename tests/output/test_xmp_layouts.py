"""XMP in the forms that people and programs write it: a person's text stays, in any of them.

`xml.etree` reads the results independently; what must not change is compared byte for byte.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from edgeprism.errors import OutputError
from edgeprism.output.sidecar import XmpSidecar
from edgeprism.output.xmp import merge_description, read_description
from edgeprism.picture.find import PictureFile

RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
DC = "http://purl.org/dc/elements/1.1/"
LANG = "{http://www.w3.org/XML/1998/namespace}lang"
RECORD: dict[str, Any] = {"caption": "a red dog", "image_sha256": "ab" * 32,
                          "model": {"name": "nano", "digest": "cd" * 32}}  # fmt: skip


def document(*blocks: str, namespaces: str = "") -> str:
    return (
        f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{RDF}" xmlns:dc="{DC}" '
        f'xmlns:o="http://other/" {namespaces}>{"".join(blocks)}</rdf:RDF></x:xmpmeta>'
    )


def block(inner: str, attributes: str = "") -> str:
    return f'<rdf:Description rdf:about="" {attributes}>{inner}</rdf:Description>'


def alternative(*items: str) -> str:
    return f"<dc:description><rdf:Alt>{''.join(items)}</rdf:Alt></dc:description>"


def item(text: str, language: str = "x-default", more: str = "") -> str:
    return f'<rdf:li xml:lang="{language}"{more}>{text}</rdf:li>'


DEFAULT_EMPTY = item("")
VALUE = "<rdf:Description><rdf:value>mine</rdf:value></rdf:Description>"
PERSONS = {
    "x-default": document(block(alternative(item("mine")))),
    "German alone": document(block(alternative(item("mine", "de-DE")))),
    "German beside an empty default": document(
        block(alternative(DEFAULT_EMPTY, item("mine", "de-DE")))
    ),
    "no language": document(block(alternative("<rdf:li>mine</rdf:li>"))),
    "two languages in two blocks": document(
        block(alternative(item("mine", "fr"))), block(alternative(item("ours", "de")))
    ),
    "an empty one before it": document(
        block("<dc:description/>"), block(alternative(item("mine")))
    ),
    "a qualified item": document(
        block(alternative(item("<rdf:value>mine</rdf:value><o:by>me</o:by>",
                               more=' rdf:parseType="Resource"')))
    ),
    "a qualified item, long form": document(block(alternative(item(VALUE)))),
    "a value as attribute of the item": document(
        block(alternative(item("", more=' rdf:value="mine"')))
    ),
    "a foreign attribute of an empty item": document(
        block(alternative(item("", more=' o:by="me"')))
    ),
    "a resource": document(block('<dc:description rdf:resource="http://mine/"/>')),
    "a node": document(block('<dc:description rdf:nodeID="mine"/>')),
    "an inner Description": document(
        block(f"<dc:description>{VALUE}</dc:description>")
    ),
    "a structure": document(
        block('<dc:description rdf:parseType="Resource"><rdf:value>mine</rdf:value>'
              "</dc:description>")
    ),
    "a literal": document(
        block('<dc:description rdf:parseType="Literal"><p><b>mine</b></p></dc:description>')
    ),
    "a deep text": document(
        block("<dc:description><o:a><o:b><o:c><o:d>mine</o:d></o:c></o:b></o:a></dc:description>")
    ),
    "a plain text": document(block("<dc:description>mine</dc:description>")),
    "CDATA": document(block("<dc:description><![CDATA[mine]]></dc:description>")),
    "entities": document(block(alternative(item("&#109;&#x69;ne")))),
    "a plain text with a language": document(
        block('<dc:description xml:lang="de">mine</dc:description>')
    ),
    "a list": document(
        block("<dc:description><rdf:Seq><rdf:li>mine</rdf:li></rdf:Seq></dc:description>")
    ),
    "a bag of two": document(
        block("<dc:description><rdf:Bag><rdf:li/><rdf:li>mine</rdf:li></rdf:Bag></dc:description>")
    ),
    "an attribute": document(block("", 'dc:description="mine"')),
    "an attribute under another prefix": document(
        block("", f'xmlns:d="{DC}" d:description="mine"'), block("<dc:description/>")
    ),
    "an element under another prefix": document(
        block(f'<d:description xmlns:d="{DC}">mine</d:description>')
    ),
    "a default namespace": document(block(f'<description xmlns="{DC}">mine</description>')),
    "Dublin Core's older address": document(
        block("", 'xmlns:d="http://purl.org/dc/1.1/" d:description="mine"')
    ),
    "a comment": document(block("<dc:description><!-- mine --></dc:description>")),
    "a comment in an empty list": document(
        block("<dc:description><rdf:Alt><!-- mine --></rdf:Alt></dc:description>")
    ),
    "an instruction": document(block("<dc:description><?mine?></dc:description>")),
    "another node than Description": document(
        block(""), "<o:Photo><dc:description>mine</dc:description></o:Photo>"
    ),
    "two alternatives": document(
        block("<dc:description><rdf:Alt/><rdf:Alt><rdf:li>mine</rdf:li></rdf:Alt></dc:description>")
    ),
    "an attribute beside an empty element": document(
        block("<dc:description/>", 'dc:description="mine"')
    ),
}  # fmt: skip
NOBODYS = {
    "none": document(block("<o:mine>keep</o:mine>")),
    "an empty tag": document(block("<o:mine/><dc:description/>")),
    "white space": document(block("<dc:description>\n  </dc:description>")),
    "an empty list": document(block("<dc:description><rdf:Alt/></dc:description>")),
    "an empty item": document(block(alternative(DEFAULT_EMPTY))),
    "empty items": document(block(alternative(DEFAULT_EMPTY, item(" ", "de")))),
    "an empty attribute": document(block("", 'dc:description="" o:mine="keep"')),
    "no block": document(),
    "a description of something else": document(
        block("<o:part><dc:description>mine</dc:description></o:part>")
    ),
}


def write(folder: Path, data: bytes, **options: Any) -> bytes:
    """Write a caption into the sidecar `data` and return what the sidecar holds then."""
    (folder / "photo.jpg").touch()
    (folder / "photo.xmp").write_bytes(data)
    sidecar = XmpSidecar(**options)
    path = sidecar.write(RECORD, PictureFile(folder / "photo.jpg", None, "photo.jpg")).path
    return path.read_bytes()


def refusal(folder: Path, data: bytes, **options: Any) -> str:
    """Return the message of the error that leaves the sidecar `data` as it is."""
    with pytest.raises(OutputError) as error:
        write(folder, data, **options)
    assert (folder / "photo.xmp").read_bytes() == data
    assert str(folder / "photo.xmp") in error.value.message
    return error.value.message


def texts(data: bytes) -> list[str]:
    """Every description of a document: the texts of elements and attributes, in any form."""
    found = []
    for element in ElementTree.fromstring(data).iter():
        if element.tag == f"{{{DC}}}description":
            found.append("".join(element.itertext()).strip())
        found += [text for name, text in element.attrib.items() if name == f"{{{DC}}}description"]
    return found


def elements(data: bytes) -> list[tuple[str, str, str]]:
    """Everything that is neither a description nor EdgePrism's."""

    def walk(element: ElementTree.Element) -> list[tuple[str, str, str]]:
        if element.tag in (f"{{{DC}}}description", "{urn:edgeprism:1#}captioner"):
            return []
        attributes = {k: v for k, v in element.attrib.items() if not k.endswith("}description")}
        own = (element.tag, repr(attributes), (element.text or "").strip())
        return [own, *(line for child in element for line in walk(child))]

    return walk(ElementTree.fromstring(data))


@pytest.mark.parametrize("layout", PERSONS)
def test_a_persons_description_stays_in_every_layout(tmp_path: Path, layout: str) -> None:
    assert "left alone" in refusal(tmp_path, PERSONS[layout].encode())


@pytest.mark.parametrize("layout", PERSONS)
def test_when_told_to_it_is_replaced_by_one_description(tmp_path: Path, layout: str) -> None:
    data = write(tmp_path, PERSONS[layout].encode(), overwrite=True)
    (text,) = texts(data)
    assert text.startswith("a red dog")
    assert read_description(data).by_edgeprism
    assert elements(data)[:3] == elements(PERSONS[layout].encode())[:3]


@pytest.mark.parametrize("layout", NOBODYS)
def test_what_is_empty_in_every_sense_is_filled(tmp_path: Path, layout: str) -> None:
    before = NOBODYS[layout].encode()
    data = write(tmp_path, before)
    shown = [text for text in texts(data) if text not in ("mine", "")]
    assert shown == ["a red dog"]
    if layout != "no block":
        assert elements(data) == elements(before)
    assert write(tmp_path, data) == data


def test_a_person_beside_our_text_is_seen(tmp_path: Path) -> None:
    """EdgePrism's own text may be replaced; with somebody's text anywhere near it, it is not."""
    ours = write(tmp_path, document(block("")).encode()).decode()
    own_item = '<rdf:li xml:lang="x-default">a red dog</rdf:li>'
    additions = {
        own_item: [
            own_item.replace(">", ' o:by="me">', 1),
            own_item.replace("dog<", "dog<!-- is it? --><"),
            own_item + own_item.replace("a red dog", "mine"),
        ],
        "</rdf:RDF>": [
            block("<dc:description>mine</dc:description>") + "</rdf:RDF>",
            block("", 'dc:description="mine"') + "</rdf:RDF>",
        ],
    }
    for place, replacements in additions.items():
        assert place in ours
        for replacement in replacements:
            refusal(tmp_path, ours.replace(place, replacement).encode())
    translated = ours.replace(own_item, own_item + item("mein Hund", "de"))
    after = write_caption(tmp_path, translated, "a blue cat")
    assert after.replace("a blue cat", "a red dog").count("mein Hund") == 1
    assert "a blue cat" in after


def write_caption(folder: Path, source: str, caption: str) -> str:
    (folder / "photo.xmp").write_text(source, "utf-8")
    photo = PictureFile(folder / "photo.jpg", None, "photo.jpg")
    return XmpSidecar().write({**RECORD, "caption": caption}, photo).path.read_text("utf-8")


# ---- encodings


SAMPLE = document(block("<o:mine>größer</o:mine>"))


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("lead", ["", '<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?>', " \n"])
def test_a_wide_encoding_without_a_mark_is_refused(
    tmp_path: Path, encoding: str, lead: str
) -> None:
    message = refusal(tmp_path, (lead + SAMPLE).encode(encoding))
    assert "NUL" in message


@pytest.mark.parametrize(
    "data",
    [
        SAMPLE.encode().replace(b"mine>", b"mine>\0", 1),
        b"\xef\xbb\xbf" + SAMPLE.encode("utf-16-le"),
        SAMPLE.encode("utf-16")[:-1],
        b"\xff\xfe" + SAMPLE.encode("utf-16-be"),
        b"\xff\xfe\0\0" + SAMPLE.encode("utf-16-le"),
        ('<?xml version="1.0" encoding="UTF-16"?>' + SAMPLE).encode(),
        ('<?xml version="1.0" encoding="klingon"?>' + SAMPLE).encode(),
        ('<?xml version="1.0" encoding="rot13"?>' + SAMPLE).encode(),
        ('<?xml version="1.0" encoding="ascii"?>' + SAMPLE).encode(),
        ('<?xml version="1.0" encoding="latin-1"?>' + SAMPLE).encode("utf-16"),
        ('<?xml version="1.0" encoding="latin-1"?>' + SAMPLE).encode("utf-8-sig"),
    ],
)
def test_encodings_that_contradict_themselves_are_refused(tmp_path: Path, data: bytes) -> None:
    refusal(tmp_path, data)


@pytest.mark.parametrize(
    ("name", "codec"),
    [("ISO-8859-1", "latin-1"), ("iso-8859-15", "iso-8859-15"), ("windows-1252", "cp1252"),
     ("US-ASCII", "ascii"), ("UTF-8", "utf-8")],
)  # fmt: skip
def test_a_declared_encoding_is_kept(tmp_path: Path, name: str, codec: str) -> None:
    source = f'<?xml version="1.0" encoding="{name}"?>\n' + SAMPLE
    before = source.encode(codec, "xmlcharrefreplace")
    (tmp_path / "photo.xmp").write_bytes(before)
    (tmp_path / "photo.jpg").touch()
    photo = PictureFile(tmp_path / "photo.jpg", None, "photo.jpg")
    caption = {**RECORD, "caption": "süß 🛶"}
    after = XmpSidecar().write(caption, photo).path.read_bytes()
    assert texts(after) == ["süß 🛶"]
    assert elements(after) == elements(before)
    start = before.index(b"</rdf:Description>")
    assert after.startswith(before[:start])
    assert after.endswith(before[start:])
    assert XmpSidecar().write(caption, photo).path.read_bytes() == after


# ---- time and memory


def many(part: str, n_bytes: int = 4_000_000) -> str:
    return part * (n_bytes // len(part))


HOSTILE: dict[str, Callable[[], str]] = {
    "descriptions": lambda: document(block(many("<dc:description/>"))),
    "blocks": lambda: document(many("<rdf:Description/>")),
    "blanks in a tag": lambda: document(
        block("", 'dc:description=""' + many(" ")),
        '<o:x xmlns:dc="http://elsewhere/"/>',
    ),
    "attributes": lambda: document(block("", " ".join(f"a{n:x}=''" for n in range(390_000)))),
    "items": lambda: document(block(alternative(many("<rdf:li/>")))),
    "depth": lambda: document(block(f"<dc:description>{many('<a>', 2_000_000)}"
                                    f"{many('</a>', 1_900_000)}</dc:description>")),
    "depth, closed": lambda: document(block(f"<dc:description>{'<a>' * 500_000}"
                                            f"{'</a>' * 500_000}</dc:description>")),
    "fields": lambda: document(
        block('<e:captioner xmlns:e="urn:edgeprism:1#">' + many("<e:a/>") + "</e:captioner>")
    ),
    "namespaces": lambda: document(
        block("", " ".join(f"xmlns:n{n:x}='u'" for n in range(190_000)))
    ),
    "quotes": lambda: document(block("", many("o:a='")) ),
    "opened tags": lambda: document(many("<")),
    "references": lambda: document(block(alternative(item(many("&lt;"))))),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("overwrite", [False, True])
def test_hostile_sidecars_cost_seconds(tmp_path: Path, kind: str, overwrite: bool) -> None:
    data = HOSTILE[kind]().encode()
    began = time.process_time()
    try:
        write(tmp_path, data, overwrite=overwrite)
    except OutputError:
        assert (tmp_path / "photo.xmp").read_bytes() == data
    assert time.process_time() - began < 15


def test_memory_stays_small(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    data = HOSTILE["attributes"]().encode()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    write(tmp_path, data)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600_000  # KiB


def test_a_sidecar_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    padding = "<!--" + " " * (4 << 20) + "-->"
    assert "4 MiB" in refusal(tmp_path, document(block(""), padding).encode())


def test_a_namespace_declared_anew_elsewhere_leaves_one_description() -> None:
    source = document(
        block("", 'dc:description="short"'), '<rdf:Description xmlns:dc="http://elsewhere/"/>'
    )
    merged = merge_description(source.encode(), "new", {})
    assert texts(merged) == ["new"]
