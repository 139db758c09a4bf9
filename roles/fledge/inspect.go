package fledge

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"

	"github.com/volantvm/volant/build/superblock"
	"github.com/volantvm/volant/initramfs"
)

type inspectCmd struct {
	File   string `arg:"" placeholder:"FILE" help:"The archive or disk."`
	Output string `short:"o" enum:"table,json" default:"table" help:"table or json."`
}

// inspection is the JSON form of inspect for an archive. Its field names are API.
type inspection struct {
	File     string        `json:"file"`
	Digest   string        `json:"digest"`
	Size     int64         `json:"size_bytes"`
	Segments []segmentInfo `json:"segments"`
	Entries  []entryInfo   `json:"entries"`
}

type segmentInfo struct {
	Offset      int64  `json:"offset_bytes"`
	Length      int64  `json:"length_bytes"`
	Compression string `json:"compression"`
	Entries     int    `json:"entries"`
}

type entryInfo struct {
	Name     string `json:"name"`
	Mode     string `json:"mode"` // as ls -l prints it
	UID      uint32 `json:"uid"`
	GID      uint32 `json:"gid"`
	Nlink    uint32 `json:"nlink"`
	Size     int64  `json:"size_bytes"`
	MTime    uint32 `json:"mtime"` // seconds since 1970
	Linkname string `json:"linkname,omitempty"`
	Device   string `json:"device,omitempty"` // "major,minor"
	Segment  int    `json:"segment"`
}

// diskInspection is the JSON form of inspect for a disk. Its field names are API.
type diskInspection struct {
	File       string         `json:"file"`
	Digest     string         `json:"digest"`
	Size       int64          `json:"size_bytes"`
	Filesystem filesystemInfo `json:"filesystem"`
}

type filesystemInfo struct {
	Type        string `json:"type"`
	Size        int64  `json:"size_bytes"`
	BlockSize   int64  `json:"block_size_bytes"`
	Inodes      uint64 `json:"inodes"`
	Label       string `json:"label,omitempty"`
	UUID        string `json:"uuid,omitempty"`
	Compression string `json:"compression,omitempty"`
}

func (i *inspectCmd) Run(c *console) error {
	in, err := inspect(i.File)
	if err != nil {
		return fmt.Errorf("%s: %w", i.File, err)
	}
	if i.Output == "json" {
		enc := json.NewEncoder(c.stdout)
		enc.SetIndent("", "  ")
		return enc.Encode(in)
	}
	return in.table(c.stdout)
}

// inspected is what inspect found, as JSON encodes it.
type inspected interface{ table(io.Writer) error }

// inspect reads a disk, or else an archive.
func inspect(file string) (inspected, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	s, err := superblock.Read(f, fi.Size())
	if errors.Is(err, superblock.ErrUnknown) {
		return inspectArchive(file, f)
	}
	if err != nil {
		return nil, err
	}
	sum := sha256.New()
	size, err := io.Copy(sum, f)
	if err != nil {
		return nil, err
	}
	return &diskInspection{
		File: file, Digest: "sha256:" + hex.EncodeToString(sum.Sum(nil)), Size: size,
		Filesystem: filesystemInfo{s.Type, s.Size, s.BlockSize, s.Inodes, s.Label, s.UUID, s.Compression},
	}, nil
}

func (in *diskInspection) table(w io.Writer) error {
	bw := bufio.NewWriter(w)
	fs := in.Filesystem
	fmt.Fprintf(bw, "type         %s\nsize         %d\nblock size   %d\ninodes       %d\n", fs.Type, fs.Size, fs.BlockSize, fs.Inodes)
	for _, f := range [...]struct{ name, value string }{{"label", fs.Label}, {"uuid", fs.UUID}, {"compression", fs.Compression}} {
		if f.value != "" {
			fmt.Fprintf(bw, "%-12s %s\n", f.name, printable(f.value))
		}
	}
	fmt.Fprintf(bw, "\n%s: %d bytes, %s\n", in.File, in.Size, in.Digest)
	return bw.Flush()
}

func inspectArchive(file string, f *os.File) (*inspection, error) {
	sum := sha256.New()
	tee := io.TeeReader(f, sum)
	in := &inspection{File: file, Entries: []entryInfo{}}
	r := initramfs.NewReader(tee, initramfs.Limits{})
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
		e := entryInfo{
			Name: h.Name, Mode: lsMode(h.Mode), UID: h.UID, GID: h.GID, Nlink: h.Nlink,
			Size: h.Size, MTime: h.MTime, Linkname: h.Linkname, Segment: h.Segment,
		}
		if h.Mode&fs.ModeDevice != 0 {
			e.Device = fmt.Sprintf("%d,%d", h.Major, h.Minor)
		}
		in.Entries = append(in.Entries, e)
	}
	if _, err := io.Copy(io.Discard, tee); err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	in.Size = fi.Size()
	in.Digest = "sha256:" + hex.EncodeToString(sum.Sum(nil))
	for _, s := range r.Segments() {
		in.Segments = append(in.Segments, segmentInfo{s.Offset, s.Length, string(s.Compression), s.Entries})
	}
	return in, nil
}

func (in *inspection) table(w io.Writer) error {
	bw := bufio.NewWriter(w)
	widest := len("1024")
	for _, e := range in.Entries {
		widest = max(widest, len(strconv.FormatInt(e.Size, 10)), len(e.Device))
	}
	for _, e := range in.Entries {
		size := strconv.FormatInt(e.Size, 10)
		if e.Device != "" {
			size = e.Device
		}
		fmt.Fprintf(bw, "%s %2d %5d %5d %*s %s", e.Mode, e.Nlink, e.UID, e.GID, widest, size, printable(e.Name))
		if e.Linkname != "" {
			fmt.Fprintf(bw, " -> %s", printable(e.Linkname))
		}
		bw.WriteByte('\n')
	}
	bw.WriteByte('\n')
	for n, s := range in.Segments {
		fmt.Fprintf(bw, "segment %d: at byte %d, %d bytes, %s, %d entries\n", n, s.Offset, s.Length, s.Compression, s.Entries)
	}
	fmt.Fprintf(bw, "%s: %d bytes, %s\n", in.File, in.Size, in.Digest)
	return bw.Flush()
}

// printable quotes names that could do something to a terminal.
func printable(s string) string {
	for _, r := range s {
		if !strconv.IsPrint(r) {
			return strconv.Quote(s)
		}
	}
	return s
}

// lsMode prints a mode as ls -l does.
func lsMode(m fs.FileMode) string {
	b := []byte("-rwxrwxrwx")
	switch {
	case m.IsDir():
		b[0] = 'd'
	case m&fs.ModeSymlink != 0:
		b[0] = 'l'
	case m&fs.ModeCharDevice != 0:
		b[0] = 'c'
	case m&fs.ModeDevice != 0:
		b[0] = 'b'
	case m&fs.ModeNamedPipe != 0:
		b[0] = 'p'
	case m&fs.ModeSocket != 0:
		b[0] = 's'
	}
	for i := range 9 {
		if m&(1<<(8-i)) == 0 {
			b[i+1] = '-'
		}
	}
	special := func(at int, set bool, with, without byte) {
		switch {
		case !set:
		case b[at] == 'x':
			b[at] = with
		default:
			b[at] = without
		}
	}
	special(3, m&fs.ModeSetuid != 0, 's', 'S')
	special(6, m&fs.ModeSetgid != 0, 's', 'S')
	special(9, m&fs.ModeSticky != 0, 't', 'T')
	return string(b)
}
