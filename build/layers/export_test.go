package layers

import (
	"bytes"
	"io"
)

// TarEntry is what the reader makes of one entry.
type TarEntry struct {
	Type         byte
	Name, Link   string
	Mode         uint32
	UID, GID     int64
	Sec          int64
	Nsec         uint32
	Major, Minor int64
	Content      []byte // holes filled
	Size         int64
}

// ReadTar reads an archive as Flatten does. Content of files larger than a MiB
// is not read.
func ReadTar(b []byte) ([]TarEntry, error) {
	used := newUsage(Limits{})
	layer := bytes.NewReader(b)
	r := newTarReader(layer, int64(len(b)), &used)
	var out []TarEntry
	for {
		h, err := r.next()
		if err == io.EOF {
			return out, nil
		}
		if err != nil {
			return out, err
		}
		e := TarEntry{h.typ, h.name, h.link, h.mode, h.uid, h.gid, h.sec, h.nsec, h.major, h.minor, nil, h.size}
		if h.typ == typeRegular && h.size <= 1<<20 {
			i := Inode{Mode: ModeRegular, Size: h.size}
			if h.length > 0 {
				i.data, i.at = &layerContent{layer}, h.offset
			}
			if h.sparse {
				i.extra = &extra{sparse: true, extents: h.extents}
			}
			f, err := i.Open()
			if err != nil {
				return out, err
			}
			if e.Content, err = io.ReadAll(f.Reader()); err != nil {
				return out, err
			}
		}
		out = append(out, e)
	}
}
