"""The pictures of docs/architecture.md: what is drawn is what the code does."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from tests.docs.pages import ROOT, blocks, first_column, module_of, section

PAGE = ROOT / "docs" / "architecture.md"
PACKAGE = ROOT / "edgeprism"


def floors() -> dict[str, int]:
    """Room → floor, the highest number on top."""
    (picture,) = [block.code for block in blocks(PAGE) if block.language == "rooms"]
    lines = list(reversed(picture.splitlines()))
    return {room: number for number, line in enumerate(lines) for room in line.split()}


def imports() -> Iterator[tuple[str, str, str]]:
    """(file, its room, a room that it imports); imports for types alone tie no knot."""
    for path in sorted(PACKAGE.rglob("*.py")):
        own = path.relative_to(PACKAGE).with_suffix("").parts[0]
        tree = ast.parse(path.read_text(encoding="utf-8"))
        only_types = {
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, ast.If)
            and isinstance(node.test, ast.Name)
            and node.test.id == "TYPE_CHECKING"
            for inner in ast.walk(node)
        }
        for node in ast.walk(tree):
            if id(node) in only_types:
                continue
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                whole = node.module == "edgeprism"
                names = [f"edgeprism.{a.name}" for a in node.names] if whole else [node.module]
            for name in names:
                parts = name.split(".")
                if parts[0] == "edgeprism" and len(parts) > 1 and parts[1] != own:
                    yield path.relative_to(PACKAGE).as_posix(), own, parts[1]


def test_every_room_is_drawn_and_told_of() -> None:
    rooms = {
        path.stem
        for path in PACKAGE.iterdir()
        if not path.name.startswith(("_", ".")) and (path.is_dir() or path.suffix == ".py")
    }
    assert set(floors()) == rooms
    assert set(first_column(section(PAGE, "The rooms"))) == rooms


def test_imports_lead_downward_as_drawn() -> None:
    floor = floors()
    seen = list(imports())
    assert len(seen) > 100
    wrong = [
        f"{file} imports {room}"
        for file, own, room in seen
        if own in floor and room in floor and floor[room] >= floor[own]
    ]
    assert wrong == []


def test_the_data_path_is_what_its_script_draws() -> None:
    drawing = module_of(ROOT / "docs" / "draw_data_path.py")
    for name, path in drawing.FILES.items():
        assert path.read_text(encoding="utf-8") == drawing.draw(drawing.PALETTES[name])
    for step in drawing.STEPS:
        assert step.room.rstrip("/") in floors()


# ---- reasons of "What is written by hand, and why", as far as installed libraries show them


def test_llama_cpp_pythons_grammars_drop_keywords() -> None:
    from llama_cpp.llama_grammar import json_schema_to_gbnf

    for plain, more in (
        ('{"type": "integer"}', '{"type": "integer", "multipleOf": 5}'),
        ('{"type": "string"}', '{"type": "string", "format": "email"}'),
        ('{"type": "number"}', '{"type": "number", "minimum": 3}'),
        ('{"type": "array", "items": {"type": "null"}}',
         '{"type": "array", "items": {"type": "null"}, "uniqueItems": true}'),
    ):  # fmt: skip
        assert json_schema_to_gbnf(plain) == json_schema_to_gbnf(more)


def test_elementtree_writes_a_document_anew() -> None:
    import xml.etree.ElementTree as ElementTree

    text = '<?xpacket begin="" id="x"?><a:b xmlns:a="urn:a"><!-- kept? --></a:b><?xpacket end="w"?>'
    written = ElementTree.tostring(ElementTree.fromstring(text)).decode()
    assert "kept?" not in written
    assert "xpacket" not in written
    assert "a:b" not in written


def test_pydantic_takes_a_field_given_twice() -> None:
    from pydantic import BaseModel, ConfigDict

    class Model(BaseModel):
        model_config = ConfigDict(extra="forbid", strict=True)
        a: int

    assert Model.model_validate_json('{"a": 1, "a": 2}').a == 2
