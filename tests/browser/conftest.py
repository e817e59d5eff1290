"""The built book in Chromium: `make html`, then `pytest tests/browser`.

The browser is RFLW_CHROMIUM, else `chromium` on the path, else Playwright's own.
"""

from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
import os
from pathlib import Path
import shutil
import threading

import pytest

ROOT = Path(__file__).resolve().parents[2]
HTML = Path(os.environ.get("RFLW_HTML", ROOT / "_build" / "html"))
# Pages that a reader opens; others only lead to them.
PAGES = sorted(
    str(path.relative_to(HTML))
    for path in HTML.rglob("*.html")
    if path.name != "index.html" and "_static" not in path.parts
)
WIDTHS = (390, 1440)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="session")
def site():
    """Address of the book."""
    assert PAGES, f"no book in {HTML}: make html"
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(HTML)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def browser():
    reason = "the extra `browser` is not installed"
    sync_api = pytest.importorskip("playwright.sync_api", reason=reason)
    path = os.environ.get("RFLW_CHROMIUM") or shutil.which("chromium")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def reader(browser, site):
    """Opens a page: reader(page, width, scheme) -> Playwright's page, with .faults and .bytes."""
    contexts = []

    def go(page: str, width: int = 1440, scheme: str = "light", **options):
        size = {"width": width, "height": 900}
        contexts.append(browser.new_context(viewport=size, color_scheme=scheme, **options))
        tab = contexts[-1].new_page()
        tab.set_default_timeout(60_000)  # a machine may be busy
        watch(tab, site)
        tab.goto(f"{site}/{page}")
        tab.wait_for_load_state("load")
        return tab

    yield go
    for context in contexts:
        context.close()


def watch(tab, site: str) -> None:
    """Notes errors, requests to other hosts, and the size of what is not the theme's."""
    tab.faults, tab.bytes = [], 0

    def said(message):
        if message.type == "error":
            tab.faults.append(f"console: {message.text}")

    def asked(request):
        if not request.url.startswith((site, "data:", "blob:")):
            tab.faults.append(f"other host: {request.url}")

    def answered(response):
        if response.status >= 400:
            tab.faults.append(f"{response.status} {response.url}")

    def finished(request):
        if "/_static/" not in request.url:
            tab.bytes += request.sizes()["responseBodySize"]

    tab.on("console", said)
    tab.on("pageerror", lambda error: tab.faults.append(f"script: {error}"))
    tab.on("requestfailed", lambda request: tab.faults.append(f"failed: {request.url}"))
    tab.on("request", asked)
    tab.on("response", answered)
    tab.on("requestfinished", finished)
