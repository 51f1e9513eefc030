#!/bin/sh
# Builds the tuned guest kernel from Debian's kernel source and puts it where
# kata looks first: CACHE/kernel/tuned/vmlinux. It takes 15 to 30 minutes on
# two idle CPUs, and 2 GB of disk meanwhile. Any kernel of the distribution
# does as well; this one boots faster, is smaller, and needs neither ACPI nor
# PCI. A build that was interrupted goes on where it was.
#
# KATA_CACHE_DIR  the cache directory (/var/cache/kata)
# KERNEL_PACKAGE  Debian's source package (linux-source-6.12)
# WORK            where to build (~/.cache/kata-kernel); removed at the end
# JOBS            how many compilers run at a time (as many as there are CPUs)
set -eu

cache=${KATA_CACHE_DIR:-/var/cache/kata}
package=${KERNEL_PACKAGE:-linux-source-6.12}
work=${WORK:-${XDG_CACHE_HOME:-$HOME/.cache}/kata-kernel}
jobs=${JOBS:-$(nproc)}
config=$(cd "$(dirname "$0")" && pwd)/config

fail() {
	echo "build.sh: $*" >&2
	exit 1
}

[ "$(uname -m)" = x86_64 ] || fail "the configuration is for x86_64, this machine is $(uname -m)"
missing=
for need in gcc:gcc make:make flex:flex bison:bison bc:bc xz:xz-utils; do
	command -v "${need%%:*}" >/dev/null || missing="$missing ${need#*:}"
done
[ -e /usr/include/libelf.h ] || missing="$missing libelf-dev"
[ -z "$missing" ] || fail "programs are missing; run: apt-get install$missing"

if [ ! -d "$work/linux" ]; then
	rm -rf "$work"
	mkdir -p "$work/new"
	cd "$work"
	echo "fetching $package"
	apt-get download -q -o APT::Sandbox::User=root "$package" ||
		fail "$package cannot be fetched; run: apt-get update, or set KERNEL_PACKAGE (apt-cache search linux-source)"
	echo "unpacking $package"
	dpkg-deb -x ./*.deb deb
	tar -xf deb/usr/src/linux-source-*.tar.xz -C new --strip-components=1
	rm -rf deb ./*.deb
	mv new linux
fi

cd "$work/linux"
make -s allnoconfig KCONFIG_ALLCONFIG="$config"
off=$(grep '=' "$config" | grep -v '^#' | grep -Fvx -f .config || true)
if [ -n "$off" ]; then
	echo "build.sh: this kernel does not take these options:" $off >&2
fi

echo "building; this takes a while"
export KBUILD_BUILD_USER=kata KBUILD_BUILD_HOST=kata KBUILD_BUILD_TIMESTAMP='1 January 2026'
make -s -j"$jobs" vmlinux

mkdir -p "$cache/kernel/tuned"
strip -o "$cache/kernel/tuned/vmlinux.new" vmlinux
cp .config "$cache/kernel/tuned/config"
mv "$cache/kernel/tuned/vmlinux.new" "$cache/kernel/tuned/vmlinux"
cd /
rm -rf "$work"
echo "the guest kernel is $cache/kernel/tuned/vmlinux"
