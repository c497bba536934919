"""The Compose file: its containers' settings, what they share and what not, and HAProxy's configuration.

Nothing here says that the images run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import Any
from urllib.parse import urlsplit

import pytest

from cli.main import COMMANDS
from core.settings import Settings
from tests.support.servers.compose import COMPOSE, environ_of, read_compose, read_variables

HAPROXY = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")
IMAGE = {"SAFECB_HOME": "/data", "SAFECB_HOST": "0.0.0.0"}  # the Dockerfile's


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return read_compose()


@pytest.fixture(scope="module")
def services(compose: dict[str, Any]) -> dict[str, Any]:
    return dict(compose["services"])


@pytest.fixture(scope="module")
def own(services: dict[str, Any]) -> dict[str, Any]:
    return {name: part for name, part in services.items() if part["image"] == "safecb"}


def test_containers_have_settings_and_commands_that_exist(own: dict[str, Any]) -> None:
    assert own.keys() == {"one", "two", "worker"}
    for name, part in own.items():
        settings = Settings.from_environ(IMAGE | environ_of(part))
        assert settings.bucket and settings.open and settings.redis_url
        assert part["command"] == ["worker" if name == "worker" else "server"] and part["command"][0] in COMMANDS


def test_who_exports_the_variables_of_the_file_can_start_safecb_itself_too() -> None:
    variables = read_variables()
    assert {"STACK_IMAGE", "SAFECB_MODEL"} <= variables.keys()
    assert Settings.from_environ(variables).model == variables["SAFECB_MODEL"]


def test_a_job_has_its_share_beside_busy_servers(own: dict[str, Any]) -> None:
    weights = {name: part.get("cpu_shares", 1024) for name, part in own.items()}  # 1024: that of every container
    settings = Settings.from_environ(environ_of(own["worker"]))
    assert weights["worker"] / sum(weights.values()) == pytest.approx(settings.job_share, abs=0.01)


def test_nothing_is_shared_on_disk(compose: dict[str, Any], services: dict[str, Any]) -> None:
    volumes = [volume for part in services.values() for volume in part["volumes"] if not volume.startswith("./")]
    homes = [volume.partition(":")[0] for volume in volumes]
    assert len(set(homes)) == len(services) - 1 and set(homes) == set(compose["volumes"])  # HAProxy keeps nothing


def test_the_bucket_and_the_queue_are_those_of_the_services(services: dict[str, Any], own: dict[str, Any]) -> None:
    s3, (values, *others) = services["s3"]["environment"], [environ_of(part) for part in own.values()]
    assert others == [values, values]
    bucket, endpoint = urlsplit(values["SAFECB_STORE"]).hostname, urlsplit(values["AWS_ENDPOINT_URL"])
    assert bucket == s3["S3_BUCKET"] and values["AWS_ENDPOINT_URL"] in services["s3"]["healthcheck"]["test"][-1]
    assert {name: values.get(name, bucket) for name in s3} == s3  # its keys are theirs
    hosts = {endpoint.hostname, urlsplit(values["SAFECB_REDIS_URL"]).hostname}
    assert hosts == set(own["one"]["depends_on"]) == {"s3", "redis"}


def test_a_stopping_server_has_time_and_haproxy_the_address_of_each(
    compose: dict[str, Any], services: dict[str, Any], own: dict[str, Any]
) -> None:
    haproxy = services["haproxy"]
    assert (COMPOSE / haproxy["volumes"][0].split(":")[0]).is_file()
    addresses = {name: address for name, address in haproxy["environment"].items() if name != "BIND"}
    assert sorted(addresses.values()) == ["one:8000", "two:8000"]
    assert all(port.startswith("127.0.0.1:") for port in haproxy["ports"])  # open to this machine alone
    (subnet,) = [config["subnet"] for config in compose["networks"]["default"]["ipam"]["config"]]
    for part in own.values():
        settings = Settings.from_environ(IMAGE | environ_of(part))
        assert settings.trusted_proxies == (subnet,)
        assert int(part["stop_grace_period"].rstrip("s")) >= settings.drain_s + 10  # docs/reference


@pytest.mark.skipif(HAPROXY is None, reason="needs HAProxy")
def test_haproxy_takes_its_configuration(services: dict[str, Any]) -> None:
    command = [str(HAPROXY), "-c", "-f", str(COMPOSE / "haproxy.cfg")]
    done = subprocess.run(command, env={**os.environ, **services["haproxy"]["environment"]}, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert "balance leastconn" in (COMPOSE / "haproxy.cfg").read_text()
