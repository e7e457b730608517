"""The documentation: every link leads somewhere, every path named in it is there."""

from __future__ import annotations

import re
from pathlib import Path

LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")


def pages(repo_root: Path) -> list[Path]:
    """Every Markdown page of the project."""
    folders = ("docs", "docker", "examples", "mlflow", "benchmarks", "search_spaces", "hardware_profiles")
    found = [*repo_root.glob("*.md"), *(page for name in folders for page in (repo_root / name).rglob("*.md"))]
    # What benchmarks install for themselves is not the project's.
    return [page for page in found if not page.is_relative_to(repo_root / "benchmarks" / "out")]


def test_links_lead_somewhere(repo_root: Path) -> None:
    broken = [
        f"{page.relative_to(repo_root)}: {target}"
        for page in pages(repo_root)
        for target in LINK.findall(page.read_text(encoding="utf-8"))
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert broken == []


def test_architecture_names_what_is_there(repo_root: Path) -> None:
    """Every `autoq/….py` and `part/file.py` that the page names."""
    text = (repo_root / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = [name for name in re.findall(r"`([a-z_/]+\.py)`", text) if name != "setup.py"]
    assert len(named) > 10
    roots = (repo_root, repo_root / "autoq", repo_root / "autoq" / "numerics")
    assert [name for name in named if not any((root / name).is_file() for root in roots)] == []
