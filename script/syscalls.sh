#!/bin/sh
# Usage: syscalls.sh
# Prints which system calls a process of the guest makes to become a container, by the
# guest's own trace: how many, for how many milliseconds they have the processor, and
# for how many they wait (for the host, or for others). The machine is restored from a
# template, or a warm clone with WARM=1. The numbers of the calls are those of x86-64. Needs `make build` and an image with sh,
# mount and cat, in $IMAGE (default: busybox from the cache of the tests). $CONF is a
# file of further configuration without [hypervisor] and [factory].
set -eu

image=${IMAGE:-oci:$HOME/.cache/kata-test/busybox}
kata=$(dirname "$0")/../bin/kata
dir=$(mktemp -d)
remove() {
	if [ -s "$dir/key" ]; then
		"$kata" template rm "$(tail -1 "$dir/key")" >/dev/null
	fi
	rm -rf "$dir"
}
trap remove EXIT

cat ${CONF:+"$CONF"} - > "$dir/conf" <<CONF
[hypervisor]
kernel_params = "trace_event=raw_syscalls:*,sched:sched_switch trace_buf_size=16M"
[factory]
vm_cache_number = ${WARM:-0}
CONF
export KATA_CONF_FILE="$dir/conf"
"$kata" template create > "$dir/key"
if [ "${WARM:-0}" != 0 ]; then
	"$kata" run --rm --network none "$image" true
	tries=0
	until "$kata" template list | grep -q "^$(tail -1 "$dir/key").* 1\$"; do
		tries=$((tries + 1))
		[ "$tries" -lt 60 ] || { echo "syscalls.sh: no warm clone waits after a minute; see kata template list" >&2; exit 1; }
		sleep 1
	done
fi
"$kata" run --rm --network none --cap-add ALL "$image" /bin/sh -c \
	'mount -t tracefs t /mnt; echo 0 > /mnt/tracing_on; cat /mnt/trace' > "$dir/trace"

# A second reading knows the process: it is the last that has called pivot_root (155).
awk '
	BEGIN {
		n = split("0 read 1 write 3 close 5 fstat 72 fcntl 79 getcwd 80 chdir 155 pivot_root 157 prctl 165 mount 166 umount2 202 futex 217 getdents64 257 openat 258 mkdirat 259 mknodat 260 fchownat 262 newfstatat 266 symlinkat 267 readlinkat 269 faccessat 272 unshare 302 prlimit64 138 fstatfs 250 keyctl 428 open_tree 429 move_mount 430 fsopen 431 fsconfig 432 fsmount 437 openat2 439 faccessat2 442 mount_setattr", w)
		for (i = 1; i < n; i += 2) name[w[i]] = w[i + 1]
	}
	!match($0, /-[0-9]+ +\[[0-9]+\]/) { next }
	{
		pid = substr($0, RSTART + 1) + 0
		rest = substr($0, RSTART + RLENGTH)
		split(rest, f, " ")
		now = 1000 * f[2]
		call = f[5]
	}
	NR == FNR { if (f[3] == "sys_enter:" && call == 155) it = pid; next }
	f[3] == "sched_switch:" {
		if (pid == it) off = now
		if (index(rest, "next_pid=" it " ") && off) { away += now - off; off = 0 }
		next
	}
	pid != it { next }
	# Its plan comes by recvmsg (47), its answer goes by sendmsg (46).
	f[3] == "sys_exit:" && call == 47 { split("", count); split("", on); split("", wait); begun = now; own = away; done = 0; next }
	f[3] == "sys_enter:" { at = now; before = away; if (call == 46 && begun && !done) { done = now; end = away } }
	f[3] == "sys_exit:" && begun && !done { count[call]++; on[call] += now - at - (away - before); wait[call] += away - before; calls += now - at - (away - before); waits += away - before }
	END {
		printf "%-14s %6s %8s %8s\n", "", "calls", "running", "waiting"
		for (c in count) printf "%-14s %6d %8.1f %8.1f\n", (c in name) ? name[c] : c, count[c], on[c], wait[c] | "sort -k3,3 -rn | head -12"
		close("sort -k3,3 -rn | head -12")
		printf "%-14s %6s %8.1f %8.1f\n", "no call", "", done - begun - (end - own) - calls, end - own - waits
		printf "%-14s %6s %8.1f\n", "all", "", done - begun
	}' "$dir/trace" "$dir/trace"
