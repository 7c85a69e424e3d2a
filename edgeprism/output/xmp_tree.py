"""Parses XMP bytes into the elements around a description, with their byte positions.

`edgeprism.output.xmp` splices text at these positions. The parser refuses a document type before
it can declare an entity, so no entity can be expanded. Its time grows with the file's size alone:
each tag is read once, and every pattern matches without backtracking.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from xml.parsers import expat

RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
DC = "http://purl.org/dc/elements/1.1/"
EDGEPRISM = "urn:edgeprism:1#"
DESCRIPTION, CAPTIONER = f"{DC} description", f"{EDGEPRISM} captioner"
# Adobe's early programs wrote Dublin Core under another address; its readers still accept both.
DESCRIPTIONS = (DESCRIPTION, "http://purl.org/dc/1.1/ description")
BLOCK = f"{RDF} Description"  # properties of one resource; a document may have several

_RDF_ROOT = f"{RDF} RDF"
_XMPMETA = ("adobe:ns:meta/ xmpmeta", "adobe:ns:meta/ xapmeta")
_DEPTH = 5  # of a text: RDF / Description / description / Alt / li
_MAX_DESCRIPTIONS = 64  # XMP allows one; a few come from programs that merge carelessly
_MAX_ELEMENTS = 10_000  # blocks, texts in other languages, EdgePrism's fields; dozens are usual
_TAG = re.compile(rb"""<([^\s/>]++)(?:[^"'>]++|"[^"]*+"|'[^']*+')*+>""")
_ATTRIBUTE = re.compile(rb"""\s++([^\s=<>/'"]++)\s*+=\s*+("[^"]*+"|'[^']*+')""")


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
    has_more: bool = (
        False  # comments, processing instructions, or elements that the tree leaves out
    )
    binds_rdf: bool = True  # the prefix "rdf" stands for RDF's namespace here
    scope: dict[str, str] = field(default_factory=dict)  # a description's prefix → namespace
    # positions of a description in the short form, which is an attribute, with the space before it
    short_forms: list[tuple[int, int]] = field(default_factory=list)

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

    def find(self, *names: str) -> list[Element]:
        """Return the children with one of those names."""
        return [child for child in self.children if child.name in names]


@dataclass(frozen=True)
class Document:
    """A parsed document."""

    source: bytes  # UTF-8
    rdf: Element

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
    return Document(source, builder.rdf)


def _attributes(tag: bytes) -> Iterator[re.Match[bytes]]:
    """Yield the attributes of a start tag as written, namespace declarations included."""
    name = _TAG.match(tag)
    position = 0 if name is None else name.end(1)
    while match := _ATTRIBUTE.match(tag, position):
        yield match
        position = match.end()


class _Builder:
    """Builds the tree xmpmeta / RDF / Description / (description / Alt / li | captioner / …)."""

    def __init__(self, source: bytes) -> None:
        self.source = source
        self.rdf: Element | None = None
        self._n_elements = self._n_descriptions = 0
        self._prefixes: dict[str, list[str]] = defaultdict(
            list
        )  # prefix → namespaces, the last holds
        self._open: list[Element | None] = []  # None: an element that the tree leaves out
        self.parser = parser = expat.ParserCreate("utf-8", " ")
        parser.buffer_text = True
        parser.StartDoctypeDeclHandler = self._refuse
        parser.StartNamespaceDeclHandler = self._declare
        parser.EndNamespaceDeclHandler = self._end_declaration
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._text
        parser.CommentHandler = self._more
        parser.ProcessingInstructionHandler = self._more

    def _refuse(self, *_: object) -> None:
        raise XmpError("it declares a document type, which XMP does not allow")

    def _declare(self, prefix: str | None, uri: str | None) -> None:
        self._prefixes[prefix or ""].append(uri or "")

    def _end_declaration(self, prefix: str | None) -> None:
        self._prefixes[prefix or ""].pop()

    def _namespace(self, prefix: str) -> str:
        declared = self._prefixes.get(prefix)
        return declared[-1] if declared else ""

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        parent = self._open[-1] if self._open else None
        if not self._is_kept(name, parent):
            if parent is not None:
                parent.has_more = True
            self._open.append(None)
            return
        self._n_elements += 1
        if self._n_elements > _MAX_ELEMENTS:
            raise XmpError(f"it holds more than {_MAX_ELEMENTS} blocks and texts of a description")
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
        elif parent is self.rdf:
            self._read_block(element)
        elif name in DESCRIPTIONS:
            self._count_description()
            element.scope = {p: declared[-1] for p, declared in self._prefixes.items() if declared}
        self._open.append(element)

    def _read_block(self, block: Element) -> None:
        block.binds_rdf = self._namespace("rdf") == RDF
        if not any(name in block.attributes for name in DESCRIPTIONS):
            return
        for match in _attributes(self.source[block.start : block.tag_end]):
            prefix, _, local = match[1].decode().rpartition(":")
            if prefix and f"{self._namespace(prefix)} {local}" in DESCRIPTIONS:
                block.short_forms.append((block.start + match.start(), block.start + match.end()))
                self._count_description()

    def _count_description(self) -> None:
        self._n_descriptions += 1
        if self._n_descriptions > _MAX_DESCRIPTIONS:
            raise XmpError(f"it holds more than {_MAX_DESCRIPTIONS} descriptions")

    def _is_kept(self, name: str, parent: Element | None) -> bool:
        if not self._open:
            return name in _XMPMETA or name == _RDF_ROOT
        if parent is None:
            return False
        if parent.name in _XMPMETA:
            return name == _RDF_ROOT
        if parent is self.rdf:
            return True
        in_wrapper = self._open[0] is not self.rdf
        depth = len(self._open) + 1 - in_wrapper
        return name in (*DESCRIPTIONS, CAPTIONER) if depth == 3 else depth <= _DEPTH

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

    def _more(self, *_: object) -> None:
        if self._open and self._open[-1] is not None:
            self._open[-1].has_more = True
