package inside

import (
	"bytes"
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// maxPasswd is as much of /etc/passwd as is read.
const maxPasswd = 1 << 20

// withHome adds HOME to the environment if it is not there, as every runtime
// does: the user's in the container's /etc/passwd, or the root directory.
func withHome(env []string, uid uint32) []string {
	for _, kv := range env {
		if len(kv) >= 5 && kv[:5] == "HOME=" {
			return env
		}
	}
	home := "/"
	if dir := homeOf(readPasswd(), uid); dir != "" {
		home = dir
	}
	return append(env, "HOME="+home)
}

// readPasswd reads the container's file. It may be anything, a FIFO for one.
func readPasswd() []byte {
	fd, err := unix.Open("/etc/passwd", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	f := os.NewFile(uintptr(fd), "/etc/passwd")
	defer func() { _ = f.Close() }()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil
	}
	data, err := io.ReadAll(io.LimitReader(f, maxPasswd))
	if err != nil {
		return nil
	}
	return data
}

// homeOf returns the home directory of the first user with that id, "" if there
// is none.
func homeOf(passwd []byte, uid uint32) string {
	for line := range bytes.SplitSeq(passwd, []byte("\n")) {
		fields := bytes.Split(line, []byte(":"))
		if len(fields) < 6 {
			continue
		}
		id, err := strconv.ParseUint(string(fields[2]), 10, 32)
		if err == nil && uint32(id) == uid && !bytes.ContainsRune(fields[5], 0) {
			return string(fields[5])
		}
	}
	return ""
}
