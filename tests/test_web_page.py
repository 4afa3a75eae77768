"""The page in headless Chromium, with a fake microphone that plays a real recording."""

import json
import shutil

import pytest
from helpers.spoken_clips import clip, whisper_base
from helpers.web_server import serving

for name in ("fastapi", "gradio", "uvicorn", "prometheus_client"):
    pytest.importorskip(name, reason="the page needs the extra [web]")
sync_api = pytest.importorskip("playwright.sync_api", reason="the page is tested with Playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("the page is tested in Chromium (apt-get install chromium)", allow_module_level=True)
pytestmark = pytest.mark.slow
SPOKEN = "fr/bonjour_monde"
WAIT = 60_000  # milliseconds


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    with serving(folder, "--batch-sizes", "1,4", "--speech", whisper_base(folder / "whisper")) as server:
        yield server
        assert server.process.poll() is None, server.log.read_text()


@pytest.fixture(scope="module")
def chromium():
    with sync_api.sync_playwright() as playwright:
        devices = ("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream")
        sound = f"--use-file-for-fake-audio-capture={clip(SPOKEN)}%noloop"
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *devices, sound])
        yield browser
        browser.close()


@pytest.fixture(params=[(1280, 900), (390, 844)], ids=["desktop", "phone"])
def page(request, served, chromium):
    """The page at one width; fails at requests to other hosts and at errors of scripts."""
    width, height = request.param
    context = chromium.new_context(viewport={"width": width, "height": height}, permissions=["microphone"])
    page, others, errors = context.new_page(), [], []
    page.on("request", lambda r: others.append(r.url) if not r.url.startswith((served.url, "data:", "blob:")) else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(served.url)
    page.wait_for_selector("#prompt textarea", timeout=WAIT)
    yield page
    assert others == [] and errors == []
    context.close()


def pictures(page, count):
    """Waits for so many pictures in the gallery."""
    page.wait_for_function(
        "n => document.querySelectorAll('#gallery .thumbnail-item img, #gallery button img').length >= n",
        arg=count,
        timeout=WAIT,
    )


def tab(page, name):
    page.get_by_role("tab", name=name).click()


def test_typing_ends_with_a_picture_by_keyboard_alone(page):
    page.focus("#prompt textarea")
    page.keyboard.type("bee")
    page.keyboard.press("Enter")
    pictures(page, 1)
    page.wait_for_function("document.querySelector('#state').innerText.includes('drawn')", timeout=WAIT)
    assert "first preview" in page.inner_text("#state")
    assert "bee" in page.inner_text("#gallery") and "seed" in page.inner_text("#gallery")


def test_class_then_variations_end_with_pictures(page):
    tab(page, "Class")
    page.click("#draw-class")
    pictures(page, 1)
    page.click("#vary")
    pictures(page, 5)


def test_speaking_ends_with_a_picture_and_an_editable_text(page):
    tab(page, "Speak")
    page.locator("#microphone button.record-button, #microphone button.record").first.click()
    page.wait_for_timeout(3000)
    page.locator("#microphone button.stop-button").first.click()
    pictures(page, 1)
    assert "world" in page.input_value("#transcript textarea").lower()
    assert "French" in page.inner_text("#badge")
    page.fill("#transcript textarea", "cat")
    page.click("#draw-words")
    pictures(page, 2)
    assert "cat" in page.inner_text("#gallery")


def test_painting_over_a_picture_ends_with_an_edited_one(page):
    page.fill("#prompt textarea", "bee")
    page.click("#draw-text")
    pictures(page, 1)
    tab(page, "Edit")
    page.click("#take")
    page.wait_for_timeout(2000)
    box = page.locator("#canvas canvas").first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 40, y)
    page.mouse.down()
    page.mouse.move(x + 40, y, steps=10)
    page.mouse.up()
    page.wait_for_timeout(500)
    page.fill("#edit-prompt textarea, #edit-prompt input", "cat")
    page.click("#draw-edit")
    pictures(page, 2)
    assert "cat" in page.inner_text("#gallery")


def test_downloaded_file_draws_the_same_picture_again(page, tmp_path):
    from maskgil_jax.web.pictures import settings_of

    page.fill("#prompt textarea", "ant")
    page.click("#draw-text")
    pictures(page, 1)
    page.wait_for_function("document.querySelector('#state').innerText.includes('drawn')", timeout=WAIT)
    with page.expect_download(timeout=WAIT) as download:
        page.click("#download")
    download.value.save_as(tmp_path / "picture.png")
    about = settings_of((tmp_path / "picture.png").read_bytes())
    assert about["prompt"] == "ant" and isinstance(about["seed"], int), json.dumps(about)


def test_locked_seed_draws_the_same_picture(page):
    page.get_by_role("button", name="Settings").click()
    page.check("#locked input")
    # Keys as a user types them; a value that is set while the settings still open can be lost.
    page.wait_for_timeout(1000)
    page.click("#seed input", click_count=3)
    page.keyboard.type("7")
    page.keyboard.press("Tab")
    page.wait_for_function("document.querySelector('#seed input').value === '7'", timeout=WAIT)
    for count in (1, 2):
        page.fill("#prompt textarea", "bee")
        page.click("#draw-text")
        pictures(page, count)
    shown = page.inner_text("#gallery")
    assert shown.count("seed 7") == 2


def test_meaningless_request_is_answered_in_words(page):
    page.fill("#prompt textarea", "")
    page.click("#draw-text")
    page.wait_for_selector("#state [role=alert]", timeout=WAIT)
    assert "empty" in page.inner_text("#state").lower()


def test_page_is_as_wide_as_the_window(page):
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth + 1")
