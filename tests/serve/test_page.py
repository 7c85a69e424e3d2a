"""The page in a headless Chromium: pictures, questions, folders, themes, keyboard, errors."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Dialog, FilePayload, Page, Route, expect

from edgeprism.output.streams import CSV_COLUMNS
from edgeprism.reason.evidence import caption_to_sentences
from tests.helpers import bundles
from tests.helpers.browsing import Visit, browsing, launching, visiting
from tests.helpers.serving import Running, serving


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server of nano; its reasoner says "2" to everything, when it is asked for evidence too."""
    says_two = bundles.piece_ids("2", bundles.IM_END)
    reasoner = bundles.write_lm(tmp_path_factory.mktemp("two") / "two.gguf", script=says_two)
    with serving(reasoner=str(reasoner), keep_alive_s=float("inf")) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as started:
        yield started


@pytest.fixture(scope="module")
def guest(browser: Browser, served: Running) -> Iterator[Visit]:
    with visiting(browser, served.address) as made:
        yield made


@pytest.fixture
def visit(guest: Visit) -> Iterator[Visit]:
    """The page, open; it may write nothing to the console and ask nothing of other origins."""
    with guest.anew() as made:
        made.open()
        yield made
        assert made.errors == []
        assert made.foreign == []


@pytest.fixture
def lone_visit(browser: Browser, served: Running) -> Iterator[Visit]:
    """As `visit`, in a browser of its own: keys open a dialog of files in its first page alone."""
    with launching(browser.browser_type) as own, visiting(own, served.address) as made:
        made.open()
        yield made
        assert made.errors == []
        assert made.foreign == []


def choose(page: Page, **files: bytes) -> None:
    """Choose pictures, given as name=bytes."""
    chosen = [FilePayload(name=f"{name}.png", mimeType="image/png", buffer=data)
              for name, data in files.items()]  # fmt: skip
    page.set_input_files("#files", chosen)


# ---- pictures and questions


def test_a_chosen_picture_streams(visit: Visit, scenes: list[bytes], texts: list[str]) -> None:
    page = visit.page
    assert visit.faults() == []
    page.evaluate("""() => {
      window.seen = new Set();
      new MutationObserver(() => {
        const caption = document.querySelector(".caption");
        if (caption) window.seen.add(caption.textContent);
      }).observe(document.querySelector("#cards"), { childList: true, subtree: true });
    }""")
    choose(page, sea=scenes[0])
    card = page.get_by_role("article", name="sea.png")
    expect(card.locator(".caption")).to_have_text(texts[0])
    seen = page.evaluate("[...window.seen]")
    assert len(seen) > 4
    assert all(texts[0].startswith(part) for part in seen)
    expect(card.locator(".stages")).to_contain_text("Write")
    expect(card.locator(".bar .stage:not(.load)")).to_have_count(4)  # the first picture loads nano
    expect(card.locator(".remark")).to_contain_text("81 visual rows")
    assert card.locator("img").get_attribute("alt") == texts[0]
    assert card.locator("img").evaluate("image => image.naturalWidth") > 0
    card.get_by_role("button", name="Remove").click()
    expect(page.get_by_role("article")).to_have_count(0)


def test_pictures_are_dropped_and_pasted(
    visit: Visit, scenes: list[bytes], texts: list[str]
) -> None:
    visit.transfer({"a.png": scenes[0], "b.png": scenes[1]}, "drop")
    visit.transfer({"c.png": scenes[2]}, "paste")
    for name, text in zip("abc", texts[:3], strict=True):
        card = visit.page.get_by_role("article", name=f"{name}.png")
        expect(card.locator(".caption")).to_have_text(text)


def test_an_answer_marks_the_sentences_that_support_it(visit: Visit, scenes: list[bytes]) -> None:
    page = visit.page
    choose(page, scene=scenes[0])
    field = page.get_by_label("A question about scene.png")
    field.fill("How many numbers are there?")
    field.press("Enter")
    answer = page.locator(".answers li")
    expect(answer.locator(".question")).to_have_text("How many numbers are there?")
    expect(answer.locator(".answer")).to_have_text("2")
    account = answer.locator(".account").text_content() or ""
    sentences = caption_to_sentences(account)
    assert len(sentences) == 2
    expect(answer.locator("mark")).to_have_text([sentences[1]])
    expect(answer.locator(".state")).to_have_count(0)
    assert visit.faults() == []


def test_settings_reach_the_captioner(visit: Visit, scenes: list[bytes]) -> None:
    page = visit.page
    page.get_by_role("button", name="Settings").click()
    expect(page.get_by_label("Captioner")).to_contain_text("nano (default)")
    page.get_by_label("Longest caption").fill("3")
    page.get_by_label("Instruction").fill("Describe it.")
    page.get_by_role("button", name="Done").click()
    page.reload()  # the browser remembers them
    page.wait_for_selector("html.ready")
    choose(page, scene=scenes[0])
    expect(page.get_by_text("The caption was cut at its longest length.")).to_be_visible()
    (record,) = map(json.loads, saved(page, "JSON lines", "#pictures-downloads")[1].splitlines())
    assert (record["instruction"], record["tokens"]["generated"]) == ("Describe it.", 3)


def choose_rows(page: Page, choice: str, number: str = "") -> None:
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Visual rows").select_option(label=choice)
    own = page.get_by_label("Number of rows")
    expect(own).to_be_visible(visible=bool(number))
    if number:
        page.get_by_role("button", name="Done").click()
        expect(own).to_be_visible()  # it waits for a number
        own.fill(number)
    page.get_by_role("button", name="Done").click()
    expect(page.locator("#settings")).to_be_hidden()


def test_visual_rows_reach_the_captioner(visit: Visit, scenes: list[bytes], tmp_path: Path) -> None:
    page = visit.page
    choose_rows(page, "At most …", "9")
    page.reload()  # the browser remembers it
    page.wait_for_selector("html.ready")
    page.get_by_role("button", name="Settings").click()
    assert visit.faults() == []
    expect(page.get_by_label("Number of rows")).to_have_value("9")
    page.keyboard.press("Escape")
    choose(page, scene=scenes[0])
    remark = page.get_by_role("article").locator(".facts .remark")
    expect(remark).to_contain_text(" 9 visual rows")
    field = page.get_by_label("A question about scene.png")
    field.fill("How many numbers are there?")
    page.evaluate("""() => {
      const send = window.fetch;
      window.sent = [];
      window.fetch = (url, options) => {
        window.sent.push([String(url), options.body.get("visual_tokens")]);
        return send(url, options);
      };
    }""")
    field.press("Enter")
    expect(page.locator(".answers .answer")).to_have_text("2")
    ((url, asked_for),) = page.evaluate("window.sent")
    assert url.endswith("/v1/ask")
    assert asked_for == "9"
    for choice, rows in (("A quarter, 64 at least", 64), ("All", 81)):
        choose_rows(page, choice)
        page.get_by_role("button", name="Describe again").click()
        expect(remark).to_contain_text(f" {rows} visual rows")
    choose_rows(page, "At most …", "12")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.png").write_bytes(scenes[0])
    page.get_by_role("link", name="Folder").click()
    page.set_input_files("#folder-files", tmp_path / "photos")
    page.get_by_role("button", name="Describe them").click()
    (record,) = map(json.loads, saved(page, "JSON lines")[1].splitlines())
    assert record["tokens"]["visual"] == 12
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("button", name="Reset").click()
    expect(page.get_by_label("Visual rows")).to_have_value("")
    expect(page.get_by_label("Number of rows")).to_be_hidden()
    page.keyboard.press("Escape")


def test_a_broken_picture_and_a_strange_caption(visit: Visit, scenes: list[bytes]) -> None:
    page = visit.page
    choose(page, broken=b"no picture")
    card = page.get_by_role("article", name="broken.png")
    expect(card.locator(".state")).to_contain_text("not a picture that can be read")
    strange = "<img src=x onerror=alert(1)> <b>bold</b>"
    deltas = [("caption.delta", {"index": 0, "text": strange}), ("done", {"model": "nano"})]
    body = "".join(f"event: {name}\ndata: {json.dumps(data)}\n\n" for name, data in deltas)
    page.route("**/v1/captions", lambda route: route.fulfill(body=body, status=200))
    choose(page, strange=scenes[0])
    card = page.get_by_role("article", name="strange.png")
    expect(card.locator(".caption")).to_have_text(strange)
    assert card.locator(".caption *").count() == 0


def test_a_full_queue_is_waited_for_and_a_gone_server_told(
    visit: Visit, scenes: list[bytes], texts: list[str]
) -> None:
    page, tries = visit.page, []

    def refuse_once(route: Route) -> None:
        tries.append(1)
        if len(tries) > 1:
            route.continue_()
        else:
            error = {"error": {"message": "Full.", "code": "queue_full"}}
            route.fulfill(status=429, headers={"Retry-After": "1"}, json=error)

    page.route("**/v1/captions", refuse_once)
    choose(page, scene=scenes[0])
    expect(page.locator(".state")).to_have_text("The server is busy; waiting …")
    expect(page.locator(".caption").first).to_have_text(texts[0])
    for path in ("**/v1/captions", "**/healthz"):
        page.route(path, lambda route: route.abort())
    page.get_by_role("button", name="Describe again").click()
    expect(page.locator(".state")).to_contain_text("Is it still running?")
    assert len(visit.errors) == 3  # Chromium's own lines about these three requests
    visit.errors.clear()


# ---- a folder


@pytest.fixture
def folder(tmp_path: Path, scenes: list[bytes]) -> Path:
    """Pictures in two folders, of awkward names, and what is no picture."""
    root = tmp_path / "Holiday 2026"
    (root / "sea" / "@eaDir").mkdir(parents=True)
    pictures = {"=1+1.png": 0, 'a "b", c.png': 1, "sea/one.png": 2, "sea/ONE.webp": 3}
    for name, number in pictures.items():
        (root / name).write_bytes(scenes[number])
    (root / "broken.jpg").write_bytes(b"no picture")
    for name in ("notes.txt", ".hidden.png", "sea/@eaDir/one.png"):
        (root / name).write_bytes(scenes[4])
    return root


def saved(page: Page, name: str, place: str = "#run") -> tuple[str, str]:
    """The name and text of what a button saves."""
    with page.expect_download() as download:
        page.locator(place).get_by_role("button", name=name).click()
    text = Path(download.value.path()).read_bytes().decode("utf-8")
    return download.value.suggested_filename, text


def run_folder(visit: Visit, folder: Path) -> None:
    page = visit.page
    page.get_by_role("link", name="Folder").click()
    page.set_input_files("#folder-files", folder)
    expect(page.get_by_text("5 pictures. 3 other files passed over.")).to_be_visible()
    page.get_by_role("button", name="Describe them").click()
    expect(page.locator("#run .state")).to_contain_text("4 captions. 1 failed.")


def test_a_folder_is_described_and_saved(visit: Visit, folder: Path, texts: list[str]) -> None:
    run_folder(visit, folder)
    page = visit.page
    assert page.locator("progress").evaluate("bar => bar.value / bar.max") == 1
    assert visit.faults() == []
    expected = {"=1+1.png": texts[0], 'a "b", c.png': texts[1], "sea/one.png": texts[2],
                "sea/ONE.webp": texts[3]}  # fmt: skip
    name, text = saved(page, "JSON lines")
    records = [json.loads(line) for line in text.splitlines()]
    assert name == "captions-Holiday-2026.jsonl"
    assert {r["image"]: r["caption"] for r in records if "caption" in r} == expected
    (failure,) = (r for r in records if "error" in r)
    assert (failure["image"], failure["error"]["code"]) == ("broken.jpg", "unreadable_picture")
    rows = list(csv.DictReader(io.StringIO(saved(page, "CSV")[1], newline="")))
    assert tuple(rows[0]) == CSV_COLUMNS
    in_csv = {("'" if name[0] == "=" else "") + name: text for name, text in expected.items()}
    assert {row["image"]: row["caption"] for row in rows} == in_csv
    assert {row["model"] for row in rows} == {"nano"}


def test_unsaved_captions_are_not_lost_to_another_folder(visit: Visit, folder: Path) -> None:
    run_folder(visit, folder)
    page, asked = visit.page, []

    def refuse(dialog: Dialog) -> None:
        asked.append(dialog.message)
        dialog.dismiss()

    page.once("dialog", refuse)
    page.set_input_files("#folder-files", folder / "sea")
    expect(page.locator("#run h2")).to_have_text("Holiday 2026")
    assert asked == ["The captions of Holiday 2026 are not saved. Open sea all the same?"]
    saved(page, "JSON lines")
    page.set_input_files("#folder-files", folder / "sea")
    expect(page.locator("#run h2")).to_have_text("sea")


def test_scripts_are_called_scripts(served: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the system's tables say: some Windows calls them plain text."""
    monkeypatch.setattr("starlette.responses.guess_type", lambda *_: ("text/plain", None))
    for name, kind in (("main.js", "text/javascript"), ("page.css", "text/css"), ("", "text/html")):
        assert served.get(f"/{name}").headers["content-type"] == f"{kind}; charset=utf-8"


def test_text_files_are_written_and_none_replaced(
    visit: Visit, folder: Path, texts: list[str]
) -> None:
    """The folder that a person would choose is the browser's own store here."""
    page = visit.page
    page.evaluate("""async () => {
      window.showDirectoryPicker = () => navigator.storage.getDirectory();
      const folder = await navigator.storage.getDirectory();
      const file = await folder.getFileHandle("=1+1.txt", { create: true });
      const stream = await file.createWritable();
      await stream.write("mine");
      await stream.close();
    }""")
    run_folder(visit, folder)
    page.locator("#run").get_by_role("button", name="Text files").click()
    told = "3 text files written. 1 file of that name existed and stayed as they were."
    expect(page.locator("#run .downloads .help")).to_have_text(told)
    written = page.evaluate("""async () => {
      const texts = {};
      const walk = async (folder, path) => {
        for await (const [name, handle] of folder.entries()) {
          if (handle.kind === "directory") await walk(handle, `${path}${name}/`);
          else texts[path + name] = await (await handle.getFile()).text();
        }
      };
      await walk(await navigator.storage.getDirectory(), "");
      return texts;
    }""")
    assert written == {
        "=1+1.txt": "mine",
        'a "b", c.txt': f"{texts[1]}\n",
        "sea/one.png.txt": f"{texts[2]}\n",
        "sea/ONE.webp.txt": f"{texts[3]}\n",
    }


def test_without_access_to_files_the_texts_are_one_file(
    visit: Visit, folder: Path, texts: list[str]
) -> None:
    visit.page.add_init_script("delete window.showDirectoryPicker")
    visit.page.reload()
    run_folder(visit, folder)
    name, text = saved(visit.page, "Text")
    assert name == "captions-Holiday-2026.txt"
    assert f"sea/one.png: {texts[2]}\n" in text
    assert len(text.splitlines()) == 4


# ---- for everybody


def test_light_and_dark(browser: Browser, served: Running, scenes: list[bytes]) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    with visiting(browser, served.address, color_scheme="dark") as visit:
        visit.open()
        page = visit.page
        dark = page.evaluate(ground)
        choose(page, scene=scenes[0])
        expect(page.locator(".stages")).to_be_visible()
        assert visit.faults() == []
        switch = page.get_by_role("button", name="Dark")
        expect(switch).to_have_attribute("aria-pressed", "true")
        switch.click()
        expect(switch).to_have_attribute("aria-pressed", "false")
        light = page.evaluate(ground)
        assert light != dark
        page.reload()
        assert page.evaluate(ground) == light
        switch.click()
        page.emulate_media(color_scheme="light")  # chosen as the system's, it follows the system
        page.reload()
        assert page.evaluate(ground) == light
        assert visit.errors == []


def test_the_keyboard_alone(
    lone_visit: Visit, tmp_path: Path, scenes: list[bytes], texts: list[str]
) -> None:
    page, picture = lone_visit.page, tmp_path / "scene.png"
    picture.write_bytes(scenes[0])

    def tab_to(wanted: str) -> None:
        for _ in range(30):
            page.keyboard.press("Tab")
            if page.evaluate("wanted => document.activeElement.matches(wanted)", wanted):
                outline = "getComputedStyle(document.activeElement.closest('label') ?? "
                outline += "document.activeElement).outlineStyle"
                assert page.evaluate(outline) == "solid", f"the focus on {wanted} is not seen"
                return
        pytest.fail(f"Tab does not reach {wanted}")

    tab_to(".skip")
    page.keyboard.press("Enter")
    expect(page.locator("#content")).to_be_focused()
    tab_to("#files")
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Space")
    chooser.value.set_files(picture)
    expect(page.locator(".caption").first).to_have_text(texts[0])
    expect(page.get_by_role("button", name="Copy")).to_be_visible()
    tab_to(".ask input")
    page.keyboard.type("How many?")
    page.keyboard.press("Enter")
    expect(page.locator(".answer")).to_have_text("2")
    expect(page.locator("#announcer")).to_contain_text("Answer: 2")
    page.locator("#open-settings").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog", name="Settings")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    assert page.evaluate("document.activeElement.id") == "open-settings"


def test_a_phone(browser: Browser, served: Running, scenes: list[bytes]) -> None:
    size = {"width": 320, "height": 640}
    with visiting(browser, served.address, viewport=size, reduced_motion="reduce") as visit:
        visit.open()
        page = visit.page
        choose(page, a_name_without_any_blank_that_is_far_too_long_for_a_phone=scenes[0])
        expect(page.locator(".stages")).to_be_visible()
        for view in ("Pictures", "Folder"):
            page.get_by_role("link", name=view, exact=True).click()
            assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
        assert visit.faults() == []


# ---- edgeprism desktop


def started(*options: str, **environment: str) -> tuple[subprocess.Popen[str], str]:
    """`edgeprism desktop`, and the address that it prints."""
    process = subprocess.Popen(
        [sys.executable, "-m", "edgeprism", "desktop", *options], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, env={**os.environ, **environment},
    )  # fmt: skip
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("EdgePrism is at http://127.0.0.1:"), process.stderr
    return process, line.split()[-1]


def ended(process: subprocess.Popen[str]) -> str:
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "Traceback" not in errors
    return errors


def test_desktop_has_a_key_of_its_own(browser: Browser) -> None:
    process, address = started("--no-browser")
    origin, key = address.split("/#key=")
    try:
        with visiting(browser, origin) as visit:  # another person of this machine has no key
            visit.page.goto(origin)
            field = visit.page.get_by_label("The server's API key")
            expect(field).to_be_visible()
            field.fill(key)
            visit.page.get_by_role("button", name="Done").click()
            expect(visit.page.get_by_role("alert")).to_be_hidden()
    finally:
        errors = ended(process)
    assert key not in errors


@pytest.mark.skipif(os.name != "posix", reason="the stand-in for a browser is a shell script")
def test_desktop_opens_the_browser(tmp_path: Path, browser: Browser, scenes: list[bytes]) -> None:
    """With a file of this user's alone: others can read what a program is started with."""
    program = tmp_path / "browser"
    write = f'printf %s "$1" > {tmp_path}/part && mv {tmp_path}/part {tmp_path}/opened'
    program.write_text(f"#!/bin/sh\n{write}\n")
    program.chmod(0o755)
    process, address = started("-q", BROWSER=f"{program} %s")
    try:
        patience = time.monotonic() + 30
        while not (tmp_path / "opened").exists():
            assert time.monotonic() < patience, "no browser was opened"
            time.sleep(0.05)
        opened = (tmp_path / "opened").read_text()
        assert opened.startswith("file:///")
        assert address.partition("#key=")[2] not in opened
        file = Path(opened.removeprefix("file://"))
        assert file.parent.stat().st_mode & 0o077 == 0
        origin = address.split("/#")[0]
        with visiting(browser, origin) as visit:
            visit.open(opened)
            visit.page.wait_for_url(f"{origin}/")  # the key does not stay in the address
            choose(visit.page, scene=scenes[0])
            expect(visit.page.locator(".stages")).to_be_visible()
            assert (visit.errors, visit.foreign) == ([], [opened])
    finally:
        assert ended(process) == ""
    assert not file.exists()
