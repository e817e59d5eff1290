"""No result is typed into prose: a number with a unit of results comes from {num}, {glue} or a quote of the paper, or
`prose_allowed.txt` says why it is none."""
import json
from pathlib import Path
import re

import pytest

from rflw import claims, paper

ROOT = Path(__file__).resolve().parents[1]
ALLOWED = Path(__file__).with_name("prose_allowed.txt")
PAGES = sorted([*ROOT.glob("book/*.md"), *ROOT.glob("notebooks/*.ipynb"), ROOT / "CHANGELOG.md"])

NUMBER = (r"(?<![\w.,/-])[-−+]?\d[\d.,]*(?: (?:to|and|or) \d[\d.,]*)?"
          r"|\b(?:two|three|four|five|six|seven|eight|nine|ten|twenty|fifty|hundred)(?=[ -])")
UNIT = (r"%|percent|(?:percentage )?points?|ms|milliseconds?|s|sec|seconds?|min|minutes?|h|hours?|days?|weeks?|FPS|fps|(?:images|frames)"
        r"(?:/s| (?:a|per) second)|times|fold|x|×|[GMT]?FLOPs?|[GM]MACs?|[GMB]|billions?|millions?|[GM]i?B|Wh?|J|mIoU|IoU")
RESULT = re.compile(rf"(?:{NUMBER})[ \u00a0\u202f-]?(?:{UNIT})(?![\w-])|\b(?:mIoU|IoU|accuracy|F-score) (?:is |of |was )?\d[\d.]*|"
                    r"\b(?:twice|thrice|half|double) (?:as|the (?:time|speed|size|parameters|work|score))", re.IGNORECASE)


def prose(page: Path) -> str:
    """What a reader sees as text: no code, no maths, no roles, no addresses; captions and alternative texts count."""
    if page.suffix == ".ipynb":
        parts = []
        for cell in json.loads(page.read_text(encoding="utf-8"))["cells"]:
            shown = cell["metadata"].get("mystnb", {})
            own = "".join(cell["source"]) if cell["cell_type"] == "markdown" else ""
            parts += [own, shown.get("figure", {}).get("caption", ""), shown.get("image", {}).get("alt", "")]
        text = "\n\n".join(parts)
    else:
        text = page.read_text(encoding="utf-8")
    text = re.sub(r"^(`{3,})(?!\{)[^\n]*\n.*?^\1`*$", "", text, flags=re.MULTILINE | re.DOTALL)  # code, but for directives
    text = re.sub(r"^`{3,}.*$|^:(?!alt:)[\w-]+:.*$", "", text, flags=re.MULTILINE)  # whose fences and options go, too
    text = re.sub(r"\$\$.*?\$\$|\$[^$\n]+\$", "", text, flags=re.DOTALL)
    text = re.sub(r"\{[\w:-]+\}`[^`]*`|`[^`]*`", "", text)
    return " ".join(re.sub(r"\]\([^)]*\)", "]", text).split())


def plain(text: str) -> str:
    return re.sub(r"\W+", "", text).lower()


QUOTES = [plain(quote) for quote in [*(c.quote for c in claims.load()), *(s.quote for s in paper.statements())]]


def without_quotes(text: str) -> str:
    """Words of the paper, in quotation marks, may hold its numbers."""
    return re.sub(r'"([^"]+)"', lambda m: "" if any(plain(m[1]) in quote for quote in QUOTES) else m[0], text)


def allowed() -> list[tuple[str, str, str]]:
    """(page, phrase, why) of each line."""
    lines = [line for line in ALLOWED.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    return [tuple(part.strip() for part in line.split(" | ")) for line in lines]


def typed(page: str, text: str) -> list[str]:
    """Results in a text, each with the words before it."""
    text = without_quotes(text)
    for where, phrase, _ in allowed():
        if where in (page, "*"):
            text = text.replace(phrase, " ")
    return [text[max(0, found.start() - 30):found.end() + 10] for found in RESULT.finditer(text)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_result_is_typed(page):
    assert not typed(page.name, prose(page))


def test_what_is_allowed_is_there_and_has_a_reason():
    texts = {page.name: prose(page) for page in PAGES}
    for line in allowed():
        assert len(line) == 3 and line[2], line
        page, phrase, _ = line
        assert any(phrase in text for name, text in texts.items() if page in (name, "*")), line


@pytest.mark.parametrize("text", [
    "It reaches 73.2 % on CamVid.", "an mIoU of 0.73", "It takes 4.5 ms.", "2.75x faster", "3 times as fast", "in 12 minutes",
    "12.5 images a second", "at 55 FPS", "46 M parameters", "a gain of 1.5 points", "twice as fast", "ten times", "7 to 9 hours",
    "a 3-fold gain"])
def test_results_are_found(text):
    assert typed("x.md", text)


@pytest.mark.parametrize("text", [
    "Table 3 has 5 columns.", "480x360 pixels", "a 3x3 convolution", "ResNet-50", "367 frames",
    'says "more than 5% performance drop on the same dataset"', "stride 32", "section 3.3", "2018", "batches of 8"])
def test_settings_and_names_are_none(text):
    assert not typed("x.md", text)


def test_code_roles_and_addresses_are_no_prose(tmp_path):
    (tmp_path / "x.md").write_text("a {num}`r:metrics.miou:.1%` b `9 ms` [c](https://x.org/5%) $5\\%$\n\n```bash\nsleep 5 s\n```\n\n"
                                   "```{figure} x.png\n:width: 50%\n:alt: about 60 % road\n\nA caption of 70 %.\n```\n")
    assert RESULT.findall(prose(tmp_path / "x.md")) == ["60 %", "70 %"]
