"""llama.cpp's libraries, loaded once and silenced. No other module imports llama_cpp."""

from __future__ import annotations

import collections
import ctypes
import functools
import os
import sys
from pathlib import Path
from typing import Any

from edgeprism.errors import DeviceError
from edgeprism.files.safe_text import printable
from edgeprism.language.postponed import postponed
from edgeprism.machine.cancel import uninterrupted
from edgeprism.machine.shortage import shortage_hint

_LEVEL_WARN = 2
_FEATURES = {"repack": "REPACK", "avx2": "AVX2", "avx512": "AVX512", "dotprod": "DOTPROD"}
_Q2_K, _Q4_0, _Q8_0, _Q4_K, _Q5_K, _Q6_K, _IQ4_NL, _MXFP4 = 10, 2, 8, 12, 13, 14, 20, 39
_REPACKED = {
    "avx2": (_Q4_0, _Q4_K, _IQ4_NL, _MXFP4),
    "avx512": (_Q2_K,),
    "dotprod": (_Q4_0, _Q4_K, _Q5_K, _Q6_K, _IQ4_NL, _MXFP4, _Q8_0),
}
_llama: Any = None
_mtmd: Any = None
_log_lines: collections.deque[str] = collections.deque(maxlen=8)
_keep_alive: list[Any] = []  # callbacks that native code may call until the process ends


def import_llama() -> Any:
    """Return llama_cpp's low-level module; raises DeviceError (exit code 5) if it is missing."""
    global _llama
    if _llama is None:
        # where an assertion fails, ggml would start the debugger that PATH names
        os.environ["GGML_NO_BACKTRACE"] = "1"
        try:
            with uninterrupted(), postponed("llama_cpp", after=_take_log):
                import llama_cpp.llama_cpp as llama
        except (ImportError, OSError, RuntimeError) as error:
            raise DeviceError(
                f"llama.cpp cannot be loaded: {error}.",
                shortage_hint(error) or "pip install llama-cpp-python",
            ) from error
        _keep_alive.append(llama.llama_log_callback(_on_log))
        _llama = llama
        _take_log()
        llama.llama_backend_init()
    return _llama


def _take_log() -> None:
    """Have llama.cpp's log go to `_on_log`; llama_cpp's high-level class sends it elsewhere."""
    if _llama is not None:
        _llama.llama_log_set(_keep_alive[0], ctypes.c_void_p(0))


def import_ggml() -> ctypes.CDLL | None:
    """Return the library under llama.cpp, which knows the devices; None where it is not found."""
    import_llama()
    try:
        from llama_cpp._ggml import libggml
    except (ImportError, OSError):  # an older or a differently built binding
        return None
    library: ctypes.CDLL = libggml
    return library


def import_mtmd() -> Any:
    """Return llama_cpp's binding of libmtmd; raises DeviceError (exit code 5) if it is missing."""
    global _mtmd
    if _mtmd is None:
        import_llama()
        try:
            with uninterrupted():
                import llama_cpp.mtmd_cpp as mtmd
        except (ImportError, OSError, RuntimeError) as error:
            raise DeviceError(
                f"llama.cpp's vision library (mtmd) cannot be loaded: {error}.",
                shortage_hint(error) or "pip install --upgrade llama-cpp-python",
            ) from error
        mtmd.mtmd_helper_log_set(_keep_alive[0], ctypes.c_void_p(0))
        _mtmd = mtmd
    return _mtmd


def _on_log(level: int, text: bytes, _: object) -> None:
    """Keep the native libraries' last warnings for error messages, and print nothing.

    With EDGEPRISM_NATIVE_LOG set it prints every line.
    """
    line = text.decode("utf-8", errors="replace")
    if level >= _LEVEL_WARN and line.strip(". \n"):
        _log_lines.append(line.strip())
    if os.environ.get("EDGEPRISM_NATIVE_LOG"):
        sys.stderr.write(printable(line))


def ggml_function(name: str) -> Any:
    """Return a function of ggml's library by its C name; None where this build exports none."""
    import_llama()
    import llama_cpp._ggml as ggml

    return getattr(ggml.libggml, name, None)


def supports_offload() -> bool:
    """Return whether this build of llama.cpp can put layers on a GPU."""
    return bool(import_llama().llama_supports_gpu_offload())


def chat_formats() -> list[str]:
    """Return the names of the chat formats that this build of llama.cpp knows, in order."""
    names = (ctypes.c_char_p * 256)()
    count = import_llama().llama_chat_builtin_templates(names, len(names))
    return sorted(name.decode() for name in names[:count] if name)


def has_amx() -> bool:
    """Return whether this build of llama.cpp multiplies with Intel's AMX instructions.

    Such a build may crash: compilers drop most of the tile configuration that it prepares
    (ggml-org/llama.cpp issue 20824, pull request 26954; seen with GCC 12.2), so that the first
    multiplication faults.
    """
    return b"AMX_INT8 = 1" in import_llama().llama_print_system_info()


@functools.cache
def engine_build() -> str:
    """Return what tells this build of llama.cpp from others, whose results differ by rounding."""
    llama = import_llama()
    # where llama_cpp looks for its libraries
    folder = Path(os.environ.get("LLAMA_CPP_LIB_PATH") or Path(llama.__file__).parent / "lib")
    files = sorted([*folder.glob("*ggml*"), *folder.glob("*llama*")])
    stamps = [(file.name, file.lstat().st_size, file.lstat().st_mtime_ns) for file in files]
    return repr((llama.llama_print_system_info(), stamps))


def repacked_types() -> frozenset[int]:
    """Return ggml's numbers of the types whose matrices the CPU's engine copies when it loads them.

    The copies are laid out for the CPU's instructions. Source: ggml-cpu/repack.cpp of llama.cpp.
    """
    info = bytes(import_llama().llama_print_system_info()).decode("utf-8", "replace")
    has = {name for name, text in _FEATURES.items() if f"{text} = 1" in info}
    if "repack" not in has or has_amx():
        return frozenset()
    return frozenset(
        kind for feature, kinds in _REPACKED.items() if feature in has for kind in kinds
    )


def last_words(lines: int = 1) -> str:
    """Return llama.cpp's last warnings and errors, for an error message."""
    last = [line.rstrip(".") for line in list(_log_lines)[-lines:]]
    return "; ".join(last) if last else "it gave no reason"


def forget_words() -> None:
    """Forget the warnings so far, so that `last_words` returns only later ones."""
    _log_lines.clear()
