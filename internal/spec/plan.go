package spec

// Bind is a bind mount of the spec that the host shows to the guest in the
// shared directory.
type Bind struct {
	// Index numbers the container's bind mounts from 0, without gaps. The
	// guest finds it by that.
	Index int
	// Source is an absolute path on the host, Destination an absolute path
	// in the container.
	Source, Destination string
	// ReadOnly binds are so with all mounts below them.
	ReadOnly bool
	// Recursive binds show what is mounted below the source, too.
	Recursive bool
}
