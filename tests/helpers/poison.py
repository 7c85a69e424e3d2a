"""A picture that ends the process that captions it, as a fault in an engine would."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

from PIL import Image

# Python runs it at the start of every process with its folder in PYTHONPATH. It changes the
# captioner in the one kind of process that captions for an actor, and in no other.
_SITE = """
import importlib.abc, importlib.util, os, signal, sys

class Poison(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name != "edgeprism.scale.worker":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module
        def exec_module(module):
            run(module)
            real = module.Captioner.tiles_to_encoded
            def deadly(captioner, *arguments, **keywords):
                if keywords["image_sha256"] == "{digest}":
                    os.kill(os.getpid(), signal.SIGSEGV)
                return real(captioner, *arguments, **keywords)
            module.Captioner.tiles_to_encoded = deadly
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Poison())
"""


def picture() -> bytes:
    """The file of the picture."""
    file = io.BytesIO()
    Image.new("RGB", (31, 17), (6, 66, 166)).save(file, "PNG")
    return file.getvalue()


def plant(folder: Path) -> Path:
    """Write what makes the picture deadly; PYTHONPATH is to begin with the returned folder."""
    folder.mkdir()
    digest = hashlib.sha256(picture()).hexdigest()
    (folder / "sitecustomize.py").write_text(_SITE.replace("{digest}", digest), encoding="utf-8")
    return folder
