"""mkdocs' hooks: files that lie beside docs/ become pages too, and links lead to pages.

Every page is read on GitHub as well, so its links name files of the repository. Where such a file
is no page of the site only the link's text is left.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "launch/README.md": "launch.md",
}
# Code, in which nothing is a link, or a link to a file, perhaps to a heading of it.
_LINK = re.compile(
    r"(?P<code>^ {4}[^\n]*$|^```.*?^```$|`[^`\n]+`)"
    r"|\[(?P<text>[^\]\n]*)\]\((?P<file>[\w./-]+)(?P<heading>#[\w-]+)?\)",
    re.MULTILINE | re.DOTALL,
)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that lie elsewhere."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn links to files of the repository into links of the site."""
    place = page.file.src_uri
    source = next((s for s, name in PAGES.items() if name == place), f"docs/{place}")
    return links_of_site(markdown, posixpath.dirname(source))


def links_of_site(markdown: str, folder: str) -> str:
    """Return the text with the site's links in place of the repository's.

    Args:
        markdown: of a file of the repository.
        folder: in which that file lies.
    """

    def moved(link: re.Match[str]) -> str:
        if link["code"]:
            return link[0]
        source = posixpath.normpath(posixpath.join(folder, link["file"]))
        inside = source.removeprefix("docs/")
        page = PAGES.get(source) or (inside if inside != source else None)
        if page:
            return f"[{link['text']}]({page}{link['heading'] or ''})"
        # A link to what does not exist stays, and mkdocs refuses it.
        return link["text"] if (ROOT / source).exists() else link[0]

    return _LINK.sub(moved, markdown)
