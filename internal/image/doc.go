// Package image keeps container images on the host: it fetches them from a
// registry, an OCI layout or an archive, unpacks each layer once, and says how
// to mount them.
//
// A [Store] is a directory. Below it are
//
//	index.json             names and what they point to
//	configs/sha256/HEX     image configurations, as they were published
//	layers/sha256/HEX/fs   one unpacked layer each, in overlayfs form
//	tmp/                   work in progress
//	lock                   shared by readers and pulls, exclusive for removal
//
// A layer is named by the digest of its uncompressed tar stream (its diff ID),
// which is checked while it is unpacked; so is the chain above it, manifest to
// configuration to layers. What a layer contains is not trusted; package layer
// deals with that. Nothing is visible under its final name before it is complete and synced.
package image
