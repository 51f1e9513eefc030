#!/bin/sh
# Installs the Debian packages that building, running and testing kata needs,
# and only those that are missing: when all are there it ends at once.
set -eu

if ! command -v go >/dev/null; then
	echo "setup: Go 1.26 or later is needed, and Debian's is older; see https://go.dev/doc/install" >&2
	exit 1
fi

# What kata itself uses.
run='qemu-system-x86 kmod iproute2 iptables containernetworking-plugins xz-utils'
# What the build and the tests use: runc, crun, runsc and busybox to compare with, mmdebstrap
# for test images, curl to fetch through a published port, containerd and procps
# (sysctl) for the tests of the shim, the rest for those of engines.
dev='make gcc git ca-certificates curl runc crun runsc containerd docker.io podman netavark aardvark-dns procps busybox mmdebstrap e2fsprogs dpkg-dev libc6-dev protobuf-compiler'

missing=
for package in $run $dev; do
	status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) || status=absent
	[ "$status" = installed ] || missing="$missing $package"
done
missing=${missing# }

if [ -z "$missing" ]; then
	exit 0
fi
if ! command -v apt-get >/dev/null; then
	echo "setup: this script knows only apt-get, which is not here; install what corresponds to: $missing" >&2
	exit 1
fi
if [ "$(id -u)" -ne 0 ]; then
	echo "setup: installing needs root; run: sudo $0" >&2
	exit 1
fi

echo "setup: installing $missing"
export DEBIAN_FRONTEND=noninteractive
# Retried with fresh package lists, which are often stale or absent in images.
# shellcheck disable=SC2086 # one word per package
if ! apt-get install -y -q --no-install-recommends $missing >/dev/null 2>&1; then
	apt-get update -q
	apt-get install -y -q --no-install-recommends $missing
fi
