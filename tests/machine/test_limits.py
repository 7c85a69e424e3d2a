"""Limits that others set on this process: by a control group (container, service) or `ulimit`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgeprism.machine import cgroup, facts

GIB = 1 << 30
needs_limits = pytest.mark.skipif(sys.platform != "linux", reason="Linux has these limits")


def group(folder: Path, **files: str) -> Path:
    """Write a control group's files; `memory_max` becomes `memory.max`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_", ".", 1)).write_text(text)
    return folder


def limit(tmp_path: Path, own: str) -> tuple[int, str]:
    """The limit of a process whose /proc/self/cgroup is `own`; its source below the root."""
    (tmp_path / "own").write_text(own)
    root = tmp_path / "root"
    root.mkdir(exist_ok=True)
    found = facts.memory_limit(root, tmp_path / "own")
    assert found is not None
    return found.size, found.source.removeprefix(f"{root}/")


def test_memory_without_a_limit_is_the_machines(tmp_path: Path) -> None:
    group(tmp_path / "root/job", memory_max="max\n", memory_high="max\n")
    physical = facts.physical_memory()
    assert limit(tmp_path, "0::/job\n") == (physical, "the machine's memory")


@pytest.mark.parametrize("name", ["memory.max", "memory.high"])
@pytest.mark.parametrize("place", [".", "a", "a/b"])
def test_memory_of_a_group_of_version_2(tmp_path: Path, name: str, place: str) -> None:
    """The smallest limit on the path from the root to the process's group binds."""
    group(tmp_path / "root/a/b", memory_max=str(3 * GIB))
    folder = group(tmp_path / "root" / place)
    (folder / name).write_text(f"{GIB // 4}\n")
    where = f"{place}/{name}".removeprefix("./")
    assert limit(tmp_path, "0::/a/b\n") == (GIB // 4, where)


def test_memory_of_a_group_of_version_1(tmp_path: Path) -> None:
    no_limit = "9223372036854771712\n"
    group(tmp_path / "root/memory/docker/x", memory_limit_in_bytes=no_limit)
    group(tmp_path / "root/memory/docker", memory_limit_in_bytes=f"{GIB // 2}\n")
    group(tmp_path / "root/memory", memory_limit_in_bytes=no_limit)
    own = "5:cpu,cpuacct:/docker/x\n4:memory:/docker/x\n1:name=systemd:/other\n"
    assert limit(tmp_path, own) == (GIB // 2, "memory/docker/memory.limit_in_bytes")


def test_memory_inside_a_container(tmp_path: Path) -> None:
    """The path is the host's, or leads out of what can be seen; the root is the own group."""
    group(tmp_path / "root", memory_max=str(GIB // 8))
    group(tmp_path / "outside", memory_max="4096")
    for own in ("0::/docker/0123/sub\n", "0::/../outside\n", "", "garbage"):
        assert limit(tmp_path, own) == (GIB // 8, "memory.max")


@pytest.mark.parametrize("text", ["", "0", "-1", "nonsense", "1.5"])
def test_memory_limits_that_say_nothing(tmp_path: Path, text: str) -> None:
    group(tmp_path / "root", memory_max=text)
    assert limit(tmp_path, "0::/\n")[1] == "the machine's memory"


def test_quota_of_controllers_that_share_a_folder(tmp_path: Path) -> None:
    """Some systems have no link `cpu` to `cpu,cpuacct`."""
    folder = tmp_path / "root/cpuacct,cpu/job"
    folder.mkdir(parents=True)
    (folder / "cpu.cfs_quota_us").write_text("765000")
    (folder / "cpu.cfs_period_us").write_text("100000")
    (tmp_path / "own").write_text("4:cpuacct,cpu:/job\n")
    assert cgroup.cgroup_cores(tmp_path / "root", tmp_path / "own") == 7


def limited(options: str, *arguments: str, home: str = "") -> subprocess.CompletedProcess[str]:
    """Run Python under `ulimit` options."""
    environment = {**os.environ, **({"EDGEPRISM_HOME": home} if home else {})}
    return subprocess.run(
        ["bash", "-c", f'ulimit {options} && exec "$0" "$@"', sys.executable, *arguments],
        capture_output=True, text=True, timeout=120, check=False, env=environment,
    )  # fmt: skip


@needs_limits
@pytest.mark.parametrize(
    ("options", "name"), [("-v 3000000", "RLIMIT_AS"), ("-d 2000000", "RLIMIT_DATA")]
)
def test_a_limit_of_the_shell_counts(options: str, name: str) -> None:
    code = "from edgeprism.machine.facts import memory_limit as m; print(m().size, m().source)"
    done = limited(options, "-c", code)
    size, source = done.stdout.split(maxsplit=1)
    physical = facts.physical_memory()
    assert physical is not None
    if int(options.split()[1]) * 1024 < physical:
        assert (int(size), source.split()[0]) == (int(options.split()[1]) * 1024, name)


@needs_limits
@pytest.mark.parametrize("set_before", ["-v 2000000", "-S -v 2000000", "-v unlimited"])
def test_a_process_never_raises_its_own_limit(set_before: str) -> None:
    code = (
        "import resource; from edgeprism.machine.facts import limit_memory; limit_memory(4 << 30);"
        "print(*resource.getrlimit(resource.RLIMIT_AS))"
    )
    done = limited(set_before, "-c", code)
    expected = 4 << 30 if "unlimited" in set_before else 2_000_000 * 1024
    assert done.stdout.split() == [str(expected)] * 2, done.stderr


@needs_limits
def test_a_folder_under_the_limit_of_a_batch_system(
    scripted_bundle: Path, photo: Path, tmp_path: Path
) -> None:
    """Batch systems limit addresses; a decoder's own limit of 4 GiB would lie above."""
    code = "from edgeprism.cli.main import main; import sys; main(sys.argv[1:])"
    (tmp_path / "many").mkdir()
    for name in ("a.png", "b.png"):
        shutil.copy(photo, tmp_path / "many" / name)
    without_rights = ["setpriv", "--bounding-set", "-sys_resource", "--inh-caps", "-sys_resource"]
    command = ["-c", code, "caption", str(tmp_path / "many"), "--model", str(scripted_bundle)]
    done = subprocess.run(
        ["bash", "-c", 'ulimit -v 2500000 && exec "$0" "$@"',
         *([*without_rights, sys.executable] if os.geteuid() == 0 else [sys.executable]), *command],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2


@needs_limits
@pytest.mark.parametrize(
    ("options", "words"),
    [("-n 7", "ulimit -n"), ("-v 200000", "RLIMIT_AS (ulimit -v)")],
)
def test_what_runs_out_is_named(
    options: str, words: str, scripted_bundle: Path, photo: Path
) -> None:
    """Neither a traceback nor the advice to install a library again."""
    code = "from edgeprism.cli.main import main; import sys; main(sys.argv[1:])"
    done = limited(options, "-c", code, "caption", str(photo), "--model", str(scripted_bundle))
    assert done.returncode in (1, 4, 5), done.stdout
    assert "Traceback" not in done.stderr
    assert "pip install" not in done.stderr
    assert words in done.stderr


@needs_limits
def test_a_limit_on_the_size_of_files(scripted_bundle: Path, photo: Path, tmp_path: Path) -> None:
    """What cannot be remembered is no reason not to caption."""
    code = "from edgeprism.cli.main import main; import sys; main(sys.argv[1:])"
    arguments = ["caption", str(photo), "--model", str(scripted_bundle)]
    done = limited("-f 0", "-c", code, *arguments, home=str(tmp_path / "home"))
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert "Traceback" not in done.stderr
