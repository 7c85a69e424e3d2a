"""XMP: reads, replaces and appends to the x-default text of dc:description in a sidecar's bytes.

This module never serialises an existing document again. It parses the document for positions and
splices the new text in, so every other byte (namespaces, prefixes, comments, order, the xpacket
wrapper, other languages) stays the same. It parses the result once more before returning it.

Next to the description it writes `edgeprism:captioner`, a structure with the model that wrote the
text and the text's sha256, by which a later run tells its own text from a person's. The structure
also keeps what stood in the document before, from which `edgeprism.output.xmp_undo` restores it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from edgeprism.output.xmp_description import (
    APPENDED,
    BEFORE,
    TEXT_HASH,
    Described,
    Descriptions,
    default_item,
    find_descriptions,
    only_alternative,
    plain_place,
    sha256_of,
)
from edgeprism.output.xmp_encoding import MAX_XMP_BYTES, Encoding, decode_xmp, encode_xmp
from edgeprism.output.xmp_tree import CAPTIONER, DC, EDGEPRISM, RDF, Element, XmpError, parse_xmp

Edit = tuple[int, int, str]  # start, end, new text

_NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_PREFIX = re.compile(r"([\w.-]++):")
SKELETON = f"""<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="EdgePrism">
 <rdf:RDF xmlns:rdf="{RDF}">
  <rdf:Description rdf:about="">
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>
""".encode()


def read_description(data: bytes) -> Described:
    """Return the description that viewers show, and whose it is. Raises XmpError."""
    if not data:
        return Described("", False, is_empty=True)
    return find_descriptions(parse_xmp(decode_xmp(data)[0])).described


def merge_description(data: bytes | None, text: str, provenance: Mapping[str, str]) -> bytes:
    """Return `data` with `text` as its description, and its provenance; see `read_description`.

    `data` may be empty or None for a new document. `provenance` holds the fields of the structure
    `edgeprism:captioner`, by local name. A description that is replaced is kept in that structure.
    The same call on its own result changes nothing. Raises XmpError.
    """
    text = to_xml_text(text)
    return _changed(data, text, {**provenance, TEXT_HASH: sha256_of(text)}, Described(text, True))


def append_description(data: bytes | None, text: str, provenance: Mapping[str, str]) -> bytes:
    """Return `data` with `text` as a paragraph behind its description.

    It takes the place of one appended before. A document without a description, or with
    EdgePrism's, gets the text as `merge_description` writes it.

    Raises XmpError, also if the description has a form that no text can be appended to.
    """
    text = to_xml_text(text)
    old = read_description(data or b"")
    if old.is_empty or old.by_edgeprism or not text:
        return merge_description(data, text, provenance)
    if not old.is_plain:
        raise XmpError("its description has a form that no text can be appended to")
    whole = f"{old.start}\n{text}"
    expected = Described(whole, False, is_plain=True, appended=text)
    return _changed(data, whole, {**provenance, APPENDED: text}, expected)


def to_xml_text(text: str) -> str:
    """Replace the characters that XML cannot hold; line ends become line feeds."""
    return _NOT_XML.sub("\ufffd", text).replace("\r\n", "\n").replace("\r", "\n")


def spliced(source: bytes, edits: list[Edit]) -> bytes:
    """Return `source` with the edits, which do not overlap, in one pass."""
    parts: list[bytes] = []
    position = 0
    for start, end, new in sorted(edits):
        if start < position:
            raise XmpError("its description is laid out in a way that cannot be changed safely")
        parts += (source[position:start], new.encode())
        position = end
    return b"".join((*parts, source[position:]))


def escaped(text: str) -> str:
    """Return `text` as XML writes it."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _changed(data: bytes | None, text: str, fields: dict[str, str], expected: Described) -> bytes:
    source, encoding = decode_xmp(data) if data else (SKELETON, Encoding())
    fields = {name: to_xml_text(value) for name, value in fields.items()}
    found = find_descriptions(parse_xmp(source))
    before = found.fields.get(BEFORE, "")
    if not _still_holds(before, found.described):
        before = _before(found, is_empty_file=data == b"")
    if before:
        fields[BEFORE] = before
    if data and _same(found.described, expected) and dict(found.fields) == fields:
        return data  # the document holds the same values, perhaps written another way
    result = spliced(source, _edits(found, _Inserted(found, text, fields)))
    if not _same(find_descriptions(parse_xmp(result)).described, expected):
        raise XmpError("its description is laid out in a way that cannot be changed safely")
    changed = encode_xmp(result, encoding)
    if len(changed) > MAX_XMP_BYTES:
        raise XmpError(f"with the caption it would be larger than {MAX_XMP_BYTES >> 20} MiB")
    return changed


def _same(described: Described, expected: Described) -> bool:
    return (described.text, described.by_edgeprism, described.appended) == (
        expected.text, expected.by_edgeprism, expected.appended,
    )  # fmt: skip


def before_from(text: str) -> dict[str, Any]:
    """Parse the field `before`; empty if there is none, or another program damaged it."""
    try:
        before = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return before if isinstance(before, dict) else {}


def _still_holds(before: str, described: Described) -> bool:
    """Return whether what stands before EdgePrism's text is what the field `before` says."""
    if described.appended:
        return before_from(before).get("text") == described.start
    return described.by_edgeprism


def _before(found: Descriptions, *, is_empty_file: bool) -> str:
    """Return, as JSON, what `xmp_undo` needs to bring the document back; "" if nothing.

    JSON in ASCII survives line ends that another program changes, and any encoding.
    """
    source, nodes = found.document.source, found.document.rdf.children
    before: dict[str, Any] = {}
    primary, removed = _primary(found), []
    if primary is not None:
        before["primary"] = raw = source[primary.start : primary.end].decode()
        used = set(_PREFIX.findall(raw))
        before["namespaces"] = {p: uri for p, uri in primary.scope.items() if p in used}
    for index, node in enumerate(nodes):
        n_bytes = 0  # removed from this node so far
        gone = [(e.start, e.end) for e in node.children if e in found.elements and e is not primary]
        for start, end in (*node.short_forms, *gone):
            removed.append([index, start - node.start - n_bytes, source[start:end].decode()])
            n_bytes += end - start
    if removed:
        before["removed"] = removed
    if not found.described.is_empty:
        before["text"] = found.described.text
    home = _home(found)
    if home is None:
        before["block"] = True
    if home is not None and home.is_empty_tag:
        before["opened"] = nodes.index(home)
    if home is None and found.document.rdf.is_empty_tag:
        before["rdf_opened"] = True
    if is_empty_file:
        before["file"] = ""
    return json.dumps(before, separators=(",", ":")) if before else ""


def _primary(found: Descriptions) -> Element | None:
    """Return the description that gets the new text; any other would contradict it and goes."""
    if found.own is not None:
        return found.own
    shown = [e for e in found.elements if plain_place(e) is not None]
    return next(iter(shown), None) or next(iter(found.elements), None)


def _home(found: Descriptions) -> Element | None:
    """Return the block that gets what the document lacks."""
    blocks = found.document.blocks
    described = (b for b in blocks if any(e in b.children for e in found.elements))
    return next(described, None) or next(iter(blocks), None)


class _Inserted:
    """The elements to insert into a document."""

    def __init__(self, found: Descriptions, text: str, fields: Mapping[str, str]) -> None:
        self.text = text
        home = _home(found)
        rdf = found.document.rdf
        # Where the prefix "rdf" is missing or stands for something else, the elements declare it.
        is_bound = home.binds_rdf if home is not None else rdf.raw == "rdf:RDF"
        declared = "" if is_bound else f' xmlns:rdf="{RDF}"'
        self.description = (
            f'<dc:description xmlns:dc="{DC}"{declared}>\n    <rdf:Alt>\n     '
            f"{self.item('rdf:')}\n    </rdf:Alt>\n   </dc:description>"
        )
        inner = "".join(
            f"\n    <edgeprism:{name}>{escaped(value)}</edgeprism:{name}>"
            for name, value in fields.items()
        )
        self.captioner = (
            f'<edgeprism:captioner xmlns:edgeprism="{EDGEPRISM}"{declared}'
            f' rdf:parseType="Resource">{inner}\n   </edgeprism:captioner>'
        )
        self.block = (
            f'<rdf:Description{declared} rdf:about="">\n   {self.description}\n   '
            f"{self.captioner}\n  </rdf:Description>"
        )

    def item(self, prefix: str) -> str:
        """Write the text as the x-default item of a list whose namespace prefix is `prefix`."""
        return f'<{prefix}li xml:lang="x-default">{escaped(self.text)}</{prefix}li>'


def _edits(found: Descriptions, new: _Inserted) -> list[Edit]:
    document, home, primary = found.document, _home(found), _primary(found)
    if home is None:
        return _insert_last(document.source, document.rdf, [new.block], "\n  ")
    edits: list[Edit] = []
    missing: list[str] = []
    if primary is not None:
        edits.append(_replaced_description(primary, new))
    else:
        missing.append(new.description)
    edits += [(e.start, e.end, "") for e in found.elements if e is not primary]
    for node in document.rdf.children:
        edits += [(start, end, "") for start, end in node.short_forms]
    own = [element for block in document.blocks for element in block.find(CAPTIONER)]
    if own:
        edits.append((own[0].start, own[0].end, new.captioner))
        edits += [(element.start, element.end, "") for element in own[1:]]
    else:
        missing.append(new.captioner)
    return edits + (_insert_last(document.source, home, missing, "\n   ") if missing else [])


def _replaced_description(description: Element, new: _Inserted) -> Edit:
    alternative, item = only_alternative(description), default_item(description)
    if alternative is None or alternative.is_empty_tag:
        return description.start, description.end, new.description
    if item is not None:
        return item.start, item.end, new.item(item.prefix)
    # XMP requires x-default as the first item.
    return alternative.tag_end, alternative.tag_end, new.item(alternative.prefix)


def _insert_last(source: bytes, parent: Element, new: list[str], indent: str) -> list[Edit]:
    """Insert `new` as the last children of `parent`; an empty tag becomes a pair of tags."""
    inner = "".join(indent + part for part in new)
    if parent.is_empty_tag:
        slash = parent.tag_end - 2
        return [(slash, parent.tag_end, f">{inner}{indent[:-1]}</{parent.raw}>")]
    closing = source.rindex(b"</", 0, parent.end)
    # Insert before the white space that indents the closing tag.
    position = max(len(source[:closing].rstrip(b" \t\r\n")), parent.tag_end)
    return [(position, position, inner)]
