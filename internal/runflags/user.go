package runflags

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/moby/sys/user"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// maxUserFile in bytes bounds /etc/passwd and /etc/group of an image.
const maxUserFile = 4 << 20

// ResolveUser looks a user up in the root file system's own /etc/passwd and
// /etc/group. spec is NAME or UID, with :GROUP if wanted; "" is root. groups
// are added to those that /etc/group gives the user.
func ResolveUser(files Files, spec string, groups []string) (specs.User, error) {
	u, _, err := resolveUser(files, spec, groups)
	return u, err
}

// Home returns the home directory that the root file system's /etc/passwd
// gives a user, "/" if none. spec is as for [ResolveUser].
func Home(files Files, spec string) (string, error) {
	_, home, err := resolveUser(files, spec, nil)
	return home, err
}

func resolveUser(files Files, spec string, groups []string) (specs.User, string, error) {
	// The parser reads ":group" as root's, which nobody means.
	if strings.HasPrefix(spec, ":") || strings.ContainsAny(spec, "\x00\n") {
		return specs.User{}, "", fmt.Errorf("--user %q: want NAME or UID, with :GROUP", spec)
	}
	passwd, err := readUserFile(files, "/etc/passwd")
	if err != nil {
		return specs.User{}, "", err
	}
	group, err := readUserFile(files, "/etc/group")
	if err != nil {
		return specs.User{}, "", err
	}
	found, err := user.GetExecUser(spec, &user.ExecUser{Home: "/"}, bytes.NewReader(passwd), bytes.NewReader(group))
	if err != nil {
		return specs.User{}, "", fmt.Errorf("--user %q: %w of the image; numbers need no entry", spec, err)
	}
	u := specs.User{UID: uint32(found.Uid), GID: uint32(found.Gid)}
	more, err := user.GetAdditionalGroups(groups, bytes.NewReader(group))
	if err != nil {
		return specs.User{}, "", fmt.Errorf("--group-add: %w", err)
	}
	seen := map[int]bool{}
	for _, g := range append(found.Sgids, more...) {
		if !seen[g] {
			seen[g] = true
			u.AdditionalGids = append(u.AdditionalGids, uint32(g))
		}
	}
	return u, firstOf(found.Home, "/"), nil
}

// readUserFile returns nothing for a file that is not there: numbers can be
// used without.
func readUserFile(files Files, name string) ([]byte, error) {
	if files == nil {
		return nil, nil
	}
	data, err := files.ReadFile(name, maxUserFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look up user: %w", err)
	}
	return data, nil
}
