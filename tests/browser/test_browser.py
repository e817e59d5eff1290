"""Every page on a phone and on a desk: no errors, no other host, readable by all; scripts work."""

from functools import cache
from html.parser import HTMLParser
import io
import json
import re
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

from conftest import HTML, PAGES, ROOT, WIDTHS
import numpy as np
from PIL import Image
import pytest

each_page = pytest.mark.parametrize("page", PAGES)
each_width = pytest.mark.parametrize("width", WIDTHS)


@each_width
@each_page
def test_page(reader, page, width):
    """Loads from its own host, fits the screen, is not heavy, and axe finds nothing serious.

    Dark on the phone, light on the desk.
    """
    from axe_playwright_python.sync_playwright import Axe

    tab = reader(page, width, "dark" if width < 768 else "light")
    assert tab.title()
    tab.wait_for_timeout(200)  # for what scripts ask for
    assert not tab.faults
    assert tab.bytes < 1.5 * 2**20, f"{tab.bytes / 2**20:.2f} MiB"
    assert tab.evaluate("document.documentElement.scrollWidth") <= width + 1
    missing = "[...document.images].filter(i => i.loading !== 'lazy' && !i.naturalWidth)"
    assert tab.evaluate(f"{missing}.map(i => i.src)") == []
    axe = Axe().run(tab, options={"resultTypes": ["violations"]}).response["violations"]
    serious = [
        f"{v['id']}: {v['help']} {[node['html'][:120] for node in v['nodes'][:3]]}"
        for v in axe
        if v["impact"] in ("serious", "critical")
    ]
    assert not serious, "\n".join(serious)


def test_root_leads_to_the_first_page(reader):
    tab = reader("index.html")
    tab.wait_for_url("**/book/intro.html")
    assert "does it hold" in tab.inner_text("h1")


@pytest.mark.parametrize("served", [True, False])
def test_search_works_also_without_a_server(reader, site, served):
    tab = reader("book/intro.html")
    folder = site if served else HTML.as_uri()
    tab.goto(f"{folder}/search.html?q=CRP")
    tab.wait_for_selector("#search-results ul.search li a")
    results = tab.locator("#search-results ul.search > li > a").all_inner_texts()
    assert any("architecture" in text.lower() for text in results)


def verdicts(tab) -> list[str]:
    return tab.locator("#ledger tbody tr:visible .verdict").all_inner_texts()


@each_width
def test_claims_filter(reader, width):
    tab = reader("book/claims.html", width)
    everything = len(verdicts(tab))
    tab.locator(".ledger-filter select[name=verdict]").select_option("reproduced")
    shown = verdicts(tab)
    assert set(shown) == {"reproduced"} and len(shown) < everything
    assert f"{len(shown)} of {everything} claims" in tab.inner_text(".ledger-filter output")
    tab.locator(".ledger-filter input[name=words]").fill("no such words in it")
    assert not verdicts(tab)
    tab = reader("book/claims.html?verdict=not+tested&words=cityscapes", width)
    assert set(verdicts(tab)) == {"not tested"}


def test_ledger_sorts(reader):
    tab = reader("book/claims.html")
    tab.locator("#ledger th button", has_text="verdict").click()
    assert verdicts(tab) == sorted(verdicts(tab)) and len(set(verdicts(tab))) > 2


def test_a_square_leads_to_its_claim(reader):
    tab = reader("book/intro.html")
    square = tab.locator(".verdicts a.square").first
    target = square.get_attribute("href").partition("#")[2]
    square.click()
    tab.wait_for_url(f"**/book/claims.html#{target}")
    assert tab.locator(f"[id='{target}']").is_visible()


MADE_BY = {"record", "command", "seed", "commit", "hardware"}


@each_width
@pytest.mark.parametrize(
    ("page", "kind", "words"),
    [
        ("book/intro", "counted in", MADE_BY),
        ("book/deviations", "claim", MADE_BY),
        ("notebooks/01_architecture", "computed in", {"command", "stored with"}),
        ("book/explore", "record", MADE_BY),
    ],
)
def test_a_number_shows_its_origin(reader, width, page, kind, words):
    tab = reader(f"{page}.html", width)
    having = f":has(> span:first-child > b:text-is('{kind}'))"
    key = tab.locator(f"button.num + .origin{having}").first.get_attribute("id")
    tab.locator(f"button.num[popovertarget='{key}']").click()
    origin = tab.locator(f"[id='{key}']")
    assert origin.is_visible()
    assert words <= {word.removesuffix("s") for word in origin.locator("b").all_inner_texts()}
    box = origin.bounding_box()
    assert 0 <= box["x"] and box["x"] + box["width"] <= width and box["height"] < 600
    tab.keyboard.press("Escape")
    assert not origin.is_visible() and not tab.faults


@each_width
def test_slider_moves(reader, width):
    tab = reader("book/explore.html", width)
    clip = "getComputedStyle(document.querySelector('.slider .after')).clipPath"
    before = tab.evaluate(clip)
    tab.locator(".slider input").first.fill("90")
    assert tab.evaluate(clip) != before and "10%" in tab.evaluate(clip)
    tab.locator(".slider input").first.focus()
    tab.keyboard.press("Home")
    assert "100%" in tab.evaluate(clip)


def test_explorer_counts_as_the_package_does(reader):
    from rflw.complexity import count
    from rflw.nn.refinenet import build

    tab = reader("book/explore.html")
    for name, value in (("width", 480), ("height", 352), ("classes", 11)):
        tab.locator(f".ledger-filter input[name={name}]").fill(str(value))
    tab.locator(".ledger-filter input[name=activation]").check()
    for network in ("mobilenet_v2", "nasnet_mobile", "resnet50"):
        model = f"refinenet-lw-{network}"
        cells = tab.locator(f"#explorer tr[data-model='{model}'] td").all_inner_texts()
        counted = count(build(model, 11), (352, 480))
        macs = sum(counted["macs"][kind] for kind in ("conv", "pool", "activation"))
        assert cells[1:3] == [f"{counted['params'] / 1e6:.2f}", f"{macs / 1e9:.2f}"], model
    shown = tab.locator("#explorer td:nth-child(3)").all_inner_texts()
    tab.locator(".ledger-filter input[name=width]").fill("481")
    assert "width" in tab.inner_text(".ledger-filter output")
    assert tab.locator("#explorer td:nth-child(3)").all_inner_texts() == shown


# ---------------------------------------------------------------- a reader's own photo

SHOWN = "#photo .result:not([hidden])"
COLOURS = """() => { const c = document.querySelector('#photo .over');
  return [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data] }"""


def said(tab, words: str) -> None:
    """The page says `words`, and no script fails."""
    tab.locator("#photo .said", has_text=words).wait_for(timeout=120_000)
    assert not [fault for fault in tab.faults if fault.startswith("script")]


def networks() -> list[dict]:
    return json.loads((HTML / "web/networks.json").read_text())["networks"]


with_network = pytest.mark.skipif(
    not networks(), reason="the book was built without npm's registry"
)


@pytest.mark.parametrize("network", networks(), ids=lambda network: network["name"])
def test_a_photo_is_labelled_in_the_browser_as_by_the_package(reader, network):
    import rflw

    tab = reader("book/photo.html", 390)
    tab.locator("#photo select").select_option(network["name"])
    tab.locator("#photo button.sample").first.click()
    tab.wait_for_selector(SHOWN, timeout=300_000)
    assert re.search(r"The network took \d+ ms", tab.inner_text("#photo .said"))
    assert not tab.faults
    image = Image.open(HTML / f"web/{network['name']}-{network['samples'][0]}.png")
    expected = rflw.predict(rflw.load(network["name"]), image)
    shown = np.array(tab.evaluate(COLOURS), np.uint8).reshape(*expected.shape, 4)[..., :3]
    same = (shown == np.array(network["colours"], np.uint8)[expected]).all(-1)
    assert same.mean() >= 0.99
    most = network["classes"][np.bincount(expected.ravel()).argmax()]
    assert tab.inner_text("#photo .classes li >> nth=0").strip().startswith(most)


@with_network
def test_a_broken_photo_gives_a_message(reader):
    tab, choose = reader("book/photo.html"), "#photo input[type=file]"
    tab.wait_for_selector(choose)
    for name, content in (
        ("torn.png", b"\x89PNG torn"),
        ("notes.txt", b"no image"),
        ("no.jpg", b""),
    ):
        tab.set_input_files(choose, {"name": name, "mimeType": "image/png", "buffer": content})
        said(tab, f"{name} is not an image")
    small = io.BytesIO()
    Image.new("RGB", (20, 50)).save(small, "PNG")
    tab.set_input_files(
        choose, {"name": "s.png", "mimeType": "image/png", "buffer": small.getvalue()}
    )
    said(tab, "20x50 pixels are too few")
    assert not tab.faults


@with_network
def test_a_network_that_does_not_arrive_gives_a_message(reader):
    tab = reader("book/photo.html")
    tab.route("**/*.onnx", lambda route: route.fulfill(body=b"half of it"))
    tab.locator("#photo button.sample").first.click()
    said(tab, "did not arrive whole: 10 of")
    tab.route("**/*.onnx", lambda route: route.abort())
    tab.locator("#photo button.sample").first.click()
    said(tab, "camvid.onnx did not arrive (")


@with_network
def test_no_camera_no_simd_and_no_server_give_messages(reader):
    tab = reader("book/photo.html")
    denied = "() => Promise.reject(new DOMException('', 'NotAllowedError'))"
    tab.evaluate(f"() => {{ navigator.mediaDevices.getUserMedia = {denied} }}")
    tab.locator("#photo button", has_text="Camera").click()
    said(tab, "The camera was denied")
    assert not tab.faults
    tab.goto((HTML / "book/photo.html").as_uri())
    said(tab, "make serve")
    tab = reader("book/intro.html")
    tab.add_init_script("WebAssembly.validate = () => false")
    tab.goto(tab.url.replace("intro", "photo"))
    said(tab, "lacks WebAssembly SIMD")


@with_network
def test_a_huge_photo_is_scaled_with_a_note(reader):
    tab, large = reader("book/photo.html"), io.BytesIO()
    Image.new("RGB", (5000, 3000), "grey").save(large, "PNG")
    file = {"name": "huge.png", "mimeType": "image/png", "buffer": large.getvalue()}
    tab.set_input_files("#photo input[type=file]", file)
    tab.wait_for_selector(SHOWN, timeout=300_000)
    said(tab, "huge.png: 5000x3000 pixels, scaled to")


def test_reads_without_scripts(reader):
    tab = reader("book/claims.html", java_script_enabled=False)
    assert len(verdicts(tab)) > 80 and not [f for f in tab.faults if "other host" in f]


# ---------------------------------------------------------------- links, without a browser


class Links(HTMLParser):
    """What a page links to, what it loads, and its anchors."""

    def __init__(self):
        super().__init__()
        self.ids, self.links, self.loaded = set(), [], []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids |= {given[key] for key in ("id", "name") if given.get(key)}
        href = given.get("href")
        if tag == "a" and href:
            self.links.append(href)
        elif tag == "link" and href and given.get("rel") not in ("canonical", "next", "prev"):
            self.loaded.append(href)
        elif given.get("src"):
            self.loaded.append(given["src"])


@cache
def read(path: str) -> Links:
    parser = Links()
    parser.feed((HTML / path).read_text(encoding="utf-8"))
    return parser


def resolves(link: str, page: str) -> bool:
    if urlsplit(link).scheme or link == "#":
        return True
    path, anchor = urldefrag(urljoin(f"http://x/{page}", link))
    target = unquote(urlsplit(path).path.lstrip("/")) or "index.html"
    if (HTML / target).is_dir():
        target = f"{target.rstrip('/')}/index.html"
    if not (HTML / target).exists():
        return False
    return not anchor or not target.endswith(".html") or unquote(anchor) in read(target).ids


@each_page
def test_links_resolve_and_nothing_is_loaded_from_elsewhere(page):
    links, loaded = read(page).links, read(page).loaded
    assert [link for link in links + loaded if not resolves(link, page)] == []
    assert [link for link in loaded if re.match("(https?:)?//", link)] == []


def test_every_page_of_the_contents_is_there():
    listed = re.findall(r"(?:file|root): (\S+)", (ROOT / "_toc.yml").read_text())
    assert len(listed) > 15 and {f"{name}.html" for name in listed} <= set(PAGES)


def test_notebooks_can_be_downloaded():
    for page in (page for page in PAGES if page.startswith("notebooks/")):
        source = f"_sources/{page.replace('.html', '.ipynb')}"
        assert any(link.endswith(source) for link in read(page).links), page
        assert json.loads((HTML / source).read_text())["nbformat"] == 4
