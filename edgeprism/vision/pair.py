"""A language model's GGUF file and its mmproj file → a bundle, in memory or as a folder.

This works with every pair that llama.cpp's mtmd runs. `pair_trial` runs the pair once to learn the
facts that a manifest needs; the data folder keeps them, by the digests of all files.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from edgeprism.bundle.gguf import GgufHeader, license_in_header, read_gguf_header
from edgeprism.bundle.gguf_parts import (
    model_digest,
    part_names,
    part_paths,
    read_model_header,
)
from edgeprism.bundle.manifest import (
    MAX_EDGE,
    SCHEMA,
    FileEntry,
    ImagePolicy,
    Manifest,
    Mmproj,
    Parity,
    Prompts,
    Several,
    Source,
    Vision,
    VisionVariant,
)
from edgeprism.bundle.manifest_language import LanguageModelFile
from edgeprism.bundle.open import Bundle
from edgeprism.bundle.read_manifest import manifest_from_json
from edgeprism.errors import ModelError, OutputError
from edgeprism.files.digests import file_digest
from edgeprism.files.links import link_or_copy
from edgeprism.vision.mmproj_checks import (
    ARCHITECTURE,
    check_mmproj,
    check_positions,
    departure_of,
    projector_of,
    row_width,
)
from edgeprism.vision.pair_trial import PairFacts, try_pair
from edgeprism.vision.trial import remember_captioner

LM_FILE, MMPROJ_FILE = "lm.gguf", "mmproj.gguf"
INSTRUCTION = "Describe this picture in detail."
FOCUS = " Pay special attention to: {focus}."
MAX_TOKENS = 512
_NOT_GATED = "a GGUF pair run by llama.cpp's mtmd as it is, without a parity gate"


@dataclass(frozen=True)
class Origin:
    """Where a pair's files were published."""

    lm: str  # such as "OWNER/REPO@COMMIT: FILE"
    mmproj: str
    license: str  # "" if none was published


def open_pair(
    lm: str | os.PathLike[str], mmproj: str | os.PathLike[str], *, lm_chat_format: str | None = None
) -> Bundle:
    """Return the two files as a bundle, without writing it anywhere.

    Raises ModelError if the files are damaged or do not belong together, TemplateError if
    llama.cpp does not know the model's chat template and `lm_chat_format` names none.
    """
    places = _places(Path(lm), Path(mmproj))
    manifest = _pair_to_manifest(places, lm_chat_format, "")
    # raises ManifestError for values that no bundle may have
    manifest_from_json(manifest.to_json(), f"{lm} with {mmproj}")
    digest = hashlib.sha256(manifest.to_json().encode()).hexdigest()
    bundle = Bundle(Path(lm).parent, manifest, digest, places)
    remember_captioner(bundle)
    return bundle


def write_pair(
    lm: Path,
    mmproj: Path,
    out: Path,
    *,
    lm_chat_format: str | None = None,
    name: str = "",
    overwrite: bool = False,
    copy: bool = False,
    symbolic: bool = False,
    origin: Origin | None = None,
) -> str | None:
    """Write a bundle to the folder `out`: hard links to the files, or copies if links fail.

    `copy` makes copies in any case. With `symbolic`, for files that stay where they are, symbolic
    links go before copies. Raises the errors of `open_pair`, UsageError or OutputError, and then
    leaves nothing half-written. Returns the digest of the bundle's manifest.
    """
    from edgeprism.bundle.writer import BundleWriter

    places = _places(lm, mmproj)
    with BundleWriter(out, overwrite, places.values()) as writer:
        manifest = _pair_to_manifest(places, lm_chat_format, name)
        if origin is not None:
            manifest = _with_origin(manifest, origin)
        for file, source in places.items():
            _put(source, writer.folder / file, copy, symbolic=symbolic)
        return writer.finish(manifest)


def _places(lm: Path, mmproj: Path) -> dict[str, Path]:
    """Return {name in the bundle: file}, the language model's first part first."""
    parts = part_paths(lm)
    several = part_names(f"{Path(LM_FILE).stem}-00001-of-{len(parts):05}.gguf")
    names = [LM_FILE] if len(parts) == 1 else several
    return {**dict(zip(names, parts, strict=True)), MMPROJ_FILE: mmproj}


def _with_origin(manifest: Manifest, origin: Origin) -> Manifest:
    """Say where the files came from, and the licence that was published with them."""
    license_ = origin.license or manifest.license
    sources = [
        dataclasses.replace(source, name=name, license=license_)
        for source, name in zip(manifest.sources, (origin.lm, origin.mmproj), strict=True)
    ]
    return dataclasses.replace(manifest, license=license_, sources=sources)


def _put(source: Path, target: Path, copy: bool, *, symbolic: bool) -> None:
    try:
        if copy:
            shutil.copyfile(source, target)
        else:
            link_or_copy(source, target, symbolic=symbolic)
    except OSError as error:
        raise OutputError(
            f"{target}: cannot be written: {error.strerror}.", "Free some space."
        ) from error


def _pair_to_manifest(places: dict[str, Path], lm_chat_format: str | None, name: str) -> Manifest:
    lm_file = next(iter(places))
    lm, mmproj = places[lm_file], places[MMPROJ_FILE]
    for file, path in places.items():
        if not path.is_file():
            keyword = "mmproj" if file == MMPROJ_FILE else "lm"
            raise ModelError(f"{path}: no such file.", f"Check the path of `{keyword}`.")
    header = read_model_header(lm)
    if header.architecture == ARCHITECTURE:
        raise ModelError(
            f"{lm}: an mmproj file, not a language model.",
            "`lm` takes the language model, `mmproj` the file with the vision tower.",
        )
    mmproj_header = read_gguf_header(mmproj)
    # rows may be several times as wide as the model, if they carry values that later layers add
    check_mmproj(mmproj, row_width(header))
    digests = {file: file_digest(path) for file, path in places.items()}
    facts = try_pair(lm, mmproj, lm_chat_format)
    # the facts may be remembered from an earlier version, which did not check this
    check_positions(mmproj, mmproj_header, lm, facts.multi_axis)
    own_name = str(header.metadata.get("general.name") or lm.stem)
    sources = [
        Source("llm", lm.name, model_digest(lm), _license(header)),
        Source("vision", mmproj.name, digests[MMPROJ_FILE], _license(mmproj_header)),
    ]
    return Manifest(
        schema=SCHEMA,
        name=name or own_name,
        family="mmproj",
        license=_license(header),
        sources=sources,
        image=ImagePolicy("shrink", MAX_EDGE, [0, 0, 0], "bicubic", 1),
        vision=Vision(
            variants=[VisionVariant(MMPROJ_FILE, mmproj_header.quant or "unnamed")],
            input="",
            output="",
            grid=[],
            drop_first_patch=False,
            tokens_per_tile=facts.typical_tokens,
            n_embd=facts.n_embd_row,
            mmproj=Mmproj(projector_of(mmproj_header), facts.multi_axis, facts.tiles_together),
        ),
        lm=_language_model(lm_file, header, facts),
        prompts=_prompts(facts),
        files={
            file: FileEntry(digests[file], path.stat().st_size) for file, path in places.items()
        },
        parity=Parity(False, False, {}, []),
        notice="; ".join(filter(None, [_NOT_GATED, departure_of(header)])),
    )


def _language_model(file: str, header: GgufHeader, facts: PairFacts) -> LanguageModelFile:
    context = header.metadata.get(f"{header.architecture}.context_length")
    return LanguageModelFile(
        file=file,
        quant=header.quant or "unnamed",
        architecture=header.architecture,
        n_embd=header.n_embd,
        n_vocab=header.n_vocab,
        context_length=context if isinstance(context, int) else 0,
        image_attention="causal" if facts.causal else "both-ways",
    )


def _prompts(facts: PairFacts) -> Prompts:
    return Prompts(
        add_bos=facts.add_bos,
        before_image=facts.before_image,
        after_image="",
        before_caption=facts.after_instruction,
        default_instruction=INSTRUCTION,
        focus_instruction=FOCUS,
        stop=[],  # the vocabulary's end tokens suffice
        max_tokens=MAX_TOKENS,
        several=Several("", ""),  # libmtmd adds the text that its model needs around each picture
    )


def _license(header: GgufHeader) -> str:
    return license_in_header(header) or "not stated in the file"
