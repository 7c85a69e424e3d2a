"""A headless Chromium for tests of pages: it notes what a page must not do."""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, BrowserType, Page, expect, sync_playwright
from playwright.sync_api import Error as PlaywrightError

_PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_PATIENCE_MS = 20_000
expect.set_options(timeout=_PATIENCE_MS)


def browser_program() -> str:
    """The path of an installed Chromium; skips the test where there is none."""
    found = next(filter(None, map(shutil.which, _PROGRAMS)), None)
    if found is None:
        pytest.skip(f"no browser is installed ({', '.join(_PROGRAMS)})")
    return found


@contextlib.contextmanager
def browsing() -> Iterator[Browser]:
    """A browser inside the block."""
    browser_program()
    with sync_playwright() as playwright, launching(playwright.chromium) as browser:
        yield browser


@contextlib.contextmanager
def launching(kind: BrowserType) -> Iterator[Browser]:
    """A browser inside the block; `kind` is another's `browser_type`, of which a thread has one."""
    # Chromium's sandbox does not start as root
    arguments = ["--no-sandbox"] if getattr(os, "geteuid", lambda: 1)() == 0 else []
    browser = kind.launch(executable_path=browser_program(), args=arguments)
    yield browser
    browser.close()


@dataclass
class Visit:
    """A page in a context of its own, with what it did wrong."""

    context: BrowserContext
    page: Page
    origin: str
    errors: list[str] = field(default_factory=list)  # of the console
    foreign: list[str] = field(default_factory=list)  # requests to other origins

    @contextlib.contextmanager
    def anew(self) -> Iterator[Visit]:
        """Another visit by the same browser's user, who has forgotten everything at its end.

        It takes a tenth of the time that a context of its own would.
        """
        visit = _visit(self.context, self.origin)
        try:
            yield visit
        finally:
            with contextlib.suppress(PlaywrightError):  # a page that was never opened
                visit.page.evaluate("localStorage.clear()")
            visit.page.close()

    def open(self, address: str = "") -> None:
        """Open the page and wait until it knows the models."""
        self.page.goto(address or self.origin)
        self.page.wait_for_selector("html.ready")

    def transfer(self, files: dict[str, bytes], event: str, target: str = "body") -> None:
        """Drop or paste files, as the browser would hand them to the page."""
        sent = {name: base64.b64encode(data).decode() for name, data in files.items()}
        self.page.evaluate(_TRANSFER, [sent, event, target])

    def faults(self) -> list[str]:
        """What axe-core finds that is serious or critical, as "rule: element"."""
        self.page.evaluate((files("axe_playwright_python") / "axe.min.js").read_text())
        found = self.page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        return [
            f"{fault['id']}: {node['html']} ({node['failureSummary']})"
            for fault in found["violations"]
            if fault["impact"] in ("serious", "critical")
            for node in fault["nodes"]
        ]


_TRANSFER = """([files, event, target]) => {
  const transfer = new DataTransfer();
  for (const [name, data] of Object.entries(files)) {
    const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
    transfer.items.add(new File([bytes], name, { type: "image/png" }));
  }
  const made = event === "paste"
    ? new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true, cancelable: true })
    : new DragEvent(event, { dataTransfer: transfer, bubbles: true, cancelable: true });
  document.querySelector(target).dispatchEvent(made);
}"""


@contextlib.contextmanager
def visiting(browser: Browser, origin: str, **settings: Any) -> Iterator[Visit]:
    """A page of `origin` inside the block; `settings` are those of a browser's context."""
    context = browser.new_context(**settings)
    context.set_default_timeout(_PATIENCE_MS)
    try:
        yield _visit(context, origin)
    finally:
        context.close()


def _visit(context: BrowserContext, origin: str) -> Visit:
    page = context.new_page()
    visit = Visit(context, page, origin)

    def note(address: str) -> None:
        if not address.startswith((origin + "/", f"blob:{origin}/", "data:")):
            visit.foreign.append(address)

    page.on("request", lambda request: note(request.url))
    page.on("console", lambda m: visit.errors.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: visit.errors.append(str(error)))
    return visit
