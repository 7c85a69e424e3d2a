"""`python -m edgeprism`: the command line.

`-m` puts the current folder first on `sys.path`, so Python would run a `json.py` that lies among
the pictures there in place of its own. When this file runs, Python has already imported
`edgeprism` itself and the few modules that `runpy` and the package need. All other imports come
later, so this file first removes the folder from the path. `python -P -m edgeprism` and the
command `edgeprism` never search it.
"""

import os
import sys

import edgeprism


def _distrust_current_folder() -> None:
    """Remove from `sys.path` the folder that `-m` put there.

    If the package itself lies in the current folder, its dependencies may lie there too (`pip
    install --target`); Python then searches the folder last.
    """
    if sys.flags.safe_path:
        return
    try:
        current = os.getcwd()
    except OSError:
        return  # the folder no longer exists, so Python put nothing on the path either
    if sys.path[0] != current:
        return
    del sys.path[0]
    if os.path.dirname(os.path.dirname(os.path.abspath(edgeprism.__file__))) == current:
        sys.path.append(current)


if __name__ == "__main__":
    _distrust_current_folder()
    from edgeprism.cli.main import main

    main()
