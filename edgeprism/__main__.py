"""`python -m edgeprism`: the command line."""

from edgeprism.cli import main

main()
