"""Rates of keys: what is left is said, what is over waits, and nobody else pays for it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import openai
import pytest
from limits import parse

from app.access.key_ring import Holder, KeyRing
from app.access.rates import Rates
from app.access.shared_windows import SharedWindows
from core.errors import BadInput, BadSetting, Busy
from core.settings import Settings
from tests.app.access.test_key_ring import entry
from tests.support.redis_home import own_redis
from tests.support.serving import Server, serving, settings_in, tiny_model

BODY = {"prompt": "a red apple", "seed": 1}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    keys = tmp_path / "keys.toml"
    keys.write_text(entry("shop", "generate") + 'rate = "4/hour"\n' + entry("other", "generate"))
    with serving(settings_in(tmp_path / "home", tiny_model(tmp_path / "model"), SAFECB_KEYS=str(keys))) as server:
        yield server


def test_what_is_left_is_said_and_what_is_over_waits(server: Server) -> None:
    def drawn(key: str, **body: object) -> tuple[int, str | None]:
        answer = server.post("/generate", {**BODY, **body}, **{"X-API-Key": key})
        return answer.status_code, answer.headers.get("x-ratelimit-remaining-requests")

    assert drawn("shop", n=5) == (422, None)
    first = server.post("/generate", {**BODY, "n": 3}, **{"X-API-Key": "shop"})
    assert first.headers["RateLimit-Policy"] == '"images";q=4;w=3600'
    assert first.headers["RateLimit"].startswith('"images";r=1;t=')
    assert drawn("shop", n=2) == (429, None)  # nothing is taken by what is refused
    assert drawn("shop") == (200, "0")
    over = server.post("/generate", BODY, **{"X-API-Key": "shop"})
    assert over.status_code == 429 and 1 <= int(over.headers["Retry-After"]) <= 3600
    assert drawn("other", n=5) == (200, None)
    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="shop", max_retries=0) as client,
        pytest.raises(openai.RateLimitError) as caught,
    ):
        client.images.generate(prompt="a")
    assert caught.value.code == "rate_limit_exceeded" and "shop" in caught.value.message


async def taken(servers: Sequence[Rates], holder: Holder, calls: int) -> int:
    """How many of so many calls at once pass, spread over the servers."""

    async def take(index: int) -> bool:
        try:
            return bool(await servers[index % len(servers)].take(holder, 1))
        except Busy:
            return False

    return sum(await asyncio.gather(*(take(index) for index in range(calls))))


def test_many_at_once_take_no_more_than_the_rate() -> None:
    rates, holder = Rates(), Holder("shop", frozenset(), "50/hour")
    assert asyncio.run(taken([rates], holder, 400)) == 50
    with pytest.raises(BadInput):
        asyncio.run(rates.take(holder, 51))
    assert asyncio.run(rates.take(Holder("shop", frozenset()), 1000)) == {}


def test_two_servers_count_together_and_by_shares_while_redis_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.access.shared_windows.SEE_EVERY_S", 0.0)
    monkeypatch.setattr("app.access.shared_windows.PATIENCE_S", 30.0)  # a busy machine is no Redis that is away
    holder, later = Holder("shop", frozenset(), "40/hour"), Holder("later", frozenset(), "40/hour")
    with own_redis() as url:
        servers = [Rates(url), Rates(url)]
        assert asyncio.run(taken(servers, holder, 100)) == 40
        assert [asyncio.run(taken([server], holder, 1)) for server in servers] == [0, 0]
    assert asyncio.run(taken(servers, later, 100)) == 40  # 20 each
    assert asyncio.run(taken(servers[:1], later, 100)) == 0
    many = Holder("many", frozenset(), "40/hour")
    headers = asyncio.run(servers[0].take(many, 30))  # more than a share: the whole of it
    assert headers["RateLimit-Policy"] == '"images";q=20;w=3600' and headers["RateLimit"].startswith('"images";r=0;')
    with pytest.raises(Busy):
        asyncio.run(servers[0].take(many, 1))
    for server in servers:
        server.close()


def test_a_redis_that_hangs_holds_up_one_call_in_five_seconds(caplog: pytest.LogCaptureFixture) -> None:
    clock = [0.0]
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never answers
        windows = SharedWindows(f"redis://127.0.0.1:{silent.getsockname()[1]}", clock=lambda: clock[0])
        limit = parse("10/hour")
        silent.settimeout(5)
        for now, is_tried in ((0.0, True), (4.9, False), (5.1, True)):
            clock[0] = now
            assert windows.hit(limit, "shop", 1) is None
            silent.setblocking(is_tried)
            with nullcontext() if is_tried else pytest.raises(BlockingIOError):
                silent.accept()[0].close()
        assert len(caplog.records) == 1  # said once
        windows.close()


def test_a_key_may_have_so_many_images_waiting_and_others_are_not_held_up(tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text(entry("shop", "generate") + "queue = 3\n" + entry("other", "generate"))
    with serving(settings_in(tmp_path / "home", tiny_model(tmp_path / "model"), SAFECB_KEYS=str(keys))) as server:
        shop = {"X-API-Key": "shop"}
        over = server.post("/generate", {**BODY, "n": 4}, **shop)
        assert over.status_code == 422 and "at most 3" in over.text

        def status(index: int) -> int:
            return server.post("/generate", {**BODY, "n": 3, "seed": index}, **shop).status_code

        with ThreadPoolExecutor(17) as pool:
            other = pool.submit(server.post, "/generate", {**BODY, "n": 8}, **{"X-API-Key": "other"})
            answers = list(pool.map(status, range(32)))
        assert set(answers) == {200, 429} and other.result().status_code == 200
        pair = server.post("/codebooks/compare", {"prompt": "a", "versions": ["v0", "v0"]}, **shop)
        assert pair.status_code == 200


@pytest.mark.parametrize("queue", ["0", "-1", "true", '"3"', "1.5", "100001"])
def test_a_bad_queue_stops_the_start(tmp_path: Path, queue: str) -> None:
    (tmp_path / "keys.toml").write_text(entry("shop", "generate") + f"queue = {queue}\n")
    with pytest.raises(BadSetting, match="key 1, queue"):
        KeyRing(Settings.from_environ({"SAFECB_KEYS": str(tmp_path / "keys.toml")}))


@pytest.mark.parametrize("rate", ["60", "0/minute", "60/month", "60 per minute", "-1/day"])
def test_a_bad_rate_stops_the_start(tmp_path: Path, rate: str) -> None:
    (tmp_path / "keys.toml").write_text(entry("shop", "generate") + f'rate = "{rate}"\n')
    with pytest.raises(BadSetting, match="key 1, rate"):
        KeyRing(Settings.from_environ({"SAFECB_KEYS": str(tmp_path / "keys.toml")}))
