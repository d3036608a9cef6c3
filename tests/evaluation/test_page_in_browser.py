"""The page of an evaluation in a real browser: headless Chromium, where one is installed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from git_scale.data.store import open_store
from git_scale.evaluation.page import Card, write_page

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None
)
EVIL = '</script><script>document.title = "taken"</script><b>bold</b>'
TEXTS = ("one red fox", EVIL, "a red ox", "a cat")
AS_SHOWN = [text.replace("<", "&lt;").replace(">", "&gt;") for text in TEXTS]

pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no Chromium on this machine: the page is not looked at"
)


@pytest.fixture
def page(squares: Path, tmp_path: Path) -> str:
    cards = [
        Card(number, f"s.tar:{number}", "what?", text, ["right"], {"a": number / 4, "b": 1 - number / 4}, 0.0)
        for number, text in enumerate(TEXTS)
    ]
    write_page(
        tmp_path / "page.html",
        "results",
        cards,
        [("metric", "value"), ("a", "0.375")],
        "spread",
        open_store(squares / "heldout"),
    )
    return (tmp_path / "page.html").read_text(encoding="utf-8")


def shown(folder: Path, page: str, action: str = "") -> str:
    """The page's elements as the browser has them, after its script and `action`."""
    (folder / "acted.html").write_text(
        page.replace("</html>", f"<script>{action}</script></html>"), encoding="utf-8"
    )
    options = ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}")
    found = subprocess.run(
        [
            str(BROWSER),
            *options,
            "--virtual-time-budget=5000",
            "--dump-dom",
            (folder / "acted.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return found.stdout


def said(dom: str) -> list[str]:
    return re.findall(r'<div class="said">(.*?)</div>', dom, re.DOTALL)


def test_texts_lie_beside_their_images_and_no_text_is_run(page: str, tmp_path: Path) -> None:
    """The worst come first; an image counts that the browser has decoded."""
    measure = "for (const one of document.images) one.decode().then(() => one.title = one.naturalWidth);"
    dom = shown(tmp_path, page, measure)
    assert said(dom) == AS_SHOWN
    assert dom.count('title="32"') == len(TEXTS), "the squares are 32 pixels wide"
    assert "<title>results</title>" in dom and "<b>bold</b>" not in dom
    assert re.findall(r"<td[^>]*>(.*?)</td>", dom) == ["metric", "value", "a", "0.375"]


def test_order_metric_and_words_choose_what_is_shown(page: str, tmp_path: Path) -> None:
    choose = (
        'at("metric").value = "b"; at("text").value = "RED"; at("text").dispatchEvent(new Event("input"));'
    )
    dom = shown(tmp_path, page, choose)
    assert said(dom) == ["a red ox", "one red fox"], "b is 0.5 and 1"
    assert "2 of 4 shown, of 4 texts" in dom
    assert said(shown(tmp_path, page, 'at("order").value = "best"; draw();')) == AS_SHOWN[::-1]
