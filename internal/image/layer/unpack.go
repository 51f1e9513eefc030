package layer

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	whiteoutPrefix = ".wh."
	// whiteoutMeta starts names that are aufs' own and no files of the image.
	whiteoutMeta   = ".wh..wh."
	whiteoutOpaque = ".wh..wh..opq"
	xattrRecord    = "SCHILY.xattr."
)

// Limits bound what one layer may use, so that a small archive cannot fill
// the host's memory or, unnoticed, its disk. Zero fields have defaults.
type Limits struct {
	// Bytes of file content, and of the tar stream, in one layer.
	Bytes int64
	// Entries in one layer.
	Entries int
	// NameBytes is the length of all names of one layer together, and of
	// those that have to be remembered of it.
	NameBytes int64
}

// WithDefaults returns l with what is zero filled in.
func (l Limits) WithDefaults() Limits {
	if l.Bytes == 0 {
		l.Bytes = 128 << 30
	}
	if l.Entries == 0 {
		l.Entries = 4 << 20
	}
	if l.NameBytes == 0 {
		l.NameBytes = 512 << 20
	}
	return l
}

// Info is what is to be known of an unpacked layer.
type Info struct {
	// Bytes of file content.
	Bytes int64
	// Entries of the tar stream.
	Entries int
	// Implied says that the tar stream names files in directories that it
	// does not name; those were made like the ones of the layers below, so
	// that the result belongs to them.
	Implied bool
	// Dropped counts extended attributes that were left out.
	Dropped int
}

// unpacker writes one layer. Only it has access to the directory meanwhile;
// what it defends against is the stream.
type unpacker struct {
	dir    string
	root   *os.File
	merged Tree // dir and the layers below it
	limits Limits
	buf    []byte
	done   Info

	nameBytes int64
	// dirTimes has the directories whose times are to be set at the end, when
	// nothing is made in them any more, by their paths without links.
	dirTimes map[string]time.Time
	// parent is the directory of the last entry, as most entries are
	// followed by one beside them. Nil: none.
	parent     *os.File
	parentPath string // as it was asked for
	parentReal string // without symbolic links
}

// Unpack reads a tar stream into the empty directory dir, in the form that
// overlayfs wants of a lower layer: a removed file is a character device 0:0,
// a replaced directory has the "opaque" attribute. lowers are the layers below,
// the topmost first.
func Unpack(ctx context.Context, dir string, r io.Reader, lowers []string, limits Limits) (Info, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return Info{}, fmt.Errorf("open %s: %w", dir, err)
	}
	u := &unpacker{
		dir:    dir,
		root:   os.NewFile(uintptr(fd), dir),
		merged: Tree{Dirs: append([]string{dir}, lowers...)},
		limits: limits.WithDefaults(),
		buf:    make([]byte, 256<<10),

		dirTimes: make(map[string]time.Time),
	}
	defer func() { _ = u.root.Close() }()
	defer u.forgetParent()

	limited := &limitReader{ctx: ctx, r: r, left: u.limits.Bytes}
	tr := tar.NewReader(limited)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return Info{}, fmt.Errorf("read layer: %w", err)
		}
		if err := u.entry(h, tr); err != nil {
			return Info{}, fmt.Errorf("unpack %q: %w", shorten(h.Name), err)
		}
	}
	// The digest covers what may follow the end of the archive.
	if _, err := io.CopyBuffer(io.Discard, limited, u.buf); err != nil {
		return Info{}, fmt.Errorf("read layer: %w", err)
	}
	if err := u.setDirTimes(); err != nil {
		return Info{}, err
	}
	return u.done, nil
}

func (u *unpacker) entry(h *tar.Header, content io.Reader) error {
	if u.done.Entries++; u.done.Entries > u.limits.Entries {
		return fmt.Errorf("layer has more than %d entries", u.limits.Entries)
	}
	if err := u.countName(h.Name); err != nil {
		return err
	}
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name, err := cleanName(h.Name)
	if err != nil {
		return err
	}
	if name == "" {
		if h.Typeflag != tar.TypeDir {
			return errors.New("root of the layer is not a directory")
		}
		return u.setRoot(h)
	}
	dir, base := parentOf(name), path.Base(name)
	if strings.HasPrefix(base, whiteoutMeta) && base != whiteoutOpaque {
		return nil
	}
	parent, err := u.openParent(dir)
	if err != nil {
		return fmt.Errorf("directory %q: %w", dir, err)
	}
	switch {
	case base == whiteoutOpaque:
		return setOpaque(parent, "")
	case strings.HasPrefix(base, whiteoutPrefix):
		return u.whiteout(parent, strings.TrimPrefix(base, whiteoutPrefix))
	}
	return u.create(h, content, parent, base)
}

// countName counts a name against the limit.
func (u *unpacker) countName(name string) error {
	if u.nameBytes += int64(len(name)); u.nameBytes > u.limits.NameBytes {
		return fmt.Errorf("names of the layer are longer than %d bytes together", u.limits.NameBytes)
	}
	return nil
}

// setTimeLater remembers the time of a directory, whose path has no links in
// it and may be far longer than its name in the archive.
func (u *unpacker) setTimeLater(dir string, t time.Time) error {
	if _, ok := u.dirTimes[dir]; !ok {
		if err := u.countName(dir); err != nil {
			return err
		}
	}
	u.dirTimes[dir] = t
	return nil
}

// create makes the file that the header describes.
func (u *unpacker) create(h *tar.Header, content io.Reader, parent *os.File, base string) error {
	if h.Uid < 0 || h.Gid < 0 || int64(h.Uid) >= math.MaxUint32 || int64(h.Gid) >= math.MaxUint32 {
		return fmt.Errorf("owner %d:%d is out of range", h.Uid, h.Gid)
	}
	fd := int(parent.Fd())
	// The source of a hard link is opened first: the link may replace it.
	var source *os.File
	if h.Typeflag == tar.TypeLink {
		target, err := cleanName(h.Linkname)
		if err != nil {
			return fmt.Errorf("link to %q: %w", shorten(h.Linkname), err)
		}
		source, err = u.openLinkSource(target)
		if err != nil {
			return fmt.Errorf("link to %q: %w", shorten(h.Linkname), err)
		}
		defer func() { _ = source.Close() }()
		// Opening may have made directories and so have forgotten parent.
		if parent, err = u.openParent(parentOf(mustClean(h.Name))); err != nil {
			return err
		}
		fd = int(parent.Fd())
		if same, err := sameFile(source, fd, base); err != nil || same {
			return err
		}
	}
	opaque, keep, err := u.makeRoom(parent, base, h.Typeflag == tar.TypeDir)
	if err != nil {
		return err
	}
	mode := uint32(h.Mode) & 0o7777
	switch h.Typeflag {
	case tar.TypeDir:
		if !keep {
			if err := unix.Mkdirat(fd, base, 0o700); err != nil {
				return fmt.Errorf("mkdir: %w", err)
			}
			if opaque {
				if err := setOpaque(parent, base); err != nil {
					return err
				}
			}
		}
		if err := u.setTimeLater(path.Join(u.parentReal, base), h.ModTime); err != nil {
			return err
		}
	case tar.TypeReg, tar.TypeGNUSparse:
		if err := u.writeFile(h, content, fd, base); err != nil {
			return err
		}
	case tar.TypeLink:
		// By the descriptor, so that it is the file that was checked.
		if err := unix.Linkat(unix.AT_FDCWD, procPath(source, ""), fd, base, unix.AT_SYMLINK_FOLLOW); err != nil {
			return fmt.Errorf("link: %w", err)
		}
		return nil // attributes are those of the file linked to
	case tar.TypeSymlink:
		if err := unix.Symlinkat(h.Linkname, fd, base); err != nil {
			return fmt.Errorf("symlink: %w", err)
		}
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		if err := makeNode(h, fd, base); err != nil {
			return err
		}
	default:
		return fmt.Errorf("unknown type %q", h.Typeflag)
	}
	return u.setAttributes(h, parent, base, mode)
}

func (u *unpacker) setAttributes(h *tar.Header, parent *os.File, base string, mode uint32) error {
	fd := int(parent.Fd())
	if err := unix.Fchownat(fd, base, h.Uid, h.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("chown: %w", err)
	}
	// After chown, which clears file capabilities and setuid bits.
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, xattrRecord)
		if !ok {
			continue
		}
		if err := u.setXattr(procPath(parent, base), name, value); err != nil {
			return fmt.Errorf("set extended attribute %q: %w", name, err)
		}
	}
	if h.Typeflag != tar.TypeSymlink {
		// Not a symbolic link: it was made above, and nobody else is here.
		if err := unix.Fchmodat(fd, base, mode, 0); err != nil {
			return fmt.Errorf("chmod: %w", err)
		}
	}
	return setTime(fd, base, h.ModTime)
}

// setXattr sets an attribute of the file itself, not of what it links to.
func (u *unpacker) setXattr(file, name, value string) error {
	switch {
	case strings.HasPrefix(name, "trusted.overlay."), strings.HasPrefix(name, "user.overlay."):
		// They would change how the layers are stacked.
		return errors.New("attributes of overlayfs are not allowed in an image")
	case name == "security.capability",
		name == "system.posix_acl_access", name == "system.posix_acl_default",
		strings.HasPrefix(name, "user."):
	default:
		// Labels of security modules and the like are the host's.
		u.done.Dropped++
		return nil
	}
	err := unix.Lsetxattr(file, name, []byte(value), 0)
	if errors.Is(err, unix.ENOTSUP) || (errors.Is(err, unix.EPERM) && strings.HasPrefix(name, "user.")) {
		// The file system, or (user.*) the kind of file, has none.
		u.done.Dropped++
		return nil
	}
	return err
}

func (u *unpacker) setRoot(h *tar.Header) error {
	if err := unix.Fchown(int(u.root.Fd()), h.Uid, h.Gid); err != nil {
		return fmt.Errorf("chown: %w", err)
	}
	if err := unix.Fchmod(int(u.root.Fd()), uint32(h.Mode)&0o7777); err != nil {
		return fmt.Errorf("chmod: %w", err)
	}
	return u.setTimeLater("", h.ModTime)
}

func (u *unpacker) writeFile(h *tar.Header, content io.Reader, dir int, base string) error {
	// A sparse file's size can be much larger than its part of the stream.
	if h.Size > u.limits.Bytes-u.done.Bytes {
		return fmt.Errorf("layer is larger than %d bytes", u.limits.Bytes)
	}
	u.done.Bytes += h.Size
	fd, err := unix.Openat(dir, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("create: %w", err)
	}
	f := os.NewFile(uintptr(fd), base)
	n, err := io.CopyBuffer(struct{ io.Writer }{f}, content, u.buf)
	if err == nil && n != h.Size {
		err = fmt.Errorf("%d bytes instead of %d: %w", n, h.Size, io.ErrUnexpectedEOF)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("write: %w", err)
	}
	return nil
}

func makeNode(h *tar.Header, dir int, base string) error {
	kind := map[byte]uint32{tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK, tar.TypeFifo: unix.S_IFIFO}[h.Typeflag]
	if h.Devmajor < 0 || h.Devmajor > 1<<12-1 || h.Devminor < 0 || h.Devminor > 1<<20-1 {
		return fmt.Errorf("device %d:%d is out of range", h.Devmajor, h.Devminor)
	}
	dev := unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))
	if err := unix.Mknodat(dir, base, kind|0o600, int(dev)); err != nil {
		return fmt.Errorf("mknod: %w", err)
	}
	return nil
}

// whiteout hides base of the layers below.
func (u *unpacker) whiteout(parent *os.File, base string) error {
	if base == "" || base == "." || base == ".." {
		return errors.New("whiteout of no file")
	}
	fd := int(parent.Fd())
	var st unix.Stat_t
	err := unix.Fstatat(fd, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case errors.Is(err, unix.ENOENT):
	case err != nil:
		return fmt.Errorf("stat: %w", err)
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		// This layer has a directory of that name instead.
		return setOpaque(parent, base)
	default:
		return nil // it has another file of that name, which hides as well
	}
	if err := unix.Mknodat(fd, base, unix.S_IFCHR, 0); err != nil {
		return fmt.Errorf("mknod whiteout: %w", err)
	}
	return nil
}

// makeRoom removes what is at base already, for layers that name a file twice.
// A directory stays when a directory is to come. opaque says that there was a
// whiteout.
func (u *unpacker) makeRoom(parent *os.File, base string, forDir bool) (opaque, keep bool, err error) {
	fd := int(parent.Fd())
	var st unix.Stat_t
	err = unix.Fstatat(fd, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return false, false, nil
	}
	if err != nil {
		return false, false, fmt.Errorf("stat: %w", err)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		if forDir {
			return false, true, nil
		}
		dir, err := os.OpenRoot(procPath(parent, ""))
		if err != nil {
			return false, false, fmt.Errorf("open parent: %w", err)
		}
		err = dir.RemoveAll(base)
		_ = dir.Close()
		return false, false, err
	}
	if err := unix.Unlinkat(fd, base, 0); err != nil {
		return false, false, fmt.Errorf("replace: %w", err)
	}
	return isWhiteout(&st), false, nil
}

func (u *unpacker) setDirTimes() error {
	for dir, t := range u.dirTimes {
		f, err := u.openReal(dir)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
			continue // a later entry took its place
		}
		if err != nil {
			return fmt.Errorf("open directory %q: %w", shorten(dir), err)
		}
		err = setTime(unix.AT_FDCWD, procPath(f, ""), t)
		_ = f.Close()
		if err != nil {
			return fmt.Errorf("directory %q: %w", shorten(dir), err)
		}
	}
	return nil
}

func setTime(dir int, base string, t time.Time) error {
	ts, err := unix.TimeToTimespec(t)
	if err != nil {
		return fmt.Errorf("time %v: %w", t, err)
	}
	flags := unix.AT_SYMLINK_NOFOLLOW
	if dir == unix.AT_FDCWD {
		flags = 0 // a link of /proc/self/fd, which is to be followed
	}
	if err := unix.UtimesNanoAt(dir, base, []unix.Timespec{ts, ts}, flags); err != nil {
		return fmt.Errorf("set time: %w", err)
	}
	return nil
}

func setOpaque(parent *os.File, base string) error {
	if err := unix.Setxattr(procPath(parent, base), opaqueXattr, []byte("y"), 0); err != nil {
		return fmt.Errorf("mark directory as replaced: %w", err)
	}
	return nil
}

func sameFile(f *os.File, dir int, base string) (bool, error) {
	var a, b unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &a); err != nil {
		return false, fmt.Errorf("stat link source: %w", err)
	}
	err := unix.Fstatat(dir, base, &b, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("stat: %w", err)
	}
	return a.Dev == b.Dev && a.Ino == b.Ino, nil
}

// cleanName makes a name of the archive relative. "" is the root.
func cleanName(name string) (string, error) {
	if strings.IndexByte(name, 0) >= 0 {
		return "", errors.New("name contains a zero byte")
	}
	if len(name) >= unix.PathMax {
		return "", fmt.Errorf("name is longer than %d bytes", unix.PathMax-1)
	}
	for comp := range strings.SplitSeq(name, "/") {
		if comp == ".." {
			return "", errors.New(`name contains ".."`)
		}
	}
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	return name, nil
}

// mustClean is cleanName for a name that it has accepted before.
func mustClean(name string) string {
	name, _ = cleanName(name)
	return name
}

// shorten bounds what of the image gets into messages.
func shorten(s string) string {
	const most = 200
	if len(s) > most {
		return s[:most] + "..."
	}
	return s
}

// limitReader ends with an error, not with EOF, when the stream is too long
// or nobody waits for it any more.
type limitReader struct {
	ctx  context.Context
	r    io.Reader
	left int64
}

func (l *limitReader) Read(p []byte) (int, error) {
	if err := l.ctx.Err(); err != nil {
		return 0, err
	}
	if l.left <= 0 {
		if n, err := l.r.Read(p[:min(1, len(p))]); n == 0 {
			return 0, err
		}
		return 0, errors.New("stream is longer than the limit of a layer")
	}
	n, err := l.r.Read(p[:min(int64(len(p)), l.left)])
	l.left -= int64(n)
	return n, err
}
