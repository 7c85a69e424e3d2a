"""What an XMP document says in its description, and whose words these are.

Only two kinds of description may be replaced unasked: one that is empty in every sense, and one
that EdgePrism wrote and nobody changed. Everything else is somebody's: a text in any language or
form, a qualifier, a comment, a value behind `rdf:resource`.

Layout: Adobe, XMP Specification Part 1 (ISO 16684-1), section 7; language alternatives 8.2.2.4.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from edgeprism.output.xmp_tree import (
    BLOCK,
    CAPTIONER,
    DESCRIPTIONS,
    EDGEPRISM,
    RDF,
    Document,
    Element,
)

TEXT_HASH = "textSha256"  # of the text, if EdgePrism wrote all of it
APPENDED = "appended"  # what EdgePrism wrote behind a person's text
BEFORE = "before"  # what stood in the document before EdgePrism changed it
_XML_LANG = "http://www.w3.org/XML/1998/namespace lang"
_LISTS = (f"{RDF} Alt", f"{RDF} Bag", f"{RDF} Seq")


@dataclass(frozen=True)
class Described:
    """The x-default description of a document."""

    text: str  # what viewers show; empty if there is none, or none in a form that is understood
    by_edgeprism: bool  # EdgePrism wrote the text, and nobody changed it since
    is_empty: bool = False  # there is no description, in any language or form
    is_plain: bool = False  # it is one text, in a form to which more text can be appended
    # The text ends with this caption, which EdgePrism appended; a person wrote what precedes it.
    appended: str = ""

    @property
    def start(self) -> str:
        """The text without what EdgePrism appended."""
        return self.text.removesuffix("\n" + self.appended) if self.appended else self.text


@dataclass(frozen=True)
class Descriptions:
    """All places of a document that hold a description."""

    document: Document
    elements: list[Element]
    own: Element | None  # the one of `elements` that holds EdgePrism's text
    short_form_is_own: bool  # EdgePrism's text is an attribute, as some programs rewrite it
    fields: Mapping[str, str]  # of `edgeprism:captioner`
    described: Described


def find_descriptions(document: Document) -> Descriptions:
    """Find every description of a document and say whose it is."""
    fields = own_fields(document)
    elements = [e for node in document.rdf.children for e in node.find(*DESCRIPTIONS)]
    short_forms = [
        node.attributes[name]
        for node in document.rdf.children
        for name in DESCRIPTIONS
        if node.attributes.get(name, "").strip()
    ]
    filled = [element for element in elements if not _is_blank(element)]
    text = next((found for e in elements if (found := _shown_text(e))), "") or "".join(
        short_forms[:1]
    )
    digest = fields.get(TEXT_HASH)
    # An empty caption is blank, so it is found by its form rather than among the filled ones.
    own = next((e for e in elements if _is_plain(e) and sha256_of(plain_text(e)) == digest), None)
    if any(element is not own for element in filled) or (own is not None and short_forms):
        own = None
    short_form_is_own = not filled and [sha256_of(form) for form in short_forms] == [digest]
    is_empty = not filled and not short_forms
    is_plain = len(filled) + len(short_forms) == 1 and all(map(_is_plain, filled))
    appended = fields.get(APPENDED, "")
    if not (appended and is_plain and text.endswith("\n" + appended)):
        appended = ""
    by_edgeprism = own is not None or short_form_is_own
    described = Described(text, by_edgeprism, is_empty, is_plain, appended)
    return Descriptions(document, elements, own, short_form_is_own, fields, described)


def default_item(description: Element) -> Element | None:
    """Return the x-default item of a description that is a language alternative."""
    for alternative in description.find(f"{RDF} Alt"):
        for item in alternative.find(f"{RDF} li"):
            if item.attributes.get(_XML_LANG, "").lower() == "x-default":
                return item
    return None


def only_alternative(description: Element) -> Element | None:
    """Return the description's language alternative if it holds nothing else.

    Its items may be anything, but at most one of them is x-default.
    """
    if description.has_more or description.text.strip() or len(description.children) != 1:
        return None
    (alternative,) = description.children
    if alternative.name != f"{RDF} Alt":
        return None
    defaults = [
        item
        for item in alternative.children
        if item.attributes.get(_XML_LANG, "").lower() == "x-default"
    ]
    return alternative if len(defaults) < 2 else None


def is_simple(item: Element) -> bool:
    """Return whether an item has a text and a language, and nothing else."""
    return not item.has_more and not item.children and set(item.attributes) <= {_XML_LANG}


def plain_text(description: Element) -> str:
    """Return the text of a plain description (see `plain_place`)."""
    place = plain_place(description)
    return "" if place is None else place.text


def plain_place(description: Element) -> Element | None:
    """Return the element whose text is the whole x-default text; None if there is none such.

    It is the x-default item of a language alternative, or the description if that is plain text.
    """
    if only_alternative(description) is not None:
        item = default_item(description)
        return item if item is not None and is_simple(item) else None
    is_text = not description.children and not description.has_more and not description.attributes
    return description if is_text else None


def own_fields(document: Document) -> dict[str, str]:
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


def sha256_of(text: str) -> str:
    """Return the digest by which a later run tells EdgePrism's text from a person's."""
    return hashlib.sha256(text.encode()).hexdigest()


def _is_plain(description: Element) -> bool:
    return plain_place(description) is not None


def _is_blank(description: Element) -> bool:
    """Return whether the description is empty in every sense.

    It may hold empty lists and empty items with a language; no text, attribute or comment.
    """
    levels = [description, *description.children]
    items = [item for child in description.children for item in child.children]
    return (
        not any(e.attributes or e.has_more or e.text.strip() for e in levels)
        and all(child.name in _LISTS for child in description.children)
        and all(is_simple(item) and not item.text.strip() for item in items)
    )


def _shown_text(description: Element) -> str:
    """Return the text that viewers show of a description."""
    item = default_item(description)
    if item is not None:
        return item.text
    if description.find(f"{RDF} Alt"):
        return ""  # the alternative has no x-default, only other languages
    levels = [description]  # the tree has few levels below a description
    for child in description.children:
        levels += [child, *child.children]
    return " ".join(text for e in levels if (text := e.text.strip()))
