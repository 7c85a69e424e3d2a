"""XMP: reads and replaces the x-default text of dc:description in a sidecar's bytes.

This module never serialises an existing document again. It parses the document for positions and
splices the new text in, so every other byte (namespaces, prefixes, comments, order, the xpacket
wrapper, other languages) stays the same. It parses the result once more before returning it.

Next to the description it writes `edgeprism:captioner`, a structure with the model that wrote the
text and the text's sha256, by which a later run tells its own text from a person's.

Layout: Adobe, XMP Specification Part 1 (ISO 16684-1), section 7; language alternatives 8.2.2.4.
"""

from __future__ import annotations

import codecs
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from edgeprism.output.xmp_tree import (
    BLOCK,
    CAPTIONER,
    DC,
    DESCRIPTION,
    EDGEPRISM,
    RDF,
    Document,
    Element,
    XmpError,
    parse_xmp,
)

MAX_XMP_BYTES = 32 << 20

_HASH = "textSha256"
_XML_LANG = "http://www.w3.org/XML/1998/namespace lang"
_ATTRIBUTE = re.compile(rb"""\s+([^\s=<>/'"]+)\s*=\s*("[^"]*"|'[^']*')""")
_NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_ENCODINGS = (  # longer marks first, because UTF-32's mark begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_SKELETON = f"""<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="EdgePrism">
 <rdf:RDF xmlns:rdf="{RDF}">
  <rdf:Description rdf:about="">
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>
""".encode()


@dataclass(frozen=True)
class Described:
    """The x-default description of a document."""

    text: str
    by_edgeprism: bool  # EdgePrism wrote the text, and nobody changed it since


def read_description(data: bytes) -> Described:
    """Return the description that viewers show, with an empty text if there is none.

    Raises XmpError.
    """
    return _described(parse_xmp(_decoded(data)[0]))


def merge_description(data: bytes | None, text: str, provenance: Mapping[str, str]) -> bytes:
    """Return `data` (None: a new document) with `text` as its description, and its provenance.

    `provenance` holds the fields of the structure `edgeprism:captioner`, by local name. The same
    call on its own result changes nothing. Raises XmpError.
    """
    source, mark, encoding = (_SKELETON, b"", "utf-8") if data is None else _decoded(data)
    text = to_xml_text(text)
    fields = {name: to_xml_text(value) for name, value in provenance.items()}
    fields[_HASH] = _sha256(text)
    document = parse_xmp(source)
    if data is not None and _described(document).text == text and _own_fields(document) == fields:
        return data  # the document holds the same values, perhaps written another way
    # If the document does not use the prefix "rdf", the inserted elements declare it themselves.
    declared = "" if document.rdf.raw == "rdf:RDF" else f' xmlns:rdf="{RDF}"'
    edits = _edits(document, _Inserted(text, fields, declared))
    for start, end, new in sorted(edits, reverse=True):
        source = source[:start] + new.encode() + source[end:]
    if _described(parse_xmp(source)) != Described(text, True):
        raise XmpError("its description is laid out in a way that cannot be changed safely")
    return mark + (source if encoding == "utf-8" else source.decode().encode(encoding))


def to_xml_text(text: str) -> str:
    """Replace the characters that XML cannot hold; line ends become line feeds."""
    return _NOT_XML.sub("\ufffd", text).replace("\r\n", "\n").replace("\r", "\n")


def _decoded(data: bytes) -> tuple[bytes, bytes, str]:
    """Return `data` as UTF-8 without its byte-order mark, then that mark, then its encoding."""
    if len(data) > MAX_XMP_BYTES:
        raise XmpError(f"it is larger than {MAX_XMP_BYTES >> 20} MiB")
    mark, encoding = next(
        ((mark, name) for mark, name in _ENCODINGS if data.startswith(mark)), (b"", "utf-8")
    )
    try:
        return data[len(mark) :].decode(encoding).encode(), mark, encoding
    except UnicodeError as error:
        raise XmpError(f"it is not {encoding.upper()} text") from error


def _described(document: Document) -> Described:
    text = ""
    for block in document.blocks:
        for description in block.find(DESCRIPTION):
            item = _default_item(description)
            text = text or (item.text if item else _text_of(description))
        text = text or block.attributes.get(DESCRIPTION, "")
    return Described(text, _own_fields(document).get(_HASH) == _sha256(text))


def _text_of(description: Element) -> str:
    """Return the text of a description that has any form but a language alternative."""
    if description.find(f"{RDF} Alt"):
        return ""  # the alternative has no x-default, only other languages
    parts = (description.text.strip(), *map(_text_of, description.children))
    return " ".join(part for part in parts if part)


def _default_item(description: Element) -> Element | None:
    for alternative in description.find(f"{RDF} Alt"):
        for item in alternative.find(f"{RDF} li"):
            if item.attributes.get(_XML_LANG, "").lower() == "x-default":
                return item
    return None


def _own_fields(document: Document) -> dict[str, str]:
    """Return the fields of `edgeprism:captioner` by local name.

    Other programs rewrite the structure in several forms, so a field may be an element, an
    attribute, or either of them in an inner Description.
    """
    fields: dict[str, str] = {}
    for block in document.blocks:
        for own in block.find(CAPTIONER):
            for element in (own, *own.find(BLOCK)):
                fields |= element.attributes
                fields |= {child.name: child.text for child in element.children}
    prefix = f"{EDGEPRISM} "
    return {k.removeprefix(prefix): v for k, v in fields.items() if k.startswith(prefix)}


class _Inserted:
    """The elements to insert into a document; `declared` binds their prefix for RDF."""

    def __init__(self, text: str, fields: Mapping[str, str], declared: str) -> None:
        self.text = text
        self.description = (
            f'<dc:description xmlns:dc="{DC}"{declared}>\n    <rdf:Alt>\n     '
            f"{self.item('rdf:')}\n    </rdf:Alt>\n   </dc:description>"
        )
        inner = "".join(
            f"\n    <edgeprism:{name}>{_escaped(value)}</edgeprism:{name}>"
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
        return f'<{prefix}li xml:lang="x-default">{_escaped(self.text)}</{prefix}li>'


def _edits(document: Document, new: _Inserted) -> list[tuple[int, int, str]]:
    """Return (start, end, new text) for each change; the changes do not overlap."""
    blocks = document.blocks
    if not blocks:
        return _insert_last(document, document.rdf, [new.block], "\n  ")
    edits: list[tuple[int, int, str]] = []
    missing: list[str] = []
    descriptions = [element for block in blocks for element in block.find(DESCRIPTION)]
    if descriptions:
        edits.append(_replaced_description(descriptions[0], new))
    else:
        missing.append(new.description)
    # A document may have one description; any other would contradict the new text.
    edits += [(element.start, element.end, "") for element in descriptions[1:]]
    edits += [edit for block in blocks for edit in _attribute_removed(document, block)]
    own = [element for block in blocks for element in block.find(CAPTIONER)]
    if own:
        edits.append((own[0].start, own[0].end, new.captioner))
        edits += [(element.start, element.end, "") for element in own[1:]]
    else:
        missing.append(new.captioner)
    if missing:
        home = next((block for block in blocks if block.find(DESCRIPTION)), blocks[0])
        edits += _insert_last(document, home, missing, "\n   ")
    return edits


def _replaced_description(description: Element, new: _Inserted) -> tuple[int, int, str]:
    alternatives = description.find(f"{RDF} Alt")
    if not alternatives or alternatives[0].is_empty_tag:
        return description.start, description.end, new.description
    item, alternative = _default_item(description), alternatives[0]
    if item is not None:
        return item.start, item.end, new.item(item.prefix)
    # XMP requires x-default as the first item.
    return alternative.tag_end, alternative.tag_end, new.item(alternative.prefix)


def _attribute_removed(document: Document, block: Element) -> list[tuple[int, int, str]]:
    """Remove a description in the short form, which is an attribute of the block."""
    if DESCRIPTION not in block.attributes:
        return []
    tag = document.source[block.start : block.tag_end]
    for match in _ATTRIBUTE.finditer(tag):
        prefix, _, local = match[1].decode().rpartition(":")
        if local == "description" and document.prefixes.get(prefix) == DC:
            return [(block.start + match.start(), block.start + match.end(), "")]
    return []


def _insert_last(
    document: Document, parent: Element, new: list[str], indent: str
) -> list[tuple[int, int, str]]:
    """Insert `new` as the last children of `parent`; an empty tag becomes a pair of tags."""
    inner = "".join(indent + part for part in new)
    if parent.is_empty_tag:
        slash = parent.tag_end - 2
        return [(slash, parent.tag_end, f">{inner}{indent[:-1]}</{parent.raw}>")]
    closing = document.source.rindex(b"</", 0, parent.end)
    # Insert before the white space that indents the closing tag.
    position = len(document.source[:closing].rstrip(b" \t\r\n"))
    return [(position, position, inner)]


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
