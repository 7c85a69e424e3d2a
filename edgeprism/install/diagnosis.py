"""What `edgeprism doctor` found: a list of findings, each with its fix."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from edgeprism.errors import EXIT_DONE

OK, WARN, BAD = "ok", "warn", "bad"
REPORT_SCHEMA = 1


@dataclass(frozen=True)
class Finding:
    """The state of one topic; `fix` is a command that mends it, if there is one."""

    topic: str
    state: str  # ok | warn | bad
    text: str
    fix: str = ""
    exit_code: int = EXIT_DONE


@dataclass
class Diagnosis:
    """All findings, in the order of the report."""

    findings: list[Finding] = field(default_factory=list)

    def add(
        self, topic: str, state: str, text: str, fix: str = "", exit_code: int = EXIT_DONE
    ) -> None:
        """Add a finding; an error's details, each on a line of its own, stand in one line."""
        first, *details = text.strip().split("\n  ")
        text = " ".join(filter(None, (first, "; ".join(details))))
        self.findings.append(Finding(topic, state, text, fix, exit_code))

    @property
    def exit_code(self) -> int:
        """5 if an engine is faulty, else 4 if the default model is, else 0."""
        return max((finding.exit_code for finding in self.findings), default=EXIT_DONE)

    def to_dict(self) -> dict[str, Any]:
        """The report as `--json` prints it."""
        return {
            "schema": REPORT_SCHEMA,
            "usable": self.exit_code == EXIT_DONE,
            "exit_code": self.exit_code,
            "findings": [asdict(finding) for finding in self.findings],
        }
