package agent

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"

	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
	"github.com/seed-efd44b36/kata/internal/agent/rtnl"
	"golang.org/x/sys/unix"
)

// maxCommand is the most of a command line that is told, in bytes.
const maxCommand = 4096

// StatsContainer implements the service.
func (a *Agent) StatsContainer(_ context.Context, r *agentv1.StatsContainerRequest) (*agentv1.StatsContainerResponse, error) {
	c, err := a.container(r.GetContainer())
	if err != nil {
		return nil, fail(err)
	}
	st, err := c.group.Stats()
	if err != nil {
		return nil, fail(err)
	}
	links, err := rtnl.Links()
	if err != nil {
		return nil, fail(err)
	}
	for _, l := range links {
		if l.Name == "lo" {
			continue
		}
		st.Network = append(st.Network, &agentv1.NetworkStats{
			Name:    l.Name,
			RxBytes: l.Stats.RxBytes, RxPackets: l.Stats.RxPackets, RxErrors: l.Stats.RxErrors, RxDropped: l.Stats.RxDropped,
			TxBytes: l.Stats.TxBytes, TxPackets: l.Stats.TxPackets, TxErrors: l.Stats.TxErrors, TxDropped: l.Stats.TxDropped,
		})
	}
	return st, nil
}

// ListProcesses implements the service.
func (a *Agent) ListProcesses(_ context.Context, r *agentv1.ListProcessesRequest) (*agentv1.ListProcessesResponse, error) {
	c, err := a.container(r.GetContainer())
	if err != nil {
		return nil, fail(err)
	}
	pids, err := c.group.PIDs()
	if err != nil {
		return nil, fail(err)
	}
	execs := make(map[int]string)
	c.mu.Lock()
	for id, p := range c.execs {
		if p != nil {
			execs[p.PID()] = id
		}
	}
	c.mu.Unlock()
	resp := &agentv1.ListProcessesResponse{}
	for _, pid := range pids {
		p, err := readProcess(pid)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // it has just ended
		}
		if err != nil {
			return nil, fail(err)
		}
		p.Exec = execs[pid]
		resp.Processes = append(resp.Processes, p)
	}
	slices.SortFunc(resp.Processes, func(x, y *agentv1.Process) int { return cmp.Compare(x.GetPid(), y.GetPid()) })
	return resp, nil
}

// readProcess reads what /proc says of a process.
func readProcess(pid int) (*agentv1.Process, error) {
	dir := "/proc/" + strconv.Itoa(pid)
	stat, err := os.ReadFile(dir + "/status")
	if err != nil {
		return nil, err
	}
	p := parseStatus(stat)
	p.Pid = uint32(pid)
	if p.Command, err = readCommand(dir + "/cmdline"); err != nil {
		return nil, err
	}
	if p.GetCommand() == "" { // a zombie
		comm, err := os.ReadFile(dir + "/comm")
		if err != nil {
			return nil, err
		}
		p.Command = "[" + string(bytes.TrimSpace(comm)) + "]"
	}
	p.Command = string(bytes.ToValidUTF8([]byte(p.GetCommand()), []byte("?")))
	return p, nil
}

// parseStatus takes parent, user and state from the text of /proc/PID/status.
// Its first line, the name, is the process's own choice, but cannot hold a
// newline.
func parseStatus(text []byte) *agentv1.Process {
	p := &agentv1.Process{}
	number := func(v []byte) uint32 {
		n, _ := strconv.ParseUint(string(v), 10, 32)
		return uint32(n)
	}
	for line := range bytes.Lines(text) {
		key, value, _ := bytes.Cut(line, []byte(":"))
		f := bytes.Fields(value)
		if len(f) == 0 {
			continue
		}
		switch string(key) {
		case "State":
			p.State = string(f[0][:1])
		case "PPid":
			p.Ppid = number(f[0])
		case "Uid":
			p.Uid = number(f[0])
		}
	}
	return p
}

// readCommand reads the start of a command line, its arguments parted by
// spaces.
func readCommand(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxCommand))
	if err != nil {
		return "", err
	}
	b = bytes.TrimRight(b, "\x00")
	return string(bytes.ReplaceAll(b, []byte{0}, []byte(" "))), nil
}
