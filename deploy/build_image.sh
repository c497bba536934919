#!/usr/bin/env bash
# Builds the image from the Dockerfile and tries it, without Docker: buildah builds, podman runs. The containers have no
# network, no capabilities and a read-only root. docs/how-to/run-in-a-container.md has the figures.
set -euo pipefail

usage() {
    cat <<'END'
deploy/build_image.sh [options]: build the image from the Dockerfile, and try what it does when it runs.

  --image NAME        the image's name, localhost/safecb by default; it is kept, everything else is removed
  --no-build          try the image that is there
  --debootstrap       make the base image from Debian's packages, where no image registry can be reached; needs root
  --torch-index URL   build argument TORCH_INDEX: an index of torch's CPU builds
  --wheels FOLDER     pip finds wheels here too, such as a CPU build of torch
  --ca FILE           certificates that pip trusts during the build, behind a proxy with its own
  --runtime NAME      OCI runtime to run it with (runc, crun), where podman's own choice does not work here

Storage and isolation are set in buildah's and podman's own ways: CONTAINERS_STORAGE_CONF; STORAGE_DRIVER, vfs where
overlay cannot be mounted; BUILDAH_ISOLATION, chroot here unless set.
END
}

say() { printf '== %s\n' "$*"; }
die() {
    printf 'build_image.sh: %s\n' "$*" >&2
    exit 1
}

image=localhost/safecb base=localhost/safecb-base suite=bookworm # of Debian: the one whose Python is 3.11
build=1 debootstrap='' torch_index='' wheels='' ca='' runtime=()
while (($#)); do
    case $1 in
        --no-build) build='' ;;
        --debootstrap) debootstrap=1 ;;
        -h | --help) usage && exit ;;
        --image | --torch-index | --wheels | --ca | --runtime)
            (($# > 1)) || die "$1 needs a value"
            case $1 in
                --image) image=$2 ;;
                --torch-index) torch_index=$2 ;;
                --wheels) wheels=$(realpath -e -- "$2") || die "--wheels: there is no folder $2" ;;
                --ca) ca=$(realpath -e -- "$2") || die "--ca: there is no file $2" ;;
                --runtime) runtime=(--runtime "$2") ;;
            esac
            shift
            ;;
        *) usage >&2 && die "unknown option $1" ;;
    esac
    shift
done

need() { command -v "$1" >/dev/null || die "$1 is missing: $2"; }
need podman "install the package podman"
[[ -z $build ]] || need buildah "install the package buildah"
if [[ -n $build && -n $debootstrap ]]; then
    need debootstrap "install the package debootstrap, or leave the option out where a registry can be reached"
    ((EUID == 0)) || die "--debootstrap needs root"
fi

cd "$(dirname "$0")/.."
export BUILDAH_ISOLATION=${BUILDAH_ISOLATION:-chroot} DISABLE_HC_SYSTEMD=true # the health check is run below, by hand
work=$(mktemp -d /var/tmp/safecb-image.XXXXXX)
server=safecb-try-$$ worker=safecb-try-worker-$$

clean() {
    podman rm --force --volumes --time 0 "$server" "$worker" >/dev/null 2>&1 || true
    rm -rf --one-file-system "$work"
}
trap clean EXIT

# --- Build ---

make_base() {
    if podman image exists "$base:$suite"; then
        say "base image: $base:$suite is there already"
        return
    fi
    say "base image: debootstrap of $suite, as $base:$suite"
    local root=$work/root
    debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates "$suite" "$root" >"$work/log" ||
        { tail -n 20 "$work/log" >&2 && die "debootstrap failed"; }
    chroot "$root" python3 -m venv /usr/local # python and pip where the official image has them
    find "$root/var/cache/apt" "$root/var/lib/apt/lists" -type f -delete
    tar -C "$root" -c . | podman import --quiet --change 'ENV LANG=C.UTF-8' - "$base:$suite"
    rm -rf --one-file-system "$root"
}

build_image() {
    local options=(--format docker) # the OCI format has no HEALTHCHECK
    [[ -z $debootstrap ]] || options+=(--from "$base:$suite")
    [[ -z $torch_index ]] || options+=(--build-arg "TORCH_INDEX=$torch_index")
    if [[ -n $wheels$ca ]]; then # mounted for the commands alone; what stays is an empty /etc/pip.conf
        mkdir "$work/pip"
        printf '[global]\n' >"$work/pip/pip.conf"
        options+=(--volume "$work/pip:/mnt:ro" --volume "$work/pip/pip.conf:/etc/pip.conf:ro")
    fi
    if [[ -n $wheels ]]; then
        printf 'find-links = /media\n' >>"$work/pip/pip.conf"
        options+=(--volume "$wheels:/media:ro")
    fi
    if [[ -n $ca ]]; then
        cp -- "$ca" "$work/pip/ca.crt"
        printf 'cert = /mnt/ca.crt\n' >>"$work/pip/pip.conf"
    fi
    buildah bud "${options[@]}" --tag "$image" --file Dockerfile .
}

if [[ -n $build ]]; then
    begin=$SECONDS
    [[ -z $debootstrap ]] || make_base
    base_s=$((SECONDS - begin)) begin=$SECONDS
    say "build: $image from the Dockerfile"
    build_image
    build_s=$((SECONDS - begin))
else
    podman image exists "$image" || die "there is no image $image; leave --no-build out"
fi

# --- Try ---

milliseconds() { echo $(($(date +%s%N) / 1000000)); }
seconds() { printf '%d.%01d s' $(($1 / 1000)) $(($1 % 1000 / 100)); }

limit() { # podman's own, far higher limits may not be had on a machine that is a container itself
    local own
    own=$(ulimit "-H$1")
    [[ $own != unlimited ]] && ((own < 32768)) && echo "$own:$own" || echo 32768:32768
}

container=(
    --network none --read-only --tmpfs /tmp --cap-drop all --security-opt no-new-privileges --pull never
    --ulimit "nofile=$(limit n)" --ulimit "nproc=$(limit u)" --env SAFECB_OPEN=on
)
run() { podman "${runtime[@]}" run "${container[@]}" "$@"; }
in_server() { podman "${runtime[@]}" exec --interactive "$server" python -; }

say "user of the image, and what it may write"
# shellcheck disable=SC2016  # for the shell in the container
try='id; test "$(id -u)" != 0 && touch /data/a /tmp/a && ! touch /safecb/a 2>/dev/null && ! touch ~/a 2>/dev/null'
run --rm --entrypoint sh "$image" -c "$try" ||
    die "no container runs here (another --runtime may), or it runs as root, or not just /data and /tmp can be written"

for arguments in "server --help" "worker --help" doctor; do
    say "safecb $arguments"
    # shellcheck disable=SC2086  # two words
    run --rm "$image" $arguments || die "safecb $arguments failed in the image"
done

say "safecb serve"
begin=$(milliseconds)
run --detach --name "$server" "$image" >/dev/null
in_server >"$work/ready" <<'END' || { podman logs "$server" >&2 && die "the server did not become ready in 120 s"; }
import sys, time, urllib.request
until = time.monotonic() + 120
while time.monotonic() < until:
    try:
        urllib.request.urlopen("http://127.0.0.1:8000/health/ready", timeout=5).close()
        print(time.time_ns() // 10**6)  # here: podman may take its time to end
        sys.exit()
    except OSError:
        time.sleep(0.1)
sys.exit(1)
END
ready_ms=$(($(<"$work/ready") - begin))
podman "${runtime[@]}" healthcheck run "$server" || die "the image's health check fails although the server is ready"
in_server <<'END' || die "no PNG came from POST /generate"
import io, json, urllib.request
from PIL import Image
body = json.dumps({"prompt": "a red apple", "seed": 7}).encode()
head = {"Content-Type": "application/json", "Accept": "image/png"}
request = urllib.request.Request("http://127.0.0.1:8000/generate", body, head)
with urllib.request.urlopen(request, timeout=120) as answer:
    png = answer.read()
assert png.startswith(b"\x89PNG\r\n\x1a\n"), png[:80]
image = Image.open(io.BytesIO(png))
image.load()
print(f"POST /generate: PNG, {image.size[0]} x {image.size[1]}, {len(png)} bytes")
END
begin=$(milliseconds)
podman "${runtime[@]}" stop --time 60 "$server" >/dev/null
stop_ms=$(($(milliseconds) - begin))
code=$(podman inspect --format '{{.State.ExitCode}}' "$server")
podman logs "$server" 2>&1 | tail -n 3
((code == 0)) || die "SIGTERM ended safecb serve with $code (137: it was killed after 60 s)"

say "safecb worker, while it waits for Redis"
run --detach --name "$worker" --env SAFECB_REDIS_URL=redis://127.0.0.1:1/0 "$image" worker >/dev/null
for ((i = 0; i < 300; i++)); do
    [[ $(podman logs "$worker" 2>&1) != *"waiting for a Redis"* ]] || break
    sleep 0.1
done
((i < 300)) || { podman logs "$worker" >&2 && die "the worker did not wait for Redis"; }
begin=$(milliseconds)
podman "${runtime[@]}" stop --time 20 "$worker" >/dev/null
worker_ms=$(($(milliseconds) - begin))
worker_code=$(podman inspect --format '{{.State.ExitCode}}' "$worker")
((worker_code == 0 || worker_code == 143)) ||
    die "SIGTERM ended safecb worker with $worker_code (137: it was killed after 20 s)"

say "result"
[[ -z $build ]] || echo "base image $base_s s, build $build_s s"
bytes=$(podman image inspect --format '{{.Size}}' "$image")
echo "size $((bytes / 1000000)) MB, ready after $(seconds "$ready_ms")"
echo "SIGTERM: serve: $code after $(seconds "$stop_ms"), worker: $worker_code after $(seconds "$worker_ms")"
