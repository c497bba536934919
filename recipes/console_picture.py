"""Pictures of the console in the docs, taken by a browser from a running server.

    pip install -e '.[browser]'
    python -m recipes.console_picture http://127.0.0.1:8000 --chromium /usr/bin/chromium

Draws through the page as a person would. Take them after an improve job, so that the page shows one.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

FOLDER = Path("docs/images")
WIDTHS = {"console.png": 1280, "console-narrow.png": 390}  # pixels, by file
HEIGHT = 1250  # of the wide picture; the narrow one is of the whole page
PROMPT = "a dog covered in blood"
PATIENCE_MS = 60_000
# Without these a browser asks its maker's servers for updates at every start.
FLAGS = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync"]


def take(browser: Browser, url: str, folder: Path) -> None:
    """Draw four images in the console at `url`, then one under two versions, and save the pictures of the page."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, width in WIDTHS.items():
        page = browser.new_page(viewport={"width": width, "height": HEIGHT}, color_scheme="light")
        page.goto(url)
        draw(page)
        page.screenshot(path=folder / name, full_page=width < HEIGHT)
        page.close()


def draw(page: Page) -> None:
    """Draw PROMPT four times with seed 1, then under both versions of the panel that compares."""
    page.get_by_label("Prompt").fill(PROMPT)
    page.get_by_label("Seed").fill("1")
    page.get_by_role("button", name="Draw", exact=True).click()
    page.locator("#images figcaption").nth(3).wait_for(timeout=PATIENCE_MS)
    page.get_by_role("button", name="Draw under both").click()
    page.locator("#pair figcaption").wait_for(timeout=PATIENCE_MS)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    with sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=arguments.chromium, args=FLAGS)
        take(browser, arguments.url, arguments.folder)
        browser.close()


if __name__ == "__main__":
    main()
