"""Checks that every page must pass."""

from itertools import pairwise

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

# Controls that can be used now, in the order of the page, each as a number of its own.
_CONTROLS = """() => {
  const found = [...document.querySelectorAll("a[href], button, input, summary, [tabindex='0']")]
    .filter((each) => !each.disabled && each.checkVisibility());
  found.forEach((each, index) => { each.dataset.place = index; });
  return found.length;
}"""


def check_looks(page: Page) -> None:
    """Both themes are accessible, and the page fits a phone and a desk."""
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        found = Axe().run(page)  # contrast among others
        assert found.violations_count == 0, found.generate_report()
    for width in (390, 1400):
        page.set_viewport_size({"width": width, "height": 900})
        check_fits(page)
    check_headings(page)


def check_headings(page: Page) -> None:
    """One first heading, and none that skips a level."""
    levels = page.evaluate("[...document.querySelectorAll('h1, h2, h3, h4')].map((each) => Number(each.tagName[1]))")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels)), levels


def check_fits(page: Page) -> None:
    """The page needs no horizontal scrolling; wide tables scroll by themselves."""
    width, wide = page.evaluate("[innerWidth, document.documentElement.scrollWidth]")
    assert wide <= width
    outside = page.evaluate(
        """[...document.querySelectorAll("button, input, h1, h2, h3, p")].filter((each) => each.checkVisibility()
            && !each.closest(".scroll, .hidden") && each.getBoundingClientRect().right > innerWidth)
            .map((each) => each.outerHTML.slice(0, 120))"""
    )
    assert outside == []


def check_keyboard(page: Page) -> None:
    """The Tab key reaches each control once, in the order of the page, and shows where it is."""
    count = page.evaluate(_CONTROLS)
    page.evaluate("document.activeElement.blur()")
    reached = []
    for _ in range(count):
        page.keyboard.press("Tab")
        place, outline = page.evaluate(
            "[document.activeElement.dataset.place, getComputedStyle(document.activeElement).outlineStyle]"
        )
        reached.append(place)
        assert outline != "none", place
    assert reached == [str(place) for place in range(count)]
