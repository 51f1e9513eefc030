package cli

import (
	"errors"
	"os"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// blockDevice looks at a block device of the host.
func blockDevice(path string) (specs.LinuxDevice, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return specs.LinuxDevice{}, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return specs.LinuxDevice{}, errors.New("it is no block device")
	}
	mode := os.FileMode(st.Mode & 0o777)
	return specs.LinuxDevice{
		Type: "b", Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev)),
		FileMode: &mode, UID: &st.Uid, GID: &st.Gid,
	}, nil
}
