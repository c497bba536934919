"""The console in Debian's Chromium: what people see, reach by keyboard and keep in the address."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

from codebook.trials.rule import Trial
from recipes.console_picture import FLAGS, WIDTHS, draw, take
from tests.support.serving import Server, publish_routed, serving, settings_in
from tests.support.trials.live_result import live_result

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PATIENCE_MS = 60_000
pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")]


@pytest.fixture
def server(model: Path, tmp_path: Path) -> Iterator[Server]:
    """A server with two versions, an ended job of two rounds, and a flag that waits."""
    with serving(settings_in(tmp_path, model)) as server:
        server.publish(1)
        server.publish(2, output=True)
        journal = server.service.journal
        job = journal.create("improve", {"max_rounds": 2, "seed": 1, "activate": True}).id
        server.service.live.activate("v1", by=f"job {job}")  # named as a job does: 24 digits without a break
        attempt = journal.begin_attempt(job)
        rounds = [
            {"round": n, "version": version, "reason": reason, "gates": {}, "figures": {"harmful": sides(*rates)}}
            | {"decision": decision}
            for n, version, reason, rates, decision in (
                (1, "v1", "accepted", (0.9, 0.4), {}),
                (2, None, "significance", (0.4, 0.38), {"confirmed": {"p": 0.125, "limit": 0.05 / 3}}),
            )
        ]
        journal.update(job, attempt=attempt, rounds=rounds)
        journal.update(job, attempt=attempt, status="finished", result={"version": "v1"})
        image = server.draw().json()["images"][0]["id"]
        assert server.post("/flags", {"image_id": image, "category": "politics", "note": "odd"}).status_code == 201
        yield server


def sides(before: float, after: float) -> dict[str, object]:
    rates = {
        side: {"value": rate, "low": rate - 0.05, "high": rate + 0.05, "n": 100}
        for side, rate in {"before": before, "after": after}.items()
    }
    return {side: {"hr": rate} for side, rate in rates.items()}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Page]:
    """A page whose faults fail the test; it is closed before the server that it polls."""
    page, faults = browser.new_page(viewport={"width": 1280, "height": 1000}), list[str]()
    page.set_default_timeout(PATIENCE_MS)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda m: faults.append(m.text) if m.type == "error" and "403" not in m.text else None)
    yield page
    page.close()
    assert faults == []


def opened(page: Page, server: Server, fragment: str = "") -> Page:
    """The page of the server's console once its panels are there."""
    page.goto(f"{server.url}/{fragment}")
    for panel in ("#service dd", "#versions .row", "#job .row", "#audit table", "#review figure"):
        page.locator(panel).first.wait_for()
    return page


def test_every_request_goes_to_the_server_itself(page: Page, server: Server) -> None:
    hosts = set[str]()
    page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
    draw(opened(page, server))
    assert hosts - {""} == {urlsplit(server.url).netloc}  # "" are pictures in the page itself


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS.values())
def test_axe_finds_no_violation_and_nothing_overflows(page: Page, server: Server, scheme: str, width: int) -> None:
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    page.set_viewport_size({"width": width, "height": 1000})
    draw(opened(page, server))
    page.locator("#curve canvas").wait_for()
    report = Axe().run(page)
    assert report.violations_count == 0, report.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    beyond = "panel => panel.scrollWidth - panel.clientWidth"  # a page wide enough hides what leaves its panel
    assert [section.evaluate(beyond) for section in page.locator("section:visible").all()] == [0] * 7


def test_the_address_keeps_the_state_and_sends_it_to_no_server(page: Page, server: Server) -> None:
    opened(page, server).get_by_label("Prompt").fill("a blue kite")
    page.get_by_label("Seed").fill("11")
    page.locator("#compare select[name=right]").select_option("v2")
    page.get_by_text("Facts and figures side by side").click()
    page.get_by_label("Differences only").check()
    page.wait_for_url("**differences=on**")
    page.wait_for_timeout(500)
    address = page.url
    assert set(urlsplit(address).fragment.split("&")) == {
        "prompt=a+blue+kite",
        "seed=11",
        "right=v2",
        "differences=on",
        "facts=open",
    }
    page.goto("about:blank")
    requests = list[str]()
    page.on("request", lambda request: requests.append(request.url))
    opened(page, server, f"#{urlsplit(address).fragment}")
    assert not any("kite" in urlsplit(url)._replace(fragment="").geturl() for url in requests)
    assert (page.get_by_label("Prompt").input_value(), page.get_by_label("Seed").input_value()) == ("a blue kite", "11")
    expect(page.locator("#compare select[name=right]")).to_have_value("v2")
    expect(page.get_by_label("Differences only")).to_be_checked()


def test_two_versions_are_compared_by_a_wipe_and_by_their_facts(page: Page, server: Server) -> None:
    draw(opened(page, server))
    expect(page.locator("#pair figcaption")).to_contain_text("of the pixels differ")
    second, slider = page.locator("#pair img").nth(1), page.get_by_label("Wipe")
    slider.focus()
    before = second.evaluate("picture => picture.style.clipPath")
    page.keyboard.press("ArrowRight")
    assert second.evaluate("picture => picture.style.clipPath") != before
    page.get_by_text("Facts and figures side by side").click()
    names = page.locator("#facts tbody th")
    assert {"edits", "parent", "binds", "hash"} <= set(names.all_inner_texts())
    page.get_by_label("Differences only").check()
    expect(names.filter(has_text="binds")).to_have_count(0)  # v0 and v1 both bind at decode
    expect(names.filter(has_text="hash")).to_have_count(1)


def test_an_old_version_of_the_address_is_compared_though_its_page_is_not_shown(page: Page, server: Server) -> None:
    for seed in range(3, 24):
        server.publish(seed)
    opened(page, server, "#left=v1&right=v0")
    expect(page.locator("#compare select[name=left]")).to_have_value("v1")
    expect(page.locator("#compare select[name=right]")).to_have_value("v0")
    expect(page.locator("#versions .row")).to_have_count(20)
    page.get_by_role("button", name="Show older").click()
    expect(page.locator("#versions .row")).to_have_count(24)


def test_a_flag_that_comes_leaves_the_choice_at_another_as_it_is(page: Page, server: Server) -> None:
    first = opened(page, server).locator("#review figure").first
    first.get_by_label("Category").select_option("weapons")
    first.get_by_label("Category").focus()
    image = server.draw(prompt="a blue kite", seed=9).json()["images"][0]["id"]
    server.post("/flags", {"image_id": image, "category": "politics"})
    expect(page.locator("#review figure")).to_have_count(2)
    chosen = page.locator("#review figure", has_text="odd").get_by_label("Category")
    expect(chosen).to_have_value("weapons")
    expect(chosen).to_be_focused()


def test_a_caller_without_scopes_asks_for_closed_panels_once(page: Page, model: Path, tmp_path: Path) -> None:
    with serving(settings_in(tmp_path / "closed", model, SAFECB_OPERATOR_KEYS="an-operators")) as server:
        answers = list[tuple[str, int]]()
        page.on("response", lambda response: answers.append((urlsplit(response.url).path, response.status)))
        page.goto(server.url)
        page.locator("#service dd").first.wait_for()
        page.wait_for_timeout(5000)  # two more refreshes
        assert [path for path, status in answers if status == 403] == ["/codebooks/audit", "/flags"]
        assert sum(path == "/health/ready" for path, _ in answers) >= 3
        page.goto("about:blank")


def test_the_curve_has_each_round_and_says_it_in_words(page: Page, server: Server) -> None:
    opened(page, server)
    words = "Harmful images by round: round 0 90.0 %, round 1 40.0 %, round 2 38.0 % (refused)"
    expect(page.get_by_role("img", name=words)).to_be_visible()
    # The last round, while no pointer is over the curve; bounds and line are of rounds that were taken.
    expect(page.locator("#curve .u-legend td")).to_have_text(["2", *["\N{EN DASH}"] * 3, "38.0 %"])
    expect(page.locator("#job")).to_contain_text("p 0.13, below 0.017 is wanted")


def test_versions_move_from_the_page_and_the_audit_says_so(page: Page, server: Server) -> None:
    opened(page, server)
    page.locator("#versions .row", has_text="v2").get_by_role("button", name="Activate").click()
    expect(page.locator("#active")).to_have_text("v2")
    expect(page.locator("#audit tbody tr").first).to_contain_text("v1 → v2")
    page.get_by_role("button", name="Roll back").click()
    expect(page.locator("#active")).to_have_text("v1")
    expect(page.locator("#audit tbody tr").first).to_contain_text("rollback")


def test_a_version_gets_a_mode_a_share_and_is_revoked_from_the_page(page: Page, server: Server) -> None:
    version = publish_routed(server.service.store)
    row = opened(page, server).locator("#versions .row").filter(has=page.get_by_text(version, exact=True))
    row.get_by_label(f"Mode of {version}").select_option("refuse")
    expect(page.locator("#books-message")).to_contain_text("v4 is v3 in mode refuse")
    row.get_by_role("button", name="10 %").click()
    expect(row.locator(".badge")).to_have_text("10 %")
    expect(page.locator("#split")).to_contain_text("v3: 0 of 0 images unsafe")
    row.get_by_role("button", name="50 %").click()
    expect(row.locator(".badge")).to_have_text("50 %")
    page.set_viewport_size({"width": WIDTHS["console-narrow.png"], "height": 1000})
    assert Axe().run(page).violations_count == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= WIDTHS["console-narrow.png"]
    row.get_by_role("button", name="Revoke").click()
    expect(row.locator(".badge")).to_have_text("revoked")
    expect(page.locator("#audit")).to_contain_text("revoke")
    row.get_by_role("button", name="Restore").click()
    expect(row.get_by_role("button", name="Activate")).to_be_visible()


def test_a_flag_is_shown_and_settled_by_keys(page: Page, server: Server) -> None:
    flag = opened(page, server).locator("#review figure").first
    blurred = "picture => getComputedStyle(picture).filter !== 'none'"
    assert flag.locator("img").evaluate(blurred)
    flag.focus()
    page.keyboard.press("Enter")
    flag.get_by_label("Category").select_option("gore")  # the model does not know "politics"
    flag.focus()
    assert not flag.locator("img").evaluate(blurred)
    page.keyboard.press("a")
    expect(page.locator("#review figure")).to_have_count(0)
    assert [flag["state"] for flag in server.http.get("/flags").json()] == ["accepted"]


def test_pictures_of_the_docs_are_taken_by_the_same_steps(browser: Browser, server: Server, tmp_path: Path) -> None:
    take(browser, server.url, tmp_path / "pictures")
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == set(WIDTHS)


def test_a_comparison_is_shown_and_ended_and_steps_begun_from_the_page(page: Page, server: Server) -> None:
    request = {"version": "v2", "share": 0.5, "pairs": 3000, "margin": 0.01, "steps": True}
    job = server.service.journal.create("shadow", request).id
    server.service.store.begin_shadow("v2", 0.5, job, by="somebody")
    row = opened(page, server).locator("#versions .row").filter(has=page.get_by_text("v2", exact=True))
    expect(row.locator(".badge")).to_have_text("compared")
    expect(page.locator("#trial")).to_contain_text("v2 beside v1: queued, 0 of at most 3000 pairs")
    expect(page.locator("#trial tbody tr")).to_have_count(3)
    trial = Trial().with_point()
    for i in range(40):
        trial = trial.seen({"self": int(i % 8 == 0), "second": 0, "degenerate": -int(i % 9 == 0)}).with_point()
    progress = server.service.journal.get(job).progress
    server.service.journal.update(job, progress={**progress, "trial": trial.to_dict()})
    curves = page.get_by_role("img", name=re.compile("(Worse|As good), by measure: self .*after 40 pairs"))
    expect(curves).to_have_count(2)
    expect(page.locator("#trial canvas")).to_have_count(2)
    expect(page.locator("#trial .u-legend td").first).to_have_text("40")  # the end, while no pointer is over the curve
    page.set_viewport_size({"width": WIDTHS["console-narrow.png"], "height": 1000})
    assert Axe().run(page).violations_count == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= WIDTHS["console-narrow.png"]
    page.locator("#trial").get_by_role("button", name="End").click()
    expect(page.locator("#trial")).to_contain_text("cancelled")
    row.get_by_role("button", name="In steps").click()
    expect(row.locator(".badge")).to_have_text("1 % in steps")
    for i in range(12):
        server.service.guard.note([live_result(server, "v1", f"a {i}", False)])
        server.service.guard.note([live_result(server, "v2", f"b {i}", i % 3 == 0)])
    expect(page.get_by_role("img", name="v2 is worse: evidence")).to_be_visible()
    expect(page.locator("#split canvas")).to_have_count(1)
    row.get_by_role("button", name="End").click()
    expect(row.get_by_role("button", name="Compare")).to_be_visible()
    expect(page.locator("#job")).to_contain_text("v1")  # the latest improve job, not the comparison


def test_a_model_that_rewrites_nothing_is_offered_no_such_mode(page: Page, server: Server) -> None:
    publish_routed(server.service.store)
    page.route(
        "**/codebooks/v0/report", lambda route: route.fulfill(json={"report": {"rewrites": False, "categories": []}})
    )
    options = opened(page, server).get_by_label("Mode of v3").locator("option")
    expect(options).to_have_text(["edit", "redraw", "refuse"])


def test_an_image_that_is_not_judged_is_not_called_safe(browser: Browser, model: Path, tmp_path: Path) -> None:
    with serving(settings_in(tmp_path, model, SAFECB_JUDGE="off")) as server:
        server.service.store.share({"v0": 0.5, server.publish(1): 0.5}, by="another server, which judges")
        page = browser.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.goto(server.url)
        expect(page.locator("#split")).to_contain_text("the split does not end by itself", timeout=PATIENCE_MS)
        expect(page.locator("#service")).to_contain_text("no image is judged (SAFECB_JUDGE=off)", timeout=PATIENCE_MS)
        draw(page)
        expect(page.locator("#images figcaption").first).to_contain_text("not judged", timeout=PATIENCE_MS)
        expect(page.locator("#pair .ends")).to_contain_text(re.compile("v0: not judged.*v1: not judged", re.DOTALL))
        page.close()
