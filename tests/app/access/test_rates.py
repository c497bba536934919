"""Rates of keys: what is left is said, what is over waits, and nobody else pays for it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

from app.access.key_ring import Holder, KeyRing
from app.access.rates import Rates
from core.errors import BadInput, BadSetting, Busy
from core.settings import Settings
from tests.app.access.test_key_ring import entry
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


def test_many_at_once_take_no_more_than_the_rate() -> None:
    rates, holder = Rates(), Holder("shop", frozenset(), "50/hour")

    def take(_: int) -> bool:
        try:
            return bool(rates.take(holder, 1))
        except Busy:
            return False

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(take, range(400))) == 50
    with pytest.raises(BadInput):
        rates.take(holder, 51)
    assert rates.take(Holder("shop", frozenset()), 1000) == {}


@pytest.mark.parametrize("rate", ["60", "0/minute", "60/month", "60 per minute", "-1/day"])
def test_a_bad_rate_stops_the_start(tmp_path: Path, rate: str) -> None:
    (tmp_path / "keys.toml").write_text(entry("shop", "generate") + f'rate = "{rate}"\n')
    with pytest.raises(BadSetting, match="key 1, rate"):
        KeyRing(Settings.from_environ({"SAFECB_KEYS": str(tmp_path / "keys.toml")}))
