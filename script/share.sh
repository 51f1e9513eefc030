#!/bin/sh
# Usage: share.sh [ROUNDS]
# Times work with files in containers whose share is virtio-fs and 9p, in turns, and
# prints the medians in milliseconds. Needs `make build` and an image with perl and
# tar, in $IMAGE (default: Debian from the cache of the tests).
set -eu

rounds=${1:-3}
image=${IMAGE:-oci:$HOME/.cache/kata-test/debian}
kata=$(dirname "$0")/../bin/kata
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

cat > "$dir/work" <<'WORK'
t() { name=$1; shift; s=$(date +%s%N); "$@" >/dev/null 2>&1 || echo "$name failed" >&2; echo "$name $(( ($(date +%s%N) - s) / 1000000 ))"; }
cd /root && mkdir many
t "make 1000 files" perl -e 'for (0..999) { open F, ">", "many/$_" or die; print F "x"; close F }'
t "stat 1000 files" find many -newer /etc/passwd
t "tar 1000 files" tar cf /dev/null many
t "write 64 MiB" dd if=/dev/zero of=big bs=1M count=64 conv=fsync
t "read 64 MiB" sh -c 'cat big | tail -c 1'
t "remove 1000 files" rm -rf many
WORK

for round in $(seq "$rounds"); do
	for fs in virtio-fs 9p; do
		printf '[hypervisor]\nshared_fs = "%s"\n' "$fs" > "$dir/conf"
		"$kata" run --config "$dir/conf" --rm --network none -v "$dir:/bench:ro" "$image" sh /bench/work | sed "s/^/$fs /" >> "$dir/times"
	done
done
sort -V "$dir/times" | awk '
	{ n = $NF; $NF = ""; a[$0] = a[$0] " " n; c[$0]++ }
	END { for (k in a) { split(a[k], v, " "); m = c[k]; asort_(v, m); printf "%s%d ms\n", k, v[int((m + 1) / 2)] } }
	function asort_(v, m, i, j, x) { for (i = 2; i <= m; i++) { x = v[i] + 0; for (j = i - 1; j > 0 && v[j] + 0 > x; j--) v[j + 1] = v[j]; v[j + 1] = x } }
' | sort -k2
