"""XMP: whatever EdgePrism put into a document can be taken out again, and nothing else with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from xml.etree import ElementTree

import pytest

from edgeprism.output.xmp import append_description, merge_description, read_description
from edgeprism.output.xmp_tree import XmpError
from edgeprism.output.xmp_undo import remove_description
from tests.output.test_sidecar import COMPACT, DARKTABLE, LIGHTROOM
from tests.output.test_xmp_layouts import NOBODYS, PERSONS, alternative, block, document, item

Write = Callable[[bytes | None, str, Mapping[str, str]], bytes]
SOURCES = {**PERSONS, **NOBODYS, "Lightroom": LIGHTROOM, "darktable": DARKTABLE, "compact": COMPACT}
ENDS = LIGHTROOM.replace("\n", "\r\n")


def undone(data: bytes) -> bytes | None:
    result = remove_description(data)
    assert result is not None
    return result.data


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_the_former_bytes_come_back(source: str, encoding: str) -> None:
    before = SOURCES[source].replace(' encoding="UTF-8"', "").encode(encoding)
    once = merge_description(before, "a red dog", {"model": "nano"})
    twice = merge_description(once, "ein Hund,\nsüß", {"model": "large"})
    assert undone(once) == before
    assert undone(twice) == before
    assert remove_description(before) is None


@pytest.mark.parametrize("source", ["x-default", "a plain text", "an attribute", "entities",
                                    "CDATA", "Lightroom", "no language"])  # fmt: skip
def test_a_caption_is_appended_once_and_comes_off(source: str) -> None:
    before = SOURCES[source].encode()
    try:
        once = append_description(before, "a red dog", {"model": "nano"})
    except XmpError:
        assert source == "no language", "only a text without a language has no plain form"
        return
    mine = read_description(before).text
    assert read_description(once).text == f"{mine}\na red dog"
    assert append_description(once, "a red dog", {"model": "nano"}) == once
    other = append_description(once, "a blue cat", {"model": "large"})
    assert read_description(other).text == f"{mine}\na blue cat"
    assert not read_description(other).by_edgeprism, "so no later run replaces it unasked"
    assert undone(once) == undone(other) == before
    # a person goes on writing in front of the caption, and then asks for the caption to go
    edited = once.replace(b"\na red dog</", b" indeed\na red dog</")
    assert edited != once
    assert read_description(undone(edited) or b"").text == f"{mine} indeed"
    replaced = merge_description(edited, "new", {})
    assert read_description(undone(replaced) or b"").text == f"{mine} indeed\na red dog"


@pytest.mark.parametrize("write", [merge_description, append_description])
def test_a_file_of_edgeprism_alone_goes(write: Write) -> None:
    assert undone(write(None, "a red dog", {"model": "nano"})) is None
    assert undone(write(b"", "a red dog", {"model": "nano"})) == b""


def test_what_other_programs_wrote_in_the_meantime_stays() -> None:
    merged = merge_description(LIGHTROOM.encode(), "a red dog", {"model": "nano"}).decode()
    rated = merged.replace('xmp:Rating="4"', 'xmp:Rating="5"')
    assert undone(rated.encode()) == LIGHTROOM.replace('xmp:Rating="4"', 'xmp:Rating="5"').encode()
    translated = merged.replace("</rdf:Alt>", item("chien", "fr") + "</rdf:Alt>", 1)
    result = undone(translated.encode())
    assert result == LIGHTROOM.replace("</rdf:Alt>", item("chien", "fr") + "</rdf:Alt>", 1).encode()
    fresh = merge_description(None, "a red dog", {}).decode()
    rated = fresh.replace('rdf:about=""', 'rdf:about="" xmlns:o="http://other/" o:rating="5"', 1)
    result = undone(rated.encode()) or b""
    assert b'o:rating="5"' in result
    assert read_description(result).is_empty
    translated = fresh.replace("</rdf:Alt>", item("chien", "fr") + "</rdf:Alt>", 1)
    result = undone(translated.encode()) or b""
    assert b"chien" in result
    assert b"a red dog" not in result


@pytest.mark.parametrize("source", ["x-default", "a qualified item", "German alone", "a resource"])
def test_after_a_program_wrote_the_file_anew_the_former_text_comes_back(source: str) -> None:
    for prefix, namespace in (("x", "adobe:ns:meta/"), ("dc", "http://purl.org/dc/elements/1.1/"),
                              ("rdf", "http://www.w3.org/1999/02/22-rdf-syntax-ns#"),
                              ("o", "http://other/")):  # fmt: skip
        ElementTree.register_namespace(prefix, namespace)
    before = SOURCES[source]
    merged = merge_description(before.encode(), "a red dog", {"model": "nano"})
    anew = ElementTree.tostring(ElementTree.fromstring(merged), encoding="utf-8")
    result = undone(anew) or b""
    ours, theirs = (ElementTree.fromstring(data) for data in (result, before.encode()))

    def flat(root: ElementTree.Element) -> list[object]:
        return [(e.tag, e.attrib, (e.text or "").strip()) for e in root.iter()]

    assert flat(ours) == flat(theirs)


def test_a_text_that_a_person_changed_is_theirs() -> None:
    merged = merge_description(LIGHTROOM.encode(), "a red dog", {"model": "nano"})
    assert remove_description(merged.replace(b">a red dog<", b">a red dog, says Ann<")) is None
    appended = append_description(LIGHTROOM.encode(), "a red dog", {"model": "nano"})
    assert remove_description(appended.replace(b"red dog</rdf:li>", b"red cat</rdf:li>")) is None
    beside = merged.replace(b"</rdf:RDF>", block("<o:x/>").encode() + b"</rdf:RDF>")
    with pytest.raises(XmpError):
        remove_description(beside)  # the prefix o is bound to nothing


DAMAGES = (
    "[]", "{", '{"primary":5}', '{"primary":"<a>"}', '{"removed":7}', '{"removed":[[9,0,"<a/>"]]}',
    '{"opened":99}', '{"opened":true}', '{"removed":[[0,-5," a=1"]]}', "[" * 100_000,
)  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_note_of_what_stood_before_is_told(damage: str) -> None:
    source = document(block(alternative(item("mine"))))
    merged = merge_description(source.encode(), "a red dog", {}).decode()
    start, end = "<edgeprism:before>", "</edgeprism:before>"
    head, rest = merged.split(start)
    damaged = head + start + damage.replace("<", "&lt;") + end + rest.split(end)[1]
    try:
        result = remove_description(damaged.encode())
    except XmpError:
        return
    assert result is not None
    assert ElementTree.fromstring(result.data or b"<a/>") is not None


def test_windows_line_ends_come_back() -> None:
    merged = merge_description(ENDS.encode(), "a red dog", {"model": "nano"})
    assert undone(merged) == ENDS.encode()
