"""Pages and files of the repository that lie outside of `docs/`, and the links to them.

The documents link each other as the repository has them, so `../benchmarks/results/tiers.jsonl`
works for whoever reads them there. A site has only what is in it: documents of other folders become
pages, and any other file that is linked is copied.
"""

from __future__ import annotations

import re
from pathlib import Path
from posixpath import dirname, join, normpath, relpath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
PAGES = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "examples/README.md": "examples.md",
    "benchmarks/README.md": "benchmarks.md",
}
"""Documents outside of `docs/`, and what their pages are called."""
COPIED = "repository"
"""Folder of the site for other files that are linked."""
LINK = re.compile(r"(?<=\]\()(?!\w+:|#|/)([^)\s#]+)(#[^)\s]*)?(?=\))")
SPECIFIED = re.compile(r"\[([^\]]+)\]\(\w+/README\.md\)")
"""The specification's links to folders of its own, which it alone has."""
_SOURCES = {page: source for source, page in PAGES.items()}


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages of `PAGES`, and each file outside of `docs/` that a page links."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    for page in list(files.documentation_pages()):
        for target in sorted(linked(_source(page.src_uri), page.content_string)):
            place = _place(target)
            if place.startswith(COPIED) and place not in files.src_uris:
                files.append(File.generated(config, place, abs_src_path=str(ROOT / target)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The page's text with each link as the site has its target."""
    here = page.file.src_uri
    base = dirname(_source(here))

    def there(match: re.Match[str]) -> str:
        target = normpath(join(base, match[1]))
        if not (ROOT / target).is_file():
            return match[0]  # left to the check of the build
        return relpath(_place(target), dirname(here) or ".") + (match[2] or "")

    if here.startswith("spec/"):
        markdown = SPECIFIED.sub(r"\1", markdown)
    return LINK.sub(there, markdown)


def linked(source: str, text: str) -> set[str]:
    """Files of the repository that a document links, from the repository's root.

    Args:
        source: the document, from the repository's root.
        text: what it says.
    """
    found = {normpath(join(dirname(source), match[1])) for match in LINK.finditer(text)}
    return {target for target in found if (ROOT / target).is_file()}


def _source(page: str) -> str:
    """Where the text of a page lies in the repository."""
    return _SOURCES.get(page, f"docs/{page}")


def _place(target: str) -> str:
    """Where a file of the repository lies in the site."""
    if target in PAGES:
        return PAGES[target]
    return target[5:] if target.startswith("docs/") else f"{COPIED}/{target}"
