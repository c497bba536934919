"""Settings: the defaults, and every bad value stops the start by name."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from codebook.errors import BadSetting
from codebook.settings import Settings


def test_nothing_set_gives_the_documented_defaults() -> None:
    settings = Settings.from_environ({"PATH": "/bin", "safecb_port": "not ours"})
    assert settings == Settings(
        home=Path("var").absolute(),
        model="embedded",
        host="127.0.0.1",
        port=8000,
        redis_url=None,
        store=Path("var/store").absolute(),
        device="auto",
        dtype="auto",
        cores=None,
        api_keys=(),
        operator_keys=(),
        keep_images=2000,
        keep_hours=24,
        drain_s=30,
    )


def test_everything_can_be_set() -> None:
    settings = Settings.from_environ(
        {
            "SAFECB_HOME": "/srv/home",
            "SAFECB_MODEL": "some-hub/Some-Model-1B",
            "SAFECB_HOST": "::1",
            "SAFECB_PORT": "0",
            "SAFECB_REDIS_URL": "rediss://user:secret@redis.example:6380/2",
            "SAFECB_STORE": "/srv/codebooks",
            "SAFECB_DEVICE": "cuda:3",
            "SAFECB_DTYPE": "bfloat16",
            "SAFECB_CORES": "6",
            "SAFECB_API_KEYS": "one-key,another~key",
            "SAFECB_OPERATOR_KEYS": "a-third",
            "SAFECB_DRAIN_S": "0",
        }
    )
    assert (settings.home, settings.store) == (Path("/srv/home"), Path("/srv/codebooks"))
    assert (settings.model, settings.host, settings.port) == ("some-hub/Some-Model-1B", "::1", 0)
    assert settings.redis_url == "rediss://user:secret@redis.example:6380/2"
    assert (settings.device, settings.dtype, settings.cores) == ("cuda:3", "bfloat16", 6)
    assert (settings.api_keys, settings.operator_keys) == (("one-key", "another~key"), ("a-third",))
    assert settings.drain_s == 0


def test_the_store_moves_with_home() -> None:
    assert Settings.from_environ({"SAFECB_HOME": "/srv/home"}).store == Path("/srv/home/store")


def test_a_relative_home_does_not_move_with_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Settings.from_environ({"SAFECB_HOME": "here"}).home
    monkeypatch.chdir(tmp_path)
    assert home.is_absolute()
    assert home != Path("here").absolute()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((key, value) for key in ("SAFECB_HOME", "SAFECB_STORE") for value in ("", "  ", "s3://bucket/x", "a\0b")),
        *(("SAFECB_MODEL", value) for value in ("", " ", " embedded", "embedded\n")),
        *(("SAFECB_HOST", value) for value in ("", "http://localhost", "a b", "-x", "host/path", "localhost\n")),
        *(("SAFECB_PORT", value) for value in ("", "http", "-1", "65536", "8000.0", "8_000", " 8000", "٨٠٠٠", "1e3")),
        *(("SAFECB_REDIS_URL", value) for value in ("", "localhost:6379", "http://x", "redis://", "redis://a b")),
        *(("SAFECB_DEVICE", value) for value in ("", "gpu", "CUDA", "cuda:", "cuda:-1", "cuda:01", "cpu:0", "cuda\n")),
        *(("SAFECB_DTYPE", value) for value in ("", "fp16", "float64", "Float32", "auto ")),
        *(("SAFECB_CORES", value) for value in ("", "0", "-1", "1.5", "all", "1000", "2\n")),
        *(("SAFECB_API_KEYS", value) for value in ("", ",", "a,", "a,,b", "a b", "a, b", "käse", "a\n")),
        *(("SAFECB_OPERATOR_KEYS", value) for value in ("", ",", "a b")),
        *(("SAFECB_DRAIN_S", value) for value in ("", "-1", "1.5", "10000", "30s")),
        *((key, "1") for key in ("SAFECB_", "SAFECB_PROT", "SAFECB_model")),
    ],
)
def test_a_bad_value_is_refused_and_named(key: str, value: str) -> None:
    with pytest.raises(BadSetting) as refused:
        Settings.from_environ({key: value})
    assert refused.value.field == key
    assert key in str(refused.value)
    if key in ("SAFECB_PORT", "SAFECB_DEVICE", "SAFECB_DTYPE", "SAFECB_CORES"):
        assert repr(value) in str(refused.value)


def test_an_object_store_is_refused_with_what_is_possible() -> None:
    with pytest.raises(BadSetting, match="a folder; object stores are not supported yet"):
        Settings.from_environ({"SAFECB_STORE": "s3://bucket/codebooks"})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SAFECB_API_KEYS", "hunter2 is secret"),
        ("SAFECB_OPERATOR_KEYS", "hunter2 is secret"),
        ("SAFECB_API_KEY", "hunter2"),  # misspelt
        ("SAFECB_REDIS_URL", "redis+tls://me:hunter2@host"),
    ],
)
def test_an_error_does_not_tell_a_secret(key: str, value: str) -> None:
    with pytest.raises(BadSetting) as refused:
        Settings.from_environ({key: value})
    assert "hunter2" not in str(refused.value) + repr(refused.value.value)


def test_a_repr_does_not_tell_a_secret() -> None:
    keys = {"SAFECB_API_KEYS": "hunter2", "SAFECB_OPERATOR_KEYS": "hunter2"}
    environ = {**keys, "SAFECB_REDIS_URL": "redis://:hunter2@host"}
    assert "hunter2" not in repr(Settings.from_environ(environ))


def test_settings_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        Settings.from_environ({}).port = 1  # type: ignore[misc]
