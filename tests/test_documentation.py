"""The examples in README.md and docs/ do what they show: `make docs`."""

import doctest
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [page for page in (ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))) if page.exists()]
PYTHON_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.mark.documentation
@pytest.mark.parametrize("example", sorted(ROOT.glob("examples/*.py")), ids=lambda path: path.stem)
def test_an_example_runs(example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(example), run_name="__main__")


@pytest.mark.documentation
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_examples_of_a_page_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Blocks with prompts run as doctests, one after another; the others must at least parse."""
    text = page.read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    complaints: list[str] = []
    for block in PYTHON_BLOCK.finditer(text):
        line = text[: block.start(1)].count("\n")
        if ">>>" not in block[1]:
            compile("\n" * line + block[1], page.name, "exec")
            continue
        example = doctest.DocTestParser().get_doctest(block[1], names, page.name, str(page), line)
        runner.run(example, out=complaints.append, clear_globs=False)
        names = example.globs
    assert not runner.summarize(verbose=False).failed, "".join(complaints)


def test_every_name_that_pages_and_messages_tell_is_there_in_a_fresh_process():
    texts = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("sgdap/**/*.py")]
    told = {
        name
        for path in texts
        for name in re.findall(r"\bsgdap(?:\.[a-z_]+)*\.[A-Za-z_]+\b(?!\.\w|/)", path.read_text())
        if "._" not in name and not re.search(rf"(from|import) {name}\b", path.read_text())
    }
    code = (
        "import operator, sgdap, sys\n"
        "for name in sys.argv[1:]:\n"
        "    try: operator.attrgetter(name.removeprefix('sgdap.'))(sgdap)\n"
        "    except AttributeError: print(name)"
    )
    command = [sys.executable, "-c", code, *sorted(told)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert len(told) > 20
    assert done.stdout.split() == []
