"""Parses XMP bytes into the elements around a description, with their byte positions.

`edgeprism.output.xmp` splices text at these positions. The parser refuses a document type before
it can declare an entity, so no entity can be expanded.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from xml.parsers import expat

RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
DC = "http://purl.org/dc/elements/1.1/"
EDGEPRISM = "urn:edgeprism:1#"
DESCRIPTION, CAPTIONER = f"{DC} description", f"{EDGEPRISM} captioner"
BLOCK = f"{RDF} Description"  # properties of one resource; a document may have several

_RDF_ROOT = f"{RDF} RDF"
_XMPMETA = ("adobe:ns:meta/ xmpmeta", "adobe:ns:meta/ xapmeta")
_DEPTH = 5  # of a text: RDF / Description / description / Alt / li
_TAG = re.compile(rb"""<([^\s/>]+)(?:[^"'>]+|"[^"]*"|'[^']*')*>""")


class XmpError(ValueError):
    """The bytes are not XMP, or cannot be changed safely; the text says why."""


@dataclass(eq=False, slots=True)
class Element:
    """An element and its byte positions; the tree only has those around a description."""

    name: str  # "namespace local"
    raw: str  # the name as written, with its prefix
    attributes: dict[str, str]
    start: int
    tag_end: int  # after the start tag's ">"
    end: int = 0  # after the whole element
    pieces: list[str] = field(default_factory=list)
    children: list[Element] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The element's own text, without its children's."""
        return "".join(self.pieces)

    @property
    def is_empty_tag(self) -> bool:
        """Whether the element is one tag, such as `<a/>`."""
        return self.end == self.tag_end

    @property
    def prefix(self) -> str:
        """The namespace prefix with its colon; empty in a default namespace."""
        return self.raw[: self.raw.rfind(":") + 1]

    def find(self, name: str) -> list[Element]:
        """Return the children with that name."""
        return [child for child in self.children if child.name == name]


@dataclass(frozen=True)
class Document:
    """A parsed document."""

    source: bytes  # UTF-8
    rdf: Element
    prefixes: dict[str, str]  # prefix → namespace, as declared anywhere

    @property
    def blocks(self) -> list[Element]:
        """The rdf:Description elements, each of which may hold some of the properties."""
        return self.rdf.find(BLOCK)


def parse_xmp(source: bytes) -> Document:
    """Parse `source` (UTF-8, no byte-order mark). Raises XmpError."""
    builder = _Builder(source)
    try:
        builder.parser.Parse(source, True)
    except expat.ExpatError as error:
        raise XmpError(f"it is not well-formed XML ({error})") from error
    if builder.rdf is None:
        raise XmpError("it holds no rdf:RDF element, so it is not XMP")
    return Document(source, builder.rdf, builder.prefixes)


class _Builder:
    """Builds the tree xmpmeta / RDF / Description / (description / Alt / li | captioner / …)."""

    def __init__(self, source: bytes) -> None:
        self.source = source
        self.rdf: Element | None = None
        self.prefixes: dict[str, str] = {}
        self._open: list[Element | None] = []  # None: an element that the tree leaves out
        self.parser = parser = expat.ParserCreate("utf-8", " ")
        parser.buffer_text = True
        parser.StartDoctypeDeclHandler = self._refuse
        parser.StartNamespaceDeclHandler = self._declare
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._text

    def _refuse(self, *_: object) -> None:
        raise XmpError("it declares a document type, which XMP does not allow")

    def _declare(self, prefix: str | None, uri: str) -> None:
        self.prefixes[prefix or ""] = uri

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        parent = self._open[-1] if self._open else None
        if not self._is_kept(name, parent):
            self._open.append(None)
            return
        start = self.parser.CurrentByteIndex
        tag = _TAG.match(self.source, start)
        if tag is None:
            raise XmpError("a start tag in it has an unexpected form")
        element = Element(name, tag[1].decode(), attributes, start, tag.end())
        if parent is not None:
            parent.children.append(element)
        if name == _RDF_ROOT:
            if self.rdf is not None:
                raise XmpError("it holds more than one rdf:RDF element")
            self.rdf = element
        self._open.append(element)

    def _is_kept(self, name: str, parent: Element | None) -> bool:
        if not self._open:
            return name in _XMPMETA or name == _RDF_ROOT
        if parent is None:
            return False
        if parent.name in _XMPMETA:
            return name == _RDF_ROOT
        if parent is self.rdf:
            return name == BLOCK
        in_wrapper = self._open[0] is not self.rdf
        depth = len(self._open) + 1 - in_wrapper
        return name in (DESCRIPTION, CAPTIONER) if depth == 3 else depth <= _DEPTH

    def _end(self, _: str) -> None:
        element = self._open.pop()
        if element is None:
            return
        if self.source[element.tag_end - 2 : element.tag_end] == b"/>":
            element.end = element.tag_end
        else:
            element.end = self.source.index(b">", self.parser.CurrentByteIndex) + 1

    def _text(self, text: str) -> None:
        element = self._open[-1] if self._open else None
        # White space between properties is left out.
        if element is not None and element is not self.rdf and element.name != BLOCK:
            element.pieces.append(text)
