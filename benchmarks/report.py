"""Measures the report's page with many episodes: its size, and the time until it can be used in a browser.

Made-up episodes of three agents, three turns each at most, whose passages are drawn from as many as there are episodes.
`first_row_s` is from the request until the list of episodes is drawn, `first_episode_s` until an episode is shown with
its passages, `figures_s` until the results and their figures are. A search looks through every answer, query and
response; the second one finds the texts unpacked. `scroll_ms` is the time from a jump in the list to the next drawn
frame, `frame_ms` the same without a jump, its limit. `memory_mb` is the most that writing the page took.

    .venv/bin/python benchmarks/report.py [--episodes 10000 100000] [--screenshots FOLDER]   # needs Chromium
"""

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from playwright.sync_api import Browser, sync_playwright  # noqa: E402

from s3_agent.evaluation.report.render import write_report  # noqa: E402
from tests.evaluated import write_evaluation  # noqa: E402
from tests.integration.test_report_page import FLAGS  # noqa: E402

_FRAME = """(act) => new Promise((done) => { const began = performance.now(); act && eval(act);
  requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - began))); })"""


def _written(folder: Path, episodes: int, figures: Any) -> None:
    """Write an evaluation and its page, in a process of its own: its memory is measured."""
    write_evaluation(folder / "evaluation", questions=round(episodes / 3), passages=episodes)
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    write_report([folder / "evaluation"], folder / "report.html")
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    figures.put({"write_s": time.perf_counter() - started, "memory_before_mb": before / 1e3, "memory_mb": most / 1e3})


def _opened(browser: Browser, file: Path, pictures: Path | None, name: str) -> dict[str, float]:
    page = browser.new_page(viewport={"width": 1300, "height": 900})
    times: dict[str, float] = {}

    def until(what: str, selector: str, since: float) -> None:
        page.wait_for_selector(selector, state="attached", timeout=120_000)
        times[what] = time.perf_counter() - since

    started = time.perf_counter()
    page.goto(f"file://{file}#trajectories", wait_until="commit")
    until("first_row_s", ".item", started)
    until("first_episode_s", "article .passage", started)
    page.wait_for_load_state("load")
    times["loaded_s"] = time.perf_counter() - started
    if pictures:
        page.screenshot(path=pictures / f"{name}-trajectories.png")
    for number, words in enumerate(("try 2</query>", "lies in land 3.")):
        since = time.perf_counter()
        page.get_by_label("Search text").fill(words)
        until(f"search_{number + 1}_s", ".list:not([aria-busy])", since)
    if pictures:
        page.screenshot(path=pictures / f"{name}-search.png")
    jumps = (f"document.querySelector('.list').scrollTop = {number * 9000}" for number in range(20))
    times["scroll_ms"] = statistics.median(page.evaluate(_FRAME, jump) for jump in jumps)
    times["frame_ms"] = statistics.median(page.evaluate(_FRAME, "") for _ in range(20))
    since = time.perf_counter()
    page.locator(".list").evaluate("list => { list.scrollTop = list.scrollHeight }")
    page.locator(".item").last.click()
    until("last_episode_s", "article", since)
    times["heap_mb"] = page.evaluate("performance.memory.usedJSHeapSize") / 1e6
    page.close()
    page = browser.new_page(viewport={"width": 1300, "height": 900})
    started = time.perf_counter()
    page.goto(f"file://{file}#results", wait_until="commit")
    until("figures_s", "body[data-ready]", started)
    if pictures:
        page.screenshot(path=pictures / f"{name}-results.png", full_page=True)
    page.close()
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--screenshots", type=Path)
    options = parser.parse_args()
    chromium = os.environ.get("S3_AGENT_CHROMIUM") or shutil.which("chromium")
    found: dict[str, Any] = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=[*FLAGS, "--enable-precise-memory-info"])
        for episodes in options.episodes:
            with tempfile.TemporaryDirectory() as folder:
                figures: Any = multiprocessing.get_context("spawn").Queue()
                writing = multiprocessing.get_context("spawn").Process(
                    target=_written, args=(Path(folder), episodes, figures)
                )
                writing.start()
                numbers = figures.get()
                writing.join()
                numbers["page_mb"] = (Path(folder) / "report.html").stat().st_size / 1e6
                numbers |= _opened(browser, Path(folder) / "report.html", options.screenshots, str(episodes))
                found[str(episodes)] = {name: round(number, 2) for name, number in numbers.items()}
        browser.close()
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
