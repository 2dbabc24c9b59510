"""The code in README.md and in docs/ runs, page by page, from top to bottom."""

import re
from pathlib import Path

import pytest

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
    "docs/estimators.md",
    "docs/search.md",
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


@pytest.mark.parametrize("page", PAGES)
def test_the_page_runs(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("book.txt").write_text(BOOK)
    Path("play.txt").write_text(PLAY)
    code = code_of(page)
    assert "import dd2424fast as dd" in code
    exec(compile(code, ROOT / page, "exec"), {"__name__": "page"})
    assert capsys.readouterr().out


def test_pages_that_docs_list_exist():
    text = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"\]\(([\w/]+\.md)\)", text))
    found = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")} - {"README.md"}
    assert listed == found
