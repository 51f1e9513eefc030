package jail

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/seed-efd44b36/kata/internal/agent/jail/inside"
	"github.com/seed-efd44b36/kata/internal/agent/jail/seccomp"
	"golang.org/x/sys/unix"
)

// newProcess translates how a program is run.
func newProcess(bad *problems, s *specs.Process, linux *specs.Linux) inside.Process {
	p := inside.Process{
		Args:       s.Args,
		Env:        s.Env,
		Cwd:        s.Cwd,
		Terminal:   s.Terminal,
		UID:        s.User.UID,
		GID:        s.User.GID,
		Groups:     s.User.AdditionalGids,
		Umask:      0o022,
		NoNewPrivs: s.NoNewPrivileges,
		AppArmor:   s.ApparmorProfile,
	}
	if s.OOMScoreAdj != nil {
		p.OOMScoreAdj = *s.OOMScoreAdj
	}
	if len(s.Args) == 0 {
		bad.add("process.args", "missing")
	}
	if !path.IsAbs(s.Cwd) {
		bad.add("process.cwd", "must be an absolute path")
	}
	if s.Terminal && s.ConsoleSize != nil {
		p.Width, p.Height = uint16(min(s.ConsoleSize.Width, 1<<16-1)), uint16(min(s.ConsoleSize.Height, 1<<16-1))
	}
	if s.User.Umask != nil {
		p.Umask = int(*s.User.Umask & 0o777)
	}
	if c := s.Capabilities; c != nil {
		p.Bounding = capabilities(bad, "bounding", c.Bounding)
		p.Effective = capabilities(bad, "effective", c.Effective)
		p.Permitted = capabilities(bad, "permitted", c.Permitted)
		p.Inheritable = capabilities(bad, "inheritable", c.Inheritable)
		p.Ambient = capabilities(bad, "ambient", c.Ambient)
	}
	p.Rlimits = newRlimits(bad, s.Rlimits)
	p.IOPriority = newIOPriority(bad, s.IOPriority)
	p.Scheduler = newScheduler(bad, s.Scheduler)
	if a := s.ExecCPUAffinity; a != nil {
		var err error
		// The final one is what the program runs with. The initial one is about
		// the time before, when there is only our own work, in which none of the
		// program's pages is touched.
		if p.CPUs, err = cpuList(a.Final); err != nil {
			bad.add("process.execCPUAffinity.final", "%w", err)
		}
		if _, err := cpuList(a.Initial); err != nil {
			bad.add("process.execCPUAffinity.initial", "%w", err)
		}
	}
	if linux.Personality != nil {
		p.Personality = newPersonality(bad, linux.Personality)
	}
	if linux.Seccomp != nil {
		f, err := seccomp.Compile(linux.Seccomp)
		if err != nil {
			bad.add("linux.seccomp", "%w", err)
		}
		p.Filter, p.FilterFlags = f.Program, f.Flags
	}
	return p
}

// capabilityNames in the order of their numbers.
var capabilityNames = [...]string{
	"CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
	"LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
	"SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
	"SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
	"MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
	"CHECKPOINT_RESTORE",
}

func capabilities(bad *problems, set string, names []string) uint64 {
	var mask uint64
	for _, name := range names {
		i := slices.Index(capabilityNames[:], strings.TrimPrefix(name, "CAP_"))
		if i < 0 {
			bad.add("process.capabilities."+set, "unknown capability %q", name)
			continue
		}
		mask |= 1 << i
	}
	return mask
}

// rlimitNames are the resources that can be limited, in the order of their numbers.
var rlimitNames = [...]string{
	"CPU", "FSIZE", "DATA", "STACK", "CORE", "RSS", "NPROC", "NOFILE", "MEMLOCK", "AS", "LOCKS", "SIGPENDING",
	"MSGQUEUE", "NICE", "RTPRIO", "RTTIME",
}

func newRlimits(bad *problems, list []specs.POSIXRlimit) []inside.Rlimit {
	var limits []inside.Rlimit
	seen := make(map[int]bool)
	for _, l := range list {
		i := slices.Index(rlimitNames[:], strings.TrimPrefix(l.Type, "RLIMIT_"))
		switch {
		case i < 0:
			bad.add("process.rlimits", "unknown type %q", l.Type)
		case seen[i]:
			bad.add("process.rlimits", "%s is there twice", l.Type)
		case l.Soft > l.Hard:
			bad.add("process.rlimits", "%s: the soft limit %d is above the hard limit %d", l.Type, l.Soft, l.Hard)
		}
		seen[i] = true
		limits = append(limits, inside.Rlimit{Name: l.Type, Resource: i, Cur: l.Soft, Max: l.Hard})
	}
	return limits
}

func newIOPriority(bad *problems, s *specs.LinuxIOPriority) *int {
	if s == nil {
		return nil
	}
	class := slices.Index([]specs.IOPriorityClass{"", specs.IOPRIO_CLASS_RT, specs.IOPRIO_CLASS_BE, specs.IOPRIO_CLASS_IDLE}, s.Class)
	if class < 1 || s.Priority < 0 || s.Priority > 7 {
		bad.add("process.ioPriority", "no such priority: %s %d", s.Class, s.Priority)
		return nil
	}
	const classShift = 13
	priority := class<<classShift | s.Priority
	return &priority
}

// schedulers are the policies by their names.
var schedulers = map[specs.LinuxSchedulerPolicy]uint32{
	specs.SchedOther:    unix.SCHED_NORMAL,
	specs.SchedFIFO:     unix.SCHED_FIFO,
	specs.SchedRR:       unix.SCHED_RR,
	specs.SchedBatch:    unix.SCHED_BATCH,
	specs.SchedIdle:     unix.SCHED_IDLE,
	specs.SchedDeadline: unix.SCHED_DEADLINE,
}

var schedulerFlags = map[specs.LinuxSchedulerFlag]uint64{
	specs.SchedFlagResetOnFork:  unix.SCHED_FLAG_RESET_ON_FORK,
	specs.SchedFlagReclaim:      unix.SCHED_FLAG_RECLAIM,
	specs.SchedFlagDLOverrun:    unix.SCHED_FLAG_DL_OVERRUN,
	specs.SchedFlagKeepPolicy:   unix.SCHED_FLAG_KEEP_POLICY,
	specs.SchedFlagKeepParams:   unix.SCHED_FLAG_KEEP_PARAMS,
	specs.SchedFlagUtilClampMin: unix.SCHED_FLAG_UTIL_CLAMP_MIN,
	specs.SchedFlagUtilClampMax: unix.SCHED_FLAG_UTIL_CLAMP_MAX,
}

func newScheduler(bad *problems, s *specs.Scheduler) *unix.SchedAttr {
	if s == nil {
		return nil
	}
	policy, ok := schedulers[s.Policy]
	if !ok {
		bad.add("process.scheduler", "unknown policy %q", s.Policy)
		return nil
	}
	a := &unix.SchedAttr{
		Size:     unix.SizeofSchedAttr,
		Policy:   policy,
		Nice:     s.Nice,
		Priority: uint32(max(s.Priority, 0)),
		Runtime:  s.Runtime,
		Deadline: s.Deadline,
		Period:   s.Period,
	}
	for _, name := range s.Flags {
		flag, ok := schedulerFlags[name]
		if !ok {
			bad.add("process.scheduler", "unknown flag %q", name)
		}
		a.Flags |= flag
	}
	return a
}

func newPersonality(bad *problems, s *specs.LinuxPersonality) *uint {
	if len(s.Flags) > 0 {
		bad.unsupported("linux.personality.flags", "flags")
	}
	const linux32 = 0x0008
	domain := uint(0)
	switch s.Domain {
	case specs.PerLinux:
	case specs.PerLinux32:
		domain = linux32
	default:
		bad.add("linux.personality", "unknown domain %q", s.Domain)
	}
	return &domain
}

// cpuList parses a list such as "0-3,7".
func cpuList(list string) ([]int, error) {
	if list == "" {
		return nil, nil
	}
	const most = 1024
	var cpus []int
	for item := range strings.SplitSeq(list, ",") {
		first, last, ranged := strings.Cut(strings.TrimSpace(item), "-")
		if !ranged {
			last = first
		}
		from, err := strconv.Atoi(first)
		if err != nil {
			return nil, fmt.Errorf("list of CPUs %q: %w", list, err)
		}
		to, err := strconv.Atoi(last)
		if err != nil {
			return nil, fmt.Errorf("list of CPUs %q: %w", list, err)
		}
		if from < 0 || to < from || to >= most {
			return nil, fmt.Errorf("list of CPUs %q: no such range: %s", list, item)
		}
		for c := from; c <= to; c++ {
			cpus = append(cpus, c)
		}
	}
	return cpus, nil
}
