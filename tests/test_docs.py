"""The code in README.md and in docs/ runs, page by page, from top to bottom."""

import re
import shlex
from pathlib import Path

import pytest
from command_line import run

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),  # a few epochs show what there is
]

ROOT = Path(__file__).parents[1]
PAGES = (
    "README.md",
    "docs/text.md",
    "docs/images.md",
    "docs/mlp.md",
    "docs/saving.md",
    "docs/estimators.md",
    "docs/search.md",
    "docs/debugging.md",
    "docs/time.md",
    "docs/plots.md",
)
BOOK = "".join(f"The {w} fox saw no. {i * i % 97}.\n" for i in range(200) for w in ("quick", "lazy", "old", "odd"))
PLAY = "".join(f"{'ANN BOB'.split()[i * i % 7 % 2]}:\nI say {i * 7 % 11}.\n" for i in range(300))


def code_of(page):
    """The page's blocks of Python, each where it stands, so that an error names the page's line."""
    blocks = re.split(r"^```(python)?\n", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE)
    inside = [kind == "python" for kind in (None, *blocks[1::2])]
    lines = []
    for text, code in zip(blocks[::2], inside, strict=True):
        lines += [line if code else "" for line in text.splitlines()] + [""]
    return "\n".join(lines)


def commands_of(page):
    """The command lines that a page's code takes up, as (name, argument, ...)."""
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines() if page == "docs/saving.md" else []
    return [shlex.split(line)[1:] for line in lines if line.startswith("    dd2424fast ")]


@pytest.mark.parametrize("page", PAGES)
def test_the_page_runs(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("book.txt").write_text(BOOK)
    Path("play.txt").write_text(PLAY)
    for command in commands_of(page):
        result = run(*command)
        assert result.exit_code == 0, result.output
    code = code_of(page)
    assert "import dd2424fast as dd" in code
    exec(compile(code, ROOT / page, "exec"), {"__name__": "page"})
    assert capsys.readouterr().out


def test_what_is_quoted_was_printed(tmp_path, monkeypatch, capsys):
    """Of docs/debugging.md: the same words, and numbers but for their last digits, which other CPUs round otherwise."""
    page = "docs/debugging.md"
    monkeypatch.chdir(tmp_path)
    exec(compile(code_of(page), ROOT / page, "exec"), {"__name__": "page"})
    printed = {words(line) for line in capsys.readouterr().out.splitlines()}
    blocks = re.split(r"^```(?:python)?\n", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE)[1::2]
    quoted = [words(line) for block in blocks if "import" not in block for line in block.splitlines()]
    quoted = [line for line in quoted if line[:1] in ("-", "*") or " of layer " in line]
    assert len(quoted) >= 4
    assert not [line for line in quoted if line not in printed]


def words(line):
    """A line without its numbers of several digits."""
    return re.sub(r"-?\d+\.\d+(e[+-]?\d+)?", "#", line)


def test_pages_that_docs_list_exist():
    text = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"\]\(([\w/]+\.md)\)", text))
    found = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")} - {"README.md"}
    assert listed == found


def test_links_lead_somewhere():
    """To files, and to headings of pages."""
    named = ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")
    pages = [*(ROOT / name for name in named), *ROOT.glob("docs/**/*.md")]
    for page in pages:
        for link in re.findall(r"\]\((?!https?://)([^)\s]+)\)", page.read_text(encoding="utf-8")):
            path, _, heading = link.partition("#")
            target = page.parent / path if path else page
            assert target.exists(), f"{page.name}: {link}"
            if heading:
                assert heading in headings_of(target), f"{page.name}: {link}"


def headings_of(page):
    """As the page's links name them."""
    found = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}
