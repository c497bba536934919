"""`safecb codebooks`: see and move versions, on the running server or in its store.

Offline is the way back when a server does not start: it needs the store's folder alone. The store is imported there
only: it brings torch, and the other commands start the sooner without.
"""

from __future__ import annotations

import base64
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.commands import trials
from cli.commands.connection import Server, connected, table
from codebook.mode import Mode
from codebook.trials.guarded import check_shares
from core.atomic import write_file
from core.bucket.bucket import Bucket
from core.bucket.shared_folder import SharedFolder
from core.errors import BadInput, BadSetting, NotFound
from core.settings import Settings
from core.storage import naming

if TYPE_CHECKING:
    from codebook.store import CodebookStore

app = typer.Typer(no_args_is_help=True, help="Codebook versions.")
app.command()(trials.shadow)
app.command()(trials.canary)

Version = Annotated[str, typer.Argument(help="Codebook version.")]
Offline = Annotated[bool, typer.Option("--offline", help="Use the store itself (SAFECB_STORE), without a server.")]
COPY_PATIENCE_S = 60.0
BY = "command line"  # in the audit log


def store(needs_key: bool = False) -> CodebookStore:
    """The store of the settings. Raises NotFound if there is none, BadSetting without a key that is needed."""
    from codebook.store import CodebookStore

    settings = Settings.from_environ(os.environ)
    if settings.bucket is None and not settings.store.is_dir():
        raise NotFound(f"there is no store at {settings.store}; set SAFECB_STORE or SAFECB_HOME")
    if needs_key and settings.signing_key is None:
        raise BadSetting("SAFECB_SIGNING_KEY", "", "the PEM file of a private Ed25519 key")
    return CodebookStore.of(settings)


@app.command("list")
def listed(offline: Offline = False, server: Server = None) -> None:
    """List all versions, oldest first; the active one has a star."""
    if offline:
        own = store()
        active, versions = own.active().version, [asdict(manifest) for manifest in own.versions()]
    else:
        with connected(server) as client:
            listing = client.codebooks()
        active, versions = listing["active"]["version"], listing["versions"]
    print(table(("", "version", "parent", "created", "harmful", "hash"), [_row(v, active) for v in versions]))


@app.command()
def show(version: Version, offline: Offline = False, server: Server = None) -> None:
    """Print a version's manifest as JSON."""
    if offline:
        manifest: dict[str, Any] = asdict(store().manifest(version))
    else:
        with connected(server) as client:
            manifest = client.codebook(version)
    print(json.dumps(manifest, indent=2))


@app.command()
def activate(version: Version, offline: Offline = False, server: Server = None) -> None:
    """Activate a version after every check."""
    if offline:
        _say(*(record.version for record in store().activate(version, by=BY)))
    else:
        with connected(server) as client:
            _say(*client.activate(version))


@app.command()
def rollback(
    to: Annotated[str | None, typer.Option(help="Version to activate; the one before if absent.")] = None,
    offline: Offline = False,
    server: Server = None,
) -> None:
    """Activate the version that was active before, or another."""
    if offline:
        _say(*(record.version for record in store().rollback(by=BY, to=to)))
    else:
        with connected(server) as client:
            _say(*client.rollback(to))


@app.command("traffic")
def share_traffic(
    shares: Annotated[list[str] | None, typer.Argument(help="VERSION=SHARE, the active one too, sum 1.")] = None,
    offline: Offline = False,
    server: Server = None,
) -> None:
    """Let versions share the traffic of callers who name none; without shares, print them with the counts so far."""
    traffic = dict(map(_share, shares or []))
    if offline:
        check_shares(traffic, Settings.from_environ(os.environ).judge)
        now = store().share(traffic, by=BY)[1] if traffic else store().active()
        split: dict[str, Any] = {"shares": now.traffic or {now.version: 1.0}, "evidence": {}}
    else:
        with connected(server) as client:
            if traffic:
                client.share(traffic)
            split = client.traffic()
    print(table(("version", "share"), [[version, f"{share:.1%}"] for version, share in split["shares"].items()]))
    for version, seen in split["evidence"].items():
        beside = f"{seen['beside_unsafe']} of {seen['beside_images']} of the active one"
        print(f"{version}: {seen['unsafe']} of {seen['images']} images unsafe, {beside}; e = {seen['e']:.1f}")
    if split.get("judge", "all") != "all":
        print(f"images judged by this server: {split['judge']}; no others count")


@app.command()
def revoke(version: Version, offline: Offline = False, server: Server = None) -> None:
    """Draw nothing under a version any more; if it is active, the one before it becomes active."""
    if offline:
        record = asdict(store().revoke(version, by=BY)[1])
    else:
        with connected(server) as client:
            record = client.revoke(version)
    print(f"{version} is revoked, {record['version']} is active")


@app.command()
def restore(version: Version, offline: Offline = False, server: Server = None) -> None:
    """Allow a revoked version again, without activating it."""
    if offline:
        store().restore(version, by=BY)
    else:
        with connected(server) as client:
            client.restore(version)
    print(f"{version} may be drawn under again")


@app.command()
def derive(
    version: Version,
    mode: Annotated[Mode, typer.Option(help="What becomes of images for which it fires.")],
    offline: Offline = False,
    server: Server = None,
) -> None:
    """Publish a version's tables in another mode, as a new version."""
    if offline:
        new = store().derive(version, mode).version
    else:
        with connected(server) as client:
            new = client.derive(version, mode)["version"]
    print(f"{new} is {version} in mode {mode}; safecb codebooks activate {new}")


@app.command()
def audit(offline: Offline = False, server: Server = None) -> None:
    """List activations, newest first: what became active, when, and by whom; from a server the last hundred."""
    if offline:
        moves = store().audit()[::-1]
    else:
        with connected(server) as client:
            moves = client.audit()
    heads = ("epoch", "move", "version", "before", "by", "when")
    rows = [[move[key] for key in ("epoch", "move", "version", "previous", "moved_by", "moved_at")] for move in moves]
    print(table(heads, rows))


@app.command("copy")
def copy_to(bucket: Annotated[str, typer.Argument(help="s3://BUCKET/PREFIX that holds no store yet.")]) -> None:
    """Copy the store, its versions and their history, from its folder into a bucket for several machines."""
    from codebook.places.bucket_place import BucketPlace
    from codebook.places.copying import copy_store
    from codebook.places.folder_place import FolderPlace

    settings = Settings.from_environ(os.environ)
    if settings.bucket is not None:
        raise BadSetting("SAFECB_STORE", settings.bucket, "the folder of the store to copy")
    target = Settings.from_environ({**os.environ, "SAFECB_STORE": bucket})
    if target.bucket is None:
        raise BadInput("bucket", bucket, "s3://BUCKET/PREFIX")
    place = BucketPlace(Bucket(target.bucket, COPY_PATIENCE_S), target.store)
    versions = copy_store(FolderPlace(settings.store), place)
    SharedFolder.policies(target).adopt()
    print(f"{len(versions)} versions are in {bucket}; set SAFECB_STORE to it on all machines")


@app.command()
def sign(versions: Annotated[list[str], typer.Argument(help="Codebook versions.")]) -> None:
    """Sign versions of the store that were published without a key, with that of SAFECB_SIGNING_KEY."""
    own = store(needs_key=True)
    for version in versions:
        own.sign(version)
        print(f"{version} is signed")


@app.command()
def compare(
    prompt: Annotated[str, typer.Argument(help="Text to draw.")],
    left: Version,
    right: Version,
    seed: Annotated[int | None, typer.Option(help="Seed of both images; random if absent.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for both images and the difference.")] = None,
    server: Server = None,
) -> None:
    """Draw a prompt under two versions with one seed, and print how much of the pixels differs."""
    if out is not None:
        with naming(out):  # before anything is drawn
            out.mkdir(parents=True, exist_ok=True)
    with connected(server) as client:
        answer = client.compare(prompt, seed, (left, right))
    difference = answer["difference"]
    by = f"by {difference['largest']} of 255 at most"
    print(f"seed {answer['seed']}: {difference['share']:.1%} of the pixels differ, {by}")
    if out is not None:
        for name, image in zip((left, right, "difference"), (*answer["images"], difference), strict=True):
            write_file(out / f"{name}.png", base64.b64decode(image["b64_png"]))


def _share(text: str) -> tuple[str, float]:
    version, _, share = text.partition("=")
    try:
        return version, float(share)
    except ValueError:
        raise BadInput("shares", text, "VERSION=SHARE, such as v4=0.1") from None


def _say(old: str, new: str) -> None:
    print(f"{new} is active" + (f", before it {old}" if new != old else " already"))


def _row(version: dict[str, Any], active: str) -> tuple[str | None, ...]:
    star = "*" if version["version"] == active else ""
    made, content = version["created"][:19], version["content_hash"][:12]
    return star, version["version"], version["parent"], made, _harm(version), content


def _harm(version: dict[str, Any]) -> str | None:
    """The share of harmful images after a version's round; None where nobody measured it."""
    after = version["figures"].get("harmful", {}).get("after", {}).get("hr")
    return None if after is None else f"{after['value']:.1%} of {after['n']}"
