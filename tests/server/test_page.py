"""The web page in headless Chromium, as a person uses it, with every kind of model."""

import asyncio
import io
import json
import re
import signal
import time
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from PIL import Image

from benchmarks.pages.screenshot import launch_chromium, serving
from tests.serving.tiny_folder import write_tiny_folder, write_tiny_vlmo
from triptych.data.entries import ENTAILMENT_LABELS
from triptych.data.source import DataSourceConfig
from triptych.index.build import build_index
from triptych.serving.loading import load_model
from triptych.tasks.finetuning.image_text_classification import ImageTextClassificationConfig
from triptych.tasks.finetuning.nlvr2 import NLVR2Config
from triptych.tasks.finetuning.segmentation import SegmentationConfig

TOKEN = "a-token-of-this-test"
HOSTILE = "<img src=x onerror=alert(1)> ${alert(2)} {{#each this}} `"
CLASSIFIERS = {
    "entailment": ImageTextClassificationConfig(labels=ENTAILMENT_LABELS),
    "memes": ImageTextClassificationConfig(labels=("fine", "hateful"), text_field="text"),
    "segmentation": SegmentationConfig(classes=("sky", "sea", "land"), head="linear"),
    "nlvr2": NLVR2Config(),
}
NUM_IMAGES = 15


def png(seed=0, size=(40, 30), mode="RGB"):
    channels = len(mode)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], channels), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    root = tmp_path_factory.mktemp("page")
    folders = {name: write_tiny_folder(root / name, name) for name in ("pretraining", "vqa")}
    folders["grounding"] = write_tiny_folder(root / "grounding", "grounding")
    folders |= {k: write_tiny_vlmo(root / k, task=task) for k, task in CLASSIFIERS.items()}
    lines = []
    for number in range(NUM_IMAGES):
        (root / f"{number:02d}.png").write_bytes(png(number))
        caption = HOSTILE if number == 0 else f"a red circle {number}"
        lines.append(json.dumps({"image": f"{number:02d}.png", "caption": caption}))
    (root / "images.jsonl").write_text("\n".join(lines))
    source = DataSourceConfig(path=str(root / "images.jsonl"))
    build_index(load_model(folders["pretraining"]), source, root / "my.index")
    arguments = [*map(str, folders.values()), "--index", str(root / "my.index")]
    (root / "uploads").mkdir()
    env = {"TRIPTYCH_TOKENS": TOKEN, "OMP_NUM_THREADS": "1", "GRADIO_TEMP_DIR": f"{root}/uploads"}
    arguments += ["--precision", "fp32", "--max-body-mib", "1"]
    with serving(*arguments, env=env) as (process, url):
        yield process, url, root


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = launch_chromium(playwright)
        if found is None:
            pytest.skip("no Chromium or Chrome on PATH, and none that `playwright install` gets")
        yield found
        found.close()


@pytest.fixture
def open_page(browser, server):
    """Open pages; afterwards check that they asked no other host and met no error."""
    contexts, asked, errors = [], [], []
    _, url, _ = server

    def open_one(**options):
        who = {"username": "anybody", "password": TOKEN}
        context = browser.new_context(http_credentials=who, **options)
        context.set_default_timeout(20_000)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("dialog", lambda dialog: errors.append(dialog.message))
        page.goto(url)
        page.locator(".tt-hits button").first.wait_for()
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert asked
    hosts = {urlsplit(one).netloc for one in asked if not one.startswith(("data:", "blob:"))}
    assert hosts == {urlsplit(url).netloc}
    assert errors == []


def choose(page, data, name="mine.png", part="#tt-image"):
    """Choose an image file, and wait until it is shown or refused."""
    file = {"name": name, "mimeType": "image/png", "buffer": data}
    page.locator(f"{part} input[type=file]").first.set_input_files(file)


def ask(page, verb, text=None):
    panel = page.locator(f"#tt-{verb}")
    if text is not None:
        panel.get_by_role("textbox").fill(text)
    panel.get_by_role("button").last.click()
    return panel


def problem(page, part):
    found = page.locator(f"{part} .tt-problem").last
    found.wait_for()
    return found.inner_text()


def faults(page):
    """Return what axe-core finds that is serious or critical."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [
        (one["id"], [node["html"][:200] for node in one["nodes"]])
        for one in found
        if one["impact"] in ("serious", "critical")
    ]


def test_search_with_the_keyboard_alone(open_page):
    page = open_page()
    head = page.locator(".tt-head").inner_text()
    assert "my.index, 15 images" in head and "pretraining, vqa, grounding" in head
    assert HOSTILE in page.locator(".tt-hits").inner_text()  # as text
    assert re.search(r"Triptych \d", page.locator("footer.tt-quiet").inner_text())
    for _ in range(3):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.tagName") == "INPUT":
            break
    page.keyboard.type("a red circle")
    page.keyboard.press("Enter")
    page.get_by_text(re.compile(r"12 of 15 images, \d+ ms")).wait_for()
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.dataset.number !== undefined"):
            break
    caption = page.evaluate("document.activeElement.querySelector('.tt-caption').innerText")
    page.keyboard.press("Enter")
    page.locator(".tt-figure").wait_for()
    assert page.locator(".tt-figure figcaption").inner_text() == f"{caption} 40 × 30 px"


def test_search_by_an_image_by_both_and_more_like_this(open_page, server):
    page = open_page()
    choose(page, png(7), "seventh.png", part="#tt-search")
    page.get_by_text("like seventh.png").wait_for()
    page.get_by_text(" ms").wait_for()
    first = page.locator(".tt-hits button").first
    assert "a red circle 7" in first.inner_text() and "1.000" in first.inner_text()
    page.get_by_label("Words").fill("a star")
    page.get_by_role("button", name="Options").click()
    page.get_by_label("24").check()
    page.get_by_label("Order the nearest").check()
    page.get_by_role("button", name="Search", exact=True).click()
    page.get_by_text("15 of 15 images").wait_for()
    assert page.locator(".tt-hits").inner_text().count("match") == NUM_IMAGES
    page.get_by_role("button", name="Search without the image").click()
    page.get_by_text("like seventh.png").wait_for(state="detached")
    page.locator("[data-number='3']").click()
    page.locator("#tt-image figcaption", has_text="a red circle 3").wait_for()
    page.get_by_role("button", name="More like this").click()
    page.get_by_text("like a red circle 3").wait_for()
    page.locator(".tt-hits li:first-child", has_text="a red circle 3").wait_for()
    assert page.get_by_label("Words").input_value() == ""


def test_every_panel(open_page):
    page = open_page()
    choose(page, png(1))
    page.locator(".tt-figure").wait_for()
    for verb, text, shown in (
        ("caption", None, ".tt-said"),
        ("segment", None, ".tt-legend"),
        ("answer", "what color is the star?", ".tt-answers dd"),
        ("ground", "the red circle", ".tt-answers dd"),
        ("match", "a red circle\n\na blue star", ".tt-bars"),
        ("classify", "circle, star, circle", ".tt-bars"),
        ("entail", "there is a star", ".tt-bars"),
        ("label", "look at this", ".tt-bars"),
    ):
        ask(page, verb, text).locator(shown).wait_for()
        if verb == "segment":
            assert page.locator(".tt-mask").count() == 1
    assert page.locator(".tt-box").count() == 1
    assert page.locator("#tt-match .tt-bars li").count() == 2
    assert page.locator("#tt-entail .tt-bars li").count() == 3
    choose(page, png(2), "second.png", part="#tt-judge")
    page.locator("#tt-judge img").wait_for()
    ask(page, "judge", "both show a star").locator(".tt-bars").wait_for()
    choose(page, png(3), "another.png")
    page.locator("figcaption", has_text="another.png").wait_for()
    assert page.locator(".tt-tool :is(.tt-said, .tt-bars, .tt-answers, .tt-legend)").count() == 0
    assert page.locator(".tt-box, .tt-mask").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_serious_fault_for_assistive_technology(open_page, scheme):
    page = open_page(color_scheme=scheme)
    assert faults(page) == []
    choose(page, b"no image")
    problem(page, "#tt-image")
    page.get_by_role("button", name="Options").click()
    page.locator("[data-number='3']").click()
    page.locator(".tt-figure").wait_for()
    ask(page, "match", "a star").locator(".tt-bars").wait_for()
    ask(page, "answer", "what?").locator(".tt-answers").wait_for()
    page.wait_for_timeout(300)  # transitions of colours
    assert faults(page) == []
    colour = page.locator("#tt-image").evaluate("e => getComputedStyle(e).backgroundColor")
    dark = sum(map(int, re.findall(r"\d+", colour)[:3])) < 150
    assert dark == (scheme == "dark")


def test_a_phone(open_page):
    page = open_page(viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
    page.get_by_label("Words").fill("a red circle " + "x" * 80)
    page.get_by_role("button", name="Search", exact=True).tap()
    page.get_by_text(" ms").wait_for()
    page.locator("[data-number]").first.tap()
    page.locator(".tt-figure").wait_for()
    ask(page, "answer", "y" * 90).locator(".tt-answers").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator("#tt-image").evaluate("e => e.getBoundingClientRect().width") > 340


def test_what_cannot_be_used_is_said_where_it_was_asked(open_page):
    page = open_page()
    page.get_by_role("button", name="Search", exact=True).click()
    assert "nothing to search for" in problem(page, "#tt-search")
    choose(page, png()[:200], "cut.png")
    assert "cut.png" in problem(page, "#tt-image")
    choose(page, b"", "empty.png")
    page.locator(".tt-problem", has_text="empty.png").wait_for()
    huge = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (60_000).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0"
    choose(page, huge + png()[29:], "bomb.png")
    page.locator(".tt-problem", has_text="bomb.png").wait_for()
    choose(page, bytes(2**20), "large.png")
    page.locator(".tt-pick-note", has_text="large.png has 1.0 MiB").wait_for()
    assert page.locator("#tt-caption").count() == 0 or page.locator("#tt-caption").is_hidden()
    choose(page, png())
    page.locator(".tt-figure").wait_for()
    ask(page, "answer", "  ")
    assert "no question yet" in problem(page, "#tt-answer")
    ask(page, "classify", "one")
    assert "fewer than two classes" in problem(page, "#tt-classify")
    ask(page, "judge", "both")
    assert "no image yet" in problem(page, "#tt-judge")
    ask(page, "match", "\n".join(f"text {n}" for n in range(100)))
    assert "100 lines" in problem(page, "#tt-match")


def test_a_bad_query_image_is_told_once_and_not_kept(open_page):
    page = open_page()
    accepted = page.locator("#tt-search input[type=file]").get_attribute("accept")
    assert accepted.split(",")[:2] == ["image/jpeg", "image/png"]
    choose(page, png()[:200], "cut.png", part="#tt-search")
    assert "cut.png" in problem(page, "#tt-search")
    assert page.locator("#tt-search .tt-problem").count() == 1
    page.get_by_label("Words").fill("a red circle")
    page.get_by_role("button", name="Search", exact=True).click()
    page.locator(".tt-score").first.wait_for()
    assert page.locator("#tt-search .tt-problem").count() == 0


def test_odd_images_double_clicks_and_two_browsers(open_page):
    one, two = open_page(), open_page()
    frames = [Image.fromarray(np.full((20, 30, 3), v, np.uint8)) for v in (0, 255)]
    moving = io.BytesIO()
    frames[0].save(moving, "GIF", save_all=True, append_images=frames[1:])
    choose(one, moving.getvalue(), "moving.gif")
    choose(two, png(mode="RGBA", size=(400, 3)), "wide.png")
    one.locator("figcaption", has_text="moving.gif 30 × 20 px").wait_for()
    two.locator("figcaption", has_text="wide.png 400 × 3 px").wait_for()
    for page in (one, two):
        page.locator("#tt-caption button").dblclick()
        page.locator("#tt-answer").get_by_role("textbox").fill("what?")
        page.locator("#tt-answer").get_by_role("button").dblclick()
    for page, name in ((one, "moving.gif"), (two, "wide.png")):
        page.locator("#tt-caption .tt-said").wait_for()
        page.locator("#tt-answer .tt-answers").wait_for()
        assert name in page.locator("figcaption").inner_text()


def test_nothing_is_uploaded_and_no_file_can_be_had(open_page, server):
    _, url, root = server
    page = open_page()
    choose(page, png(5))
    page.locator(".tt-figure").wait_for()
    ask(page, "caption").locator(".tt-said").wait_for()
    assert not any(path.is_file() for path in (root / "uploads").rglob("*"))
    with httpx.Client(base_url=url, auth=("x", TOKEN), trust_env=False) as client:
        assert client.get("/", auth=None).status_code == 401
        assert client.get("/gradio_api/queue/data", auth=None).status_code == 401
        image = root / "00.png"
        for path in (
            f"/gradio_api/file={image}",
            f"/file={image}",
            f"/gradio_api/file/{image}",
            "/gradio_api/proxy=http://127.0.0.1/",
            "/gradio_api/info",
            "/gradio_api/startup-events",
            "/static/../../../routes.py",
            "/static/%2e%2e/%2e%2e/routes.py",
            "/assets/..%2f..%2f..%2froutes.py",
            "/custom_component/x/client/component/../../x",
            "/gradio_api/runs",
            "/monitoring",
            "/vibe-edit",
        ):
            assert client.get(path).status_code == 404, path
        upload = client.post("/gradio_api/upload", files={"files": ("a.png", png())})
        assert upload.status_code == 404
        assert client.post("/gradio_api/call/ask", json={}).status_code == 404
        assert client.post("/gradio_api/component_server", json={}).status_code == 404
        foreign = {"Origin": "https://example.org", "Host": "my.host"}
        answer = client.get("/config", headers=foreign)
        assert answer.status_code == 200
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert not [name for name in answer.headers if name.startswith("access-control")]
        config = answer.json()
        assert str(root) not in json.dumps(config)
        # what a browser would never send
        opened = next(d for d in config["dependencies"] if d["targets"][0][1] == "upload")

        def join(value, **more):
            event = {"fn_index": opened["id"], "session_hash": "abcd", "data": [value], **more}
            return client.post("/gradio_api/queue/join", json=event)

        meta = {"meta": {"_type": "gradio.FileData"}}
        for value in (
            {"path": str(image), **meta},
            {"data": {"path": "http://127.0.0.1/", **meta}},
            [{"path": str(image), **meta}],
        ):
            assert join(value).status_code == 422
        assert join({}, request={}).status_code == 422
        assert client.post("/gradio_api/queue/join", content=b"[" * 100_000).status_code == 422
        chosen = ({"number": -1}, {"number": 99}, {"data": "data:,!!"}, {"data": 5}, "x", None)
        for value in chosen:
            assert join(value).status_code == 200
        with client.stream("GET", "/gradio_api/queue/data?session_hash=abcd") as stream:
            done = [line for line in stream.iter_lines() if "process_completed" in line]
        assert len(done) == len(chosen)
        assert all("tt-problem" in line and "failed" not in line for line in done)
    assert not any(path.is_file() for path in (root / "uploads").rglob("*"))


def test_messages_that_nobody_reads_are_dropped():
    from triptych.server.page import MAX_SESSIONS, MAX_UNREAD, Mailboxes

    boxes = Mailboxes()
    for session in range(MAX_SESSIONS + 5):
        boxes[f"s{session}"] = asyncio.Queue()
    for number in range(MAX_UNREAD + 1):
        boxes[f"s{500 if number % 2 else 700}"].put_nowait(number)
    boxes["s900"].put_nowait("read soon")
    boxes.trim()
    assert sum(box.qsize() for box in boxes.values()) <= MAX_UNREAD
    assert "s4" not in boxes and "s5" in boxes and boxes["s900"].qsize() == 1
    boxes["s4"].put_nowait("an event that ends later")
    assert "s4" not in boxes
    del boxes["s4"]


def test_a_killed_server_shows_an_error(open_page, server):
    process, _, _ = server
    page = open_page()
    process.send_signal(signal.SIGSTOP)  # so that the question is on its way when it dies
    page.get_by_label("Words").fill("a red circle")
    page.get_by_label("Words").press("Enter")
    page.locator("[data-testid=status-tracker]:not(.hide)").first.wait_for()
    process.kill()
    page.get_by_text("Connection to the server was lost").wait_for()
    deadline = time.monotonic() + 20
    while page.locator("#tt-grid > [data-testid=status-tracker]:not(.hide)").count():
        assert time.monotonic() < deadline
        page.wait_for_timeout(50)
