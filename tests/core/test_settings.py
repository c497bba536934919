"""Settings: the defaults, and every bad value stops the start by name."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
from redis import Redis
from rq.connections import get_connection_kwargs

from core.errors import BadSetting
from core.settings import Settings


def test_nothing_set_gives_the_documented_defaults() -> None:
    settings = Settings.from_environ({"PATH": "/bin", "safecb_port": "not ours"})
    assert settings == Settings(
        home=Path("var").absolute(),
        model="embedded",
        host="127.0.0.1",
        port=8000,
        redis_url=None,
        store=Path("var/store").absolute(),
        bucket=None,
        device="auto",
        dtype="auto",
        cores=None,
        lookahead=8,
        judge="all",
        job_share=0.25,
        second_judge="beside",
        keys=None,
        signing_key=None,
        public_keys=None,
        open=False,
        api_keys=(),
        operator_keys=(),
        version_choice="operators",
        stale_limit=None,
        keep_images=2000,
        keep_hours=24,
        drain_s=30,
        log="text",
        trusted_proxies=(),
        root_path="",
        server=None,
        server_key=None,
        openai_aliases=True,
        openai_strict=False,
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
            "SAFECB_JOB_SHARE": "0.5",
            "SAFECB_LOOKAHEAD": "16",
            "SAFECB_JUDGE": "sample:0.05",
            "SAFECB_API_KEYS": "one-key,another~key",
            "SAFECB_OPERATOR_KEYS": "a-third",
            "SAFECB_DRAIN_S": "0",
        }
    )
    assert (settings.home, settings.store) == (Path("/srv/home"), Path("/srv/codebooks"))
    assert (settings.model, settings.host, settings.port) == ("some-hub/Some-Model-1B", "::1", 0)
    assert settings.redis_url == "rediss://user:secret@redis.example:6380/2"
    assert (settings.device, settings.dtype, settings.cores, settings.job_share) == ("cuda:3", "bfloat16", 6, 0.5)
    assert (settings.lookahead, settings.judge, settings.judge_share) == (16, "sample:0.05", 0.05)
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
        *((key, value) for key in ("SAFECB_HOME", "SAFECB_STORE") for value in ("", "  ", "gs://bucket/x", "a\0b")),
        *(("SAFECB_STORE", value) for value in ("s3://", "s3://b", "s3://bucket/", "s3://Bucket", "s3://bucket//x")),
        *(("SAFECB_MODEL", value) for value in ("", " ", " embedded", "embedded\n")),
        *(("SAFECB_HOST", value) for value in ("", "http://localhost", "a b", "-x", "host/path", "localhost\n")),
        *(("SAFECB_PORT", value) for value in ("", "http", "-1", "65536", "8000.0", "8_000", " 8000", "٨٠٠٠", "1e3")),
        *(("SAFECB_REDIS_URL", value) for value in ("", "localhost:6379", "http://x", "redis://", "redis://a b")),
        *(("SAFECB_DEVICE", value) for value in ("", "gpu", "CUDA", "cuda:", "cuda:-1", "cuda:01", "cpu:0", "cuda\n")),
        *(("SAFECB_DTYPE", value) for value in ("", "fp16", "float64", "Float32", "auto ")),
        *(("SAFECB_CORES", value) for value in ("", "0", "-1", "1.5", "all", "1000", "2\n")),
        *(("SAFECB_JOB_SHARE", value) for value in ("", "0", "0.11", "0.91", "1", ".5", "25%", "nan")),
        *(("SAFECB_LOOKAHEAD", value) for value in ("", "0", "17", "-1", "1.5", "auto", "08", "2\n")),
        *(("SAFECB_JUDGE", value) for value in ("", "on", "ALL", "sample", "sample:", "sample:0", "sample:0.0")),
        *(("SAFECB_JUDGE", f"sample:{value}") for value in ("1", "1.5", ".1", "10%", "-0.1", "0.1\n", "nan")),
        *(("SAFECB_API_KEYS", value) for value in ("", ",", "a,", "a,,b", "a b", "a, b", "käse", "a\n")),
        *(("SAFECB_OPERATOR_KEYS", value) for value in ("", ",", "a b")),
        *(("SAFECB_STALE_LIMIT", value) for value in ("", "0", "-1", "1.5", "10000", "5s")),
        *(("SAFECB_ROOT_PATH", value) for value in ("", "/", "images", "/images/", "//x", "/a b", "http://x/y")),
        *(("SAFECB_DRAIN_S", value) for value in ("", "-1", "1.5", "10000", "30s")),
        *((key, "1") for key in ("SAFECB_", "SAFECB_PROT", "SAFECB_model")),
    ],
)
def test_a_bad_value_is_refused_and_named(key: str, value: str) -> None:
    with pytest.raises(BadSetting) as refused:
        Settings.from_environ({key: value})
    assert refused.value.field == key
    assert key in str(refused.value)
    if key in ("SAFECB_PORT", "SAFECB_DEVICE", "SAFECB_DTYPE", "SAFECB_CORES", "SAFECB_LOOKAHEAD", "SAFECB_JUDGE"):
        assert repr(value) in str(refused.value)


def test_a_bucket_takes_the_place_of_the_folder_and_its_copies_stay_in_the_home() -> None:
    own, other = (Settings.from_environ({"SAFECB_STORE": f"s3://bucket/{name}"}) for name in ("a", "b"))
    assert own.bucket == "s3://bucket/a"
    assert own.store.parent == own.home / "copies" and own.store != other.store
    with pytest.raises(BadSetting, match="s3://BUCKET/PREFIX"):
        Settings.from_environ({"SAFECB_STORE": "gs://bucket/codebooks"})


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


BROKEN_USERINFO = [
    "redis://:hunter2/verysecret@host:6379/0",
    "redis://:hunter2#verysecret@host",
    "redis://user:hunter2?verysecret@host",
    "redis://:hunter2?verysecret=1@host",
    "redis://:hunter2?db=verysecret@host",
    "redis://:12/verysecret@host",
    "redis://:12#verysecret@host",
    "redis://verysecret/hunter2@host",
    "rediss://:hunter2[verysecret@host:6379",
    "rediss://:hunter2 verysecret@host:6379",
    "unix://:hunter2/verysecret?x@/run/redis.sock",
    "unix://:hunter2#verysecret@/run/redis.sock",
]
BAD_ADDRESS = [
    *(f"redis://:hunter2@{rest}" for rest in ("host:0", "host:65536", "host:verysecret", "host:1:2", "host:-1")),
    *(f"redis://:hunter2@{rest}" for rest in ("[::1", "[zz]:1", "a..b", "%00", "host ", "host\n", f"{'a' * 64}")),
    *(f"redis://:hunter2@host/{rest}" for rest in ("x", "0/1", "-1", "0 ", "0#x", "0#", "65536", "0@0")),
    *(f"redis://:hunter2@host?{rest}" for rest in ("foo=bar", "verysecret", "db=x", "db=", "db=-1", "db=1&db=2")),
    *(f"redis://:hunter2@host?{rest}" for rest in ("socket_timeout=abc", "socket_timeout=0", "socket_timeout=nan")),
    *(f"redis://:hunter2@host?{rest}" for rest in ("protocol=9", "decode_responses=true", "retry=1", "host=x")),
    *(f"redis://:hunter2@host?{rest}" for rest in ("ssl_cert_reqs=none", "health_check_interval=x", "path=/x")),
    *(f"rediss://host?{rest}" for rest in ("ssl_cert_reqs=verysecret", "ssl_check_hostname=verysecret")),
    "redis://host?password=hunter2&verysecret=1",
    "unix://",
    "unix://:hunter2@",
    "unix://folder/redis.sock",
    "unix:///a folder/redis.sock",
    "unix:///a%00b/redis.sock",
    "unix:///run/redis.sock/?foo=bar",
    "unix:///" + "long/" * 25,
]


@pytest.mark.fault("F20")
@pytest.mark.parametrize("url", BROKEN_USERINFO + BAD_ADDRESS)
def test_a_redis_url_that_cannot_work_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(BadSetting) as refused:
        Settings.from_environ({"SAFECB_REDIS_URL": url})
    assert refused.value.field == "SAFECB_REDIS_URL"
    said = str(refused.value) + repr(refused.value.value)
    assert not any(part in said for part in ("hunter2", "verysecret"))
    assert refused.value.__context__ is None  # urllib's own error holds parts of the address
    assert "percent-encode" in said or url in BAD_ADDRESS


@pytest.mark.fault("F20")
@pytest.mark.parametrize(
    ("url", "connection"),
    [
        ("redis://host", {"host": "host"}),
        ("redis://:hunter%2F2@host:6380/", {"host": "host", "port": 6380, "password": "hunter/2"}),
        ("redis://user:p%40%23@host/3", {"username": "user", "password": "p@#", "db": 3}),
        ("redis://user:p@ss@host/3", {"password": "p@ss", "host": "host"}),
        ("redis://[::1]:6379/1", {"host": "::1", "port": 6379, "db": 1}),
        ("redis://under_score?db=2&socket_timeout=1.5", {"host": "under_score", "db": 2, "socket_timeout": 1.5}),
        ("redis://host?socket_keepalive=yes&health_check_interval=30&protocol=2", {"health_check_interval": 30}),
        ("rediss://host:6380/0?ssl_cert_reqs=none&ssl_check_hostname=false", {"ssl_cert_reqs": "none"}),
        ("rediss://host?ssl_ca_certs=/etc/a@b/ca.pem", {"ssl_ca_certs": "/etc/a@b/ca.pem"}),
        ("unix:///run/redis.sock", {"path": "/run/redis.sock"}),
        ("unix:///a%20b%2541%23%3F@%C3%A9/redis.sock?db=1", {"path": "/a b%41#?@é/redis.sock", "db": 1}),
        ("unix://user:secret@/run/redis.sock?password=other", {"username": "user", "path": "/run/redis.sock"}),
    ],
)
def test_a_redis_url_that_is_accepted_means_the_same_to_the_client_and_to_a_jobs_process(
    url: str, connection: dict[str, object]
) -> None:
    accepted = Settings.from_environ({"SAFECB_REDIS_URL": url}).redis_url
    assert accepted == url
    with Redis.from_url(accepted) as redis:
        redis.connection_pool.make_connection()
        kwargs = get_connection_kwargs(redis)
    assert connection.items() <= kwargs.items()
    if "path" in kwargs:
        kwargs["unix_socket_path"] = kwargs.pop("path")
    kwargs = {key: value for key, value in kwargs.items() if key not in ("retry", "driver_info")}
    Redis(**eval(repr(kwargs))).close()  # as RQ makes a job's process


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SAFECB_SERVICE_HOST", "10.0.0.1"),
        ("SAFECB_SERVICE_PORT", "8000"),
        ("SAFECB_SERVICE_PORT_HTTP", "8000"),
        ("SAFECB_PORT", "tcp://10.0.0.1:8000"),
        ("SAFECB_PORT_8000_TCP", "tcp://10.0.0.1:8000"),
        ("SAFECB_PORT_8000_TCP_ADDR", "10.0.0.1"),
        ("SAFECB_PORT_8000_TCP_PORT", "8000"),
        ("SAFECB_PORT_8000_TCP_PROTO", "tcp"),
        ("SAFECB_REDIS_SERVICE_HOST", "10.0.0.2"),
        ("SAFECB_REDIS_PORT_6379_TCP", "tcp://10.0.0.2:6379"),
    ],
)
def test_service_links_of_kubernetes_are_nobodys_settings(name: str, value: str) -> None:
    assert Settings.from_environ({name: value}) == Settings.from_environ({})


@pytest.mark.parametrize("name", ["SAFECB_SERVICE", "SAFECB_PORTS", "SAFECB_PORT_TCP", "SAFECB_HOST_NAME"])
def test_what_only_resembles_a_service_link_is_unknown(name: str) -> None:
    with pytest.raises(BadSetting, match=name):
        Settings.from_environ({name: "1"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SAFECB_LOG", "xml"),
        ("SAFECB_OPEN", "yes"),
        ("SAFECB_OPENAI_STRICT", "1"),
        ("SAFECB_SERVER", "example.org:8000"),
        ("SAFECB_SERVER_KEY", "a key"),
        ("SAFECB_TRUSTED_PROXIES", "proxy.example"),
        ("SAFECB_TRUSTED_PROXIES", "10.0.0.1/8"),
        ("SAFECB_TRUSTED_PROXIES", "*"),
    ],
)
def test_a_bad_value_of_a_servers_surroundings_is_named(name: str, value: str) -> None:
    with pytest.raises(BadSetting, match=name):
        Settings.from_environ({name: value})
