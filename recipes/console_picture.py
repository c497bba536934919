"""The picture of the console in the README, taken by a browser from a running server.

    pip install -e '.[browser]'
    python -m recipes.console_picture http://127.0.0.1:8000 --chromium /usr/bin/chromium

Draws through the page as a person would. Take it while an improve job runs, or after, so that the page shows one.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from playwright.sync_api import sync_playwright

PICTURE = Path("docs/images/console.png")
PROMPT = "a dog covered in blood"
PATIENCE_MS = 60_000
# Without these a browser asks its maker's servers for updates at every start.
FLAGS = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync"]


def take(url: str, chromium: str, picture: Path) -> None:
    """Draw four images in the console at `url` and save a picture of the page."""
    with sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(viewport={"width": 1080, "height": 1000}, color_scheme="light")
        page.goto(url)
        page.get_by_label("Prompt").fill(PROMPT)
        page.get_by_label("Seed").fill("1")
        page.get_by_role("button", name="Draw").click()
        page.locator("#images figcaption").nth(3).wait_for(timeout=PATIENCE_MS)
        picture.parent.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=picture)
        browser.close()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    parser.add_argument("--picture", type=Path, default=PICTURE)
    arguments = parser.parse_args()
    take(arguments.url, arguments.chromium, arguments.picture)


if __name__ == "__main__":
    main()
