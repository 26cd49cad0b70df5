"""The page of results in a real browser: at the width of a desk and of a phone, on paper, with and without scripts. Structure, not pixels."""
import io
import shutil

import numpy as np
import pytest
from many_pairs import many, smoothed
from many_pairs import write as write_many
from PIL import Image

import eval.__main__ as command_line
from eval.store.results import write_records

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))), None)
if CHROMIUM is None:
    pytest.skip("Chromium is not here (Debian's package chromium)", allow_module_level=True)
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not here (requirements-dev.txt)")

BAD = "<script>alert(1)</script><img src=x onerror=alert(2)>"
WIDTHS = (1280, 400)


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Of a page of two results, one of 12,000 pairs, the other with a name that is meant to harm and a picture of adversarial examples."""
    folder = tmp_path_factory.mktemp("browser")
    write_many(folder / "many", 12_000)
    write_many(folder / "few", 40)
    Image.new("RGB", (900, 300), "teal").save(folder / "few/adversarial_examples.png")
    assert command_line.main(["report", str(folder / "many"), str(folder / "few"), "--names", "many", BAD, "--out", str(folder / "page.html")]) == 0
    return (folder / "page.html").as_uri()


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """The address of a page of a proven result and a smoothed one."""
    folder = tmp_path_factory.mktemp("mixed")
    write_many(folder / "proven", 40)
    write_records(folder / "smoothed", smoothed(many(40)))
    assert command_line.main(["report", str(folder), "--out", str(folder / "page.html")]) == 0
    return (folder / "page.html").as_uri()


@pytest.fixture
def opened(browser, address):
    """Opens the page, or another one, in a window; whatever the page complains of, asks for or pops up is a failure."""
    contexts, wrong = [], []

    def window(width, address=address, **options):
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: wrong.append(request.url) if not request.url.startswith(("file:", "data:")) or request.url.endswith("/x") else None)
        page.goto(address)
        return page
    yield window
    for context in contexts:
        context.close()
    assert not wrong


def boxes(page, selector):
    """(left, top, width, height) of the elements that a selector finds, in pixels of the page."""
    return [(box["x"], box["y"], box["width"], box["height"]) for box in page.eval_on_selector_all(
        selector, "all => all.map(one => {const box = one.getBoundingClientRect();"
                  " return {x: box.x + scrollX, y: box.y + scrollY, width: box.width, height: box.height}})")]


@pytest.mark.parametrize("width", WIDTHS)
def test_everything_is_inside_the_window(opened, width):
    page = opened(width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "nothing to scroll sideways but inside tables and figures"
    for selector in ("h1", "h2", "nav", ".told", "p", "figure", "figcaption", ".scroll", "img", "dt", "dd"):
        found = boxes(page, selector)
        assert found, selector
        assert all(x >= 0 and x + wide <= width + 1 and wide > 30 and high > 8 for x, _, wide, high in found), selector
    small = page.eval_on_selector_all("body p, td, th, dd, figcaption, a", "all => Math.min(...all.map(one => parseFloat(getComputedStyle(one).fontSize)))")
    assert small >= 12, "text of a size that can be read"


@pytest.mark.parametrize("width", WIDTHS)
def test_what_holds_with_a_confidence_can_be_read_beside_what_is_proven(opened, mixed, width):
    page = opened(width, mixed)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    captions = boxes(page, ".cards caption div")
    assert len(captions) >= 4 and all(x >= 0 and x + wide <= width + 1 and high > 8 for x, _, wide, high in captions), "captions end where the window does"
    proven, certain = page.locator(".sentence").all_inner_texts()
    assert "which is proven" in proven and "confidence" not in proven and "with a confidence of 99.9 %" in certain and "proven" not in certain
    for selector in ("p", "figure", "figcaption", ".scroll", "dt", "dd"):
        assert all(x >= 0 and x + wide <= width + 1 for x, _, wide, _ in boxes(page, selector)), selector


@pytest.mark.parametrize("width", WIDTHS)
def test_the_order_is_that_of_a_reader(opened, width):
    """First what was found, then tables, figures, examples, pairs, what was run and the glossary, none over another."""
    page = opened(width)
    places = boxes(page, "header, nav, main > section")
    assert len(places) == 9 and all(one[1] + one[3] <= other[1] + 1 for one, other in zip(places, places[1:]))
    assert page.eval_on_selector_all("h2", "all => all.map(one => one.textContent)")[2:] == [
        "Tables", "Figures", "Adversarial examples", "Pairs to look at", "What was run", "Glossary"]
    for selector in (".told", "#figures figure:not(.wide)"):
        (x, y, *_), (beside, below, *_) = boxes(page, selector)[-2:]
        assert (beside > x and below == y) if width == 1280 else (beside == x and below > y), "side by side where there is room"


@pytest.mark.parametrize("width", WIDTHS)
def test_figures_are_drawn(opened, width):
    """On a screenshot: the place of each figure has ink, most of it paper."""
    page = opened(width)
    picture = np.asarray(Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("L"))
    places = boxes(page, "figure svg")
    assert len(places) == 2 + 2 * 5
    for left, top, wide, high in places:
        shown = picture[round(top):round(top + high), max(0, round(left)):round(min(left + wide, width))]
        assert 0.01 < (shown < 200).mean() < 0.6 and shown.shape[0] > 100 and shown.shape[1] > 250


def column(page, place):
    """The texts of a column of the first table of pairs, from above."""
    return page.locator("#pairs table").first.locator(f"tbody tr > :nth-child({place + 1})").all_text_contents()


@pytest.mark.parametrize("width", WIDTHS)
def test_tables_sort_by_click_and_by_key(opened, width):
    page = opened(width)
    table = page.locator("#pairs table").first
    heads = [text.strip() for text in table.locator("thead th").all_text_contents()]
    place = heads.index("radius")
    before = column(page, place)
    button = table.locator("thead button").nth(place)
    button.click()
    rising = [float(text) for text in column(page, place)]
    assert rising == sorted(rising) and sorted(map(float, before)) == rising and list(map(float, before)) != rising
    assert table.locator("[aria-sort]").count() == 1 and table.locator("thead th").nth(place).get_attribute("aria-sort") == "ascending"
    button.focus()
    page.keyboard.press("Enter")
    assert [float(text) for text in column(page, place)] == rising[::-1]
    table.locator("thead button").nth(heads.index("attack")).click()
    found = column(page, heads.index("attack"))
    known = [float(text) for text in found if text != "-"]
    assert "-" in found and found == [*(f"{value:.3f}" for value in sorted(known)), *["-"] * (len(found) - len(known))], "what is missing comes last"
    table.locator("thead button").nth(heads.index("pair")).click()
    assert (numbers := list(map(int, column(page, heads.index("pair"))))) == sorted(numbers)


def test_without_scripts_everything_is_there(opened):
    page, other = opened(400, java_script_enabled=False), opened(400)
    assert page.locator("button").count() == 0 and other.locator("button").count() > 10
    for selector in ("p", "figcaption", "td", "th", "dd"):
        assert page.locator(selector).all_text_contents() == other.locator(selector).all_text_contents()
    assert "stay accepted under any attack" in page.locator(".sentence").first.inner_text()


def test_names_that_are_meant_to_harm_are_read(opened):
    assert BAD in opened(1280).locator("h1").inner_text()


def test_it_prints(opened):
    page = opened(1280)
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible() and page.locator(".sentence").first.is_visible()
    page.set_viewport_size({"width": 690, "height": 1000})  # A4 without its margins
    assert page.evaluate("document.documentElement.scrollWidth") <= 690
    assert page.pdf(format="A4")[:4] == b"%PDF"


def test_it_is_dark_where_the_reader_wants_it(opened):
    brightness = [int(opened(400, color_scheme=scheme).evaluate("getComputedStyle(document.body).backgroundColor").split("(")[1].split(",")[0])
                  for scheme in ("light", "dark")]
    assert brightness[0] > 200 and brightness[1] < 60


def test_a_page_of_12_000_pairs_opens_at_once(opened):
    page, spent = opened(1280), []
    for _ in range(3):  # the best, as other tests run beside it
        page.reload()
        spent.append(page.evaluate("performance.getEntriesByType('navigation')[0].duration"))
    assert 0 < min(spent) < 2000
