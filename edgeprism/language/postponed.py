"""Import a module of a package without the package's own code, which runs when it is asked for.

Python runs a package before any module of it. `llama_cpp` then imports its high-level class, with
Jinja, SQLite and multiprocessing behind it: as much work as importing numpy, and nothing here uses
it. So the package first stands in `sys.modules` with its name and its folder alone. It runs when a
program that embeds EdgePrism asks it for anything else, as `llama_cpp.Llama` does.
"""

from __future__ import annotations

import importlib.util
import sys
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_running = threading.RLock()  # taken again by what the package imports


class _Postponed(types.ModuleType):
    """A package whose own code runs when it is first asked for a name that is not there."""

    def __getattr__(self, name: str) -> object:
        with _running:
            after = self.__dict__.pop("_after", None)
            if after is not None:  # else it runs now, or has run
                try:
                    self.__dict__["__spec__"].loader.exec_module(self)
                except BaseException:
                    self.__dict__["_after"] = after  # who asks next tries again, and is told
                    raise
                after()
        return super().__getattribute__(name)


@contextmanager
def postponed(name: str, after: Callable[[], None]) -> Iterator[None]:
    """Inside the block, modules of a package can be imported without the package's own code.

    A package that was imported before stays as it is. Where the block raises, the package is
    forgotten, as Python forgets a package whose import failed.

    Parameters:
        name: the package, which need not be installed.
        after: called when the package's own code has run after all.
    """
    spec = None if name in sys.modules else importlib.util.find_spec(name)
    if spec is None:
        yield
        return
    package = _Postponed(name)
    package.__dict__.update(vars(importlib.util.module_from_spec(spec)))
    package.__dict__["_after"] = after
    sys.modules[name] = package
    try:
        yield
    except BaseException:
        sys.modules.pop(name, None)
        raise
