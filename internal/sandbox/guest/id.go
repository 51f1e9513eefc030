package guest

import "fmt"

// maxID bounds ids so that every socket path below the default state
// directory fits into a sockaddr_un.
const maxID = 76

// CheckID tells whether s can be the id of a sandbox, container or exec:
// letters, digits, '_', '.', '-' (and not first a '.' or '-'), as containerd
// and Docker have them. Ids become file names on the host and in the guest.
func CheckID(s string) error {
	if s == "" || len(s) > maxID {
		return fmt.Errorf("id %q: must have 1 to %d characters: %w", s, maxID, ErrInvalid)
	}
	for i, c := range []byte(s) {
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !alnum && (i == 0 || c != '_' && c != '.' && c != '-') {
			return fmt.Errorf("id %q: only letters, digits, '_', '.' and '-' are allowed, and a letter or digit first: %w", s, ErrInvalid)
		}
	}
	return nil
}
