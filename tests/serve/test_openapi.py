"""schemathesis finds that the server keeps to its own description."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.helpers.serving import Running

WHOLE = bool(os.environ.get("EDGEPRISM_TEST_WHOLE"))  # every phase takes two minutes
# A text may be base64 and no picture, or name no model that is here: no schema can say so.
CONFIG = """
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "400", "404", "413", "429", "502"]

[checks.negative_data_rejection]
expected-statuses = ["400", "401", "403", "404", "405", "413", "415", "429"]
"""


def test_schemathesis_runs_clean(server: Running, tmp_path: Path) -> None:
    config = tmp_path / "schemathesis.toml"
    config.write_text(CONFIG)
    program = "import sys; from schemathesis.cli import schemathesis; sys.exit(schemathesis())"
    done = subprocess.run(
        [sys.executable, "-c", program, "--config-file", str(config), "run",
         f"{server.address}/openapi.json", "--max-examples", "6" if WHOLE else "2", "--seed", "1",
         "--phases", "coverage,fuzzing" if WHOLE else "fuzzing", "--no-color"],
        capture_output=True, text=True, timeout=300, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "operations" in done.stdout.lower()
