"""mkdocs' hooks: files beside docs/ and notebooks become pages too, and links lead to pages.

Every page is read on GitHub as well, so its links name files of the repository. Where such a file
is no page of the site only the link's text is left.
"""

import json
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
PAGES |= {f"docs/{x.name}": f"{x.stem}.md" for x in (ROOT / "docs").glob("*.ipynb")}
# Code, in which nothing is a link, or a link to a file, perhaps to a heading of it.
_LINK = re.compile(
    r"(?P<code>^ {4}[^\n]*$|^```.*?^```$|`[^`\n]+`)"
    r"|\[(?P<text>[^\]\n]*)\]\((?P<file>[\w./-]+)(?P<heading>#[\w-]+)?\)",
    re.MULTILINE | re.DOTALL,
)


def on_config(config: Any) -> Any:
    """Put the notebooks behind the first page of the navigation."""
    config.nav[1:1] = [page for source, page in PAGES.items() if source.endswith(".ipynb")]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that lie elsewhere."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        text = of_notebook(text) if source.endswith(".ipynb") else text
        files.append(File.generated(config, page, content=text))
    return files


def of_notebook(text: str) -> str:
    """Return a notebook as Markdown, with the outputs that it was saved with."""
    blocks = []
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        blocks.append(source if cell["cell_type"] == "markdown" else _fenced(source, "python"))
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                blocks.append(f"![output](data:image/png;base64,{''.join(data['image/png'])})")
            elif shown := output.get("text") or data.get("text/plain"):
                blocks.append(_fenced("".join(shown), "text"))
    return "\n\n".join(blocks)


def _fenced(text: str, language: str) -> str:
    return f"```{language}\n{text.rstrip()}\n```"


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
