"""The child process in which `edgeprism doctor` loads an engine, which may kill the process."""

from __future__ import annotations

import json
import sys
from typing import Any


def main() -> None:
    """Load the engine in argv[1] (`vision` or `language`) and print JSON as the last line.

    The JSON holds what the engine offers, or `error` and `hint`.
    """
    print("\n" + json.dumps(_offers(sys.argv[1])))


def _offers(engine: str) -> dict[str, Any]:
    # A library may raise anything while it loads; the doctor reports it.
    try:
        if engine == "vision":
            from edgeprism.machine import device, onnx_runtime

            return {"providers": onnx_runtime.available_providers(device.GPU_PROVIDERS)}
        from edgeprism.language import llama

        return {"offload": llama.supports_offload(), "amx": llama.has_amx()}
    except Exception as error:
        return {
            "error": getattr(error, "message", None) or f"{type(error).__name__}: {error}",
            "hint": getattr(error, "hint", ""),
        }
