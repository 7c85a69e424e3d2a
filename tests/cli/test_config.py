"""The user's settings: flag > environment > settings > default, and a file that stays whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from edgeprism.cli import chat_format
from edgeprism.cli.main import run
from edgeprism.cli.settings import SETTINGS
from edgeprism.errors import UsageError
from edgeprism.files.config import change_config, find_config, read_config
from edgeprism.language.llama import chat_formats
from tests.helpers import bundles, elsewhere
from tests.helpers.bundles import SAID_TEXT

Captured = pytest.CaptureFixture[str]


def config_file() -> Path:
    found = find_config()
    assert found is not None
    return found


def written(text: str) -> Path:
    config_file().write_text(text)
    return config_file()


# ---- what a setting does


def test_flag_then_environment_then_settings_then_default(
    photo: Path, capfd: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def device() -> str:
        assert run(["caption", str(photo), "--json"]) == 0
        return capfd.readouterr().out

    assert '"device": "cpu"' in device()
    written('device = "cuda"\n')
    assert run(["caption", str(photo)]) == 5  # the setting holds, and there is no such device
    assert "cuda" in capfd.readouterr().err
    monkeypatch.setenv("EDGEPRISM_DEVICE", "cpu")
    assert '"device": "cpu"' in device()
    monkeypatch.setenv("EDGEPRISM_DEVICE", "metal")
    assert run(["caption", str(photo), "--device", "cpu"]) == 0


def test_a_commands_own_setting_goes_before_the_one_at_the_top(
    photo: Path, capfd: Captured
) -> None:
    written('device = "cuda"\n[caption]\ndevice = "cpu"\nmax-tokens = 1\n')

    def tokens(*flags: str) -> int:
        assert run(["caption", str(photo), "--json", *flags]) == 0
        return int(json.loads(capfd.readouterr().out)["tokens"]["generated"])

    assert tokens() == 1
    assert tokens("--max-tokens", "3") == 3


def test_the_model(
    photo: Path, scripted_bundle: Path, capfd: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEPRISM_MODEL", "nano")
    assert run(["models", "add", str(scripted_bundle), "mine"]) == 0
    written('model = "mine"\n[caption]\nmodel = "mine"\n')
    capfd.readouterr()
    assert run(["caption", str(photo)]) == 0
    assert capfd.readouterr().out != f"{SAID_TEXT}\n"
    monkeypatch.delenv("EDGEPRISM_MODEL")
    assert run(["caption", str(photo)]) == 0
    assert capfd.readouterr().out == f"{SAID_TEXT}\n"


def test_sidecars_by_setting_and_one_picture(
    photo: Path, scripted_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEPRISM_MODEL", str(scripted_bundle))
    written("[caption]\ntxt = true\nbatch = 2\nno-cache = true\nexclude = ['*.gif']\n")
    assert run(["caption", str(photo)]) == 0
    assert photo.with_suffix(".txt").read_text() == f"{SAID_TEXT}\n"


def test_quiet_by_setting(tmp_path: Path, photo: Path, capfd: Captured) -> None:
    written("quiet = true\n")
    assert run(["caption", str(photo), str(photo)]) == 0
    assert capfd.readouterr().err == ""


def test_every_setting_is_an_option_of_its_command(capfd: Captured) -> None:
    for command, keys in SETTINGS.items():
        assert run([command, "--help"]) == 0
        shown = capfd.readouterr().out
        assert [key for key in keys if f"--{key}" not in shown] == []


# ---- what is wrong with a file


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("modle = 'nano'\n", "modle"),
        ("[caption]\nreasoner = 'x'\n", "caption.reasoner"),
        ("[captions]\nmodel = 'x'\n", "captions.model"),
        ("[eval]\nmodel = 'x'\n", "eval.model"),
        ("threads = 'many'\n", "threads"),
        ("threads = 0\n", "threads"),
        ("device = 'tpu'\n", "device"),
        ("device = ['cpu']\n", "device"),
        ("device = true\n", "device"),
        ("[caption]\ntxt = 'yes'\n", "caption.txt"),
        ("[caption]\nexclude = [1.5, {a = 1}]\n", "caption.exclude"),
        ("[caption]\nmax-tokens = 2024-01-01\n", "caption.max-tokens"),
        ("model = 7\n", "model"),
        ("[caption]\nmax-tokens = inf\n", "caption.max-tokens"),
        ('lm-chat-format = "nope"\n', "config unset lm-chat-format"),
        ('[caption]\nlm-chat-format = "nope"\n', "config unset caption.lm-chat-format"),
        ("[caption]\nmax-tokens = 3.7\n", "caption.max-tokens"),
        (f"[caption]\ntemperature = 1{'0' * 400}\n", "caption.temperature"),
        ("[caption]\ntemperature = nan\n", "caption.temperature"),
        (f"[caption]\nmax-tokens = {'1' * 5000}\n", "TOML"),
        ("[caption]\nexclude = [{" + "x." * 5000 + "x = 1}]\n", "caption.exclude"),
        ("[[caption]]\n", "caption"),
        ("model =\n", "TOML"),
        ("a = " + "[" * 5000, "TOML"),
        ("\udcff", "UTF-8"),
        ("#" * (1 << 20) + "\n", "bytes"),
    ],
)
def test_a_fault_is_named(text: str, named: str, photo: Path, capfd: Captured) -> None:
    config_file().write_bytes(text.encode(errors="surrogateescape"))
    assert run(["caption", str(photo)]) == 2
    said = capfd.readouterr()
    assert said.out == ""
    assert str(config_file()) in said.err
    assert named in said.err
    assert "hint:" in said.err


def test_what_is_no_file(photo: Path, capfd: Captured) -> None:
    os.mkfifo(config_file())
    assert run(["caption", str(photo)]) == 2
    assert "not a regular file" in capfd.readouterr().err


# ---- the commands


def test_set_get_list_unset(capfd: Captured) -> None:
    assert run(["config", "list"]) == 0
    printed = capfd.readouterr()
    assert (printed.out, "config list --all" in printed.err) == ("", True)
    for arguments in (["device", "cpu"], ["caption.max-tokens", "60"], ["caption.txt", "yes"],
                      ["caption.exclude", "*.gif", "old/"], ["caption.temperature", "0.5"],
                      ["ask.instruction", 'Say "it" \\ plainly, ü']):  # fmt: skip
        assert run(["config", "set", *arguments]) == 0
    assert read_config() == {
        "device": "cpu",
        "caption": {"max-tokens": 60, "txt": True, "exclude": ["*.gif", "old/"],
                    "temperature": 0.5},
        "ask": {"instruction": 'Say "it" \\ plainly, ü'},
    }  # fmt: skip
    capfd.readouterr()
    assert run(["config", "get", "caption.max-tokens"]) == 0
    assert capfd.readouterr().out == "60\n"
    assert run(["config", "get", "threads"]) == 1
    assert run(["config", "list"]) == 0
    assert "caption.exclude = *.gif old/\n" in capfd.readouterr().out
    assert run(["config", "list", "--all", "--json"]) == 0
    assert '"ask.stages": null' in capfd.readouterr().out
    assert run(["config", "unset", "caption.txt"]) == 0
    capfd.readouterr()
    assert run(["config", "unset", "threads"]) == 0
    assert capfd.readouterr().err == "threads was not set.\n"
    assert run(["config", "set", "caption.exclude", '["a b", "c"]']) == 0
    assert read_config()["caption"]["exclude"] == ["a b", "c"]
    assert "txt" not in read_config()["caption"]
    assert run(["config", "path"]) == 0


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["modle", "nano"], "Did you mean model"),
        (["caption.reasoner", "x"], "caption.reasoner"),
        (["nosuch.model", "x"], "nosuch.model"),
        (["threads", "many"], "threads"),
        (["threads", "1", "2"], "one value"),
        (["threads", "-1"], "threads"),
        (["caption.exclude", "[1"], "caption.exclude"),
        (["caption.txt", "perhaps"], "true or false"),
        (["caption.overwrite", "true"], "caption.overwrite"),
        (["caption.instruction", "a\udcffb"], "UTF-8"),
        (["caption.temperature", "nan"], "finite"),
        (["chat-format", "nonsense"], "chatml"),
        (["lm-chat-format", "nope"], "lm-chat-format"),
        (["ask.chat-format", "nope"], "vicuna"),
    ],
)
def test_a_wrong_set_writes_nothing(arguments: list[str], named: str, capfd: Captured) -> None:
    assert run(["config", "set", *arguments]) == 2
    assert named in capfd.readouterr().err
    assert not config_file().exists()


def test_a_value_in_the_place_of_a_table(capfd: Captured) -> None:
    path = written("caption = 5\n")
    assert run(["config", "set", "caption.txt", "true"]) == 2
    assert "caption is no table" in capfd.readouterr().err
    assert run(["config", "unset", "caption.txt"]) == 0
    assert path.read_text() == "caption = 5\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["model", "nosuch"], "'nosuch'"),
        (["model", "smollm2-135m"], "smollm2-135m is a reasoner, not a captioner"),
        (["model", "smolvlm-256m"], "not installed yet"),
        (["model", "http://127.0.0.1:1/v1"], "not a captioner"),
        (["caption.model", "talker"], "talker is a reasoner, not a captioner"),
        (["ask.model", "nano", "talker"], "talker is a reasoner, not a captioner"),
        (["reasoner", "nano"], "nano is a captioner, not a reasoner"),
        (["chat.reasoner", "smolvlm-256m"], "smolvlm-256m is a captioner, not a reasoner"),
        (["reasoner", "ollama:nosuch"], "ollama:nosuch"),
    ],
)
def test_a_model_that_is_not_here_is_no_setting(
    arguments: list[str], words: str, scripted_gguf: Path, capfd: Captured
) -> None:
    assert run(["models", "add", str(scripted_gguf), "talker"]) == 0
    capfd.readouterr()
    assert run(["config", "set", *arguments]) == 4
    assert words in capfd.readouterr().err
    assert not config_file().exists()


def test_models_that_are_settings(
    scripted_gguf: Path, scripted_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(scripted_bundle.parent)
    assert run(["models", "add", str(scripted_gguf), "talker"]) == 0
    url, here = "http://127.0.0.1:8080/v1", f".{os.sep}{scripted_bundle.name}"
    for arguments in (["model", "nano"], ["reasoner", "talker"], ["chat.reasoner", url],
                      ["caption.model", here], ["ask.model", "nano", here]):  # fmt: skip
        assert run(["config", "set", *arguments]) == 0
    monkeypatch.chdir(tmp_path)
    folder = str(scripted_bundle)  # a path holds wherever a command is started
    assert read_config() == {
        "model": "nano", "reasoner": "talker", "chat": {"reasoner": url},
        "caption": {"model": folder}, "ask": {"model": ["nano", folder]},
    }  # fmt: skip
    assert run(["use", url]) == 0
    assert read_config()["reasoner"] == url


def test_a_chat_format_is_the_default_reasoners(
    photo: Path, tmp_path: Path, capfd: Captured
) -> None:
    script = bundles.piece_ids("▁a", "▁dog", bundles.IM_END)
    odd = bundles.write_lm(tmp_path / "odd.gguf", script=script, chat_template="{{ own_dialect }}")
    assert run(["models", "add", str(odd)]) == 0
    ask = ["ask", str(photo), "What is it?", "--instruction-mode", "generic", "--no-cache"]
    written('reasoner = "odd"\n')
    assert run(ask) == 2  # llama.cpp does not know its template
    assert run(["config", "set", "chat-format", "chatml"]) == 0
    capfd.readouterr()
    assert run(ask) == 0
    assert "a dog" in capfd.readouterr().out
    assert run([*ask, "--reasoner", "odd"]) == 2  # one that is named goes by its own template
    assert run([*ask, "--reasoner", "odd", "--chat-format", "chatml"]) == 0


def test_chat_formats_are_llama_cpps() -> None:
    assert set(chat_formats()) >= chat_format.LONG_KNOWN
    assert "nonsense" not in chat_formats()


def test_an_error_at_use_names_the_setting_of_the_chat_format(
    photo: Path, scripted_gguf: Path, monkeypatch: pytest.MonkeyPatch, capfd: Captured
) -> None:
    """Another build of llama.cpp may know fewer formats than the one that was asked."""
    assert run(["models", "add", str(scripted_gguf), "talker"]) == 0
    monkeypatch.setattr(chat_format, "LONG_KNOWN", frozenset({"bygone"}))
    written('reasoner = "talker"\nchat-format = "bygone"\n')
    ask = ["ask", str(photo), "What is it?", "--instruction-mode", "generic", "--no-cache"]
    assert run(ask) == 2
    said = capfd.readouterr().err
    assert f"chat-format = bygone is a setting in {config_file()}" in said
    assert "edgeprism config unset chat-format" in said
    assert run([*ask, "--reasoner", "talker", "--chat-format", "bygone"]) == 2
    said = capfd.readouterr().err
    assert "setting" not in said
    assert "Name its format with --chat-format" in said


def test_use_says_which_chat_format_still_holds(
    scripted_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Captured
) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    models = elsewhere.write_models(tmp_path)
    for name in ("eyes", "more"):
        elsewhere.ollama_model(tmp_path / "ollama", f"registry.ollama.ai/library/{name}/latest",
                               model=models.lm, projector=models.mmproj)  # fmt: skip
    assert run(["models", "add", str(scripted_gguf), "talker"]) == 0
    written('lm-chat-format = "vicuna"\n[ask]\nchat-format = "chatml"\n')

    def said(*arguments: str) -> str:
        capfd.readouterr()
        assert run(list(arguments)) == 0
        return capfd.readouterr().err

    line = "lm-chat-format = vicuna still holds; `edgeprism config unset lm-chat-format`"
    assert said("use", "ollama:eyes").count(line) == 1
    assert line not in said("use", "ollama:eyes")  # the same model
    assert line in said("config", "set", "model", "ollama:more")
    assert "holds" not in said("use", "nano")  # a bundle knows its chat format
    assert "`edgeprism config unset ask.chat-format`" in said("use", "talker")


def test_an_error_says_that_the_settings_name_the_model(
    photo: Path, monkeypatch: pytest.MonkeyPatch, capfd: Captured
) -> None:
    def error(*arguments: str) -> str:
        assert run(list(arguments)) == 4
        return capfd.readouterr().err

    written('model = "gone"\nreasoner = "ollama:gone"\n[caption]\nmodel = "lost"\n')
    caption = ["caption", str(photo)]
    assert f"lost is the setting caption.model in {config_file()}" in error(*caption)
    ask = ["ask", str(photo), "What is it?"]
    assert f"ollama:gone is the setting reasoner in {config_file()}" in error(*ask)
    assert "setting" not in error(*caption, "--model", "lost")
    assert "smollm2-135m is a reasoner" in error(*caption, "--model", "smollm2-135m")
    assert "nano is a captioner" in error(*ask, "--reasoner", "nano")
    written("")
    monkeypatch.setenv("EDGEPRISM_MODEL", "away")
    assert "EDGEPRISM_MODEL" in error(*caption)


def test_a_damaged_file_is_not_written_over(capfd: Captured) -> None:
    path = written("device = \n")
    assert run(["config", "set", "device", "cpu"]) == 2
    assert path.read_text() == "device = \n"


# ---- the file as people write it


@pytest.mark.parametrize(
    ("before", "section", "key", "value", "after"),
    [
        ("", "", "model", "a", 'model = "a"\n'),
        ("# mine\nmodel = 'b' # why\n", "", "model", "a", '# mine\nmodel = "a"\n'),
        ("x = 1", "", "model", "a", 'x = 1\nmodel = "a"\n'),
        ("\n[caption]\ntxt = true\n", "", "model", "a", 'model = "a"\n\n[caption]\ntxt = true\n'),
        ("[caption]\n", "caption", "txt", True, "[caption]\ntxt = true\n"),
        ("x = 1\n", "caption", "txt", True, "x = 1\n\n[caption]\ntxt = true\n"),
        ("[ caption ] # c\na = 1\n\n[ask]\nb = 2\n", "caption", "txt", True,
         "[ caption ] # c\na = 1\ntxt = true\n\n[ask]\nb = 2\n"),
        ("[caption]\ntxt = true\n", "caption", "txt", None, "[caption]\n"),
        ("[caption]\ntxt = true\n", "ask", "txt", None, "[caption]\ntxt = true\n"),
    ],
)  # fmt: skip
def test_one_line_changes(before: str, section: str, key: str, value: object, after: str) -> None:
    path = written(before)
    change_config(section, key, value)
    assert path.read_text() == after


@pytest.mark.parametrize(
    "text",
    [
        "caption = {txt = true}\n",
        "caption.txt = true\n",
        '[caption]\nexclude = [\n  "a",\n]\ntxt = """\ntxt = 1\n"""\n',
        '["caption"]\ntxt = true\n',
    ],
)
def test_other_forms_are_changed_rightly_or_left(text: str) -> None:
    path = written(text)
    before = tomllib.loads(text)
    try:
        change_config("caption", "txt", False)
    except UsageError as error:
        assert path.read_text() == text
        assert error.hint.startswith("Open the file")  # noqa: PT017
    else:
        assert tomllib.loads(path.read_text()) == {"caption": {**before["caption"], "txt": False}}


def test_the_file_may_be_a_link_have_a_mark_and_other_line_ends(tmp_path: Path) -> None:
    real = tmp_path / "dotfiles.toml"
    real.write_bytes(b"\xef\xbb\xbfmodel = 'a'\r\n# mine\r\n")
    config_file().symlink_to(real)
    change_config("caption", "instruction", "a\x7fb")
    assert config_file().is_symlink()
    assert b"\n" not in real.read_bytes().replace(b"\r\n", b"")
    assert read_config() == {"model": "a", "caption": {"instruction": "a\x7fb"}}


def test_two_processes_at_a_time_lose_nothing() -> None:
    code = (
        "import sys; from edgeprism.files.config import change_config\n"
        "for n in range(20): change_config('', f'{sys.argv[1]}{n}', n)"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, name]) for name in "ab"]
    assert [process.wait(60) for process in running] == [0, 0]
    assert read_config() == {f"{name}{n}": n for name in "ab" for n in range(20)}


def test_without_a_home(monkeypatch: pytest.MonkeyPatch, capfd: Captured) -> None:
    monkeypatch.setattr("edgeprism.files.config.find_config", lambda: None)
    monkeypatch.setattr("edgeprism.cli.config.find_config", lambda: None)
    assert read_config() == {}
    assert run(["config", "set", "device", "cpu"]) != 0
    assert "EDGEPRISM_HOME" in capfd.readouterr().err


def test_the_platforms_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("EDGEPRISM_HOME")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert find_config() == tmp_path / "edgeprism" / "config.toml"
