"""Folders of results for the tests of the pages, and a reader of the HTML that they become."""

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from PIL import Image

VOID = {"meta", "link", "img", "br"}
# Loads something, or runs something, where it stands.
ADDRESSES = ("src", "href", "xlink:href", "srcset", "poster", "data", "action", "background")


def row(model, steps, sampler=None, **means):
    metrics = {name: {"mean": mean, "std": 0.01} for name, mean in means.items()}
    return {"model": model, "steps": steps, "metrics": metrics, "sampler": sampler or {}}


# FID, Inception Score, precision, recall, density and coverage of the paper's first table.
PAPER = {
    ("teacher", 16): (6.60, 224.07, 0.831, 0.402, 1.246, 0.977),
    ("teacher", 8): (6.66, 221.57, 0.827, 0.397, 1.233, 0.974),
    ("teacher", 4): (10.73, 192.29, 0.748, 0.313, 1.011, 0.920),
    ("generator", 1): (6.91, 214.0, 0.828, 0.377, 1.255, 0.967),
}
NAMES = ("fid", "inception_score", "precision", "recall", "density", "coverage")


def paper_rows():
    return [row(*key, **dict(zip(NAMES, values, strict=True))) for key, values in PAPER.items()]


def inception_results(rows=None, **more):
    return {
        "rows": paper_rows() if rows is None else rows,
        "protocol": {"name": "dimo", "about": "the code of the paper", "num_neighbours": 3},
        "settings": {"num_samples": 50000},
        "seed": 0,
        "versions": {"jax": "1.2.3"},
        "device": {"kind": "abacus"},
        "wall_seconds": 600.0,
        "hashes": {"reference": "ab" * 32, "weights": "cd" * 32},
        **more,
    }


def write(folder, results, pictures=(), records=None):
    """results.json, pictures/NAME.png in noise and metrics.jsonl (text or records)."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results))
    for i, name in enumerate(pictures):
        draw = np.random.default_rng(i)
        (folder / "pictures").mkdir(exist_ok=True)
        noise = draw.integers(0, 255, (20, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / "pictures" / f"{name}.png")
    if records is not None:
        text = records if isinstance(records, str) else "".join(
            json.dumps(record) + "\n" for record in records
        )  # fmt: skip
        (folder / "metrics.jsonl").write_text(text)
    return folder


class Page(HTMLParser):
    """Elements of a page in order; `problems` lists what no page may have."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.problems, self.open = [], [], []
        self.words, self.styles = [], []
        self.feed(text)
        self.close()
        self.problems += [f"<{name}> is not closed" for name in self.open]
        self._check()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.problems.append(f"</{tag}> closes another element")

    def handle_data(self, data):
        (self.styles if self.open and self.open[-1] == "style" else self.words).append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def all(self, tag, **attributes):
        return [
            found
            for name, found in self.elements
            if name == tag and all(found.get(key) == value for key, value in attributes.items())
        ]

    def _check(self):
        if len(self.all("h1")) != 1:
            self.problems.append("not one h1")
        if not self.all("html", lang="en") or not self.all("main"):
            self.problems.append("no language or no main part")
        ids = [found["id"] for _, found in self.elements if "id" in found]
        self.problems += [f"id {name} twice" for name in set(ids) if ids.count(name) > 1]
        for tag, found in self.elements:
            if tag in ("script", "iframe", "object", "embed", "form", "base"):
                self.problems.append(f"<{tag}>")
            self.problems += [f"{tag} {name}" for name in found if name.startswith("on")]
            for name in ADDRESSES:
                address = found.get(name)
                if address and not address.startswith(("data:", "#")):
                    self.problems.append(f"{tag} loads {address}")
                if address and address.startswith("#") and address[1:] not in ids:
                    self.problems.append(f"{address} leads nowhere")
            if tag == "img" and not found.get("alt"):
                self.problems.append("an image without alt")
            if tag == "th" and not found.get("scope"):
                self.problems.append("a header without scope")
            if tag == "svg" and not (found.get("aria-label") or found.get("aria-hidden")):
                self.problems.append("a chart without words")
            if "aria-labelledby" in found and found["aria-labelledby"] not in ids:
                self.problems.append("a label that is not there")
        style = " ".join(self.styles)
        self.problems += [f"style has {x}" for x in ("url(", "@import", "http") if x in style]


class Tables(HTMLParser):
    """{caption: rows of cell texts} of a page; what only screen readers get is left out."""

    def __init__(self, text):
        super().__init__()
        self.found, self.rows, self.cell, self.caption, self.unseen = {}, [], None, None, 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if self.unseen or attributes.get("class") == "unseen" or "aria-hidden" in attributes:
            self.unseen += tag not in VOID
        if tag == "table":
            self.rows, self.caption = [], ""
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th", "caption"):
            self.cell = []

    def handle_endtag(self, tag):
        if self.unseen:
            self.unseen -= 1
        if tag in ("td", "th") and self.cell is not None:
            self.rows[-1].append("".join(self.cell).strip())
        elif tag == "caption":
            self.caption = "".join(self.cell)
        elif tag == "table" and self.caption:
            self.found[self.caption] = self.rows

    def handle_data(self, data):
        if self.cell is not None and not self.unseen:
            self.cell.append(data)
