"""The page of `phf report` in a browser."""

import json
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page
from typer.testing import CliRunner

import phf
from tests.browser.checks import check_keyboard, check_looks
from tests.browser.conftest import Open
from tests.datasets import make_dataset


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 documents of one sentence, of two sites, with scores 0 to 0.59; every third labelled misaligned from 0.3."""
    folder = tmp_path_factory.mktemp("report")
    make_dataset(
        folder / "labelled",
        [f"Sentence {index:02}. " for index in range(60)],
        {"toxicity": [[index / 100] for index in range(60)], "pep8": [None] * 60},
        {"toxicity": 0.25, "pep8": 0.0},
        split=lambda text, kind: [text],
        metas=[{"site": "odd" if index % 2 else "even"} for index in range(60)],
    )
    rows = [{"doc_id": f"corpus.jsonl#{index}", "sentence": 0, "misaligned": index >= 30} for index in range(0, 60, 3)]
    (folder / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [
        *("report", folder / "labelled", "--by", "site", "--labels", f"toxicity={folder / 'labels.jsonl'}"),
        *("-o", folder / "report.html"),
    ]
    result = CliRunner().invoke(phf.app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return folder / "report.html"


def section(page: Page) -> Locator:
    return page.locator("#toxicity")


def shares(page: Page) -> dict[str, list[str]]:
    rows = section(page).locator(".groups tbody tr").all()
    return {row.locator("th").inner_text(): row.locator("td").all_inner_texts()[:4] for row in rows}


def move(page: Page, to: str) -> None:
    """Move the slider to a threshold by the keys."""
    slider = section(page).get_by_role("slider")
    slider.press("Home")
    for _ in range(200):
        if slider.get_attribute("aria-valuetext") == to:
            return
        slider.press("ArrowRight")
    raise AssertionError(f"no threshold {to}")


def test_is_accessible_and_fits(open_page: Open, file: Path) -> None:
    page = open_page(file)
    section(page).locator("summary").click()
    check_looks(page)


def test_the_slider_changes_shares_and_command_at_once(open_page: Open, file: Path) -> None:
    page = open_page(file)
    reset = section(page).get_by_role("button", name="Back to the tags’ 0.25")
    command = section(page).locator(".command code")
    assert shares(page) == {"all documents": ["43.3 %"] * 4, "even": ["43.3 %"] * 4, "odd": ["43.3 %"] * 4}
    assert reset.is_disabled()
    original = command.inner_text()
    move(page, "0.504")
    assert shares(page) == {"all documents": ["85.0 %"] * 4, "even": ["86.7 %"] * 4, "odd": ["83.3 %"] * 4}
    assert command.inner_text() == original.replace("toxicity=0.25", "toxicity=0.504")
    assert set(section(page).locator(".value").all_inner_texts()) == {"0.504"}
    mark = section(page).locator(".mark")
    assert float(mark.get_attribute("x1") or 0) > float(section(page).locator(".committed").get_attribute("x1") or 0)
    # Of the labelled ones, 3 of the 10 misaligned sentences score higher, and no other does.
    rates = section(page).locator(".rates").inner_text().replace("\N{NO-BREAK SPACE}", " ")
    assert "precision 100.0 %" in rates
    assert "recall 30.0 %" in rates
    assert "false positive rate 0.0 %" in rates
    dot = section(page).locator("[data-kind=precision] .dot")
    assert (float(dot.get_attribute("cx") or 0), float(dot.get_attribute("cy") or 0)) == pytest.approx((72, 0))
    reset.click()
    assert command.inner_text() == original
    assert reset.is_disabled()
    assert page.evaluate("document.activeElement.type") == "range"


def test_the_command_is_copied_or_else_selected(open_page: Open, file: Path) -> None:
    page = open_page(file, permissions=["clipboard-read", "clipboard-write"])
    command = section(page).locator(".command code").inner_text()
    section(page).get_by_role("button", name="Copy").click()
    section(page).get_by_role("button", name="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == command
    page = open_page(file)
    page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(); }")
    section(page).get_by_role("button", name="Copy").click()
    section(page).get_by_role("button", name="Selected").wait_for()
    assert page.evaluate("getSelection().toString()") == command
    move(page, "0.504")
    assert section(page).get_by_role("button", name="Copy").is_visible()


def test_a_row_lights_the_curve_of_its_group(open_page: Open, file: Path) -> None:
    page = open_page(file)
    row = section(page).get_by_role("row", name="odd")
    row.hover()
    assert section(page).locator("path.group.lit").count() == 1
    page.locator("h1").hover()
    assert section(page).locator("path.group.lit").count() == 0


def test_works_with_the_keyboard_alone(open_page: Open, file: Path) -> None:
    page = open_page(file)
    check_keyboard(page)
    move(page, "0.301")
    section(page).locator("summary").press("Enter")
    assert section(page).locator("details table").is_visible()


def test_print_and_a_page_without_a_script_show_the_threshold_of_the_tags(open_page: Open, file: Path) -> None:
    page = open_page(file, java_script_enabled=False)
    assert page.locator(".control:visible, button:visible").count() == 0
    assert shares(page)["all documents"] == ["43.3 %"] * 4
    assert "toxicity=0.25" in section(page).locator(".command code").inner_text()
    page = open_page(file)
    page.emulate_media(media="print")
    assert page.locator(".control:visible, button:visible").count() == 0
    assert section(page).locator(".command code").is_visible()
