"""The report in a browser: it opens, asks for nothing, can be read by everybody, and its samples by clicking."""

import random
import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asked import EVIL, keep, meta, row
from evalsuite import report
from evalsuite.report import serve
from evalsuite.store import Row, Store

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright (extra dev)")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python (extra dev)")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="needs Chromium: apt-get install chromium")
FIGURES = 7
LIMIT = 5_000_000  # bytes of the file
SOON = 2.0  # seconds to the first figure


LEXICON = [f"{a}{b}{c}{d}" for a in "bdfghklmnprstvwz" for b in "aeio" for c in "bdfg" for d in "aeio"]  # 1,024 words


def words(rng: random.Random, count: int) -> str:
    return " ".join(rng.choices(LEXICON, k=count))


def many(lucky: float) -> list[Row]:
    """20,000 samples of hops, RULER and facts; texts of 300 words, as the demo's are at 512 tokens."""
    rng, luck = random.Random(1), random.Random(str(lucky))
    rows = []
    for i in range(2000):
        text = words(rng, 300)
        more: dict[str, Any] = {"length": (512, 1024)[i % 2], "depth": round(rng.random(), 4)}
        for hop in (1, 2, 4, 8):
            prompt, hit = f"{text} edge gold{i} here ask {i}" + " next" * hop, float(luck.random() < lucky / hop)
            more |= {"target": (f"gold{i}",), "cluster": f"graph/{i}"}
            rows += [row("multihop.graph", i, hit, prompt=prompt, hops=hop, facts=32, **more)]
        for part in ("niah_single_1", "niah_multikey_2", "vt", "cwe", "fwe"):
            prompt, hit = f"{words(rng, 150)} needle{i} {words(rng, 150)} ask", float(luck.random() < lucky)
            more |= {"target": (f"needle{i}",), "cluster": f"{part}/{i}"}
            rows += [row(f"ruler.{part}", i, hit, prompt=prompt, text=EVIL if i == 7 else "needle", **more)]
        rows.append(row("knowledge", i, float(luck.random() < 0.9), prompt=f"fact {i}"))
    return rows


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of two runs of 20,000 samples each."""
    place = tmp_path_factory.mktemp("large")
    cost = {"1024": {"kv": 4 << 20, "state": 0}}
    folders = [keep(place, "full", many(0.95), cost=cost)]
    cost = {"1024": {"kv": 1 << 20, "state": 1 << 16}}
    folders.append(keep(place, "hybrid-kda", many(0.7), cost=cost, created="2.0", missing={"ruler.qa_1": "no SQuAD"}))
    out = place / "report.html"
    list(report.write([str(folder) for folder in folders], out))
    return out


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Opened:
    """The page, with everything that it complained about or asked for."""

    def __init__(self, browser: Any, file: Path, scheme: str = "light", width: int = 1280) -> None:
        self.context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 900})
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        started = time.perf_counter()
        self.page.goto(file.as_uri(), wait_until="commit")
        self.page.locator("figure svg").first.wait_for()  # visible
        self.first_figure = time.perf_counter() - started
        self.page.wait_for_selector("#list button")

    def __enter__(self) -> "Opened":
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()


def test_twenty_thousand_samples(large: Path, chromium: Any) -> None:
    assert large.stat().st_size <= LIMIT
    with Opened(chromium, large) as opened:
        assert opened.first_figure < SOON
        assert opened.page.locator("#found").inner_text().startswith("20,000 of 20,000 samples; 1 to 50")
        figures = opened.page.locator("figure")
        assert figures.count() == FIGURES
        for i in range(FIGURES):
            pictures = figures.nth(i).locator("svg")
            assert pictures.count() >= 1
            for j in range(pictures.count()):
                box = pictures.nth(j).bounding_box()
                assert box["width"] > 100
                assert box["height"] > 60
                assert pictures.nth(j).locator("path, text").count() > 5
            opened.page.locator("details summary", has_text="The numbers of this figure").nth(i).click()
            assert opened.page.locator("details[open] table").nth(i).is_visible()
        assert opened.complaints == []
        assert opened.asked == [large.as_uri()]


def test_samples_by_clicking(large: Path, chromium: Any) -> None:
    with Opened(chromium, large) as opened:
        page, found = opened.page, opened.page.locator("#found")
        page.select_option("#by-task", label="multihop.graph")
        assert found.inner_text().startswith("8,000 of 20,000")
        page.locator("#filters").get_by_label("hops").select_option("4")
        assert found.inner_text().startswith("2,000 of 20,000")
        page.select_option("#by-outcome", "worse")
        page.locator("#list button").first.wait_for()
        assert not found.inner_text().startswith("2,000")
        page.locator("#list button").first.click()
        dialog = page.locator("dialog[open]")
        dialog.locator("pre").first.wait_for()
        title = dialog.locator("#sample-title").inner_text()
        number = title.rpartition("/")[2]
        assert "hops=4" in title
        assert f"gold{number}" in dialog.locator("mark.answer").all_inner_texts()
        assert "full: 1.00" in dialog.inner_text()
        assert "hybrid-kda: 0.00" in dialog.inner_text()
        assert "characters left out" in dialog.locator("pre").first.inner_text()
        page.click("#next")
        sync_api.expect(dialog.locator("#sample-title")).not_to_have_text(title)
        page.keyboard.press("Escape")
        assert not page.locator("dialog[open]").count()
        page.select_option("#by-task", "")
        page.locator("#filters").get_by_label("hops").select_option("")
        page.select_option("#by-outcome", "")
        page.fill("#by-text", "NEEDLE1234 ")
        sync_api.expect(found).to_have_text(re.compile("^5 of 20,000"), timeout=30_000)
        page.fill("#by-text", "onerror=alert")
        sync_api.expect(found).to_have_text(re.compile("^5 of 20,000.*"))
        sync_api.expect(page.locator("#list")).to_contain_text("/7")
        page.locator("#list button").first.click()
        dialog.locator("pre").first.wait_for()
        assert EVIL in dialog.inner_text()
        page.keyboard.press("Escape")
        page.fill("#by-text", "nowhere at all")
        sync_api.expect(found).to_have_text(re.compile("^None of 20,000"))
        assert opened.complaints == []
        assert opened.asked == [large.as_uri()]


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 360), ("dark", 360)])
def test_everybody_can_read_it(large: Path, chromium: Any, scheme: str, width: int) -> None:
    with Opened(chromium, large, scheme, width) as opened:
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
        for summary in opened.page.locator("summary").all():
            summary.click()
        faults = serious(opened)
        opened.page.locator("#list button").first.click()
        opened.page.locator("dialog[open] pre").first.wait_for()
        assert faults + serious(opened) == []
        assert opened.complaints == []


def test_the_live_page_follows_a_run(tmp_path: Path, chromium: Any) -> None:
    rows = [row("knowledge", i, 1.0) for i in range(2)]
    server = serve.server(tmp_path, 0)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    page, complaints = chromium.new_page(), []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    with Store.open(tmp_path / "m", meta("m", rows)) as writer:
        page.goto(f"http://127.0.0.1:{server.server_address[1]}/")
        assert "no sample is stored" in page.locator("main").inner_text()
        for count, each in enumerate(rows, 1):
            writer.append(each)
            sync_api.expect(page.locator(".warnings")).to_contain_text(f"{count} samples so far", timeout=30_000)
    page.close()
    server.shutdown()
    server.server_close()
    assert complaints == []


def serious(opened: Opened) -> list[tuple[str, str]]:
    found = axe.Axe().run(opened.page).response["violations"]
    return [
        (fault["id"], fault["nodes"][0]["html"][:200]) for fault in found if fault["impact"] in ("serious", "critical")
    ]
