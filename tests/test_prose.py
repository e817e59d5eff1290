"""No result is typed into prose: it comes from {num}, {glue} or a quote of the paper.

In the README `.ci/timing.py` fills marked places; `prose_allowed.txt` explains other numbers."""

import importlib.util
import json
from pathlib import Path
import re

import pytest

from rflw import InputError, records
from rflw_study import claims, evidence, paper

ROOT = Path(__file__).resolve().parents[1]
ALLOWED = Path(__file__).with_name("prose_allowed.txt")
README = ROOT / "README.md"
PAGES = sorted(
    [*ROOT.glob("book/*.md"), *ROOT.glob("notebooks/*.ipynb"), ROOT / "CHANGELOG.md", README]
)
SPEC = importlib.util.spec_from_file_location("timing", ROOT / ".ci" / "timing.py")
timing = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(timing)

NUMBER = (
    r"(?<![\w.,/-])[-−+]?\d[\d.,]*(?: (?:to|and|or) \d[\d.,]*)?"
    r"|\b(?:two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|fifteen|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety"
    r"|hundred|thousand)(?=[ -])"
)
UNIT = (
    r"%|per ?cent|(?:percentage )?points?|ms|milliseconds?|s|sec|seconds?|min|minutes?|h|hours?|days?|weeks?|FPS|fps|(?:images|frames)"
    r"(?:/s| (?:a|per) second)|times|fold|x|×|[GMT]?FLOPs?|[GM]MACs?|[GMB]|billions?|millions?|[GM]i?B|(?:giga|mega)bytes?"
    r"|Wh?|J|mIoU|IoU"
)
RESULT = re.compile(
    rf"(?:{NUMBER})[ \u00a0\u202f-]?(?:{UNIT})(?![\w-])|\b(?:mIoU|IoU|accuracy|F-score)\b[^.\d]{{0,30}}(?:\d+\.\d|\d\d)|"
    r"\b(?:twice|thrice|half|double) (?:as|the (?:time|speed|size|parameters|work|score))|"
    r"\b(?:half|third|quarter|fifth|tenth) (?:faster|slower|smaller|larger|less|more|fewer)|"
    rf"(?:{NUMBER}) (?:of the )?claims (?:are|were) (?:{'|'.join(claims.VERDICTS)})",
    re.IGNORECASE,
)


def without_code(text: str) -> str:
    """Markdown without its blocks of code. Of directives the content and captions stay."""
    lines, fences = [], []  # fences that are open, each with whether it is a directive's
    for line in text.splitlines():
        fence = re.match(r"(`{3,}|:{3,})(.*)", line)
        visible = all(directive for _, directive in fences)
        if fence and fences and not fence[2].strip() and fence[1].startswith(fences[-1][0]):
            fences.pop()
        elif fence and visible:
            fences.append((fence[1], fence[2].startswith("{")))
            caption = re.match(r"\{(?:table|dropdown)\}(.*)", fence[2])
            lines.append(caption[1] if caption else "")
        elif visible and not (fences and re.match(r":(?!alt:)[\w-]+:", line)):
            lines.append(line)
    return "\n".join(lines)


def texts_of(cell: dict) -> list[str]:
    """What a cell of a notebook says in words: its prose, or a caption and alternative text."""
    shown = cell["metadata"].get("mystnb", {})
    own = "".join(cell["source"]) if cell["cell_type"] == "markdown" else ""
    return [own, shown.get("figure", {}).get("caption", ""), shown.get("image", {}).get("alt", "")]


def prose(page: Path) -> str:
    """What a reader sees as text: no code, formulas, roles or addresses."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        text = "\n\n".join(part for cell in json.loads(text)["cells"] for part in texts_of(cell))
    text = without_code(timing.MARKED.sub("", text))
    text = re.sub(r"\$\$.*?\$\$|\$[^$\n]+\$", "", text, flags=re.DOTALL)
    text = re.sub(r"\{[\w:-]+\}`[^`]*`|`[^`]*`|\*+", "", text)
    return " ".join(re.sub(r"\]\([^)]*\)", "]", text).split())


def plain(text: str) -> str:
    return re.sub(r"\W+", "", text).lower()


QUOTES = [plain(entry.quote) for entry in (*claims.load(), *paper.statements())]


def without_quotes(text: str) -> str:
    """Words of the paper, in quotation marks, may hold its numbers."""

    def unless_quoted(words: re.Match) -> str:
        return "" if any(plain(words[1]) in quote for quote in QUOTES) else words[0]

    return re.sub(r'"([^"]+)"', unless_quoted, text)


def allowed() -> list[tuple[str, ...]]:
    """(page, phrase, reason) of each line."""
    lines = ALLOWED.read_text(encoding="utf-8").splitlines()
    return [tuple(line.split(" | ")) for line in lines if line and not line.startswith("#")]


def typed(page: str, text: str) -> list[str]:
    """Results in a text, each with the words around it."""
    text = without_quotes(text)
    for where, phrase, _ in allowed():
        if where in (page, "*"):
            text = text.replace(phrase, " ")
    return [text[max(0, m.start() - 30) : m.end() + 10] for m in RESULT.finditer(text)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_result_is_typed(page):
    assert not typed(page.name, prose(page))


def test_what_is_allowed_is_there_and_has_a_reason():
    texts = {page.name: prose(page) for page in PAGES}
    for page, phrase, reason in allowed():
        pages = texts.values() if page == "*" else [texts[page]]
        assert reason and any(phrase in text for text in pages), phrase


RESULTS = """It reaches 73.2 % on CamVid. | an mIoU of 0.73 | It takes 4.5 ms. | 2.75x faster |
    3 times as fast | in 12 minutes | 12.5 images a second | at 55 FPS | 46 M parameters |
    a gain of 1.5 points | twice as fast | ten times | 7 to 9 hours | a 3-fold gain |
    73.2 per cent | mIoU rises from 0.712 to 0.732 | mIoU of about 0.73 | mIoU = 0.73 |
    mIoU: 0.73 | in twelve minutes | 28 claims are reproduced | thirty times | a third faster |
    eleven points | 2 gigabytes | an accuracy of 93"""
SETTINGS = """Table 3 has 5 columns. | 480x360 pixels | a 3x3 convolution | ResNet-50 | 367 frames |
    says "more than 5% performance drop on the same dataset" | stride 32 | section 3.3 | 2018 |
    batches of 8"""


def test_results_are_noticed_and_settings_are_not():
    assert [text for text in RESULTS.split("|") if not typed("x.md", text)] == []
    assert [text for text in SETTINGS.split("|") if typed("x.md", text)] == []


def test_code_roles_and_addresses_are_no_prose(tmp_path):
    (tmp_path / "x.md").write_text(
        "a {num}`r:metrics.miou:.1%` b `9 ms` [c](https://x.org/5%) $5\\%$\n\n```bash\nsleep 5 s\n```\n\n"
        "```{figure} x.png\n:width: 50%\n:alt: about 60 % road\n\nA caption of 70 %.\n```\n\nand 80 %\n\n"
        "**81** %\n\n````{table} Of 90 %.\n\n```python\n1 %\n```\n````\n\n```\n2 %\n```\n3 %"
    )
    found = RESULT.findall(prose(tmp_path / "x.md"))
    assert found == [f"{n} %" for n in (60, 70, 80, 81, 90, 3)]


def test_numbers_of_the_readme_are_those_on_record(tmp_path):
    text = README.read_text(encoding="utf-8")
    assert len(timing.MARKED.findall(text)) > 3
    assert timing.refreshed(text) == text, "python .ci/timing.py --readme"
    marked = "<!--num bench-x:metrics.rows[mode=fast].images_per_s:,.1f-->{}<!--/num--> a second"
    assert timing.refreshed(marked.format("3.7"), tmp_path) == marked.format("not measured yet")
    rows = [{"mode": "slow", "images_per_s": 1.0}, {"mode": "fast", "images_per_s": 1234.56}]
    records.write(
        {field: kind() for field, kind in records.REQUIRED.items()}
        | {"name": "bench-x", "hardware": {"cpu": "Fast", "cores": 2}, "metrics": {"rows": rows}},
        tmp_path,
    )
    assert timing.refreshed(marked.format("not measured yet"), tmp_path) == marked.format("1,234.6")


def test_commands_are_timed_and_a_failure_files_nothing(tmp_path):
    path = timing.timings(["true", "sleep 0.9"], tmp_path)
    record = records.read(path)
    evidence.verify(record)
    short, long = record["metrics"]["rows"]
    assert path.name == "bench-rerun.json"
    assert (short["what"], long["what"]) == ("true", "sleep 0.9")
    assert long["minutes"] >= 0.01 > short["minutes"]
    path.unlink()
    with pytest.raises(InputError, match="false: exit status 1"):
        timing.timings(["true", "false"], tmp_path)
    assert not list(tmp_path.iterdir())
