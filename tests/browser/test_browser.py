"""Every page on a phone and on a desk, in the light and in the dark: no errors, no other host, readable by all; and what moves, moves."""

from functools import cache
from html.parser import HTMLParser
import json
import re
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

from conftest import HTML, PAGES, ROOT, WIDTHS
import pytest

HOSTS = re.compile(r"^https?:")


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("page", PAGES)
def test_page(reader, page, width):
    """Loads whole from its own host, fits the screen, is not heavy, and axe finds nothing serious: dark on the phone, light on the
    desk."""
    from axe_playwright_python.sync_playwright import Axe

    tab = reader(page, width, "dark" if width < 768 else "light")
    assert tab.title()
    tab.wait_for_timeout(200)  # for what scripts ask for
    assert not tab.faults
    assert tab.bytes < 1.5 * 2**20, f"{tab.bytes / 2**20:.2f} MiB"
    assert tab.evaluate("document.documentElement.scrollWidth") <= width + 1, (
        "wider than the screen"
    )
    assert (
        tab.evaluate(
            "[...document.images].filter(i => i.loading !== 'lazy' && !i.naturalWidth).map(i => i.src)"
        )
        == []
    )
    found = Axe().run(tab, options={"resultTypes": ["violations"]}).response["violations"]
    serious = [
        f"{v['id']}: {v['help']} {[n['html'][:120] for n in v['nodes'][:3]]}"
        for v in found
        if v["impact"] in ("serious", "critical")
    ]
    assert not serious, "\n".join(serious)


def test_first_page_is_readable_at_once(reader, site):
    reader("book/intro.html")  # the browser itself warms up
    painted = []
    for _ in range(3):
        tab = reader("book/intro.html")
        # the browser may note a painting after the page has loaded
        tab.wait_for_function("performance.getEntriesByName('first-contentful-paint').length")
        painted.append(
            tab.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
        )
    assert min(painted) < 1000, f"{painted} ms"  # the machine may be busy with something else


def test_root_leads_to_the_first_page(reader):
    tab = reader("index.html")
    tab.wait_for_url("**/book/intro.html")
    assert "does it hold" in tab.inner_text("h1")


@pytest.mark.parametrize("width", WIDTHS)
def test_search_finds(reader, width):
    tab = reader("search.html?q=CRP", width)
    tab.wait_for_selector("#search-results ul.search li a")
    assert any(
        "architecture" in text.lower()
        for text in tab.locator("#search-results ul.search > li > a").all_inner_texts()
    )
    assert not tab.faults


def test_search_finds_without_a_server(browser):
    tab = browser.new_page()
    tab.goto(f"{(HTML / 'search.html').as_uri()}?q=CRP")
    tab.wait_for_selector("#search-results ul.search li a")
    assert any(
        "architecture" in text.lower()
        for text in tab.locator("#search-results ul.search > li > a").all_inner_texts()
    )
    tab.close()


def test_search_by_the_button(reader):
    tab = reader("book/intro.html")
    tab.locator("button.search-button__button:visible").first.click()
    tab.locator("#pst-search-dialog input[name=q]").fill("pooling")
    tab.keyboard.press("Enter")
    tab.wait_for_selector("#search-results ul.search li a")
    assert "q=pooling" in tab.url


@pytest.mark.parametrize("width", WIDTHS)
def test_theme_toggles(reader, width):
    tab = reader("book/intro.html", width)
    seen = {}
    for _ in range(3):
        tab.locator("button.theme-switch-button:visible").first.click()
        seen[tab.evaluate("document.documentElement.dataset.theme")] = tab.evaluate(
            "getComputedStyle(document.body).backgroundColor"
        )
    assert set(seen) == {"light", "dark"} and seen["light"] != seen["dark"]


def rows(tab) -> int:
    return tab.locator("#ledger tbody tr:visible").count()


@pytest.mark.parametrize("width", WIDTHS)
def test_claims_filter(reader, width):
    tab = reader("book/claims.html", width)
    everything = rows(tab)
    tab.locator(".ledger-filter select[name=verdict]").select_option("reproduced")
    shown = rows(tab)
    assert 0 < shown < everything
    assert set(tab.locator("#ledger tbody tr:visible .verdict").all_inner_texts()) == {"reproduced"}
    assert f"{shown} of {everything} claims" in tab.inner_text(".ledger-filter output")
    tab.locator(".ledger-filter input[name=words]").fill("no such words in it")
    assert rows(tab) == 0


def test_claims_filter_from_an_address(reader):
    tab = reader("book/claims.html?verdict=not+tested&words=cityscapes")
    assert 0 < rows(tab) and set(
        tab.locator("#ledger tbody tr:visible .verdict").all_inner_texts()
    ) == {"not tested"}


def test_ledger_sorts(reader):
    tab = reader("book/claims.html")
    tab.locator("#ledger th button", has_text="verdict").click()
    verdicts = tab.locator("#ledger tbody .verdict").all_inner_texts()
    assert verdicts == sorted(verdicts) and len(set(verdicts)) > 2


def test_a_square_leads_to_its_claim(reader):
    tab = reader("book/intro.html")
    square = tab.locator(".verdicts a.square").first
    target = square.get_attribute("href").partition("#")[2]
    square.click()
    tab.wait_for_url(f"**/book/claims.html#{target}")
    assert tab.locator(f"[id='{target}']").is_visible()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    "page, kind",
    [("intro", "counted in"), ("intro", "claim"), ("intro", "computed in"), ("explore", "record")],
)
def test_a_number_shows_its_origin(reader, width, page, kind):
    """A count of claims, what answers a claim, what a notebook computed, what a record holds: each with all that made it."""
    tab = reader(f"book/{page}.html", width)
    first = tab.locator(f"button.num + .origin:has(> span:first-child > b:text-is('{kind}'))").first
    number = tab.locator(f"button.num[popovertarget='{first.get_attribute('id')}']")
    number.click()
    origin = tab.locator(f"[id='{number.get_attribute('popovertarget')}']")
    assert origin.is_visible()
    told = dict.fromkeys(word.removesuffix("s") for word in origin.locator("b").all_inner_texts())
    assert (
        {"command", "stored with"}
        if kind == "computed in"
        else {"record", "command", "seed", "commit", "hardware"}
    ) <= set(told)
    box = origin.bounding_box()
    assert 0 <= box["x"] and box["x"] + box["width"] <= width
    assert box["height"] < 600
    tab.keyboard.press("Escape")
    assert not origin.is_visible()
    assert not tab.faults


@pytest.mark.parametrize("width", WIDTHS)
def test_slider_moves(reader, width):
    tab = reader("book/explore.html", width)
    clip = "getComputedStyle(document.querySelector('.slider .after')).clipPath"
    before = tab.evaluate(clip)
    tab.locator(".slider input").fill("90")
    assert tab.evaluate(clip) != before and "10%" in tab.evaluate(clip)
    tab.locator(".slider input").focus()
    tab.keyboard.press("Home")
    assert "100%" in tab.evaluate(clip)


def test_explorer_counts_as_the_package_does(reader):
    from rflw.complexity import count
    from rflw.nn.refinenet import build

    tab = reader("book/explore.html")
    for name, value in (("width", 480), ("height", 352), ("classes", 11)):
        tab.locator(f".ledger-filter input[name={name}]").fill(str(value))
    tab.locator(".ledger-filter input[name=activation]").check()
    for model in (
        "refinenet-lw-mobilenet_v2",
        "refinenet-lw-nasnet_mobile",
        "refinenet-lw-resnet50",
    ):
        cells = tab.locator(f"#explorer tr[data-model='{model}'] td").all_inner_texts()
        counted = count(build(model, 11), (352, 480))
        macs = sum(counted["macs"][kind] for kind in ("conv", "pool", "activation"))
        assert cells[1:3] == [f"{counted['params'] / 1e6:.2f}", f"{macs / 1e9:.2f}"], model
    shown = tab.locator("#explorer td:nth-child(3)").all_inner_texts()
    tab.locator(".ledger-filter input[name=width]").fill("481")
    assert (
        "width" in tab.inner_text(".ledger-filter output")
        and tab.locator("#explorer td:nth-child(3)").all_inner_texts() == shown
    )


def test_reads_without_scripts(reader):
    tab = reader("book/claims.html", java_script_enabled=False)
    assert rows(tab) > 80 and not [fault for fault in tab.faults if "other host" in fault]


# ---------------------------------------------------------------- links, without a browser


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.ids, self.links, self.loaded = set(), [], []

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.ids |= {given[key] for key in ("id", "name") if given.get(key)}
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        elif (
            given.get("src")
            or tag == "link"
            and given.get("href")
            and given.get("rel") not in ("canonical", "next", "prev")
        ):
            self.loaded.append(given.get("src") or given["href"])


@cache
def read(path: str) -> Links:
    parser = Links()
    parser.feed((HTML / path).read_text(encoding="utf-8"))
    return parser


@pytest.mark.parametrize("page", PAGES)
def test_links_and_anchors_resolve(page):
    broken = []
    for link in read(page).links + read(page).loaded:
        parts = urlsplit(link)
        if parts.scheme or link.startswith("#") and len(link) == 1:
            continue
        path, anchor = urldefrag(urljoin(f"http://x/{page}", link))
        target = unquote(urlsplit(path).path.lstrip("/")) or page
        if page == "404.html":  # its links are absolute: the page is served under any address
            target = target or "index.html"
        if (HTML / target).is_dir():
            target = f"{target.rstrip('/')}/index.html"
        if (
            not (HTML / target).exists()
            or anchor
            and target.endswith(".html")
            and unquote(anchor) not in read(target).ids
        ):
            broken.append(link)
    assert not broken


@pytest.mark.parametrize("page", PAGES)
def test_nothing_is_loaded_from_elsewhere(page):
    assert [link for link in read(page).loaded if HOSTS.match(link) or link.startswith("//")] == []


def test_every_page_of_the_contents_is_there():
    listed = re.findall(r"(?:file|root): (\S+)", (ROOT / "_toc.yml").read_text())
    assert len(listed) > 15 and {f"{name}.html" for name in listed} <= set(PAGES)


def test_notebooks_can_be_downloaded():
    for page in (page for page in PAGES if page.startswith("notebooks/")):
        source = page.replace(".html", ".ipynb")
        assert any(link.endswith(f"_sources/{source}") for link in read(page).links), page
        assert json.loads((HTML / "_sources" / source).read_text())["nbformat"] == 4
