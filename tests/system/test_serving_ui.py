"""The front end in a real Chromium, as a visitor with a key uses it.

Screenshots of every tab, in light and dark, are left in `tests/artefacts/`.
"""

import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import pytest
from clusters import ROOT
from fake_version import jpeg
from playwright.sync_api import Browser, Page, expect, sync_playwright
from serving_world import ask_until_ready, secret

from spark_ray.serving.keys import KeyStore

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
SOMETHING = re.compile(r"\w")
ARTEFACTS = ROOT / "tests" / "artefacts"
WAIT_MS = 120_000

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on PATH; install Debian's package of that name"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # As root, in a container, Chromium can't have a sandbox of its own.
        arguments = ["--no-sandbox", "--disable-dev-shm-usage"]
        started = playwright.chromium.launch(
            executable_path=CHROMIUM, args=arguments, timeout=WAIT_MS
        )
        yield started
        started.close()


@pytest.fixture(scope="module")
def page(browser: Browser, server: str, keys: KeyStore) -> Iterator[Page]:
    """A page that is logged in, as an operator, and has asked no other host for anything."""
    context = browser.new_context(viewport={"width": 1400, "height": 1000}, color_scheme="light")
    context.set_default_timeout(WAIT_MS)
    expect.set_options(timeout=WAIT_MS)
    asked: list[str] = []
    context.on("request", lambda request: asked.append(request.url))
    page = context.new_page()
    page.goto(f"{server}/ui/")
    page.get_by_label("API key").fill(secret(keys, "infer", "jobs", "admin"))
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("tab", name="Try it")).to_be_visible()
    yield page
    local = (server, "data:", "blob:")
    assert [url for url in asked if not url.startswith(local)] == []
    context.close()


def choose(page: Page, tab: str) -> None:
    page.get_by_role("tab", name=tab, exact=True).click()


def photograph(page: Page, name: str) -> None:
    """In light and in dark."""
    ARTEFACTS.mkdir(exist_ok=True)
    for theme in ("light", "dark"):
        dark = page.evaluate("document.body.classList.contains('dark')")
        if dark != (theme == "dark"):
            page.locator("[data-theme-toggle]").click()
        page.screenshot(
            path=ARTEFACTS / f"{name}-{theme}.png", full_page=True, animations="disabled"
        )


def test_nobody_gets_in_without_a_key(server: str, keys: KeyStore) -> None:
    with httpx.Client(base_url=f"{server}/ui") as visitor:
        for address in ("", "/"):
            sent_away = visitor.get(address)
            assert sent_away.status_code == 303
            assert sent_away.headers["location"].endswith("/ui/login")
        for address in ("/config", "/gradio_api/info", "/gradio_api/heartbeat/x", "/theme.css"):
            assert visitor.get(address).status_code == 401, address
        upload = visitor.post("/gradio_api/upload", files={"files": b"anything"})
        assert upload.status_code == 401
        wrong = visitor.post("/login", data={"key": "sk-spark-made-up"})
        assert wrong.status_code == 401
        assert "no valid key" in wrong.text

        let_in = visitor.post("/login", data={"key": secret(keys, "infer")})
        assert (let_in.status_code, let_in.headers["location"]) == (303, "/ui/")
        cookie = let_in.headers["set-cookie"].lower()
        assert all(word in cookie for word in ("httponly", "samesite=strict", "path=/ui"))
        home = visitor.get("/")
        assert home.status_code == 200
        assert "frame-ancestors 'none'" in home.headers["content-security-policy"]
        assert visitor.post("/logout").status_code == 303
        assert visitor.get("/config").status_code == 401


@needs_chromium
def test_a_clip_is_described_as_it_comes_to_be_known(page: Page, folder: Path) -> None:
    page.locator("#try-file input[type=file]").set_input_files(folder / "drawn.mp4")
    expect(page.locator("#try-clip .sr-scene")).to_have_count(2)
    expect(page.locator("#try-clip .sr-strip img").first).to_be_visible()
    caption = page.locator("#try-texts [data-text=caption][data-done=yes]")
    expect(caption.locator(".sr-said")).to_have_text(SOMETHING)
    expect(caption).to_contain_text("apotheon")
    transcript = page.locator("#try-texts [data-text=transcript][data-done=yes]")
    expect(transcript.locator(".sr-said")).to_have_text(SOMETHING)
    photograph(page, "try")


@needs_chromium
def test_what_is_no_clip_does_not_seem_to_go_on(page: Page, tmp_path: Path) -> None:
    page.reload()
    (tmp_path / "clip.mp4").write_bytes(b"no clip at all")
    page.locator("#try-file input[type=file]").set_input_files(tmp_path / "clip.mp4")
    expect(page.get_by_test_id("toast-body").first).to_contain_text("no video, sound or picture")
    expect(page.locator("#try-clip")).to_contain_text("Drop a clip")
    page.get_by_test_id("toast-close").first.click()

    page.reload()
    (tmp_path / "picture.jpg").write_bytes(jpeg(24, size=64))
    page.locator("#try-file input[type=file]").set_input_files(tmp_path / "picture.jpg")
    expect(page.locator("#try-player img")).to_be_visible()
    expect(page.locator("#try-texts [data-text=caption][data-done=yes]")).to_contain_text(SOMETHING)


@needs_chromium
def test_a_job_is_begun_and_watched_to_its_end(page: Page, folder: Path) -> None:
    choose(page, "Jobs")
    page.get_by_label("Name of the dataset").fill("from-the-page")
    page.locator("#job-files input[type=file]").set_input_files(
        [folder / "videos" / "clip_001.mp4", folder / "videos" / "clip_002.mp4"]
    )
    expect(page.locator("#job-files")).to_contain_text("clip_002")
    page.get_by_role("button", name="Start").click()
    expect(page.locator("#job [data-job]")).to_be_visible()
    expect(page.locator("#job [data-state=succeeded]")).to_be_visible()
    expect(page.locator("#job")).to_contain_text("mine:from-the-page")
    expect(page.locator("#jobs .sr-succeeded").first).to_be_visible()
    page.locator("#job-log-fold button").first.click()
    expect(page.locator("#job-log")).to_contain_text("published")
    photograph(page, "jobs")


@needs_chromium
def test_a_job_is_cancelled_by_its_button(page: Page, folder: Path) -> None:
    page.reload()
    choose(page, "Jobs")
    page.get_by_label("Name of the dataset").fill("unwanted")
    page.locator("#job-files input[type=file]").set_input_files(folder / "videos" / "clip_003.mp4")
    expect(page.locator("#job-files")).to_contain_text("clip_003")
    page.get_by_role("button", name="Start").click()
    running = page.locator("#job [data-state=running], #job [data-state=queued]")
    expect(running).to_contain_text("unwanted")
    cancel = page.get_by_role("button", name="Cancel this job")
    cancel.click()
    expect(page.locator("#job [data-state=cancelled]")).to_contain_text("unwanted")
    expect(cancel).to_be_hidden()
    row = page.locator("#jobs tr", has_text="unwanted")
    expect(row.locator(".sr-cancelled")).to_be_visible()
    photograph(page, "jobs-cancelled")

    page.reload()
    choose(page, "Jobs")
    row.click()
    expect(page.locator("#job [data-state=cancelled]")).to_contain_text("unwanted")
    expect(cancel).to_be_hidden()


@needs_chromium
def test_datasets_are_looked_through(page: Page) -> None:
    choose(page, "Datasets")
    expect(page.locator("#dataset-overview")).to_contain_text("films@v1")
    pick(page, "#dataset-name", "shapes")
    expect(page.locator("#dataset-overview")).to_contain_text("shapes@v2")
    photograph(page, "datasets-overview")

    choose(page, "Clips")
    expect(page.locator("#clips .sr-clip")).to_have_count(8)
    page.locator("#clip-text textarea, #clip-text input").fill("red circle left")
    page.keyboard.press("Enter")
    expect(page.locator("#clips-found")).to_contain_text("1 clip")
    page.locator("#clips .sr-clip").first.click()
    expect(page.locator("#clip-details")).to_contain_text("0.mp4")
    photograph(page, "datasets-clips")

    choose(page, "Compare")
    page.get_by_role("button", name="Compare").click()
    expect(page.locator("#comparison")).to_contain_text("2 came")
    expect(page.locator("#comparison")).to_contain_text("nobody knows")
    photograph(page, "datasets-compare")


@needs_chromium
def test_clips_are_filtered_and_found(page: Page, client: httpx.Client) -> None:
    known = client.get("/v1/datasets/films/v1/clips", params={"limit": 50}).json()["clips"]
    choose(page, "Datasets")
    pick(page, "#dataset-name", "films")
    choose(page, "Clips")
    found = page.locator("#clips .sr-clip")
    write(page, "#clip-text", "")
    expect(found).to_have_count(len(known))

    for split, count in Counter(clip["split"] for clip in known).items():
        pick(page, "#clip-split", split)
        expect(found).to_have_count(count)
        expect(found.filter(has_text=split)).to_have_count(count)
    pick(page, "#clip-split", "any")
    pick(page, "#clip-has", "without caption")
    expect(page.locator("#clips-found")).to_contain_text("1 clip")
    found.first.click()
    expect(page.locator("#clip-details")).to_contain_text("4.mp4")
    pick(page, "#clip-has", "without transcript")
    expect(found).to_contain_text(["number 5"])
    write(page, "#clip-label", "boats")
    expect(page.locator("#clips")).to_contain_text("No clip fits")
    pick(page, "#clip-has", "any")
    expect(found).to_contain_text(["no caption"])
    write(page, "#clip-label", "")
    write(page, "#clip-text", "NUMBER 3")
    expect(found).to_contain_text(["number 3"])
    write(page, "#clip-text", "zebra")
    expect(page.locator("#clips")).to_contain_text("No clip fits")
    photograph(page, "datasets-filtered")


@needs_chromium
def test_clips_are_found_by_their_meaning(page: Page, client: httpx.Client) -> None:
    nearest = ask_until_ready(client, {"text": "a boat", "dataset": "films", "limit": 6})["hits"]
    choose(page, "Datasets")
    pick(page, "#dataset-name", "films")
    choose(page, "Clips")
    write(page, "#clip-text", "a boat")
    page.locator("#clip-meaning input").check()
    found = page.locator("#clips .sr-clip")
    expect(found).to_have_count(6)
    assert [card.get_attribute("data-choice") for card in found.all()] == [
        hit["clip_id"] for hit in nearest
    ]
    page.locator("#clip-meaning input").uncheck()
    expect(found).to_contain_text(["boats"])


@needs_chromium
def test_models_and_the_cluster_are_shown(page: Page) -> None:
    choose(page, "Models")
    expect(page.locator("#model-details")).to_contain_text("the only one")
    pick(page, "#model-name", "versioned")
    expect(page.locator("#model-comparison")).to_contain_text("loss/caption")
    expect(page.locator("#model-card")).to_contain_text("Apotheon")
    photograph(page, "models")

    choose(page, "System")
    expect(page.locator("#system")).to_contain_text("model-apotheon")
    expect(page.locator("#system")).to_contain_text("CPU")
    photograph(page, "system")


@needs_chromium
def test_a_refusal_shows_on_the_page(page: Page) -> None:
    choose(page, "Jobs")
    page.get_by_label("Name of the dataset").fill("no/name")
    page.get_by_role("button", name="Start").click()
    expect(page.get_by_test_id("toast-body").first).to_contain_text("name")
    page.get_by_test_id("toast-close").first.click()  # it lies over the button to log out
    expect(page.get_by_test_id("toast-body")).to_have_count(0)


@needs_chromium
def test_logging_out_ends_it(page: Page, server: str) -> None:
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_label("API key")).to_be_visible()
    page.goto(f"{server}/ui/")
    expect(page.get_by_label("API key")).to_be_visible()


def write(page: Page, box: str, text: str) -> None:
    page.locator(f"{box} textarea, {box} input").fill(text)
    page.keyboard.press("Enter")


def pick(page: Page, dropdown: str, choice: str) -> None:
    """Choose in one of Gradio's lists."""
    page.locator(f"{dropdown} input").click()
    page.get_by_role("option", name=choice, exact=True).click()
