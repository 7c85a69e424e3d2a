"""XMP: takes EdgePrism's words out of a document again, and puts back what they replaced.

What other programs changed in the meantime stays. Where nothing else changed, the document has its
former bytes again.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from edgeprism.output.xmp import SKELETON, Edit, before_from, escaped, spliced
from edgeprism.output.xmp_description import (
    BEFORE,
    Descriptions,
    default_item,
    find_descriptions,
    only_alternative,
    plain_place,
)
from edgeprism.output.xmp_encoding import decode_xmp, encode_xmp
from edgeprism.output.xmp_tree import CAPTIONER, RDF, Document, Element, XmpError, parse_xmp

_BY_HAND = (
    "its description was laid out anew since EdgePrism replaced one; the former one stands in its "
    "field edgeprism:before"
)


@dataclass(frozen=True)
class Undone:
    """A document without EdgePrism's words."""

    data: bytes | None  # None: the file was made by EdgePrism and holds nothing else
    restored: bool  # a description that EdgePrism had replaced or continued is back


def remove_description(data: bytes) -> Undone | None:
    """Take EdgePrism's description and provenance out of `data`.

    Returns None if there are none, or if the description was changed since: it is somebody's then.
    Raises XmpError, also if the former description cannot be put back safely.
    """
    if not data:
        return None
    source, encoding = decode_xmp(data)
    found = find_descriptions(parse_xmp(source))
    if not (found.described.by_edgeprism or found.described.appended):
        return None
    before = before_from(found.fields.get(BEFORE, ""))
    if found.described.appended and before.get("text") != found.described.start:
        edits, restored = [_shortened(found)], True  # a person changed the part before it since
    else:
        edits, restored = _restored(found, before), "text" in before
    edits += [
        _removal(source, own, b"\n   ")
        for block in found.document.blocks
        for own in block.find(CAPTIONER)
    ]
    try:
        result = _tidied(spliced(source, edits), before)
        after = find_descriptions(parse_xmp(result))
    except XmpError as error:
        raise XmpError(_BY_HAND) from error
    if after.fields or (restored and after.described.is_empty):
        raise XmpError(_BY_HAND)
    if result == SKELETON:
        return Undone(b"" if before.get("file") == "" else None, restored)
    return Undone(encode_xmp(result, encoding), restored)


def _shortened(found: Descriptions) -> Edit:
    """Cut the appended caption off a text whose beginning was changed since."""
    places = [place for e in found.elements if (place := plain_place(e)) and place.text.strip()]
    if not places:
        raise XmpError(_BY_HAND)
    closing = found.document.source.rindex(b"</", 0, places[0].end)
    return places[0].tag_end, closing, escaped(found.described.start)


def _restored(found: Descriptions, before: dict[str, Any]) -> list[Edit]:
    """Return the edits that put the former descriptions in the place of EdgePrism's."""
    document = found.document
    filled = [e for e in found.elements if (place := plain_place(e)) and place.text.strip()]
    own = found.own or next(iter(filled), None)
    edits: list[Edit] = []
    if own is not None:
        edits.append(_former(document, own, before))
    else:  # another program rewrote EdgePrism's text as an attribute
        edits += [(s, e, "") for node in document.rdf.children for s, e in node.short_forms]
        if "primary" in before:
            edits.append(_put_back(document, 0, None, str(before["primary"])))
    removed = before.get("removed")
    for entry in removed if isinstance(removed, list) else ():
        match entry:
            case [int(index), int(offset), str(raw)]:
                edits.append(_put_back(document, index, offset, raw))
    return edits


def _former(document: Document, own: Element, before: dict[str, Any]) -> Edit:
    """Return the edit that turns EdgePrism's description `own` into the former one."""
    ours, raw = default_item(own), str(before.get("primary", ""))
    added = _other_items(own)  # texts in other languages
    if not raw:
        if ours is not None and added:
            return ours.start, ours.end, ""
        return _removal(document.source, own, b"\n   ")
    raw, former, source = _parsed_former(document, own, raw, before.get("namespaces"))
    alternative = only_alternative(former)
    kept = [] if alternative is None or alternative.is_empty_tag else _other_items(former)
    if kept == added or ours is None:
        return own.start, own.end, raw
    item, plain = default_item(former), plain_place(former)  # others' texts came or went since
    if alternative is not None:
        text = "" if item is None else source[item.start : item.end].decode()
        return ours.start, ours.end, text
    if plain is None:
        raise XmpError(_BY_HAND)
    closing = document.source.rindex(b"</", 0, ours.end)
    return ours.tag_end, closing, escaped(plain.text)


def _parsed_former(
    document: Document, own: Element, raw: str, namespaces: object
) -> tuple[str, Element, bytes]:
    """Parse the former description in the place of `own`; return it as written and as parsed.

    If another program dropped namespaces that only the former one needs, it declares them itself.
    """
    declared = namespaces if isinstance(namespaces, dict) else {}
    tags = "".join(f' xmlns:{p}="{escaped(str(uri))}"' for p, uri in declared.items() if p != "xml")
    name = re.match(r"<[^\s/>]+", raw)
    end = 0 if name is None else name.end()
    for attempt in (raw, f"{raw[:end]}{tags}{raw[end:]}"):
        try:
            candidate = parse_xmp(spliced(document.source, [(own.start, own.end, attempt)]))
        except XmpError:
            continue
        for element in find_descriptions(candidate).elements:
            if element.start == own.start and element.scope.items() >= declared.items():
                return attempt, element, candidate.source
    raise XmpError(_BY_HAND)


def _other_items(description: Element) -> list[tuple[dict[str, str], str, bool]]:
    """Return the items in other languages than x-default, to compare them."""
    ours = default_item(description)
    return [
        (item.attributes, item.text, item.has_more)
        for alternative in description.find(f"{RDF} Alt")
        for item in alternative.children
        if item is not ours
    ]


def _put_back(document: Document, index: int, offset: int | None, raw: str) -> Edit:
    """Return the edit that brings back a removed element or attribute of a block.

    `offset` is its place from the block's start, if nothing else in the block changed.
    """
    nodes = document.rdf.children
    if index >= len(nodes) or (nodes[index].is_empty_tag and raw.startswith("<")):
        raise XmpError(_BY_HAND)
    node, source = nodes[index], document.source
    slash = 2 if source[node.tag_end - 2 : node.tag_end] == b"/>" else 1
    low, high = node.start + 1, node.tag_end - slash
    if raw.startswith("<"):
        low, high = node.tag_end, source.rindex(b"</", 0, node.end)
    position = high if offset is None else node.start + offset
    ends = (b" ", b"\n", b"\t", b"\r", b">", b"/", b"<")
    fits = low <= position <= high and source[position : position + 1] in ends
    return (position, position, raw) if fits else (high, high, raw)


def _removal(source: bytes, element: Element, indent: bytes) -> Edit:
    """Remove an element with the line break and indentation that EdgePrism put before it."""
    start = element.start
    if source[:start].endswith(indent):
        start -= len(indent)
    return start, element.end, ""


def _tidied(source: bytes, before: dict[str, Any]) -> bytes:
    """Undo what made room for EdgePrism's elements: pairs of tags, and a block of its own."""
    document = parse_xmp(source)
    rdf, opened = document.rdf, before.get("opened")
    if before.get("block") is True:
        blocks = [b for b in document.blocks if _is_hollow(source, b) and _is_bare(b)]
        edits = [_removal(source, block, b"\n  ") for block in blocks[-1:]]
        source = spliced(source, edits)
        rdf = parse_xmp(source).rdf
        if before.get("rdf_opened") is True and _is_hollow(source, rdf):
            source = _closed(source, rdf)
    elif isinstance(opened, int) and opened < len(rdf.children):
        block = rdf.children[opened]
        if _is_hollow(source, block):
            source = _closed(source, block)
    return source


def _is_hollow(source: bytes, element: Element) -> bool:
    """Return whether an element is a pair of tags with only white space between them."""
    closing = source.rindex(b"</", 0, element.end)
    return not element.is_empty_tag and not source[element.tag_end : closing].strip()


def _is_bare(block: Element) -> bool:
    return set(block.attributes) <= {f"{RDF} about"} and not any(block.attributes.values())


def _closed(source: bytes, element: Element) -> bytes:
    return spliced(source, [(element.tag_end - 1, element.end, "/>")])
