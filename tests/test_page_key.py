"""The page of a server with keys, in a real Chromium: under its headers, asking for a key, and calling with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import microphone, page_with_microphone
from live import duplex_serve
from playwright.sync_api import Page, Response, expect

from duplex.cli import main
from duplex.testing import tone

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys")


@pytest.fixture(scope="module")
def secret(place: Path) -> str:
    from duplex.keys import changing, read_keys

    assert main(["keys", "add", "page", "--file", str(place / "keys.json")]) == 0
    with changing(place / "keys.json") as write:
        ring, _, secret = read_keys(place / "keys.json").add("shown", created_s=1)
        write(ring)
    return secret


@pytest.fixture(scope="module")
def url(place: Path, secret: str) -> Iterator[str]:
    with duplex_serve("--agent", "echo", "--keys", str(place / "keys.json"), models_dir=place) as url:
        yield url


@pytest.fixture(scope="module")
def browser_page(place: Path, url: str) -> Iterator[Page]:
    with page_with_microphone(url, microphone(place / "mic.wav", tone(1.0))) as page:
        yield page


@pytest.fixture
def page(browser_page: Page, url: str) -> Page:
    """Loaded afresh: it knows no key."""
    browser_page.goto(url)
    return browser_page


def watched(page: Page) -> tuple[list[str], list[tuple[str, str, int]]]:
    """What the browser complains of, and (method, path, status) of what the page asked for, from now on."""
    complaints: list[str] = []
    answers: list[tuple[str, str, int]] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if "ecurity" in message.text else None)

    def answered(response: Response) -> None:
        answers.append((response.request.method, "/" + response.url.split("/", 3)[3], response.status))

    page.on("response", answered)
    page.reload()  # so that the policy's complaints about loading are heard, too
    return complaints, answers


def test_a_person_types_the_key_once_and_talks(page: Page, secret: str) -> None:
    complaints, answers = watched(page)
    page.click("#talk")
    dialog = page.get_by_role("dialog", name="This server asks for a key")
    expect(dialog).to_be_visible()
    field = page.get_by_label("API key")
    expect(field).to_be_focused()
    assert field.get_attribute("type") == "password"
    field.fill("dx_wrong")
    field.press("Enter")
    expect(page.get_by_role("alert").filter(has_text="unknown, was revoked, or has expired")).to_be_visible()
    page.get_by_label("API key").fill(secret)
    page.get_by_role("button", name="Go on").click()
    expect(page.locator("#status")).to_have_text("Connected", timeout=60_000)
    expect(dialog).to_have_count(0)
    page.click("#talk")  # hang up
    expect(page.locator("#status")).to_have_text("Ready")
    page.click("#talk")
    expect(page.locator("#status")).to_have_text("Connected", timeout=60_000)  # and is not asked again
    with page.expect_response(lambda response: response.request.method == "DELETE") as ended:
        page.click("#talk")
    assert ended.value.status in (204, 404)  # 404: closing the connection was noticed first
    stored = page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])")
    assert secret not in stored
    assert "ek_" not in stored
    assert [status for method, path, status in answers if path == "/v1/realtime/client_secrets"] == [401, 200]
    assert [status for method, path, status in answers if path == "/v1/realtime/calls"] == [201, 201]
    # The first thing that a call asks for, and so what is refused first.
    assert [s for _, path, s in answers if path == "/v1/realtime/calls/ice_servers"] == [401, 200, 200]
    assert complaints == [], "the page works under its own policy"


def test_whoever_gives_up_is_told_and_may_try_again(page: Page) -> None:
    page.click("#talk")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.locator("#notice-text")).to_contain_text("This server asks for a key")
    page.get_by_role("button", name="Try again").click()
    page.get_by_label("API key").fill("ek_made_up")
    page.get_by_label("API key").press("Enter")
    expect(page.get_by_role("alert").filter(has_text="unknown to it, or has run out")).to_be_visible()
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    expect(page.locator("#notice-text")).to_contain_text("unknown, was revoked")


def test_no_other_page_may_frame_it(page: Page, url: str) -> None:
    page.goto("about:blank")
    page.set_content(f'<iframe src="{url}"></iframe>')
    [frame] = [frame for frame in page.frames if frame.parent_frame is not None]
    assert frame.url.startswith("chrome-error://"), "the browser put its own page there"
    assert "Talk" not in frame.content()
