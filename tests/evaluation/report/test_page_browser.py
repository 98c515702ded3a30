"""The pages in headless Chromium, as a reader has them: on a phone, dark, and in print."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from dimo_jax.evaluation.report import compare, page
from tests.helpers import evaluated_folders as folders
from tests.helpers.evaluated_folders import Page, row

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome on PATH")
PHONE_PIXELS = 360


@pytest.fixture(scope="module")
def browse(tmp_path_factory):
    profile = tmp_path_factory.mktemp("profile")

    def run(*arguments):
        command = [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--hide-scrollbars", "--virtual-time-budget=2000",
            f"--user-data-dir={profile}", *arguments,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    return run


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A page with wide tables, long words and wide pictures, and a comparison with itself."""
    root = tmp_path_factory.mktemp("pages")
    long = "averylongname" * 20
    rows = folders.paper_rows()
    rows += [row("generator", 1, {"temperature": t, long: long}, fid=6.0 + t) for t in (1, 5, 9)]
    rows += [row(long, 64, **{long: 1.5})]
    values = [{"mean": float(i % 7), "std": 0.0} for i in range(30)]
    results = folders.inception_results(
        rows,
        long=long,
        per_class={"rows": [{"model": "generator", "steps": 1, "metrics": {"fid": values}}]},
        extremes={"worst": [{"label": i, "predicted": 8, "value": 12.345} for i in range(10)]},
        pictures=[
            {"file": "pictures/worst.png", "kind": "worst", "columns": 10},
            {
                "file": "pictures/generator.png",
                "kind": "samples",
                "model": "generator",
                "steps": 1,
                "columns": 20,
                "labels": [0] * 20,
            },
        ],
    )
    records = [{"stage": long, "step": i, "train/loss": 1.0 / (1 + i)} for i in range(50)]
    folder = folders.write(
        root / "run", results, ("generator", "teacher_04_steps", "worst"), records
    )
    wide = np.random.default_rng(0).integers(0, 255, (90, 1800, 3), dtype=np.uint8)
    Image.fromarray(wide).save(folder / "pictures" / "generator.png")
    tall = np.random.default_rng(0).integers(0, 255, (1500, 150, 3), dtype=np.uint8)
    Image.fromarray(tall).save(folder / "pictures" / "tall.png")
    first = page.write(folder, title=f"Title {long}")
    _, second = compare.write([folder, folder], root / "compared")
    return {"page": first, "compare": second}


# Measures a page in a frame as wide as a phone; the page itself has no script.
FRAME = """<!doctype html><body style="margin:0">
<iframe id="frame" src="{src}" style="width:{width}px;height:700px;border:0"></iframe>
<pre id="found"></pre><script>
window.onload = () => {{
  const inside = document.getElementById("frame").contentDocument, root = inside.documentElement;
  const scrolls = (e) => !!e.closest(".scroll, .frame, .unseen, .skip, svg");
  const right = [...inside.body.querySelectorAll("*")].filter((e) => !scrolls(e))
    .map((e) => [e.getBoundingClientRect().right, e.tagName + "." + e.className]);
  const images = [...inside.images];
  document.getElementById("found").textContent = JSON.stringify({{
    width: root.clientWidth, scrolls: root.scrollWidth,
    outside: right.filter(([x]) => x > root.clientWidth + 0.5),
    images: images.length, broken: images.filter((e) => !e.naturalWidth).length,
    tiles: images.map((e) => e.getBoundingClientRect().width),
    boxes: [...inside.querySelectorAll(".scroll")]
      .filter((e) => e.scrollWidth > e.clientWidth).length,
    smallest: Math.min(...[...inside.querySelectorAll("p, td, th, dd, dt, li, figcaption")]
      .filter((e) => !e.closest(".unseen, .under"))
      .map((e) => parseFloat(getComputedStyle(e).fontSize))),
    loaded: performance.getEntriesByType("resource").map((e) => e.name)
      .concat(document.getElementById("frame").contentWindow.performance
        .getEntriesByType("resource").map((e) => e.name)),
  }});
}};
</script></body>"""


@pytest.mark.parametrize("name", ["page", "compare"])
def test_a_phone_shows_it_without_sideways_scrolling(browse, pages, tmp_path, name):
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME.format(src=pages[name].as_uri(), width=PHONE_PIXELS))
    dom = browse("--allow-file-access-from-files", "--dump-dom", frame.as_uri())
    text = re.search(r'<pre id="found">(.*?)</pre>', dom, re.S)[1]
    found = json.loads(text.replace("&amp;", "&").replace("&gt;", ">").replace("&lt;", "<"))
    assert found["width"] == PHONE_PIXELS
    assert found["scrolls"] == PHONE_PIXELS and found["outside"] == []
    assert found["images"] > 2 and found["broken"] == 0
    assert any(width > PHONE_PIXELS for width in found["tiles"]), "20 photos scroll in their box"
    assert found["boxes"] > 0, "the wide tables scroll inside their boxes"
    assert found["smallest"] >= 11
    kinds = {address.partition(":")[0] for address in found["loaded"]}
    assert kinds <= {"data", "file"}
    others = [x for x in found["loaded"] if x.startswith("file:") and x != pages[name].as_uri()]
    assert others == []


def asked_by(browse, page_path, log):
    """Addresses that a page asked for, by the browser's own log of its network; not itself."""
    browse(f"--log-net-log={log}", "--dump-dom", page_path.as_uri())
    events = json.loads(log.read_text())["events"]
    # What the browser asks for itself has no origin behind it.
    found = {
        event["params"]["url"]
        for event in events
        if "url" in event.get("params", {})
        and event["params"].get("initiator", "not an origin") != "not an origin"
    }
    return {address for address in found if not address.startswith("data:")}


def test_nothing_is_asked_of_the_network(browse, pages, tmp_path):
    assert asked_by(browse, pages["page"], tmp_path / "net.json") == set()
    text = pages["page"].read_text(encoding="utf-8")
    address = "http://127.0.0.1:9/a.png"
    asking = tmp_path / "asking.html"
    asking.write_text(re.sub("<meta http-equiv.*", "", text) + f'<img src="{address}">')
    assert asked_by(browse, asking, tmp_path / "control.json") == {address}
    # The page's own policy stops even what somebody might put into it.
    asking.write_text(text.replace("</main>", f'<img src="{address}"></main>'))
    assert asked_by(browse, asking, tmp_path / "stopped.json") == set()


def test_print_cuts_no_picture(browse, pages, tmp_path):
    path = tmp_path / "page.pdf"
    browse(f"--print-to-pdf={path}", "--no-pdf-header-footer", pages["page"].as_uri())
    content = path.read_bytes()
    objects = dict(re.findall(rb"\n(\d+) 0 obj\n(.*?)\nendobj", content, re.S))
    sheets = [x for x in objects.values() if re.search(rb"/Type /Page\b(?!s)", x)]
    pictures = {n for n, x in objects.items() if b"/Subtype /Image" in x}
    shown = [n for sheet in sheets for n in re.findall(rb"/X\d+ (\d+) 0 R", sheet)]
    shown = [n for n in shown if n in pictures]
    assert len(sheets) > 2
    assert sorted(shown) == sorted(set(shown)), "a picture that is cut is on two sheets"
    assert len(shown) == len(Page(pages["page"].read_text(encoding="utf-8")).all("img"))
