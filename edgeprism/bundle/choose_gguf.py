"""Which GGUF files of a repository or folder make one model: the rule, over names and sizes alone.

Publishers put one model into a repository in several quantizations, large ones in several parts,
and the vision tower of a captioner beside it as an mmproj file, itself in several precisions. The
rule reads names, so it costs no download:

1. A language model is a `.gguf` file whose name does not say mmproj or imatrix. Files with a side
   role (LoRA adapters, draft models) and unquantized originals count only if nothing else is there.
2. Its quantization is Q8_0 if that file has at most 1 GB, else Q4_K_M, else the nearest to it.
3. The mmproj is the one named like the language model, or the only one; its precision is F16, then
   BF16, Q8_0, F32.
4. Several models that fit equally are an error, never a guess.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from edgeprism.bundle.gguf_parts import MAX_PARTS, missing_parts, parts_by_model
from edgeprism.errors import ModelError, UsageError

SMALL = 1_000_000_000  # bytes; up to here a model is taken at Q8_0
LM_QUANTS = (
    "Q4_K_M", "Q4_K", "UD-Q4_K_XL", "Q4_K_L", "Q4_K_S", "Q5_K_M", "Q5_K_S", "IQ4_NL", "IQ4_XS",
    "Q4_1", "Q4_0", "Q5_1", "Q5_0", "Q6_K", "Q8_0", "Q3_K_L", "Q3_K_M", "MXFP4", "BF16", "F16",
    "F32",
)  # fmt: skip
MMPROJ_QUANTS = ("F16", "BF16", "Q8_0", "F32")
UNQUANTIZED = ("BF16", "F16", "F32")
_SHOWN = 20  # file names in an error

_QUANT = re.compile(
    r"(?<![A-Za-z0-9])(?:(UD-)?(I?Q[1-8](?:_(?:K|NL|[0-9]|XXS|XS|S|M|L|XL))*|TQ[12]_0|MXFP4)"
    r"|(BF|FP|F)(16|32))(?![A-Za-z0-9])",
    re.IGNORECASE,
)
_PART = re.compile(r"-([0-9]{5})-of-([0-9]{5})\Z")
_SIDE_ROLE = re.compile(r"(?<![a-z0-9])(lora|adapter|draft|mtp|vocab|vocoder)(?![a-z0-9])")
_SEPARATORS = re.compile(r"[-._ ]+")


@dataclass(frozen=True)
class Choice:
    """The files of one model; names are those of the mapping that was given."""

    lm: tuple[str, ...]  # all parts in order; most models have one
    mmproj: str  # "" for a language model alone
    quant: str  # the language model's, "" if its name says none
    mmproj_quant: str
    size: int  # bytes of all these files

    @property
    def files(self) -> tuple[str, ...]:
        """Every chosen file."""
        return (*self.lm, self.mmproj) if self.mmproj else self.lm


@dataclass(frozen=True)
class _Model:
    """One candidate: a language model or an mmproj, with all its parts."""

    parts: tuple[str, ...]
    size: int
    quant: str
    stem: str  # the name without quantization, part and the word mmproj: what it is called

    @property
    def name(self) -> str:
        return self.parts[0]


def choose_files(names: Mapping[str, int], quant: str = "") -> Choice:
    """Choose the files of one model by the rule at the top of this module.

    Args:
        names: Size in bytes by name, with "/" between folders; other files than GGUF are ignored.
        quant: The wanted quantization (`Q8_0`, in any case), or the name of one of the files.

    Raises:
        ModelError: No model is there, or several fit; its details list the files.
        UsageError: `quant` is neither a quantization nor a file that is there.
    """
    return Candidates(names).choose(quant)


class Candidates:
    """The models among a folder's or repository's names, sorted out once for many choices."""

    def __init__(self, names: Mapping[str, int]) -> None:
        self._names = names
        self.models = language_models(names)
        self._by_name = {model.name: model for model in self.models}
        towers = [_to_model([name], names) for name in _gguf_names(names) if is_mmproj(name)]
        self._towers = towers

    def choose(self, quant: str = "") -> Choice:
        """Choose one model as `choose_files`."""
        if not self.models:
            raise _no_model(self._names)
        chosen = self._by_name.get(quant) or _choose_model(self.models, quant, self._names)
        tower = _choose_mmproj(self._towers, chosen) if self._towers else None
        return _to_choice(chosen, tower)


def _to_choice(chosen: _Model, tower: _Model | None) -> Choice:
    return Choice(
        chosen.parts,
        tower.name if tower else "",
        chosen.quant,
        tower.quant if tower else "",
        chosen.size + (tower.size if tower else 0),
    )


def is_mmproj(name: str) -> bool:
    """Return whether a file's name says that it holds a vision tower for another file's model."""
    return "mmproj" in PurePosixPath(name).name.lower()


def quant_in_name(name: str) -> str:
    """Return the quantization that a file's name says, in llama.cpp's spelling; "" if none."""
    path = PurePosixPath(name)
    for text in (path.name.removesuffix(".gguf"), path.parent.name):
        found = list(_QUANT.finditer(text))
        if found:
            return _spelling(found[-1])
    return ""


def model_stem(name: str) -> str:
    """Return what a file's model is called: its name without quantization, part and "mmproj"."""
    return _to_model([name], {name: 0}).stem


def language_models(names: Mapping[str, int]) -> list[_Model]:
    """Return the complete language models among the names, without those that have a side role."""
    candidates = [n for n in _gguf_names(names) if not is_mmproj(n) and not _is_imatrix(n)]
    whole = filter(_is_whole, parts_by_model(candidates))
    models = [_to_model(parts, names) for parts in whole]
    plain = [m for m in models if not _SIDE_ROLE.search(PurePosixPath(m.name).name.lower())]
    return plain or models


def _choose_model(models: list[_Model], wanted: str, names: Mapping[str, int]) -> _Model:
    if wanted.lower().endswith(".gguf"):
        return _named(models, wanted, names)
    if wanted:
        quant = _asked(wanted)
        fitting = [m for m in models if m.quant == quant]
        if not fitting:
            there = ", ".join(sorted({m.quant for m in models if m.quant})) or "none named"
            raise UsageError(
                f"No language model in {wanted} is there.", f"Quantizations: {there}.",
                _broken(names, quant),
            )  # fmt: skip
        return _only(fitting)
    quantized = {m.stem for m in models if m.quant not in UNQUANTIZED}
    fitting = [m for m in models if m.stem in quantized] or models
    if len({m.stem for m in fitting}) > 1:
        raise _several(fitting)
    best = min(map(_lm_rank, fitting))
    return _only([m for m in fitting if _lm_rank(m) == best])


def _choose_mmproj(towers: list[_Model], lm: _Model) -> _Model:
    folder = PurePosixPath(lm.name).parent
    for fitting in (
        [t for t in towers if t.stem == lm.stem],
        [t for t in towers if t.stem in ("", "model")],  # mmproj-F16.gguf, mmproj-model-f16.gguf
        [t for t in towers if PurePosixPath(t.name).parent == folder],
        towers,
    ):
        if fitting and len({t.stem for t in fitting}) == 1:
            best = min(map(_mmproj_rank, fitting))
            return _only([t for t in fitting if _mmproj_rank(t) == best])
    raise _several(towers)


def _lm_rank(model: _Model) -> int:
    if model.quant == "Q8_0" and model.size <= SMALL:
        return -1
    return LM_QUANTS.index(model.quant) if model.quant in LM_QUANTS else len(LM_QUANTS)


def _mmproj_rank(model: _Model) -> int:
    return MMPROJ_QUANTS.index(model.quant) if model.quant in MMPROJ_QUANTS else len(MMPROJ_QUANTS)


def _only(fitting: list[_Model]) -> _Model:
    """Return the only one of equals; of copies in several folders the one that lies highest."""
    depth = min(m.name.count("/") for m in fitting)
    highest = [m for m in fitting if m.name.count("/") == depth]
    if len(highest) > 1:
        raise _several(highest)
    return highest[0]


def _named(models: list[_Model], wanted: str, names: Mapping[str, int]) -> _Model:
    fitting = [m for m in models if wanted in (m.name, PurePosixPath(m.name).name)]
    if not fitting:
        raise UsageError(
            f"No language model {wanted} is there, only:", "Name one of these files, or none.",
            _listed(m.name for m in models),
        )  # fmt: skip
    return _only(fitting)


# ---- names


def _gguf_names(names: Mapping[str, int]) -> list[str]:
    return sorted(name for name in names if name.lower().endswith(".gguf"))


def _is_imatrix(name: str) -> bool:
    base = PurePosixPath(name).name.lower().removesuffix(".gguf")
    return "imatrix" in base and (
        not quant_in_name(name) or base.startswith("imatrix") or base.endswith(".imatrix")
    )


def _is_whole(parts: list[str]) -> bool:
    """Return whether these are all parts of a model, of which there are not too many."""
    counted = _PART.search(parts[0].removesuffix(".gguf"))
    if counted is None:
        return True
    return len(parts) == int(counted[2]) <= MAX_PARTS and not missing_parts(parts)


def _to_model(parts: list[str], names: Mapping[str, int]) -> _Model:
    base = _PART.sub("", PurePosixPath(parts[0]).name[: -len(".gguf")])
    found = list(_QUANT.finditer(base))
    if found:
        base = base[: found[-1].start()] + base[found[-1].end() :]
    stem = _SEPARATORS.sub("-", base.lower().replace("mmproj", "")).strip("-")
    return _Model(tuple(parts), sum(names[part] for part in parts), quant_in_name(parts[0]), stem)


def _spelling(found: re.Match[str]) -> str:
    if found[4]:  # fp16 says the same as F16
        return ("BF" if found[3].upper() == "BF" else "F") + found[4]
    return ((found[1] or "") + found[2]).upper()


def _asked(wanted: str) -> str:
    found = _QUANT.fullmatch(wanted)
    return _spelling(found) if found else wanted.upper()


# ---- errors


def _no_model(names: Mapping[str, int]) -> ModelError:
    present = _gguf_names(names)
    if not present:
        return ModelError(
            "No GGUF file is there, only:" if names else "No GGUF file is there.",
            "Name a repository or folder of GGUF files.", _listed(names),
        )  # fmt: skip
    broken = _broken(names)
    return ModelError(
        "No complete language model is there.",
        "All parts of a model must be there." if broken else "An mmproj needs its language model.",
        broken or _listed(present),
    )


def _several(fitting: list[_Model]) -> ModelError:
    return ModelError(
        "Several models fit, and their names do not say which one is meant:",
        "Name one of these files after the colon, in place of a quantization."
        if not is_mmproj(fitting[0].name)
        else "Put the language model and its mmproj into a folder of their own.",
        _listed(m.name for m in fitting),
    )


def _broken(names: Mapping[str, int], quant: str = "") -> list[str]:
    """Return a line for each model of which parts are missing."""
    lines: list[str] = []
    for parts in parts_by_model(_gguf_names(names)):
        missing = missing_parts(parts)
        if missing and quant in ("", quant_in_name(parts[0])):
            lines += [f"{name}: without {', '.join(missing)}" for name in parts]
        if len(lines) >= _SHOWN:
            break
    return lines[:_SHOWN]


def _listed(names: Iterable[str]) -> list[str]:
    ordered = sorted(names)
    more = [f"and {len(ordered) - _SHOWN} more"] if len(ordered) > _SHOWN else []
    return ordered[:_SHOWN] + more
