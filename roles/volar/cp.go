package volar

import (
	"bufio"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/client"
	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/client/api/archive"
)

type cpCmd struct {
	Archive bool `short:"a" help:"Keep owners, and the bits that let a program run as its owner. Without it files in the VM are root's, and files here yours."`
	Follow  bool `short:"L" name:"follow-link" help:"Copy what SRC leads to, if it is a symbolic link."`
	Quiet   bool `short:"q" help:"Do not show how far it is."`

	Source string `arg:"" name:"src" help:"What to copy: a file or folder here, VM:/path, or - for a tar stream on standard input." complete:"files"`
	Dest   string `arg:"" name:"dest" help:"Where to: a file or folder here, VM:/path, or - for a tar stream on standard output." complete:"files"`
}

// Help says what cp(1) does not do.
func (cpCmd) Help() string {
	return `Copies files between this machine and a VM that runs. As docker cp has it:
what is copied to a folder that exists goes into it, else DEST is its new name,
whose folder must exist; a slash behind DEST means that it is a folder; SRC/. is
what is in SRC. Modes, times, symbolic and hard links are kept. A path without a
slash at its beginning begins at the VM's root; a file here with a colon in its
name is written ./a:b.`
}

// place is one of the two arguments of cp.
type place struct {
	vm   string // empty for this machine
	path string
	pipe bool // a tar stream
}

func (p place) String() string {
	if p.vm != "" {
		return p.vm + ":" + p.path
	}
	return p.path
}

func parsePlace(s string) (place, error) {
	vm, name, ok := strings.Cut(s, ":")
	switch {
	case s == "-":
		return place{pipe: true}, nil
	case s == "":
		return place{}, usagef("an empty name is no file")
	case !ok || isPath(s):
		return place{path: s}, nil
	}
	if err := api.ValidateName("VM", vm); err != nil {
		return place{}, &usageError{msg: err.Error(), hint: "a file here with a colon in its name is written ./" + s}
	}
	if name == "" {
		return place{}, &usageError{msg: fmt.Sprintf("%s names no file of the VM", s), hint: "give " + s + "/path"}
	}
	if name[0] != '/' {
		name = "/" + name
	}
	return place{vm: vm, path: name}, api.ValidatePath(name)
}

// Run copies.
func (cmd *cpCmd) Run(c *cli) error {
	src, err := parsePlace(cmd.Source)
	if err != nil {
		return err
	}
	dst, err := parsePlace(cmd.Dest)
	if err != nil {
		return err
	}
	if src.vm != "" && dst.vm != "" {
		return &usageError{
			msg:  "files are not copied from one VM to another",
			hint: fmt.Sprintf("let a stream do it: volar cp %s - | volar cp - %s", cmd.Source, cmd.Dest),
		}
	}
	if src.vm == "" && dst.vm == "" {
		return &usageError{msg: "neither SRC nor DEST is in a VM", hint: "write VM:/path for the one that is"}
	}
	cl, err := c.daemon()
	if err != nil {
		return err
	}
	j := &copying{c: c, cl: cl, cmd: cmd, src: src, dst: dst, began: time.Now()}
	defer j.end()
	switch {
	case src.pipe:
		return j.fromStdin()
	case dst.pipe:
		return j.toStdout()
	case dst.vm != "":
		return j.in()
	}
	return j.out()
}

// copying is one run of cp.
type copying struct {
	c        *cli
	cl       *client.Client
	cmd      *cpCmd
	src, dst place
	began    time.Time
	moved    int64 // bytes of the stream
	left     int   // how many files were left out

	mu    sync.Mutex // held while it is shown how far the stream is; taken before cli.noteMu
	drawn time.Time  // guarded by mu
	ended bool       // guarded by mu
}

// watched tells on a terminal how far the stream is, once it takes long.
func (j *copying) watched(r io.Reader) io.Reader {
	return readerFunc(func(p []byte) (int, error) {
		n, err := r.Read(p)
		j.moved += int64(n)
		j.show(time.Now())
		return n, err
	})
}

func (j *copying) show(now time.Time) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.ended || j.cmd.Quiet || now.Sub(j.began) < j.c.progressAfter || now.Sub(j.drawn) < redrawEvery {
		return
	}
	j.drawn = now
	j.c.redraw(fmt.Sprintf("copying %s: %s", printable(j.cmd.Source), size(j.moved)))
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// maxLeftOut is how many files that are left out are named.
const maxLeftOut = 10

func (j *copying) leftOut(name, why string) {
	if j.left++; j.left <= maxLeftOut {
		j.c.notef("%s is left out: %s", printable(name), why)
	}
}

// end takes the progress off the terminal.
func (j *copying) end() {
	j.mu.Lock()
	j.ended = true // who reads from the source may not have noticed yet
	j.mu.Unlock()
	j.c.redraw("")
	if more := j.left - maxLeftOut; more > 0 {
		j.c.notef("and %d more are left out", more)
	}
}

// fromStdin unpacks a tar stream, which may be compressed by gzip.
func (j *copying) fromStdin() error {
	if _, _, ok := sizeOf(j.c.stdin); ok {
		return usagef("a tar stream does not come from a terminal")
	}
	in := bufio.NewReaderSize(interruptible{j.c.ctx, j.c.stdin}, 64<<10)
	var r io.Reader = in
	if magic, _ := in.Peek(2); string(magic) == "\x1f\x8b" { // an error is met again
		z, err := gzip.NewReader(in)
		if err != nil {
			return fmt.Errorf("standard input: %w", err)
		}
		r = z
	}
	err := j.cl.CopyTo(j.c.ctx, j.dst.vm, j.dst.path, j.cmd.Archive, j.watched(r))
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, gzip.ErrChecksum) || errors.Is(err, gzip.ErrHeader) {
		return fmt.Errorf("standard input: %w", err)
	}
	return err
}

// interruptible ends a reader with a context, between two reads.
type interruptible struct {
	ctx context.Context
	r   io.Reader
}

func (i interruptible) Read(p []byte) (int, error) {
	if err := i.ctx.Err(); err != nil {
		return 0, err
	}
	return i.r.Read(p)
}

// toStdout writes a tar stream.
func (j *copying) toStdout() error {
	if _, _, ok := sizeOf(j.c.stdout); ok {
		return &usageError{msg: "a tar stream is not for a terminal", hint: "write it to a file: volar cp " + j.cmd.Source + " - >FILE"}
	}
	r, err := j.cl.CopyFrom(j.c.ctx, j.src.vm, j.src.path, j.cmd.Follow)
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = io.CopyBuffer(struct{ io.Writer }{j.c.stdout}, j.watched(r), make([]byte, 64<<10))
	return err
}

// source is what is copied into a VM.
type source struct {
	root     *os.Root // that it is in
	name     string   // in root
	base     string   // what the user calls it
	dir      bool
	contents bool // what is in it is meant
}

// openSource finds the file that is to be copied. The caller closes its root.
func (j *copying) openSource() (source, error) {
	p := j.src.path
	abs, err := filepath.Abs(p)
	if err != nil {
		return source{}, err
	}
	s := source{base: filepath.Base(abs), contents: filepath.Base(strings.TrimRight(p, "/")) == "." || abs == "/"}
	if last := p[strings.LastIndexByte(p, '/')+1:]; j.cmd.Follow || last == "" || last == "." || last == ".." {
		if abs, err = filepath.EvalSymlinks(abs); err != nil {
			return source{}, missing(p, err)
		}
	}
	info, err := os.Lstat(abs)
	if err != nil {
		return source{}, missing(p, err)
	}
	if s.dir = info.IsDir(); !s.dir && (s.contents || strings.HasSuffix(p, "/")) {
		return source{}, fmt.Errorf("%s is no folder", p)
	}
	s.name = filepath.Base(abs)
	if abs == "/" {
		s.name = "."
	}
	s.root, err = os.OpenRoot(filepath.Dir(abs))
	return s, err
}

// missing says that a file here is not there.
func missing(name string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return missingFile(name)
	}
	return err
}

// in copies into a VM.
func (j *copying) in() error {
	s, err := j.openSource()
	if err != nil {
		return err
	}
	defer s.root.Close()
	dir, as, err := j.destinationInVM(s)
	if err != nil {
		return err
	}
	r, w := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		out := bufio.NewWriterSize(w, 64<<10)
		err := archive.Pack(j.c.ctx, out, s.root, s.name, as, archive.PackOptions{LeftOut: j.leftOut})
		w.CloseWithError(errors.Join(err, out.Flush())) // nil is io.EOF
	}()
	err = j.cl.CopyTo(j.c.ctx, j.dst.vm, dir, j.cmd.Archive, j.watched(r))
	r.Close()
	<-done
	return err
}

// destinationInVM finds the directory of the VM that the source goes to, and
// what it is called there.
func (j *copying) destinationInVM(s source) (dir, as string, err error) {
	stat := func(p string) (api.File, error) { return j.cl.StatPath(j.c.ctx, j.dst.vm, p, true) }
	to, err := stat(j.dst.path)
	switch {
	case err == nil && to.Type == api.FileDir && s.contents:
		return to.Path, ".", nil
	case err == nil && to.Type == api.FileDir:
		return to.Path, s.base, nil
	case err == nil && s.dir:
		return "", "", api.Errorf(api.CodeConflict, "%s is a folder, and %s is none", j.src, j.dst)
	case err == nil:
		return path.Dir(to.Path), path.Base(to.Path), nil
	case api.CodeOf(err) != api.CodeNotFound:
		return "", "", err
	}
	if _, vmErr := stat("/"); vmErr != nil { // it is the VM that is not there
		return "", "", vmErr
	}
	trimmed := strings.TrimRight(j.dst.path, "/")
	if !s.dir && trimmed != j.dst.path {
		return "", "", api.Errorf(api.CodeNotFound, "there is no folder %s", j.dst)
	}
	cut := strings.LastIndexByte(trimmed, '/') + 1
	parent, base := trimmed[:cut], trimmed[cut:]
	if base == "." || base == ".." {
		return "", "", api.Errorf(api.CodeNotFound, "there is no folder %s", j.dst)
	}
	to, err = stat(parent)
	if api.CodeOf(err) == api.CodeNotFound {
		parent = place{vm: j.dst.vm, path: path.Clean(parent)}.String()
		return "", "", api.Errorf(api.CodeNotFound, "there is no folder %s for %s", parent, base).WithHint("volar exec %s mkdir -p %s makes it", j.dst.vm, path.Dir(trimmed))
	}
	return to.Path, base, err
}

// out copies out of a VM.
func (j *copying) out() error {
	if j.cmd.Archive && os.Geteuid() != 0 {
		j.c.notef("only root can give files away: all become yours")
	}
	// The names in the archive follow from what the user wrote: a VM that had a
	// say in them could choose which files here are replaced.
	at, contents := splitContents(j.src.path)
	name := path.Base(at)
	if name == ".." {
		return usagef("%s: name the folder itself", j.src)
	}
	if contents {
		j.src.path = strings.TrimSuffix(at, "/") + "/."
	}
	from, err := j.cl.StatPath(j.c.ctx, j.src.vm, j.src.path, j.cmd.Follow)
	if err != nil {
		return err
	}
	dir, as, err := j.destinationHere(from.Type == api.FileDir, contents, name)
	if err != nil {
		return err
	}
	switch {
	case !contents || as == "":
	case at == "/": // has neither a name nor a folder of its own
		if err := os.Mkdir(filepath.Join(dir, as), 0o755); err != nil {
			return err
		}
		dir, as = filepath.Join(dir, as), ""
	default: // a new folder is what the old one is
		j.src.path, contents = at+"/", false
	}
	o := archive.ExtractOptions{Keep: j.cmd.Archive, SetLinkTime: setLinkTime}
	o.LeftOut = func(name, why string) error {
		j.leftOut(name, why)
		return nil
	}
	if j.cmd.Archive && os.Geteuid() == 0 {
		o.Owner = func(uid, gid int) (int, int) { return uid, gid }
	}
	if !contents {
		o.Top, o.As = name, as
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	r, err := j.cl.CopyFrom(j.c.ctx, j.src.vm, j.src.path, j.cmd.Follow)
	if err != nil {
		return err
	}
	defer r.Close()
	return j.extract(r, root, o)
}

// splitContents returns a path without "/." at its end, which stands for what is
// in it, and whether that was there, or the path is that of the root.
func splitContents(p string) (at string, contents bool) {
	for p = strings.TrimRight(p, "/"); strings.HasSuffix(p, "/."); p = strings.TrimRight(p[:len(p)-1], "/") {
		contents = true
	}
	if p == "" {
		return "/", true
	}
	return p, contents
}

// maxRest is how much of a stream is read to learn why its archive is broken, in
// bytes.
const maxRest = 1 << 20

// extract unpacks what a VM sends, which is whole only when the stream is.
func (j *copying) extract(r io.Reader, root *os.Root, o archive.ExtractOptions) error {
	r = j.watched(r)
	err := archive.Extract(j.c.ctx, r, root, o)
	if j.c.ctx.Err() != nil {
		return j.c.ctx.Err()
	}
	_, restErr := io.CopyN(io.Discard, r, maxRest)
	if restErr != io.EOF && restErr != nil { //nolint:errorlint // it is bare
		return restErr // why the VM could not send more
	}
	if err == nil && restErr == nil {
		err = fmt.Errorf("%w: it goes on after its end", archive.ErrMalformed)
	}
	if errors.Is(err, archive.ErrMalformed) {
		return fmt.Errorf("what VM %s sent is refused: %w", j.src.vm, err)
	}
	return err
}

// destinationHere finds the folder here that the files go to, and what they are
// called there: "" for contents that go into it.
func (j *copying) destinationHere(isDir, contents bool, name string) (dir, as string, err error) {
	p := j.dst.path
	info, err := os.Stat(p)
	switch {
	case err == nil && info.IsDir() && contents:
		return p, "", nil
	case err == nil && info.IsDir():
		return p, name, nil
	case err == nil && isDir:
		return "", "", fmt.Errorf("%s is a folder, and %s is none", j.src, j.dst)
	case err == nil:
		if p, err = filepath.EvalSymlinks(p); err != nil {
			return "", "", err
		}
		return filepath.Dir(p), filepath.Base(p), nil
	case !errors.Is(err, fs.ErrNotExist):
		return "", "", err
	}
	trimmed := strings.TrimRight(p, "/")
	base := filepath.Base(trimmed)
	if !isDir && trimmed != p || base == "." || base == ".." {
		return "", "", fmt.Errorf("there is no folder %s", p)
	}
	parent := filepath.Dir(trimmed)
	if info, err := os.Stat(parent); err != nil || !info.IsDir() {
		return "", "", &hintError{fmt.Errorf("there is no folder %s for %s", parent, base), "mkdir -p " + parent + " makes it"}
	}
	return parent, base, nil
}

// setLinkTime sets the time of a symbolic link.
func setLinkTime(d *archive.Dir, name string, mtime time.Time) error {
	ts := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, unix.NsecToTimespec(mtime.UnixNano())}
	return unix.UtimesNanoAt(int(d.File.Fd()), name, ts, unix.AT_SYMLINK_NOFOLLOW)
}
