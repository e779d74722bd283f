"""The repository as a stranger finds it: no machine paths, no package servers, no dead links, both languages."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.contract.source_tree import ROOT

pytestmark = pytest.mark.check

MACHINE_PATHS = re.compile(r"(?<![\w.$}])/(?:work|root|home/\w+|tmp/w|opt/(?:pypi|wheels))(?:/|\b)(?!\w)")
PACKAGE_SERVERS = re.compile(
    r"pypi\.\w+|pythonhosted|download\.pytorch|(?:index|extra-index)-url|tuna\.\w+", re.IGNORECASE
)
LINK = re.compile(r"\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)")
SELF = Path(__file__).relative_to(ROOT).as_posix()


def repository_files() -> list[Path]:
    """Return the files git tracks or would track; without git, those in the usual folders."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode == 0:
        names = [name for name in listed.stdout.split("\0") if name]
        return [ROOT / name for name in names if (ROOT / name).is_file()]
    folders = [ROOT / name for name in ("deepseek", "tests", "docs", "benchmarks", "recipes")]
    inside = [path for folder in folders for path in folder.rglob("*") if "__pycache__" not in path.parts]
    return [path for path in [*ROOT.iterdir(), *inside] if path.is_file()]


def text_of(path: Path) -> str:
    """Return a file's text, or nothing for a file that is none."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""


@pytest.mark.parametrize("pattern", [MACHINE_PATHS, PACKAGE_SERVERS], ids=["machine_paths", "package_servers"])
def test_no_file_names_a_machine_or_a_package_server(pattern: re.Pattern[str]) -> None:
    found = []
    for path in repository_files():
        name = path.relative_to(ROOT).as_posix()
        if name == SELF:
            continue
        for number, line in enumerate(text_of(path).splitlines(), 1):
            if match := pattern.search(line):
                found.append(f"{name}:{number}: {match[0]}")
    assert not found, "\n".join(found)


def test_relative_links_resolve() -> None:
    dead = []
    for page in (path for path in repository_files() if path.suffix == ".md"):
        for target in LINK.findall(re.sub(r"```.*?```", "", text_of(page), flags=re.DOTALL)):
            if re.match(r"[a-z]+:|#", target):
                continue
            if not (page.parent / unquote(target.partition("#")[0])).exists():
                dead.append(f"{page.relative_to(ROOT)}: {target}")
    assert not dead, "links that lead nowhere:\n" + "\n".join(dead)


def test_every_page_exists_in_both_languages() -> None:
    docs = ROOT / "docs"
    pages = {lang: {path.relative_to(docs / lang) for path in (docs / lang).rglob("*.md")} for lang in ("en", "zh")}
    assert pages["en"] == pages["zh"], f"only in one language: {sorted(map(str, pages['en'] ^ pages['zh']))}"
    assert pages["en"], "docs/en has no pages"


def test_no_large_or_binary_file() -> None:
    odd = [path.relative_to(ROOT).as_posix() for path in repository_files() if path.stat().st_size > 512 * 1024]
    assert not odd, f"data and weights do not belong in the repository: {odd}"
