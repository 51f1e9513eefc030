//go:build integration

package differential

import "regexp"

// difference is one that is allowed: what matches hide is replaced by with on
// both sides, so that the rest must still be the same.
type difference struct {
	variant, probe string // "" stands for any
	hide           *regexp.Regexp
	with           string
	reason         string
}

func (d difference) about(variant, probe string) bool {
	return (d.variant == "" || d.variant == variant) && (d.probe == "" || d.probe == probe)
}

// listedDifferences are all that there are.
func listedDifferences() []difference {
	return []difference{
		{
			hide: regexp.MustCompile(`(?m)^(DIR/|/ID/)?(\S*) (\S+) (\S+) (.*)- (?:ext4|9p|overlay|virtiofs|xfs|btrfs) .*$`), with: "FILE $3 $4 $5",
			reason: "files of the host come over a file server, which has its own type, options and root",
		},
		{
			hide: regexp.MustCompile(`(?m)( - tmpfs \S+ \S+),inode64$`), with: "$1",
			reason: "the default of another kernel configuration (CONFIG_TMPFS_INODE64)",
		},
		{
			hide: regexp.MustCompile(`(?m)( /sys(?:/fs/cgroup)? r[ow],\S* - (?:sysfs|cgroup2?) \S+) r[wo].*$`), with: "$1",
			reason: "the mount is read-only; that of its super block, which nobody sees but by it, need not be",
		},
	}
}
