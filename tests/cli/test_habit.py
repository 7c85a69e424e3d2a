"""The command line as a habit: one name for one thing, idle options refused, help in groups."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import click
import pytest

import edgeprism
from edgeprism.cli.main import cli, run
from tests.helpers import bundles

Captured = pytest.CaptureFixture[str]
SAID = bundles.SAID_TEXT


@pytest.fixture
def model(scripted_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEPRISM_MODEL", str(scripted_bundle))
    return scripted_bundle


def leaves(
    command: click.Command = cli, path: tuple[str, ...] = ()
) -> list[tuple[tuple[str, ...], click.Command]]:
    """Every command that does something, with its full name."""
    if not isinstance(command, click.Group):
        return [(path, command)]
    context = click.Context(command, info_name=path[-1] if path else "edgeprism")
    found = []
    for name in command.list_commands(context):
        inner = command.get_command(context, name)
        assert inner is not None
        found += leaves(inner, (*path, name))
    return found


# ---- one name for one thing


def test_every_command_that_takes_a_captioner_calls_it_model(
    model: Path, photo: Path, scripted_gguf: Path, capfd: Captured,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.delenv("EDGEPRISM_MODEL")
    ask = ["ask", str(photo), "What?", "--reasoner", str(scripted_gguf)]
    ask += ["--instruction-mode", "generic"]
    for flag in ("-m", "--model"):
        for command in (["caption", str(photo)], ask):
            assert run([*command, flag, str(model)]) == 0
            assert capfd.readouterr() == (f"{SAID}\n", "")
    assert run([*ask, f"--model={model}"]) == 0
    assert capfd.readouterr() == (f"{SAID}\n", "")


def test_an_old_spelling_works_and_says_the_new_one(
    model: Path, photo: Path, scripted_gguf: Path, capfd: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = ["ask", str(photo), "What?", "--reasoner", str(scripted_gguf)]
    ask += ["--instruction-mode", "generic"]
    for old in (["--captioner", str(model)], [f"--captioner={model}"]):
        assert run([*ask, *old]) == 0
        out, err = capfd.readouterr()
        assert out == f"{SAID}\n"
        assert err == ""
        assert run([*ask, "--help"]) == 0
        assert "--captioner" not in capfd.readouterr().out
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "dumb")
    assert run([*ask, "--captioner", "no-such-model"]) == 4
    assert "--captioner is now called --model.\n" in capfd.readouterr().err
    assert run(["caption", str(photo), "--chat-format", "chatml"]) == 2
    assert "--chat-format is now called --lm-chat-format.\n" in capfd.readouterr().err
    # after "--" everything is an argument
    assert run(["caption", "--", "--captioner"]) == 1
    assert "is now called" not in capfd.readouterr().err


def test_an_option_means_the_same_in_all_commands() -> None:
    """Options of one spelling hold one kind of value; a thing has one spelling."""
    spellings: dict[str, set[str]] = {}
    for path, command in leaves():
        if path[0] == "convert" and path[-1] != "mmproj":
            continue  # the folders of a checkpoint have names of their own
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                for spelling in parameter.opts:
                    spellings.setdefault(spelling, set()).add(parameter.name or "")
    assert spellings["--model"] == {"model", "models", "captioners"}
    assert spellings["--lm-chat-format"] == {"lm_chat_format"}
    assert spellings["--max-tokens"] == {"caption_tokens"}
    assert "--captioner" not in spellings


# ---- short options, before and after the command's name


@pytest.mark.parametrize("flag", ["-V", "--version"])
def test_the_version(flag: str, capfd: Captured) -> None:
    assert run([flag]) == 0
    assert edgeprism.__version__ in capfd.readouterr().out


@pytest.mark.parametrize("where", ["before", "after"])
def test_verbose_stands_on_both_sides(
    model: Path, photo: Path, where: str, capfd: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEPRISM_NATIVE_LOG", "")
    monkeypatch.delenv("EDGEPRISM_NATIVE_LOG")
    arguments = ["caption", str(photo)]
    assert run(["-v", *arguments] if where == "before" else [*arguments, "-v"]) == 0
    out, err = capfd.readouterr()
    monkeypatch.delenv("EDGEPRISM_NATIVE_LOG")
    assert out == f"{SAID}\n"
    assert "llama_model_loader" in err


def test_colour_can_be_switched_off_after_the_command(
    capfd: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "")
    run(["doctor"])
    assert "\x1b[" in capfd.readouterr().out
    run(["doctor", "--no-color"])
    assert "\x1b[" not in capfd.readouterr().out


def test_every_command_takes_the_common_options(capfd: Captured) -> None:
    assert len(leaves()) > 15
    for path, _ in leaves():
        assert run([*path, "-q", "-v", "--no-color", "--help"]) == 0, path
        out = capfd.readouterr().out
        assert "-q, --quiet" in out
        assert "-h, --help" in out


# ---- options that would do nothing


IDLE = [
    ("caption {photo} --out-dir there", "--out-dir", "--txt or --xmp"),
    ("caption {photo} --null", "--null", "--files-from"),
    ("caption {photo} --overwrite", "--overwrite", "--txt, --xmp or --output"),
    ("caption {photo} --seed 3", "--seed", "--temperature"),
    ("caption {photo} --batch 4", "--batch", "one picture"),
    ("caption {photo} --together --batch 4", "--batch", "one caption"),
    ("caption {photo} --together --limit 4", "--limit", "one caption"),
    ("caption {photo} --together --on-error stop", "--on-error", "one caption"),
    ("caption {photo} --lm-chat-format chatml", "chat format", "a pair of GGUF files"),
    ("ask {photo} What? --merge-captions", "--merge-captions", "several captioners"),
    ("ask {photo} What? --merge-captions -m nano", "--merge-captions", "several captioners"),
    ("ask {photo} What? --choices a,b --schema x", "--choices", "--schema"),
    ("ask {photo} What? --focus x --instruction-mode generic", "--instruction-mode", "--focus"),
    ("ask {photo} What? --allow-network", "--allow-network", "by URL"),
    ("ask {photo} What? --show-captions --json", "--show-captions", "--json"),
    ("ask {photo} What? --chat-format chatml --reasoner http://127.0.0.1:1/v1",
     "--chat-format", "server"),
    ("ask {photo} What? --reasoner-model x", "--reasoner-model", "server"),
    ("chat {photo} --allow-network", "--allow-network", "by URL"),
    ("eval --pictures .", "--pictures", "--data"),
    ("eval --allow-network", "--allow-network", "by URL"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "option", "reason"), IDLE, ids=[row[0] for row in IDLE])
@pytest.mark.usefixtures("model")
def test_an_option_that_would_do_nothing_is_refused(
    line: str, option: str, reason: str, photo: Path, capfd: Captured
) -> None:
    assert run(shlex.split(line.format(photo=photo))) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert option in err
    assert reason in err


@pytest.mark.usefixtures("model")
def test_the_same_options_are_taken_where_they_do_something(
    photo: Path, tmp_path: Path, capfd: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    for line in (
        "caption {photo} --txt --out-dir {there}",
        "caption {photo} --txt --out-dir {there} --overwrite",
        "caption {photo} --seed 3 --temperature 0.5",
        "caption {photo} --no-cache --limit 1 --on-error stop",
        "caption {photo} {photo} --batch 4",
        "caption {photo} --txt --batch 4 --overwrite",
    ):
        assert run(shlex.split(line.format(photo=photo, there=tmp_path / "there"))) == 0, line
    capfd.readouterr()


# ---- did you mean


def test_misspelt_commands_and_options(capfd: Captured, photo: Path) -> None:
    for wrong, right in (("captoin", "caption"), ("model", "models"), ("asc", "ask"),
                         ("discover", "models discover"), ("prune", "cache prune")):  # fmt: skip
        assert run([wrong, "x"]) == 2
        assert f"Did you mean `edgeprism {right}`" in capfd.readouterr().err
    assert run([str(photo)]) == 2
    assert f"edgeprism caption {photo}" in capfd.readouterr().err
    assert run(["caption", str(photo), "--jsnl"]) == 2
    assert "Did you mean" in capfd.readouterr().err
    assert run(["wholly-different"]) == 2
    assert "edgeprism --help" in capfd.readouterr().err


# ---- help


def test_help_has_headings_and_examples(capfd: Captured) -> None:
    assert run(["caption", "--help"]) == 0
    text = capfd.readouterr().out
    headings = [line for line in text.splitlines() if line.endswith(":") and line[0] != " "]
    assert headings == ["Pictures:", "Captioner:", "Results:", "Run:", "Machine:", "General:",
                        "Examples:"]  # fmt: skip
    for path, command in leaves():
        run([*path, "--help"])
        shown = capfd.readouterr().out
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert shown.count(f"{max(parameter.opts, key=len)} ") >= 1, (path, parameter.name)


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_list_of_commands_is_what_they_say_themselves(width: int) -> None:
    """It is written without loading them; click's own list loads them."""
    context = click.Context(cli)
    ours, clicks = (click.HelpFormatter(width=width) for _ in range(2))
    cli.format_commands(context, ours)
    click.Group.format_commands(cli, context, clicks)
    assert ours.getvalue() == clicks.getvalue() != ""


def test_every_example_is_a_command_line_that_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("model.gguf", "mmproj.gguf"):
        (tmp_path / name).touch()
    count = 0
    for path, command in leaves():
        for example in getattr(command, "examples", ()):
            count += 1
            line = example.split(" | ")[-1].split(" < ")[0]
            words = shlex.split(line)
            assert tuple(words[: len(path) + 1]) == ("edgeprism", *path)
            command.make_context(path[-1], words[len(path) + 1 :])
    assert count >= 12


def test_the_help_says_what_the_result_options_are(capfd: Captured) -> None:
    run(["caption", "--help"])
    assert "-o, --output FILE" in capfd.readouterr().out
    run(["eval", "--help"])
    assert "-o, --out DIR" in capfd.readouterr().out


def test_records_still_print_as_asked(model: Path, photo: Path, capfd: Captured) -> None:
    assert run(["caption", str(photo), "-m", str(model), "--json", "-q"]) == 0
    assert json.loads(capfd.readouterr().out)["caption"] == SAID
