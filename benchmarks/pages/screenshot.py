"""A screenshot of the web page for the README: `python -m benchmarks.pages.screenshot RUNS`.

RUNS is what `triptych demo` wrote. Its three models and an index of its test images are served, and
Chromium opens the page, searches, and asks about one of the images.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tyro
from PIL import Image

from benchmarks.speed.http_client import start

REPO = Path(__file__).parents[2]
OUT = REPO / "docs" / "images" / "page.png"
PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SIZE = {"width": 1280, "height": 1180}
COLOURS = 256


def find_chromium(playwright: Any) -> str | None:
    """Return a Chromium or Chrome: one on PATH, or else Playwright's own; None if there is none."""
    found = next(filter(None, map(shutil.which, PROGRAMS)), None)
    own = playwright.chromium.executable_path
    return found or (own if Path(own).exists() else None)


def launch_chromium(playwright: Any) -> Any:
    """Start a headless Chromium; None if there is none."""
    path = find_chromium(playwright)
    if path is None:
        return None
    return playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])


@contextmanager
def serving(*arguments: str, env: dict[str, str] | None = None) -> Iterator[tuple[Any, str]]:
    """Run `triptych serve` on a free port; yield the process and its URL when it listens.

    Raises:
        RuntimeError: It ended before.
    """
    with tempfile.TemporaryDirectory() as folder:
        served = start(Path(folder) / "log", *arguments, **(env or {}))
        try:
            yield served.process, f"http://127.0.0.1:{served.port}"
        finally:
            served.process.kill()
            served.process.wait()


def take(page: Any, out: Path) -> None:
    """Use the page as a person would, and write what it looks like then."""
    page.get_by_label("Words").fill("a small purple heart and a large blue star")
    page.get_by_label("Words").press("Enter")
    page.get_by_text(" ms").wait_for()
    page.locator(".tt-hits button").first.click()
    page.locator(".tt-figure").wait_for()
    for verb, text, shown in (
        ("caption", None, ".tt-said"),
        ("answer", "what color is the star?", ".tt-answers"),
        ("ground", "the star", ".tt-answers"),
        ("classify", "two circles, a heart and a star, a square", ".tt-bars"),
    ):
        panel = page.locator(f"#tt-{verb}")
        if text is not None:
            panel.get_by_role("textbox").fill(text)
        panel.get_by_role("button").last.click()
        panel.locator(shown).wait_for()
    page.mouse.move(0, 0)
    page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    page.wait_for_timeout(300)
    page.screenshot(path=out)
    with Image.open(out) as image:  # few colours, so that the file is small
        small = image.convert("RGB").quantize(COLOURS, dither=Image.Dither.FLOYDSTEINBERG)
    small.save(out, optimize=True)


def main(runs: tyro.conf.Positional[Path], out: Path = OUT) -> None:
    """Take the screenshot of the page for the README.

    Args:
        runs: What `triptych demo` wrote.
        out: The PNG.
    """
    from playwright.sync_api import sync_playwright

    models = [runs / part / "model" for part in ("pretrain", "vqa", "grounding")]
    data = runs / "data"
    with tempfile.TemporaryDirectory() as folder:
        index = Path(folder) / "scenes.index"
        captions, images = data / "captions" / "captions_test.json", data / "images"
        command = [sys.executable, "-m", "triptych", "index", models[0], captions]
        subprocess.run([*command, "--image-root", images, "--out", index], check=True)
        arguments = [*map(str, models), "--index", str(index)]
        with serving(*arguments) as (_, url), sync_playwright() as playwright:
            browser = launch_chromium(playwright)
            if browser is None:
                raise SystemExit("no Chromium: install chromium, or run `playwright install`")
            page = browser.new_page(viewport=SIZE)
            page.goto(url)
            take(page, out)
            browser.close()
    print(f"{out}: {out.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    tyro.cli(main)
