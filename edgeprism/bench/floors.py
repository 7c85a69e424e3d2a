"""Sets beside each stage the least that it needs on this machine, where that is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgeprism.bench.limits import operations_ms, time_floor, token_floor
from edgeprism.bench.report import Floor, Rates, Stage, Tokens
from edgeprism.bench.work import LanguageWork, Operations


@dataclass(frozen=True)
class Work:
    """What a caption's stages must do; `encode` is None where it is not known."""

    encode: Operations | None
    language: LanguageWork


def with_floors(stages: Sequence[Stage], work: Work, rates: Rates, tokens: Tokens) -> list[Stage]:
    """Return the captioner's stages with their floors; the others as they are.

    The floor of the whole caption, and of the time to the first token, is the sum of the floors of
    its parts. Reading, starting and loading count as nothing in it.
    """
    prefill = work.language.prefill(tokens.visual + tokens.prompt)
    known = {"prefill": prefill} | ({"encode": work.encode} if work.encode else {})
    names = " and ".join(sorted(known))
    until_first = sum(operations_ms(counted, rates) for counted in known.values())
    per_token = token_floor(work.language, rates, 1.0)
    decode = tokens.generated / per_token.value * 1000
    floors = {
        "decode": (decode, f"{tokens.generated} tokens, {per_token.basis}"),
        "first_text": (until_first, f"the floors of {names}"),
        "whole": (until_first + decode, f"the floors of {names}, and decode"),
    }
    found = []
    for stage in stages:
        floor = stage.floor
        if stage.group == "folder":
            least = until_first + decode
            floor = Floor(1000 / least, stage.median * least / 1000, floors["whole"][1])
        elif stage.group in ("cold", "warm") and stage.name in known:
            floor = time_floor(known[stage.name], rates, stage.median)
        elif stage.group in ("cold", "warm") and stage.name == "decode_rate":
            floor = token_floor(work.language, rates, stage.median)
        elif stage.group == "cold" and stage.name == "whole":
            pass  # the start and the loading have no floor that is known
        elif stage.group in ("cold", "warm") and stage.name in floors and stage.median:
            value, basis = floors[stage.name]
            floor = Floor(value, value / stage.median, basis)
        found.append(replace(stage, floor=floor))
    return found
