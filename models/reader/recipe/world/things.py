"""A thing in a scene, and how two things can stand to each other."""

from __future__ import annotations

from dataclasses import dataclass

from edgeprism.models.reader.recipe.world.text import plural

# with each relation its inverse
RELATIONS = (
    ("to the left of", "to the right of"), ("to the right of", "to the left of"),
    ("above", "below"), ("below", "above"), ("in front of", "behind"), ("behind", "in front of"),
    ("next to", "next to"), ("on top of", "underneath"), ("beside", "beside"), ("inside", "around"),
    ("above and to the left of", "below and to the right of"),
    ("above and to the right of", "below and to the left of"),
    ("below and to the left of", "above and to the right of"),
    ("below and to the right of", "above and to the left of"),
)  # fmt: skip


@dataclass
class Thing:
    """A kind of thing in a scene, and the facts that state its properties."""

    name: str
    count: int
    colour: str
    material: str
    size: str
    place: str
    fact: int

    @property
    def one(self) -> str:
        """How the thing is named alone: the name, in the plural where there are several."""
        return self.name if self.count == 1 else plural(self.name)
