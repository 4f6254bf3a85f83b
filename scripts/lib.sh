# Sourced by the other scripts: words for the reader, and what a fresh Debian machine lacks.
# shellcheck shell=bash

set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
BUILD=${BUILD:-$ROOT/build}
# The script that sources this, also after it has gone to another folder.
SELF=$(realpath "$0")
MODULE_NAME=ngx_http_matrix_user_hash_module

# What nginx.org's packages, and so the official images, are configured with, less the options of the compiler.
# shellcheck disable=SC2034 # for the scripts that source this
OFFICIAL_ARGUMENTS=(--prefix=/etc/nginx --sbin-path=/usr/sbin/nginx --modules-path=/usr/lib/nginx/modules
    --conf-path=/etc/nginx/nginx.conf --error-log-path=/var/log/nginx/error.log --http-log-path=/var/log/nginx/access.log
    --pid-path=/run/nginx.pid --lock-path=/run/nginx.lock --http-client-body-temp-path=/var/cache/nginx/client_temp
    --http-proxy-temp-path=/var/cache/nginx/proxy_temp --http-fastcgi-temp-path=/var/cache/nginx/fastcgi_temp
    --http-uwsgi-temp-path=/var/cache/nginx/uwsgi_temp --http-scgi-temp-path=/var/cache/nginx/scgi_temp
    --user=nginx --group=nginx --with-compat --with-file-aio --with-threads --with-http_addition_module
    --with-http_auth_request_module --with-http_dav_module --with-http_flv_module --with-http_gunzip_module
    --with-http_gzip_static_module --with-http_mp4_module --with-http_random_index_module --with-http_realip_module
    --with-http_secure_link_module --with-http_slice_module --with-http_ssl_module --with-http_stub_status_module
    --with-http_sub_module --with-http_v2_module --with-http_v3_module --with-mail --with-mail_ssl_module --with-stream
    --with-stream_realip_module --with-stream_ssl_module --with-stream_ssl_preread_module)

say() { printf '==> %s\n' "$*"; }

# die REASON FIX: what is wrong, and what would mend it.
die() {
    printf 'error: %s\n  fix: %s\n' "$1" "$2" >&2
    exit 1
}

# usage [REASON]: the comment at the head of the script, which says what it takes; exit status 2 as for any wrong argument.
usage() {
    [[ -z ${1:-} ]] || printf 'error: %s\n\n' "$1" >&2
    awk 'NR > 1 && !/^#/ { exit } NR > 1 { sub(/^# ?/, ""); print }' "$SELF" >&2
    exit 2
}

# no_arguments "$@": for a script that takes none.
no_arguments() {
    (($# == 0)) || usage "unknown argument: $1"
    arguments_done
}

# no_options "$@": for a script whose arguments are names.
no_options() {
    local argument
    for argument; do
        [[ $argument != -* ]] || usage "unknown argument: $argument"
    done
}

# A script calls this when it has accepted its arguments and done nothing yet: scripts/check-workflows asks only that.
arguments_done() { [[ -z ${ONLY_CHECK_ARGUMENTS:-} ]] || exit 0; }

# Runs a long command quietly into a log, with a dot every few seconds, and shows the log's end if it fails.
# with_progress LOG COMMAND...
with_progress() {
    local log=$1
    shift
    mkdir -p "$(dirname "$log")"
    "$@" >"$log" 2>&1 &
    local pid=$! waited=0
    while kill -0 "$pid" 2>/dev/null; do
        sleep 1
        waited=$((waited + 1))
        ((waited % 5 == 0)) && printf '.'
    done
    ((waited >= 5)) && printf '\n'
    if ! wait "$pid"; then
        tail -n 40 "$log" >&2
        die "$1 failed (all of its output is in $log)" "mend what the lines above say, then run this again"
    fi
}

# Installs the Debian packages that are missing. A build in an image has installed what it needs, by that system's names.
need_packages() {
    [[ -z ${PACKAGES_ARE_THERE:-} ]] || return 0
    local missing=() package
    for package; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
    done
    ((${#missing[@]} == 0)) && return
    command -v apt-get >/dev/null || die "this machine has no apt-get" "install what these Debian packages hold: ${missing[*]}"
    [[ $(id -u) == 0 ]] || die "missing Debian packages" "as root: apt-get install ${missing[*]}"
    say "installing ${missing[*]}"
    if ! apt_install "${missing[@]}" >"$(log_file apt)" 2>&1; then
        with_progress "$(log_file apt-update)" apt-get -q update
        with_progress "$(log_file apt)" apt_install "${missing[@]}"
    fi
}

# Without starting the servers that packages bring: the scripts start their own, on ports of their own.
apt_install() {
    local policy=/usr/sbin/policy-rc.d ours=
    if [[ ! -e $policy ]]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod +x "$policy"
        ours=1
    fi
    local status=0
    DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -q -y --no-install-recommends "$@" || status=$?
    [[ -z $ours ]] || rm -f "$policy"
    return "$status"
}

log_file() {
    mkdir -p "$BUILD/log"
    printf '%s/log/%s.log' "$BUILD" "$1"
}

need_rust() {
    command -v cargo >/dev/null || die "no cargo" "install Rust 1.88 or newer, 1.85 for the module alone (rustup, or Debian's)"
}

# The folder of the crate nginx-src, which carries nginx's source in nginx/.
nginx_crate() {
    cargo metadata --locked --format-version 1 --features vendored --manifest-path "$ROOT/Cargo.toml" | python3 -c '
import json, sys
(path,) = [p["manifest_path"] for p in json.load(sys.stdin)["packages"] if p["name"] == "nginx-src"]
print(path.removesuffix("/Cargo.toml"))'
}

# scratch_repository DIRECTORY: a repository with the tree as it is, uncommitted changes included, on main, with one commit.
scratch_repository() {
    mkdir -p "$1"
    git -C "$ROOT" ls-files -z --cached --others --exclude-standard --deduplicate |
        tar -C "$ROOT" --null --files-from - --ignore-failed-read --create | tar --extract --directory "$1"
    git -C "$1" init --quiet --initial-branch main
    git -C "$1" config user.name "Alice"
    git -C "$1" config user.email alice@example.org
    git -C "$1" add --all
    git -C "$1" commit --quiet --message "All of it"
}

# pack PARENT NAME SECONDS: a tar archive of PARENT/NAME on standard output, with that time, and with the same bytes whoever
# makes it, whenever, wherever.
pack() {
    tar --create --directory "$1" --format gnu --sort name --owner 0 --group 0 --numeric-owner --mode 'a+r,u+w,go-w,a+X' \
        --mtime "@$3" "$2"
}

# A file is replaced by rename: a running nginx keeps the one that it has mapped.
install_file() {
    mkdir -p "$(dirname "$2")"
    cp "$1" "$2.new" && mv -f "$2.new" "$2"
}

# The mirror that this machine's apt takes its own Debian release from.
debian_mirror() {
    local mirror
    # shellcheck disable=SC1091,SC2016 # not a file of ours; apt replaces what is in the quotes
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' \
        "Codename: $(. /etc/os-release && echo "${VERSION_CODENAME:-}")" | head -n 1)
    [[ -n $mirror ]] || die "no Debian mirror among apt's sources" "on a Debian machine: apt-get update"
    printf '%s' "$mirror"
}

if [[ ${1:-} == --help || ${1:-} == -h ]]; then
    (usage) 2>&1 || exit 0
fi
