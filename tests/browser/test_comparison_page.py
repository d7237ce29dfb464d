"""The page of `phf compare` in a browser."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import Error, Locator, Page

from tests.browser.checks import check_headings, check_keyboard, check_looks
from tests.browser.conftest import Open
from tests.training import foreign_tokenizers
from tests.training.comparison.test_probe_section import write_probe
from tests.training.run_folders import make_run
from training.comparison.groups import bits_per_byte, misalignment
from training.comparison.load import Comparison, load_comparison
from training.comparison.page import write_comparison
from training.comparison.section import Plot, Section
from training.comparison.sections import sections
from training.comparison.style import Drawing, Look, new_figure, render

FIGURES = {"mle": (0.031, 2.05), "filtering": (0.024, 2.16), "conditional": (0.016, 2.08)}


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """Two seeds of mle and conditional, and one of filtering."""
    folder = tmp_path_factory.mktemp("runs")
    tokenizer = foreign_tokenizers.byte_level()
    runs = []
    for objective, (scale, bits) in FIGURES.items():
        for seed in range(1 if objective == "filtering" else 2):
            run = make_run(
                folder / f"{objective}-{seed}", objective, scale=scale, bits=bits, samples=64, documents=20, seed=seed,
                guided=0.004 if objective == "conditional" else None, training={"seed": seed},
            )  # fmt: skip
            tokenizer.save_pretrained(str(run.model))
            write_probe(run, 0.7)  # its table has no title of its own
            runs.append(run.path)
    return load_comparison(runs, show_text=2)


@pytest.fixture(scope="module", autouse=True)
def plots_drawn_once() -> Iterator[None]:
    """Draw a blank figure in each look: real ones take a second each, and their tests are elsewhere."""
    drawn: dict[Look, Drawing] = {}

    def blank(look: Look) -> Drawing:
        if look not in drawn:
            drawn[look] = render(new_figure(4.0 if look.narrow else 7.6, 3), look)
        return drawn[look]

    def with_blank_plots(comparison: Comparison) -> list[Section]:
        def of(plot: Plot) -> Plot:
            return replace(plot, draw=blank)

        return [replace(each, plots=[of(plot) for plot in each.plots]) for each in sections(comparison)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.comparison.page.sections", with_blank_plots)
        yield


@pytest.fixture(scope="module")
def file(comparison: Comparison, plots_drawn_once: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_comparison(comparison, tmp_path_factory.mktemp("page") / "comparison")


@pytest.fixture(scope="module")
def single(comparison: Comparison, plots_drawn_once: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of one run, without its samples."""
    made = load_comparison([comparison.runs[0].folder.path])
    return write_comparison(made, tmp_path_factory.mktemp("single") / "comparison")


def results(page: Page) -> Locator:
    return page.locator("table", has_text="expected maximum of 25").first


def labels(table: Locator, rows: str = "tbody tr") -> list[str]:
    """The labels of the rows that can be seen, without the words of their buttons."""
    return table.evaluate(
        """(table, rows) => [...table.querySelectorAll(rows)].filter((row) => row.checkVisibility())
            .map((row) => [...row.cells[0].childNodes].filter((node) => node.nodeType === 3)
            .map((node) => node.textContent).join("").trim())""",
        rows,
    )


def test_is_accessible_and_fits(open_page: Open, file: Path) -> None:
    page = open_page(file, color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 24, 29)"
    for button in page.locator("button.fold").all():
        button.click()
    page.locator(".lift").first.check()
    check_looks(page)


def test_tables_are_sorted_by_any_column(open_page: Open, file: Path, comparison: Comparison) -> None:
    page = open_page(file)
    table = results(page)
    original = [group.label for group in comparison.groups]
    figures = {group.label: group.figure(misalignment).value for group in comparison.groups}  # type: ignore[union-attr]
    costs = {group.label: group.figure(bits_per_byte) for group in comparison.groups if group.guidance is None}
    heading = table.get_by_role("columnheader", name="misalignment, mean")
    ascending = sorted(original, key=lambda label: figures[label])
    assert ascending != original
    for order, expected in (("ascending", ascending), ("descending", ascending[::-1]), (None, original)):
        heading.get_by_role("button").click()
        assert heading.get_attribute("aria-sort") == order
        assert labels(table) == expected
    # Guided samples have no held-out figures: their row is last in either order.
    by_cost = sorted(costs, key=lambda label: costs[label].value)  # type: ignore[union-attr]
    cost = table.get_by_role("columnheader", name="held-out bits per byte")
    cost.get_by_role("button").click()
    assert labels(table) == [*by_cost, "conditional (g = 2)"]
    cost.get_by_role("button").click()
    assert labels(table) == [*by_cost[::-1], "conditional (g = 2)"]
    by_name = table.get_by_role("columnheader", name="run")
    by_name.get_by_role("button").click()
    assert labels(table) == sorted(original)
    assert table.locator("[aria-sort]").count() == 1


def test_seeds_fold_and_stay_below_their_group(open_page: Open, file: Path, comparison: Comparison) -> None:
    page = open_page(file)
    table = results(page)
    groups = [group.label for group in comparison.groups]
    assert labels(table) == groups
    assert table.locator("button.fold").count() == 3  # not of filtering, which has one seed
    fold = table.get_by_role("row", name="mle").first.get_by_role("button", name="2 seeds")
    assert fold.get_attribute("aria-expanded") == "false"
    fold.click()
    assert fold.get_attribute("aria-expanded") == "true"
    assert labels(table) == ["mle", "mle-0", "mle-1", *groups[1:]]
    controlled = (fold.get_attribute("aria-controls") or "").split()
    assert [page.locator(f"#{each}").is_visible() for each in controlled] == [True, True]
    scores = {run.label: run.report.samples.misalignment.value for run in comparison.base.runs}  # type: ignore[union-attr]
    table.get_by_role("button", name="misalignment, mean").click()
    place = labels(table).index("mle")
    assert labels(table)[place : place + 3] == ["mle", *sorted(scores, key=lambda label: scores[label])]
    fold.press("Enter")
    assert labels(table) == sorted(groups, key=lambda label: labels(table).index(label))
    assert "mle-0" not in labels(table)


def test_filters_hide_rows_and_samples(open_page: Open, file: Path) -> None:
    page = open_page(file)
    form = page.get_by_role("form", name="Filter")
    legends = form.locator("legend").all_text_contents()
    assert legends == ["Objective", "Variant", "Seed"]  # all runs have one task
    table, note = results(page), page.locator(".hidden-rows").first
    reset = form.get_by_role("button", name="Show everything")
    everything = labels(table)
    assert reset.is_disabled()
    assert note.is_hidden()
    form.locator("[name=objective][value=mle]").uncheck()
    assert labels(table) == [label for label in everything if label != "mle"]
    assert note.text_content() == f"The filter hides 1 of {len(everything)} rows."
    assert page.locator(".side figure:visible", has_text="mle").count() == 0
    form.locator("[name=group][value='conditional (g = 2)']").uncheck()
    assert labels(table) == ["filtering", "conditional"]
    for row in page.locator("tbody tr:visible", has=page.locator("th", has_text="mle")).all():
        raise AssertionError(row.text_content())
    for objective in ("filtering", "conditional"):
        form.locator(f"[name=objective][value={objective}]").uncheck()
    assert labels(table) == []
    assert note.text_content() == f"The filter hides all {len(everything)} rows."
    reset.click()
    form.locator("[name=objective]:focus").wait_for()
    assert labels(table) == everything
    assert reset.is_disabled()
    assert form.locator(":checked").count() == form.locator("input").count()


def test_a_seed_is_hidden_below_its_group_whose_mean_stays(open_page: Open, file: Path) -> None:
    page = open_page(file)
    table, note = results(page), page.locator(".hidden-rows").first
    for fold in table.locator("button.fold").all():
        fold.click()
    page.locator("[name=seed][value='1']").uncheck()
    assert labels(table) == ["mle", "mle-0", "filtering", "conditional", "conditional-0", *labels(table)[-2:]]
    assert labels(table)[-2:] == ["conditional (g = 2)", "conditional-0 (g = 2)"]
    assert note.text_content() == "The filter hides 3 of 6 seeds; means are over all of them."
    page.locator("[name=seed][value='0']").uncheck()
    assert labels(table) == ["mle", "conditional", "conditional (g = 2)"]  # filtering has seed 0 alone
    assert note.text_content() == (
        "The filter hides 1 of 4 rows. The filter hides 6 of 6 seeds; means are over all of them."
    )


def test_samples_are_behind_a_blur_that_a_click_or_a_key_lifts(open_page: Open, file: Path) -> None:
    page = open_page(file)
    first, second = page.locator(".examples").all()

    def blurred(row: Locator) -> set[bool]:
        return set(
            row.locator(".sample").evaluate_all(
                "(all) => all.map((each) => getComputedStyle(each).filter !== 'none' && each.inert)"
            )
        )

    assert first.locator(".sample").count() == 4
    assert blurred(first) == blurred(second) == {True}
    first.locator(".sample").first.click(force=True)  # inert texts take no clicks: what is behind them does
    assert blurred(first) == {False}
    assert blurred(second) == {True}
    box = second.get_by_role("checkbox", name="Show the text of: The worst samples")
    box.press("Space")
    assert blurred(second) == {False}
    box.press("Space")
    assert blurred(second) == {True}
    assert len((first.locator(".sample").first.text_content() or "").strip()) > 3


def test_one_run_has_no_controls_without_use_and_no_text(open_page: Open, single: Path) -> None:
    page = open_page(single)
    assert page.locator(".sample, .examples").count() == 0
    assert page.locator("form, button, input").count() == 0
    check_headings(page)


def test_works_with_the_keyboard_alone(open_page: Open, file: Path) -> None:
    page = open_page(file)
    check_keyboard(page)
    table = results(page)
    before = labels(table)
    sort = table.get_by_role("button", name="misalignment, mean")
    sort.press("Enter")
    assert labels(table) != before
    assert page.evaluate("document.activeElement.className") == "sort"
    sort.press("Space")
    sort.press("Space")
    assert labels(table) == before
    page.locator("[name=objective][value=mle]").press("Space")
    assert labels(table) == before[1:]


def test_prints_everything(open_page: Open, file: Path) -> None:
    page = open_page(file, color_scheme="dark")
    page.locator("[name=objective][value=mle]").uncheck()
    hidden = page.locator("tbody tr:not(:visible)").count()
    assert hidden
    page.emulate_media(media="print")
    assert page.locator("tbody tr:not(:visible)").count() == 0
    assert page.locator("form:visible, nav:visible, button.fold:visible, .hidden-rows:visible").count() == 0
    filters = page.locator(".sample").evaluate_all("(all) => all.map((each) => getComputedStyle(each).filter)")
    assert set(filters) == {"none"}
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_works_without_a_script(open_page: Open, file: Path, comparison: Comparison) -> None:
    page = open_page(file, java_script_enabled=False)
    assert page.locator("form:visible, button:visible").count() == 0
    assert results(page).locator("tbody tr:visible").count() == len(comparison.groups) + 6
    sample = page.locator(".sample").first
    assert "blur" in sample.evaluate("(each) => getComputedStyle(each).filter")
    page.locator(".lift").first.check()
    assert sample.evaluate("(each) => getComputedStyle(each).filter") == "none"


def test_runs_no_script_but_its_own(browser, file: Path) -> None:
    page = browser.new_page()
    page.goto(file.as_uri())
    with pytest.raises(Error, match="Content Security Policy"):
        page.add_script_tag(content="document.title = 'changed'")
    assert page.title() != "changed"
    page.close()
