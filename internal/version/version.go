// Package version tells which build of kata this is. The Makefile sets it
// through the linker; a plain `go build` leaves the defaults.
package version

// Version and Commit are variables only because the linker can set nothing
// else (-ldflags "-X …"); no code assigns to them.
var (
	// Version is the release, as in "0.1.0".
	Version = "0.1.0-dev"
	// Commit is the abbreviated hash of the source, empty when unknown.
	Commit string
)

// String returns the version and, when known, the commit: "0.1.0 (3f4d720)".
func String() string {
	if Commit == "" {
		return Version
	}
	return Version + " (" + Commit + ")"
}
