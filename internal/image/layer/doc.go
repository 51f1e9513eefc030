// Package layer turns the tar stream of one image layer into a directory that
// overlayfs can use as a lower one, and reads such directories without mounting
// them.
//
// The stream is not trusted. Every path in it is resolved by openat2 inside the
// directory, with symbolic links meaning what they would mean in a container;
// all else goes by descriptors. The directory must be nobody else's while it is
// unpacked. A [Tree] may have a topmost directory that a container is writing to.
package layer
