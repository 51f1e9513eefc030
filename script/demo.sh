#!/bin/sh
# Runs the same few questions on the host and in a container, and prints the
# answers side by side. Called by `make demo`, which has built what is needed.
set -eu
cd "$(dirname "$0")/.."

if [ "$(id -u)" -ne 0 ]; then
	echo "demo: starting virtual machines and networks needs root; run: sudo make demo" >&2
	exit 1
fi

questions='uname -r
hostname
awk "/MemTotal/ { print int(\$2 / 1024) \" MiB\" }" /proc/meminfo
cut -d. -f1 /proc/uptime
grep -c ^processor /proc/cpuinfo
ls /proc | grep -c "^[0-9]"'

image=$(go run ./test/images busybox)
answers=$(mktemp -d)
trap 'rm -rf "$answers"' EXIT

command="bin/kata run --rm oci:$image uname -a"
printf '\n# uname -a\n'
uname -a
printf '\n# %s\n' "$command"
$command

printf '%s\n' 'kernel' 'host name' 'memory' 'uptime in s' 'processors' 'processes seen' >"$answers/names"
sh -c "$questions" >"$answers/host"
bin/kata run --rm "oci:$image" sh -c "$questions" >"$answers/container"

printf '\n%-16s %-34s %s\n' '' 'host' 'container'
paste "$answers/names" "$answers/host" "$answers/container" |
	awk -F '\t' '{ printf "%-16s %-34s %s\n", $1, $2, $3 }'
