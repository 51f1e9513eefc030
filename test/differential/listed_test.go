//go:build integration

package differential

import (
	"regexp"
	"strings"
)

// difference is one that is allowed: what matches hide is replaced by with on
// both sides, so that the rest must still be the same.
type difference struct {
	variant, probe string // of the variant the beginning; "" stands for any
	hide           *regexp.Regexp
	with           string
	reason         string
}

func (d difference) about(variant, probe string) bool {
	return strings.HasPrefix(variant, d.variant) && (d.probe == "" || d.probe == probe)
}

// listedDifferences are all that there are.
func listedDifferences() []difference {
	return []difference{
		{
			hide: regexp.MustCompile(`(?m)^(?:\S+ )?(/\S*) (r[ow]\S*) (?:master )?- (?:ext4|9p|overlay|virtiofs|xfs|btrfs) .*$`), with: "FILE $1 $2",
			reason: "files of the host come over a file server, which has its own type, options and root",
		},
		{
			hide: regexp.MustCompile(`(?m)( - tmpfs \S+ \S+),inode64$`), with: "$1",
			reason: "the default of another kernel configuration (CONFIG_TMPFS_INODE64)",
		},
		{
			hide: regexp.MustCompile(`(?m)(/sys(?:/fs/cgroup)? r[ow],\S* - (?:sysfs|cgroup2?) \S+) r[wo].*$`), with: "$1",
			reason: "the mount is read-only; its super block, which is reached by nothing else, need not be",
		},
		{
			hide: regexp.MustCompile(`(?m)^.* /sys/fs/cgroup\S* r.*\n`), with: "",
			reason: "the guest has cgroup version 2, whatever the host has",
		},
		{
			hide: regexp.MustCompile(`(?m)^\S* ?/proc/(sysrq-trigger|kcore|asound|latency_stats|timer_stats|sched_debug|scsi) r.*\n`), with: "",
			reason: "one kernel has them and the other has not",
		},
		{
			hide: regexp.MustCompile(`(?m)^l.* './core' -> '/proc/kcore'\n`), with: "",
			reason: "as above",
		},
		{
			hide: regexp.MustCompile(`(?m)^(?:\S+ )?(/proc/\S+|/sys/firmware|/home|/etc/group) r.* - (dev)?tmpfs .*$`), with: "MASK $1",
			reason: "masks are mounted with more of nosuid, nodev, noexec, and are the guest's /dev/null and not the container's, which it could replace",
		},
		{
			probe: "process flags", hide: regexp.MustCompile(`(?m)^SigIgn:.*\n`), with: "",
			reason: "runc hands on which signals its caller ignores; a machine begins with none",
		},
		{
			variant: "standard", probe: "network", hide: regexp.MustCompile(`(?m)^eth[01]\n`), with: "",
			reason: "a machine has its network devices (two where an engine may come with interfaces) even when nothing is connected to them; they are down then",
		},
		{
			variant: "standard", probe: "files of /sys", hide: regexp.MustCompile(`(?m)^hypervisor\n`), with: "",
			reason: "another kernel configuration",
		},
		{
			variant: "oom", probe: "stderr", hide: regexp.MustCompile(`(?m)^kata-runtime: killed for exceeding its memory limit \(OOM\)\n`), with: "",
			reason: "the cause is told by name",
		},
		{
			variant: "fails", probe: "exit", hide: regexp.MustCompile(`^(1|125|126|127)$`), with: "failed",
			reason: "runc has 1 for all; ours are those of shells and of docker run",
		},
		{
			variant: "fails", probe: "stderr",
			hide: regexp.MustCompile(`(?s)^.*(executable file not found in \$PATH|no such file or directory|permission denied|exec format error).*$`), with: "$1",
			reason: "engines look for these words; around them each runtime has its own",
		},
		{
			variant: "terminal", probe: "stdout", hide: regexp.MustCompile(` -?onlcr `), with: " ",
			reason: "runc in the foreground leaves the ends of lines to the caller's terminal",
		},
		{
			variant: "fails-no-command", probe: "stderr", hide: regexp.MustCompile(`(?s).*(args must not be empty|process.args: there is no command).*`), with: "no command",
			reason: "the same in other words",
		},
		{
			variant: "mounts", probe: "after", hide: regexp.MustCompile(`(?m)-rw(xr-x|-r--)r-[x-] ""$`), with: "EMPTY",
			reason: "files made to mount over are not executable",
		},
		{
			hide: regexp.MustCompile(`(unnamed file gets a name:) (?:linked|open ENOTSUP)`), with: "$1",
			reason: "O_TMPFILE does not pass the file server; programs have another way, as other file systems lack it, too",
		},
		{
			variant: "files-9p", hide: regexp.MustCompile(`(?m)^(exchange of names|whiteout|allocate|allocate beyond the end|punch a hole|open by a file's descriptor):.*$`), with: "$1",
			reason: "9p does not have them, as docs/storage.md lists; virtio-fs has",
		},
		{
			variant: "files-9p", hide: regexp.MustCompile(`(?m)^(times to the nanosecond: \d+) .*$`), with: "$1",
			reason: "times that a program sets are whole seconds with 9p",
		},
		{
			variant: "limits", probe: "quota", hide: regexp.MustCompile(`cat: can't open 'cpu.max': No such file or directory\n`), with: "",
			reason: "the name of the file in cgroup version 2 is tried first",
		},
	}
}
