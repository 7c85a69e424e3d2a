"""Choose models that fit a machine, and foretell how long they take.

How long a model would take follows from two rates of the machine (`edgeprism.machine.rates`) and
from how much work the model is, which the catalogue knows. The factors between a rate and what the
engines reach were measured with a captioner of PrismCaptioner-2B's dimensions on two cores, where
the same minutes gave 125 GFLOP/s and 23 GB/s: encoding with libmtmd 6.5 s and with an int8 graph
2.9 s, prefill of 768 rows 17 s, 14 tokens a second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgeprism.choices import DEFAULT_MODEL
from edgeprism.convert.mmproj.obstacles import PROJECTORS
from edgeprism.install.extras import has_module
from edgeprism.install.inventory import ModelEntry
from edgeprism.install.licenses import ORDER, Terms, license_terms
from edgeprism.machine.rates import Rates
from edgeprism.memory.plan import machine_memory
from edgeprism.models.catalogue import Work

# parts of the two rates that the engines reach
ENCODE, ENCODE_GRAPH, PREFILL, DECODE = 0.8, 1.8, 1.2, 0.65
CAPTION_TOKENS, ANSWER_TOKENS = 80, 30
QUESTION_TOKENS = 400  # the captions, the question and the examples of its prompt
PATIENCE_S = 20.0  # for one picture, or one answer; above it a faster model is recommended
FASTER = 0.7  # of the recommended one's time; less of a difference the estimates do not tell
OFFERED = 3


@dataclass(frozen=True)
class Offer:
    """One model that fits this machine."""

    name: str  # as commands take it
    kind: str  # captioner | reasoner
    installed: bool  # it can be used as it is; else `pull` gets it
    fetch_bytes: int  # 0 if all of it is on this disk
    convert_memory_bytes: int | None  # to convert it after that; None: it is used as it comes
    memory_bytes: int | None  # to run it
    memory_counted: bool  # from its files; else estimated from their size
    seconds: float | None  # estimated for a picture, or an answer; None if nothing is known
    license: str
    terms: Terms  # how far the licence lets it be used
    description: str

    @property
    def here(self) -> bool:
        """Whether nothing needs to be fetched."""
        return self.fetch_bytes == 0


def choose_offers(
    kind: str,
    entries: Sequence[ModelEntry],
    work: Mapping[str, Work],
    rates: Rates,
    *,
    offline: bool,
    cached: frozenset[str] = frozenset(),
) -> list[Offer]:
    """Return at most three models of a kind that fit, the recommended one first, and one more.

    What is on the disk goes before what must be fetched, and among both a licence of freer terms
    before others. Among models to fetch, the recommended one is the largest of the freest terms
    that takes no longer than `PATIENCE_S`; a larger one and one that takes at most `FASTER` of its
    time, of any terms, follow where there are such. What a licence restricts, to research for
    example, comes last of these three, wherever it lies. One more may follow them: of those that
    must be converted first, the fastest.
    `cached` names models of the catalogue whose files lie in the hub's cache.
    """
    memory = machine_memory(None)
    fitting = [
        _to_offer(entry, work.get(entry.name), rates, cached)
        for entry in entries
        if entry.kind == kind
        and entry.name != DEFAULT_MODEL  # it is made for drawn scenes
        and entry.state != "damaged"
        and not memory.lacks(max(entry.memory or 0, entry.convert_memory or 0))
    ]
    here = sorted((offer for offer in fitting if offer.here), key=_impatience)
    here.sort(key=lambda offer: ORDER.index(offer.terms))
    known = [o for o in fitting if not o.here and o.seconds is not None and not offline]
    known.sort(key=lambda offer: (offer.seconds or 0.0, offer.name))
    offers = [*here, *_around_best([o for o in known if o.convert_memory_bytes is None])]
    free = [offer for offer in offers if offer.terms != "restricted"]
    restricted = [offer for offer in offers if offer.terms == "restricted"]
    room = OFFERED - bool(restricted and restricted[0].here)  # what is here is worth a mention
    converted = [o for o in known if o.convert_memory_bytes is not None and o.terms != "restricted"]
    return [*[*free[:room], *restricted][:OFFERED], *converted[:1]]


def _impatience(offer: Offer) -> tuple[bool, float, str]:
    """Order what is here: the largest that is fast enough, then the rest, the fastest first."""
    if offer.seconds is None or offer.seconds <= PATIENCE_S:
        return False, -(offer.memory_bytes or 0), offer.name
    return True, offer.seconds, offer.name


def _around_best(by_seconds: list[Offer]) -> list[Offer]:
    """Return the best of the freest terms that there are, then a larger and a faster one."""
    if not by_seconds:
        return []
    freest = min(ORDER.index(offer.terms) for offer in by_seconds)
    places = [i for i, offer in enumerate(by_seconds) if ORDER.index(offer.terms) == freest]
    quick = [i for i in places if (by_seconds[i].seconds or 0.0) <= PATIENCE_S]
    place = quick[-1] if quick else places[0]
    best = by_seconds[place]
    larger = [
        o for o in by_seconds[place + 1 :] if (o.memory_bytes or 0) > (best.memory_bytes or 0)
    ]
    limit = FASTER * (best.seconds or 0.0)
    faster = [o for o in by_seconds[:place] if (o.seconds or 0.0) <= limit]
    return [best, *larger[:1], *faster[-1:]]


def _to_offer(entry: ModelEntry, work: Work | None, rates: Rates, cached: frozenset[str]) -> Offer:
    installed = entry.state != "available"
    return Offer(
        name=entry.name,
        kind=entry.kind,
        installed=installed,
        fetch_bytes=0 if installed or entry.name in cached else (entry.size or 0),
        convert_memory_bytes=entry.convert_memory,
        memory_bytes=entry.memory,
        memory_counted=entry.memory_counted,
        seconds=None if work is None else _seconds(entry, work, rates),
        license=entry.license,
        terms=license_terms(entry.license),
        description=entry.description,
    )


def _seconds(entry: ModelEntry, work: Work, rates: Rates) -> float:
    answers = entry.kind == "reasoner"
    rows, tokens = work.rows, work.caption_tokens or CAPTION_TOKENS
    if answers:
        rows, tokens = QUESTION_TOKENS, ANSWER_TOKENS
    # `pull` makes the graph where the extra `pairs` is installed
    has_graph = work.graph or (work.projector in PROJECTORS and has_module("onnx"))
    share = ENCODE_GRAPH if has_graph else ENCODE
    encode = work.encode_gflop / (rates.gflops * share)
    prefill = 2 * work.parameters_b * rows / (rates.gflops * PREFILL)
    # each token reads the language model's weights once, and none of the encoder's
    read = max(0.0, (entry.disk or entry.size or 0) - work.vision_gb * 1e9)
    return encode + prefill + tokens * read / (rates.read_gbs * 1e9 * DECODE)
