"""How far a licence lets a model be used, from the names that hubs and GGUF headers give licences.

Names alone are known here, not texts: a name that says nothing is "unknown", never "permissive".
"""

from __future__ import annotations

import re
from typing import Literal

Terms = Literal["permissive", "own terms", "unknown", "restricted"]
ORDER: tuple[Terms, ...] = ("permissive", "own terms", "unknown", "restricted")

_OWNER = re.compile(r"[\w.-]+/[\w.-]+: ", re.ASCII)  # one of several repositories comes first
# for research, or not for money: qwen-research, cc-by-nc-4.0, apple-amlr, "non-commercial"
_RESTRICTED = re.compile(r"non-?commercial|research|\bnc\b|amlr|academic|evaluation only")
_PERMISSIVE = re.compile(
    r"(apache|mit|0?bsd|isc|zlib|unlicense|wtfpl|cc0|cc-by(?!-(nc|nd|sa))|cdla-permissive)"
    r"([ -]?(licen[cs]e|v?[\d.]+|[234]-clause|public domain))*"
)
# free also for business, under conditions of the publisher's own
_OWN_TERMS = re.compile(r"gemma|llama|openrail|falcon|community")


def license_terms(license_: str) -> Terms:
    """Return how far a licence lets a model be used; of several, what the strictest says.

    "permissive" are Apache-2.0, MIT, BSD and their like; "own terms" the licences of a publisher
    that allow business use under conditions, such as Gemma's and Llama's; "restricted" those that
    allow research alone, or no use for money; "unknown" all else, also where none is recorded.
    """
    parts = [_OWNER.sub("", part.strip().lower()) for part in re.split("[;,]", license_)]
    return max(map(_terms_of_one, parts), key=ORDER.index)


def _terms_of_one(name: str) -> Terms:
    if _RESTRICTED.search(name):
        return "restricted"
    if _PERMISSIVE.fullmatch(name):
        return "permissive"
    return "own terms" if _OWN_TERMS.search(name) else "unknown"


def restriction(license_: str) -> str:
    """Return what stands behind a licence's name where it restricts the use, "" where not."""
    return ": restricts its use" if license_terms(license_) == "restricted" else ""


def published_license(page: str, catalogued: str) -> str:
    """Return a model's licence from its page and from the catalogue; "" is one that says none.

    Where they differ it is the one that restricts more, for one of them is out of date. A page may
    be silent (offline nobody asks it), and the catalogue may refer to the page.
    """
    stated = [name for name in (catalogued, page) if license_terms(name) != "unknown"]
    if not stated:
        return page or catalogued
    return max(stated, key=lambda name: ORDER.index(license_terms(name)))
