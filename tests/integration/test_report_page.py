"""The report's page in a real browser: it opens, filters, compares, and nothing that a model wrote can act in it."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from s3_agent.evaluation.report.render import write_report
from tests.evaluated import HOSTILE, protect, write_collapse, write_evaluation, write_run

CHROMIUM = os.environ.get("S3_AGENT_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
# Without the last four the browser asks hosts of its own.
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt install chromium, or S3_AGENT_CHROMIUM")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


class Opened:
    """A page, with whatever it complained of or asked for elsewhere."""

    def __init__(self, browser: Browser, file: Path, *, part: str = "") -> None:
        self.page: Page = browser.new_page(viewport={"width": 1300, "height": 900})
        self.complaints: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self._requested(request.url))
        self.page.goto(f"file://{file}#{part}")
        self.page.wait_for_selector("body[data-ready]")

    def _requested(self, url: str) -> None:
        if not url.startswith("file:"):
            self.complaints.append(f"asked for {url[:200]}")

    def found(self) -> int:
        self.page.wait_for_selector(".list:not([aria-busy])")
        return int(self.page.locator("#found").inner_text().split()[0])


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write_report([write_evaluation(folder / "evaluation", questions=100), write_run(folder / "run")], folder / "r.html")
    return folder / "r.html"


def test_it_opens_without_complaint_and_asks_nobody(browser: Browser, report: Path) -> None:
    opened = Opened(browser, report)
    rows = opened.page.locator("#results tbody tr")
    expect(rows).to_have_count(3)
    expect(rows.nth(0)).to_contain_text("99/100")
    expect(rows.nth(0)).to_contain_text("1 retriever")
    for part in ("training", "setting", "trajectories", "results"):
        opened.page.click(f"[data-part={part}]")
        expect(opened.page.locator(f"[data-part={part}]")).to_have_attribute("aria-selected", "true")
        assert part in ("setting", "trajectories") or opened.page.locator("figure svg").count() >= 3
    assert not opened.complaints


def test_another_data_source_changes_the_table(browser: Browser, report: Path) -> None:
    page = Opened(browser, report).page
    before = page.locator("#results").inner_text()
    page.get_by_label("Questions").select_option("hotpotqa")
    assert page.locator("#results").inner_text() != before


def test_filters_narrow_the_list(browser: Browser, report: Path) -> None:
    opened = Opened(browser, report, part="trajectories")
    page, everything = opened.page, opened.found()
    assert everything == 3 * 100 + 8 * 12
    page.get_by_label("Agent", exact=True).select_option("evaluation · s3")
    assert opened.found() == 100
    page.get_by_label("Data source").select_option("nq")
    assert opened.found() == 50
    page.get_by_role("button", name="right").click()
    right = opened.found()
    page.get_by_role("button", name="wrong").click()
    assert 0 < right < 50 and opened.found() == 50 - right
    page.get_by_role("button", name="all").click()
    page.get_by_label("Search text").fill("town 42?")
    assert opened.found() == 1
    expect(page.locator(".detail h2")).to_have_text("In which land lies town 42?")
    page.get_by_label("Search text").fill("nobody wrote this")
    expect(page.locator(".detail")).to_contain_text("No episode fits")
    assert not opened.complaints


def test_a_failed_episode_is_failed_and_says_why(browser: Browser, report: Path) -> None:
    opened = Opened(browser, report, part="trajectories")
    opened.page.get_by_role("button", name="failed").click()
    assert opened.found() == 2
    expect(opened.page.locator(".verdict.failed")).to_contain_text("retriever: connection refused")


def test_two_agents_on_one_question_stand_beside_each_other(browser: Browser, report: Path) -> None:
    opened = Opened(browser, report, part="trajectories")
    opened.page.get_by_label("Search text").fill("town 41?")
    expect(opened.page.locator("article")).to_have_count(1)
    opened.page.get_by_label("Compare with").select_option("evaluation · s3")
    expect(opened.page.locator("article")).to_have_count(2)
    heads = opened.page.locator("article .who").all_inner_texts()
    assert "evaluation · rag" in heads[0] and "evaluation · s3" in heads[1]
    # The choice stays with the next question.
    opened.page.get_by_label("Search text").fill("town 40?")
    expect(opened.page.locator("article")).to_have_count(2)
    assert not opened.complaints


def test_the_keyboard_moves_through_the_list(browser: Browser, report: Path) -> None:
    page = Opened(browser, report, part="trajectories").page
    first = page.locator(".detail h2").inner_text()
    page.keyboard.press("j")
    second = page.locator(".detail h2").inner_text()
    page.keyboard.press("k")
    assert first != second and page.locator(".detail h2").inner_text() == first
    page.keyboard.press("/")
    expect(page.get_by_label("Search text")).to_be_focused()


def test_evidence_and_samples_are_shown(browser: Browser, tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path / "evaluation", questions=20, samples=4, evidence=True)
    write_report([folder], tmp_path / "report.html")
    opened = Opened(browser, tmp_path / "report.html")
    head = opened.page.locator("#results thead").inner_text()
    assert all(name in head for name in ("ev. found", "ev. selected", "pass@4", "avg@4", "majority@4"))
    expect(opened.page.locator("#results tbody tr").nth(1)).to_contain_text("80/20\u00d74")
    expect(opened.page.locator("figure svg")).not_to_have_count(0)
    expect(opened.page.get_by_text("Evidence found")).to_be_visible()
    opened.page.click("[data-part=trajectories]")
    assert opened.found() == 3 * 20 * 4
    expect(opened.page.locator(".detail")).to_contain_text("Evidence: Town 0 · Town 1")
    expect(opened.page.locator("article .who")).to_contain_text("(1 of 4)")
    opened.page.get_by_label("Search text").fill("town 1?")
    expect(opened.page.locator(".detail")).to_contain_text("Evidence: Town 1 · Town 2")
    marked = opened.page.locator(".passage:has(.why:text-is('evidence'))").all_inner_texts()
    assert all("Town 1" in text or "Town 2" in text for text in marked)
    assert not opened.complaints


def test_what_a_model_wrote_is_only_text(browser: Browser, tmp_path: Path) -> None:
    write_report([write_evaluation(tmp_path / "evaluation", questions=100, hostile=True)], tmp_path / "report.html")
    opened = Opened(browser, tmp_path / "report.html", part="trajectories")
    expect(opened.page.locator(".detail h2")).to_have_text(f"In which land lies town 0?{HOSTILE}")
    opened.page.get_by_role("button", name="failed").click()
    expect(opened.page.locator(".verdict")).to_contain_text(HOSTILE)
    opened.page.click("[data-part=results]")
    assert opened.page.locator("main img, .detail b:has-text('bold')").count() == 0
    assert opened.page.title() == "Search agents: report"
    assert not opened.complaints


def test_ten_thousand_episodes_keep_few_rows_in_the_page(browser: Browser, tmp_path: Path) -> None:
    write_report([write_evaluation(tmp_path / "evaluation", questions=3334)], tmp_path / "report.html")
    opened = Opened(browser, tmp_path / "report.html", part="trajectories")
    assert opened.found() == 10_002
    assert opened.page.locator(".item").count() < 60
    opened.page.locator(".list").evaluate("list => { list.scrollTop = list.scrollHeight }")
    expect(opened.page.locator(".item").last).to_contain_text("town 3333?")
    opened.page.get_by_label("Search text").fill("town 3333?")
    assert opened.found() == 3
    assert not opened.complaints


def test_a_search_goes_through_every_part_and_keeps_the_order(browser: Browser, tmp_path: Path) -> None:
    write_report([write_evaluation(tmp_path / "evaluation", questions=600)], tmp_path / "report.html")
    opened = Opened(browser, tmp_path / "report.html", part="trajectories")
    opened.page.get_by_label("Search text").fill("where is it, try 2")  # only in queries
    found = opened.found()
    assert 300 < found < 600
    opened.page.locator(".list").evaluate("list => { list.scrollTop = list.scrollHeight }")
    expect(opened.page.locator(".item").last).to_contain_text("s3")
    opened.page.get_by_label("Search text").fill("town 599?")
    assert opened.found() == 3
    assert [text.split(" · ")[0].split()[-1] for text in opened.page.locator(".item .m").all_inner_texts()] == [
        *("rag", "search_r1", "s3")
    ]
    opened.page.get_by_label("Search text").fill("")
    assert opened.found() == 1800 and not opened.complaints


def test_what_a_page_has_no_room_for_is_said(browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("s3_agent.evaluation.report.render._MOST_BYTES", 20_000)
    write_report([write_evaluation(tmp_path / "evaluation", questions=400)], tmp_path / "report.html")
    opened = Opened(browser, tmp_path / "report.html", part="trajectories")
    opened.page.get_by_label("Agent", exact=True).select_option("s3")
    expect(opened.page.locator("article")).to_contain_text("Its turns are left out")
    expect(opened.page.locator(".verdict")).to_contain_text("gen_acc")
    assert opened.found() == 400 and not opened.complaints


def test_a_collapse_is_one_chart_with_the_guards_step_through_all_panels(browser: Browser, tmp_path: Path) -> None:
    write_report([write_collapse(tmp_path / "run")], tmp_path / "r.html")
    opened = Opened(browser, tmp_path / "r.html", part="training")
    signs = opened.page.locator(".signs")
    expect(signs.locator(".note")).to_contain_text("The guard tripped after step 40: validation fell.")
    expect(signs.locator(".legend span")).to_have_text(
        ["correct", "incorrect", "entropy", "searches", "invalid actions", "reward", "validation"]
    )
    figures = signs.locator("figure svg")
    expect(figures).to_have_count(5)
    assert [figures.nth(at).locator("g[aria-label=line] path").count() for at in range(5)] == [2, 1, 1, 1, 2]
    places = [
        [
            line.get_attribute("x1") or line.get_attribute("transform")
            for line in figures.nth(at).locator("g[aria-label=rule] line").all()
        ]
        for at in range(5)
    ]
    assert len(places[0]) == 2 and places[0][0] != places[0][1] and places.count(places[0]) == 5
    expect(figures.first).to_contain_text("guard")
    assert not opened.complaints


def test_a_run_without_a_guards_report_has_no_mark(browser: Browser, report: Path) -> None:
    opened = Opened(browser, report, part="training")
    expect(opened.page.locator(".signs figure svg")).to_have_count(1)
    expect(opened.page.locator(".signs g[aria-label=rule]")).to_have_count(0)
    expect(opened.page.locator(".signs .note")).to_contain_text("No rule of the guard has tripped.")


def test_several_runs_are_shown_together_with_a_colour_for_each_agent(browser: Browser, tmp_path: Path) -> None:
    folders = [write_run(tmp_path / name) for name in ("s3-seed0", "s3-seed1", "search_r1-seed0")]
    write_report(folders, tmp_path / "r.html")
    opened = Opened(browser, tmp_path / "r.html", part="training")
    together = opened.page.locator("section").first
    expect(together.locator("h2")).to_have_text("All runs")
    expect(together.locator("figure svg")).to_have_count(2)
    expect(together.locator(".legend").first.locator("span")).to_have_text(["s3", "search_r1"])
    expect(together.locator("figure svg").first.locator("g[aria-label=line] path")).to_have_count(len(folders))
    assert not opened.complaints


def test_it_says_that_texts_are_withheld_and_shows_the_numbers(browser: Browser, tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path / "evaluation", questions=20)
    protect(folder)
    write_report([folder], tmp_path / "r.html")
    opened = Opened(browser, tmp_path / "r.html", part="trajectories")
    expect(opened.page.locator("#withheld")).to_contain_text("The texts of 20 questions are withheld")
    assert opened.found() == 60 and not opened.complaints
    opened.page.locator(".item").first.click()
    shown = opened.page.locator("body").inner_text()
    assert "(withheld)" in shown and "Town" not in shown and "town" not in shown


def test_nothing_is_said_where_nothing_is_withheld(browser: Browser, report: Path) -> None:
    expect(Opened(browser, report).page.locator("#withheld")).to_have_count(0)
