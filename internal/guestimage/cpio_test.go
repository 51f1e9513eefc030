package guestimage

import (
	"errors"
	"fmt"
	"strconv"
)

// cpioEntry is what a test reads back from an archive.
type cpioEntry struct {
	Name string
	Mode uint64
	Rdev string
	Data string
}

// readCpio reads an archive of the newc kind, strictly.
func readCpio(data []byte) ([]cpioEntry, error) {
	var list []cpioEntry
	inodes := map[uint64]bool{}
	for pos := 0; ; {
		if len(data)-pos < 110 || string(data[pos:pos+6]) != "070701" {
			return nil, fmt.Errorf("no header at %d", pos)
		}
		var f [13]uint64
		for i := range f {
			v, err := strconv.ParseUint(string(data[pos+6+8*i:pos+14+8*i]), 16, 32)
			if err != nil {
				return nil, err
			}
			f[i] = v
		}
		pos += 110
		size, namesize := int(f[6]), int(f[11])
		if namesize < 2 || namesize > len(data)-pos || data[pos+namesize-1] != 0 {
			return nil, fmt.Errorf("bad name at %d", pos)
		}
		name := string(data[pos : pos+namesize-1])
		pos = (pos + namesize + 3) &^ 3
		if size > len(data)-pos {
			return nil, fmt.Errorf("%s is truncated", name)
		}
		if name == "TRAILER!!!" {
			if pos != len(data) {
				return nil, errors.New("bytes behind the end")
			}
			return list, nil
		}
		if inodes[f[0]] {
			return nil, fmt.Errorf("%s: inode %d is used twice", name, f[0])
		}
		inodes[f[0]] = true
		list = append(list, cpioEntry{name, f[1], fmt.Sprintf("%d:%d", f[9], f[10]), string(data[pos : pos+size])})
		pos = (pos + size + 3) &^ 3
	}
}
