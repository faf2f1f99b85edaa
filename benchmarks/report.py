"""Measures the report's page with many episodes: its size, and the time that a browser takes to open and filter it.

    python benchmarks/report.py [--episodes 10000]      # needs Chromium: apt install chromium

`filter_ms` and `scroll_ms` are the time from the input to the next drawn frame; `frame_ms` is the frame time of an idle
page, the limit of both. Prints one JSON object.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1]))

from s3_agent.evaluation.report.render import write_report
from tests.evaluated import write_evaluation
from tests.integration.test_report_page import FLAGS

_FRAME = """(act) => new Promise((done) => { const began = performance.now(); act && eval(act);
  requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - began))); })"""
_TYPE = """(() => {{ const box = document.querySelector('input[type=search]'); box.value = '{text}';
  box.dispatchEvent(new Event('input')); }})()"""


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=10_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name)
        write_evaluation(folder / "evaluation", questions=-(-options.episodes // 3))
        began = time.perf_counter()
        write_report([folder / "evaluation"], folder / "report.html")
        made = time.perf_counter() - began
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        page = browser.new_page()
        began = time.perf_counter()
        page.goto(f"file://{folder}/report.html#trajectories")
        page.wait_for_selector("body[data-ready]")
        opened = time.perf_counter() - began
        filtered = [page.evaluate(_FRAME, _TYPE.format(text=f"town {number}")) for number in range(20)]
        page.evaluate(_FRAME, _TYPE.format(text=""))
        scrolled = [
            page.evaluate(_FRAME, f"document.querySelector('.list').scrollTop = {number * 9000}")
            for number in range(20)
        ]
        idle = [page.evaluate(_FRAME, "") for _ in range(20)]
        browser.close()
        figures = {
            "episodes": options.episodes,
            "page_mb": (folder / "report.html").stat().st_size / 1e6,
            "results_mb": (folder / "evaluation/results.jsonl").stat().st_size / 1e6,
            "made_s": made,
            "opened_s": opened,
            "filter_ms": statistics.median(filtered),
            "scroll_ms": statistics.median(scrolled),
            "frame_ms": statistics.median(idle),
        }
    print(json.dumps({key: round(value, 3) for key, value in figures.items()}))


if __name__ == "__main__":
    main()
