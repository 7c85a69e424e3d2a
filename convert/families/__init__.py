"""Checkpoint layouts by name: one module a family, imported when asked for.

A family module has `convert(out, options, progress, **folders_and_switches) -> Manifest`.
"""

FAMILIES = {"prismcaptioner": "edgeprism.convert.families.prismcaptioner"}
