package report

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
)

// Find finds what a person has named, by an id of a sandbox or container, or the
// first letters of one. The container is nil if it is the sandbox, which has an
// owner.
func Find(stateDir, name string) (Sandbox, *Container, error) {
	states, err := List(stateDir)
	if errors.Is(err, fs.ErrPermission) {
		return Sandbox{}, nil, fmt.Errorf("%w; run it as root", err)
	}
	st, c, ferr := Pick(states, name)
	if ferr != nil {
		return st, c, errors.Join(ferr, err)
	}
	if !st.Alive {
		return st, c, fmt.Errorf("sandbox %s has no owner any more: it ended without cleaning up; `kata gc` removes what is left", st.ID)
	}
	return st, c, nil
}

// Pick picks among the sandboxes as Find does. The container that a sandbox is made
// for has its id, which means the sandbox.
func Pick(states []Sandbox, name string) (Sandbox, *Container, error) {
	type hit struct {
		sandbox   Sandbox
		container *Container
	}
	var found []hit
	var ids []string
	for _, exact := range []bool{true, false} {
		match := func(id string) bool {
			return id == name || !exact && name != "" && strings.HasPrefix(id, name)
		}
		for _, st := range states {
			if match(st.ID) {
				found, ids = append(found, hit{sandbox: st}), append(ids, st.ID)
			}
			for i, c := range st.Containers {
				if match(c.ID) && c.ID != st.ID {
					found, ids = append(found, hit{st, &st.Containers[i]}), append(ids, c.ID)
				}
			}
		}
		switch len(found) {
		case 0:
		case 1:
			return found[0].sandbox, found[0].container, nil
		default:
			return Sandbox{}, nil, fmt.Errorf("%q is the beginning of several ids: %s", name, strings.Join(ids, ", "))
		}
	}
	return Sandbox{}, nil, fmt.Errorf("there is no sandbox or container %q; `kata-runtime list` shows those that there are", name)
}
