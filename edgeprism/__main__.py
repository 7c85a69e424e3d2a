"""`python -m edgeprism`: the command line.

`-m` puts the current folder first on `sys.path`: a `json.py` that lies beside the pictures there
would be executed in place of Python's own. When this file runs, Python has already found
`edgeprism` itself and the few modules that `runpy` and the package import; all others come later,
so the folder is taken off the path first. `python -P -m edgeprism`, or the command `edgeprism`,
never searches it.
"""

import os
import sys

import edgeprism


def _distrust_current_folder() -> None:
    """Take off the path what `-m` put there.

    Where the package itself lies in the current folder, so may its dependencies (`pip install
    --target`): the folder then becomes the last to be searched.
    """
    if sys.flags.safe_path:
        return
    try:
        current = os.getcwd()
    except OSError:
        return  # it has been removed: Python put nothing on the path either
    if sys.path[0] != current:
        return
    del sys.path[0]
    if os.path.dirname(os.path.dirname(os.path.abspath(edgeprism.__file__))) == current:
        sys.path.append(current)


if __name__ == "__main__":
    _distrust_current_folder()
    from edgeprism.cli.main import main

    main()
