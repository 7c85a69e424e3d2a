"""References within a JSON schema: `$ref`, `$id`, `$anchor`, `$defs`."""

from __future__ import annotations

import urllib.parse
from dataclasses import dataclass, field
from typing import Any

# Keywords whose values are data, in which a "$id" is no identifier.
_DATA = {"enum", "const", "default", "examples"}


@dataclass(frozen=True)
class Placed:
    """A schema, and the address against which its references are resolved."""

    schema: Any
    base: str = ""


@dataclass
class References:
    """Finds what the references of a whole schema lead to; nothing is looked up elsewhere."""

    whole: Any
    _places: dict[str, Placed] = field(default_factory=dict)  # address → schema

    def __post_init__(self) -> None:
        self._places[""] = Placed(self.whole)
        pending, seen = [Placed(self.whole)], set[tuple[int, str]]()
        while pending:
            place = pending.pop()
            if (id(place.schema), place.base) in seen:  # a schema made in Python may hold itself
                continue
            seen.add((id(place.schema), place.base))
            if isinstance(place.schema, list):
                pending += [Placed(inner, place.base) for inner in place.schema]
            elif isinstance(place.schema, dict):
                place = self.enter(place)
                self._places.setdefault(place.base, place)
                anchor = place.schema.get("$anchor")
                if isinstance(anchor, str):
                    self._places[f"{place.base}#{anchor}"] = place
                pending += [
                    Placed(inner, place.base)
                    for name, inner in place.schema.items()
                    if name not in _DATA
                ]

    def enter(self, place: Placed) -> Placed:
        """Return a schema with the base that its own `$id` sets."""
        identifier = place.schema.get("$id") if isinstance(place.schema, dict) else None
        if not isinstance(identifier, str):
            return place
        return Placed(place.schema, _join(place.base, identifier).partition("#")[0])

    def target(self, reference: Any, base: str) -> Placed | None:
        """Return what `reference` leads to from a schema with this base; None if nowhere."""
        if not isinstance(reference, str):
            return None
        address, _, fragment = _join(base, reference).partition("#")
        fragment = urllib.parse.unquote(fragment)
        if fragment and not fragment.startswith("/"):
            return self._places.get(f"{address}#{fragment}")
        place = self._places.get(address)
        for part in fragment.split("/")[1:] if place is not None else ():
            place = self._step(place, part.replace("~1", "/").replace("~0", "~"))
        return None if place is None else self.enter(place)

    def _step(self, place: Placed | None, part: str) -> Placed | None:
        if place is None:
            return None
        place = self.enter(place)
        if isinstance(place.schema, dict) and part in place.schema:
            return Placed(place.schema[part], place.base)
        if isinstance(place.schema, list) and part.isdecimal() and int(part) < len(place.schema):
            return Placed(place.schema[int(part)], place.base)
        return None


def _join(base: str, reference: str) -> str:
    """Resolve `reference` against `base`; `urljoin` would lose the base of a urn."""
    if reference.startswith("#") or not reference:
        return base.partition("#")[0] + reference
    return urllib.parse.urljoin(base, reference)
