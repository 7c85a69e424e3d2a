"""Counts of what the server did, in Prometheus' text format."""

from __future__ import annotations

import bisect
from collections import Counter
from typing import TYPE_CHECKING

from edgeprism.machine.peak_memory import peak_bytes
from edgeprism.serve.events import CaptionEvent, Described, Failed
from edgeprism.version import __version__

if TYPE_CHECKING:
    from edgeprism.serve.service import Service

_BOUNDS = (0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)  # seconds
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Counters of one server since its start; they hold numbers and model names, no content."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, str, int]] = Counter()  # method, route, status
        self.captions: Counter[tuple[str, str]] = Counter()  # captioner, outcome
        self.tokens: Counter[str] = Counter()  # captioner → tokens of its captions
        self.answers = 0
        self._seconds = [0] * (len(_BOUNDS) + 1)  # answered requests by their time, not summed
        self._total_s = 0.0

    def count(self, captioner: str, event: CaptionEvent) -> None:
        """Count a caption that is finished or failed."""
        if isinstance(event, Described):
            self.captions[captioner, "made"] += 1
            self.tokens[captioner] += event.caption.tokens.generated
        elif isinstance(event, Failed):
            self.captions[captioner, "failed"] += 1

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        self.requests[method, route, status] += 1
        self._seconds[bisect.bisect_left(_BOUNDS, seconds)] += 1
        self._total_s += seconds

    def to_text(self, service: Service) -> str:
        """Return everything in Prometheus' text format."""
        lines = [_head("edgeprism_info", "gauge", "The version that runs.")]
        lines.append(f'edgeprism_info{{version="{__version__}"}} 1')
        lines.append(_head("edgeprism_requests_total", "counter", "Requests that were answered."))
        for (method, route, status), count in sorted(self.requests.items()):
            labels = f'method="{method}",route="{_escape(route)}",status="{status}"'
            lines.append(f"edgeprism_requests_total{{{labels}}} {count}")
        lines += self._histogram()
        lines.append(_head("edgeprism_captions_total", "counter", "Captions, made or failed."))
        for (model, outcome), count in sorted(self.captions.items()):
            labels = f'model="{_escape(model)}",outcome="{outcome}"'
            lines.append(f"edgeprism_captions_total{{{labels}}} {count}")
        lines.append(_head("edgeprism_caption_tokens_total", "counter", "Tokens of captions."))
        for model, count in sorted(self.tokens.items()):
            lines.append(f'edgeprism_caption_tokens_total{{model="{_escape(model)}"}} {count}')
        lines.append(_head("edgeprism_answers_total", "counter", "Answers of reasoners."))
        lines.append(f"edgeprism_answers_total {self.answers}")
        places = service.places
        lines.append(_head("edgeprism_places_taken", "gauge", "Captions and answers in progress."))
        lines.append(f"edgeprism_places_taken {places.taken}")
        lines.append(_head("edgeprism_places", "gauge", "How many may be in progress."))
        lines.append(f"edgeprism_places {places.limit}")
        lines.append(_head("edgeprism_model_loaded", "gauge", "Models in memory."))
        for key in sorted(service.models.in_memory()):
            kind, _, name = key.partition(" ")
            labels = f'kind="{kind}",model="{_escape(name)}"'
            lines.append(f"edgeprism_model_loaded{{{labels}}} 1")
        lines.append(_head("edgeprism_peak_memory_bytes", "gauge", "Most memory so far."))
        lines.append(f"edgeprism_peak_memory_bytes {peak_bytes() or 0}")
        return "\n".join(lines) + "\n"

    def _histogram(self) -> list[str]:
        name = "edgeprism_request_seconds"
        lines, total = [_head(name, "histogram", "Seconds until a request was answered.")], 0
        for bound, count in zip((*_BOUNDS, "+Inf"), self._seconds, strict=True):
            total += count
            lines.append(f'{name}_bucket{{le="{bound}"}} {total}')
        return [*lines, f"{name}_sum {self._total_s:.6f}", f"{name}_count {total}"]


def _head(name: str, kind: str, text: str) -> str:
    return f"# HELP {name} {text}\n# TYPE {name} {kind}"


def _escape(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
