"""`edgeprism models verify-published`: runs published weights once and reports the results.

A person with a network runs it and sends the report to the project. It holds the revisions and
digests of the fetched files, the parity gate's figures, and captions of photographs. It holds
neither the pictures nor the machine's users and paths.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edgeprism.bundle.open import Bundle, open_bundle
from edgeprism.errors import EdgePrismError, Interrupted, OutputError, UsageError
from edgeprism.files.atomic import write_atomically
from edgeprism.files.regular import open_regular
from edgeprism.install.doctor import machine_facts
from edgeprism.install.pull import pull
from edgeprism.models.catalogue import Catalogue, HubCaptioner, read_catalogue
from edgeprism.output.places import check_report_folder
from edgeprism.output.written import remember_reports, set_edited_reports_aside
from edgeprism.perceive.captioner import Captioner
from edgeprism.picture.kinds import has_picture_suffix
from edgeprism.progress import Progress
from edgeprism.version import __version__

REPORT_SCHEMA = 1
_REPORTS = ("report.json", "report.txt")
RECOMMENDED_PHOTOS = 5


@dataclass
class Report:
    """The facts of each step; `failures` is empty if all steps passed."""

    name: str
    facts: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return not self.failures

    def to_dict(self) -> dict[str, Any]:
        """The report as `--json` prints it."""
        return {
            "schema": REPORT_SCHEMA,
            "name": self.name,
            "passed": self.passed,
            "failures": self.failures,
            **self.facts,
        }

    def to_text(self) -> str:
        """Return the report as text for people."""
        return "\n".join(_report_lines(self)) + "\n"

    @staticmethod
    def check_folder(folder: Path) -> None:
        """Check that `write` can write to `folder` without loss; writes nothing.

        Raises UsageError for a model's folder, OutputError if it cannot be written or holds
        reports that EdgePrism did not write.
        """
        try:
            with open_regular(folder / "report.json") as file:
                earlier = json.load(file)
            own = {"schema", "passed", "edgeprism"} <= earlier.keys()
        except (OSError, ValueError, AttributeError, RecursionError):
            own = False
        check_report_folder(folder, _REPORTS, keyword="out", own=own)

    def write(self, folder: Path) -> list[Path]:
        """Write report.json and report.txt to `folder`, creating it; return their paths.

        Earlier ones that were edited since get other names.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            set_edited_reports_aside(folder, _REPORTS)
            as_json = json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"
            for name, text in zip(_REPORTS, (as_json, self.to_text()), strict=True):
                write_atomically(folder / name, text.encode())
            remember_reports(folder, _REPORTS)
        except OSError as error:
            raise UsageError(
                f"{folder}: the report cannot be written: {error.strerror}.", "Give another `out`."
            ) from error
        except OutputError as error:
            raise UsageError(error.message, "Give another `out`.") from error
        return [folder / name for name in _REPORTS]


def verify_published(
    name: str,
    photos: Sequence[Path],
    *,
    vision_quants: tuple[str, ...] = (),
    lm_quant: str = "",
    progress: Progress | None = None,
    catalogue: Catalogue | None = None,
) -> Report:
    """Pull, convert (with the parity gate) and caption `photos` (files or folders of pictures).

    Raises UsageError before anything is fetched; the report holds later failures.
    """
    catalogue = catalogue or read_catalogue()
    progress = progress or Progress()
    if not isinstance(catalogue.find(name), HubCaptioner):
        raise UsageError(
            f"{name} is not made of published checkpoints: its digest is in the catalogue.",
            f"`edgeprism models verify {name}` checks it.",
        )
    pictures = find_pictures(photos)
    if len(pictures) < RECOMMENDED_PHOTOS:
        progress.say(f"{len(pictures)} photographs; {RECOMMENDED_PHOTOS} are recommended.")
    report = Report(name)
    report.facts = {
        "edgeprism": __version__,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": machine_facts(),
        "catalogue": asdict(catalogue.find(name)),
    }
    bundle = _step(
        report,
        "pull and convert",
        lambda: _pulled(report, vision_quants, lm_quant, progress, catalogue),
    )
    if bundle is not None:
        _step(report, "captions", lambda: _captioned(report, bundle, pictures, progress))
    return report


def find_pictures(photos: Sequence[Path]) -> list[Path]:
    """Return the given files and the pictures in given folders; UsageError if there are none."""
    pictures: list[Path] = []
    for path in photos:
        inside = sorted(path.iterdir()) if path.is_dir() else [path]
        pictures += [p for p in inside if p == path or has_picture_suffix(p.name)]
    if not pictures:
        raise UsageError("No photograph was found.", "Give `photos` a picture or a folder of them.")
    return pictures


def _step(report: Report, title: str, work: Callable[[], Any]) -> Any:
    """Return the result of `work`; after a failure, add it to the report and return None."""
    start = time.perf_counter()
    try:
        return work()
    except Interrupted:
        raise  # the user's Ctrl-C is not a failure of the model
    except EdgePrismError as error:
        report.failures.append(f"{title}: {type(error).__name__}: {_without_home(str(error))}")
        return None
    finally:
        report.facts.setdefault("seconds", {})[title] = round(time.perf_counter() - start, 1)


def _pulled(
    report: Report,
    vision_quants: tuple[str, ...],
    lm_quant: str,
    progress: Progress,
    catalogue: Catalogue,
) -> Bundle:
    pulled = pull(
        report.name,
        vision_quants=vision_quants,
        lm_quant=lm_quant,
        again=True,  # so that the parity gate runs on this machine
        progress=progress,
        catalogue=catalogue,
    )
    report.facts["repositories"] = [
        {
            "role": fetched.role,
            "repo": fetched.repo,
            "revision": fetched.revision,
            "files": {file.name: {"sha256": file.sha256, "size": file.size}
                      for file in fetched.files},
        }
        for fetched in pulled.fetched
    ]  # fmt: skip
    bundle = open_bundle(pulled.path)
    report.facts["bundle"] = {"digest": bundle.digest, **asdict(bundle.manifest)}
    if not bundle.manifest.parity.passed:
        report.failures += bundle.manifest.parity.failures
    return bundle


def _captioned(
    report: Report, bundle: Bundle, pictures: Sequence[Path], progress: Progress
) -> None:
    captioner = Captioner(bundle)
    report.facts["captions"] = captions = []
    progress.stage("Captioning", len(pictures))
    for i, picture in enumerate(pictures, 1):
        try:
            record = captioner.caption(picture).to_dict()
        except Interrupted:
            raise
        except EdgePrismError as error:
            report.failures.append(f"caption of {picture.name}: {_without_home(str(error))}")
            continue
        # The report holds the picture's name without its path, which is private.
        captions.append({**record, "image": picture.name})
        if not record["caption"].strip():
            report.failures.append(f"caption of {picture.name}: it is empty")
        progress.say(f"{i}/{len(pictures)} {picture.name}: {record['caption']}")
        progress.advance()


def _without_home(text: str) -> str:
    home = os.path.expanduser("~")
    return text if home == "~" else text.replace(home, "~")  # "~": this user has no home folder


def _report_lines(report: Report) -> list[str]:
    facts = report.facts
    lines = [
        f"EdgePrism {facts.get('edgeprism')}: {report.name}: "
        f"{'passed' if report.passed else 'FAILED'} ({facts.get('started')})",
        *(f"FAILED  {failure}" for failure in report.failures),
        "",
        "Machine: " + ", ".join(f"{k} {v}" for k, v in facts.get("machine", {}).items()),
        "Seconds: " + ", ".join(f"{k} {v}" for k, v in facts.get("seconds", {}).items()),
    ]
    for repository in facts.get("repositories", []):
        lines += ["", f"{repository['role']}: {repository['repo']} at {repository['revision']}"]
        lines += [
            f"  {name}  {file['size']} bytes  sha256 {file['sha256']}"
            for name, file in repository["files"].items()
        ]
    if "bundle" in facts:
        bundle = facts["bundle"]
        variants = ", ".join(variant["quant"] for variant in bundle["vision"]["variants"])
        lines += [
            "",
            f"Bundle {bundle['digest']}: vision {variants}, language {bundle['lm']['quant']}",
        ]
        for check, figures in bundle["parity"]["figures"].items():
            shown = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
            lines.append(f"  parity {check}: {shown}")
    for record in facts.get("captions", []):
        timings = record["timings_ms"]
        lines += [
            "",
            f"{record['image']} "
            f"({record['tokens']['generated']} tokens, {record['finish_reason']}, "
            f"encode {timings['encode']:.0f} ms, prefill {timings['prefill']:.0f} ms, "
            f"decode {timings['decode']:.0f} ms, on {record['device']}):",
            f"  {record['caption']}",
        ]
    return lines
