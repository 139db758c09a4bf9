package guest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/client/api/archive"
	"github.com/volantvm/volant/guest/wire"
)

const (
	// archiveIdle is how long the host may take for the next piece of an archive.
	archiveIdle = 2 * time.Minute
	// archiveBuffer is how much of an archive is sent at once, in bytes.
	archiveBuffer = 64 << 10
	// maxPadding bounds what may follow the end of an archive, in bytes.
	maxPadding = 1 << 20
	// drainIdle is how long a host that was told of an error may go on to send.
	drainIdle = 10 * time.Second
)

// archives packs and unpacks files of the root that the workload has. It is safe
// for concurrent use.
//
// The workload may change its files at any time, to lead the agent, which may do
// everything, where the workload may not go. A path is therefore resolved once,
// and then walked without following any link. What belongs to the kernel is
// neither read nor written.
type archives struct {
	files func() Files // as the workload sees them
	ready func() bool  // the root is the workload's
	slots chan struct{}
}

func newArchives(files func() Files, ready func() bool) *archives {
	return &archives{files: files, ready: ready, slots: make(chan struct{}, wire.MaxArchives)}
}

// fileError is an error with a code.
type fileError struct {
	code wire.ErrorCode
	err  error
}

func (e *fileError) Error() string { return e.err.Error() }
func (e *fileError) Unwrap() error { return e.err }

func fileErrorf(code wire.ErrorCode, format string, args ...any) error {
	return &fileError{code, fmt.Errorf(format, args...)}
}

// errKernel is why a directory is not entered.
var errKernel = errors.New("these files are the kernel's own")

// codeOf finds what an error is about.
func codeOf(err error) wire.ErrorCode {
	var own *fileError
	switch {
	case errors.As(err, &own):
		return own.code
	case errors.Is(err, archive.ErrMalformed):
		return wire.ErrorInvalid
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return wire.ErrorNoSpace
	case errors.Is(err, archive.ErrClash), errors.Is(err, archive.ErrChanged), errors.Is(err, errKernel),
		errors.Is(err, unix.EROFS), errors.Is(err, unix.ENOTDIR), errors.Is(err, fs.ErrPermission):
		return wire.ErrorConflict
	case errors.Is(err, fs.ErrNotExist):
		return wire.ErrorNotFound
	}
	return wire.ErrorFailed
}

// wireError is what the host is told.
func wireError(err error) (status int, e wire.Error) {
	e = wire.Error{Message: err.Error(), Code: codeOf(err)}
	switch e.Code {
	case wire.ErrorInvalid:
		return http.StatusBadRequest, e
	case wire.ErrorNotFound:
		return http.StatusNotFound, e
	case wire.ErrorConflict:
		return http.StatusConflict, e
	case wire.ErrorBusy:
		return http.StatusTooManyRequests, e
	case wire.ErrorNoSpace:
		return http.StatusInsufficientStorage, e
	}
	return http.StatusInternalServerError, e
}

// file is where a path leads.
type file struct {
	at       string // without links and dots
	name     string // what it is called in an archive
	contents bool   // what is in it is meant, not the file itself
	dir      bool   // it must be a directory
}

// find resolves a path. The last name is taken literally unless follow is set,
// or something stands behind it.
func (a *archives) find(p string, follow bool) (file, error) {
	if !path.IsAbs(p) || strings.ContainsRune(p, 0) || len(p) > archive.MaxName {
		return file{}, fileErrorf(wire.ErrorInvalid, "path: %.80q is not an absolute path of up to %d bytes", p, archive.MaxName)
	}
	cut := strings.LastIndexByte(p, '/') + 1
	dir, last := p[:cut], p[cut:]
	var f file
	var err error
	switch {
	case follow || last == "" || last == "." || last == "..":
		f.at, err = resolve(a.files(), p)
	default:
		f.at, err = resolve(a.files(), dir)
		f.at = path.Join(f.at, last)
	}
	if err != nil {
		return file{}, fileErrorf(wire.ErrorConflict, "%q: %w", p, archive.Cause(err))
	}
	asked := path.Base(strings.TrimRight(p, "/")) // "." of what was only slashes
	f.contents = asked == "."
	if f.name = asked; asked == "." || asked == ".." {
		f.name = path.Base(f.at)
	}
	f.dir = last == "" || last == "." || last == ".."
	return f, nil
}

func names(at string) []string {
	if at == "/" {
		return nil
	}
	return strings.Split(at[1:], "/")
}

// enter walks to a directory.
func (a *archives) enter(at string, check func(*archive.Dir, string) error) (*archive.Dir, error) {
	root, err := a.files().OpenRoot("/")
	if err != nil {
		return nil, err
	}
	defer root.Close()
	d, err := archive.Walk(root, names(at), check)
	if err != nil {
		return nil, fmt.Errorf("%q: %w", at, archive.Cause(err))
	}
	return d, nil
}

// stat describes a file.
func (a *archives) stat(f file) (wire.FileInfo, error) {
	dir, err := a.enter(path.Dir(f.at), nil)
	if err != nil {
		return wire.FileInfo{}, err
	}
	defer dir.Close() //nolint:errcheck // it was only read
	name := path.Base(f.at)
	if f.at == "/" {
		name = "."
	}
	info, err := dir.Lstat(name)
	if err != nil {
		return wire.FileInfo{}, fmt.Errorf("%q: %w", f.at, archive.Cause(err))
	}
	out := wire.FileInfo{Name: f.name, Path: f.at, Type: wire.FileOther, Size: info.Size(), ModTime: info.ModTime()}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		out.Mode, out.UID, out.GID = st.Mode&0o7777, st.Uid, st.Gid
	}
	if f.dir && !info.IsDir() {
		return wire.FileInfo{}, fileErrorf(wire.ErrorConflict, "%q is no directory", f.at)
	}
	switch mode := info.Mode(); {
	case mode.IsRegular():
		out.Type = wire.FileRegular
	case mode.IsDir():
		out.Type = wire.FileDir
	case mode&fs.ModeSymlink != 0:
		out.Type = wire.FileSymlink
		if out.Target, err = dir.Readlink(name); err != nil {
			return wire.FileInfo{}, fmt.Errorf("%q: %w", f.at, archive.Cause(err))
		}
	}
	return out, nil
}

// foreign refuses a directory of a file system that the kernel makes up. What is
// in /dev is not told by its type: see machineOwn.
func foreign(d *archive.Dir) error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(d.File.Fd()), &st); err != nil {
		return os.NewSyscallError("statfs", err)
	}
	switch st.Type {
	case unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC, unix.DEVPTS_SUPER_MAGIC,
		unix.DEBUGFS_MAGIC, unix.TRACEFS_MAGIC, unix.SECURITYFS_MAGIC, unix.BPF_FS_MAGIC, unix.PSTOREFS_MAGIC, unix.EFIVARFS_MAGIC,
		unix.BINFMTFS_MAGIC, unix.SELINUX_MAGIC, unix.NSFS_MAGIC, configfsMagic:
		return errKernel
	}
	return nil
}

// configfsMagic is CONFIGFS_MAGIC of linux/magic.h.
const configfsMagic = 0x62656570

// machineOwn reports whether a path without links is one of the machine's.
func machineOwn(at string) bool {
	for _, own := range []string{"/proc", "/sys", "/dev"} {
		if at == own || strings.HasPrefix(at, own+"/") {
			return at != "/dev/shm" && !strings.HasPrefix(at, "/dev/shm/")
		}
	}
	return false
}

// allowed checks the directories on the way to a file, by their names from the
// root on. /dev is one only on the way to /dev/shm.
func allowed(d *archive.Dir, name string) error {
	if at := "/" + name; at != "/dev" && machineOwn(at) {
		return errKernel
	}
	return foreign(d)
}

// pack writes a file and all below it. begin is called before the first byte.
func (a *archives) pack(ctx context.Context, w io.Writer, f file, begin func() error) error {
	if machineOwn(f.at) {
		return fmt.Errorf("%q: %w", f.at, errKernel)
	}
	if _, err := a.stat(f); err != nil {
		return err
	}
	dir, err := a.enter(path.Dir(f.at), allowed)
	if err != nil {
		return err
	}
	defer dir.Close() //nolint:errcheck // it was only read
	if err := begin(); err != nil {
		return err
	}
	name, as := path.Base(f.at), f.name
	if f.at == "/" {
		name = "."
	}
	if f.contents {
		as = "."
	}
	return archive.Pack(ctx, w, dir.Root, name, as, archive.PackOptions{
		Enter: func(d *archive.Dir, name string) (bool, error) {
			err := foreign(d)
			if machineOwn(path.Join(f.at, strings.TrimPrefix(name, as))) || errors.Is(err, errKernel) {
				return false, nil
			}
			return true, err
		},
	})
}

// unpack unpacks an archive into a directory.
func (a *archives) unpack(ctx context.Context, r io.Reader, f file, keep bool) error {
	if machineOwn(f.at) {
		return fmt.Errorf("%q: %w", f.at, errKernel)
	}
	dir, err := a.enter(f.at, allowed)
	if err != nil {
		return err
	}
	defer dir.Close() //nolint:errcheck // what was written is closed
	o := archive.ExtractOptions{
		Keep:  keep,
		Owner: func(int, int) (int, int) { return 0, 0 },
		Enter: func(d *archive.Dir, name string) error {
			if machineOwn(path.Join(f.at, name)) {
				return errKernel
			}
			return foreign(d)
		},
		Pipe: func(d *archive.Dir, name string) error {
			return unix.Mknodat(int(d.File.Fd()), name, unix.S_IFIFO|0o600, 0)
		},
		SetLinkTime: func(d *archive.Dir, name string, mtime time.Time) error {
			ts := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, unix.NsecToTimespec(mtime.UnixNano())}
			return unix.UtimesNanoAt(int(d.File.Fd()), name, ts, unix.AT_SYMLINK_NOFOLLOW)
		},
		LeftOut: func(name, why string) error {
			return fileErrorf(wire.ErrorInvalid, "%q is refused: %s", name, why)
		},
	}
	if keep {
		o.Owner = func(uid, gid int) (int, int) { return uid, gid }
	}
	return archive.Extract(ctx, r, dir.Root, o)
}

// archiveRequest is what the three routes are asked.
type archiveRequest struct {
	file
	flag bool // follow, or keep
}

// archiveRequest reads a request; flag is the name of its switch.
func (a *agent) archiveRequest(r *http.Request, flag string) (archiveRequest, error) {
	var req archiveRequest
	q := r.URL.Query()
	if s := q.Get(flag); s != "" {
		var err error
		if req.flag, err = strconv.ParseBool(s); err != nil {
			return req, fileErrorf(wire.ErrorInvalid, "%s: %q is neither true nor false", flag, s)
		}
	}
	if !a.archives.ready() {
		return req, fileErrorf(wire.ErrorConflict, "the guest has not come to its workload yet")
	}
	var err error
	req.file, err = a.archives.find(q.Get("path"), req.flag || r.Method == http.MethodPut)
	return req, err
}

func writeFileError(w http.ResponseWriter, err error) {
	status, e := wireError(err)
	_ = writeJSON(w, status, e)
}

func (a *agent) getStat(w http.ResponseWriter, r *http.Request) {
	req, err := a.archiveRequest(r, "follow")
	var info wire.FileInfo
	if err == nil {
		info, err = a.archives.stat(req.file)
	}
	if err != nil {
		writeFileError(w, err)
		return
	}
	_ = writeJSON(w, http.StatusOK, info)
}

// transfer begins to send or receive an archive; leave ends it. ctx ends with
// the request and with the guest, which does not wait for files to be moved.
func (a *agent) transfer(w http.ResponseWriter, r *http.Request) (ctx context.Context, leave func(), err error) {
	if !a.sessions.enter() {
		return nil, nil, &fileError{wire.ErrorConflict, errEnding}
	}
	select {
	case a.archives.slots <- struct{}{}:
	default:
		a.sessions.leave()
		return nil, nil, fileErrorf(wire.ErrorBusy, "%d archives are under way; one has to end first", wire.MaxArchives)
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	over, rc := make(chan struct{}), http.NewResponseController(w)
	var watch sync.WaitGroup
	watch.Go(func() {
		select {
		case <-a.quit:
			cancel(errEnding)
			if r.Method == http.MethodPut {
				_ = rc.SetReadDeadline(time.Now()) // not every connection has deadlines
			} else {
				_ = rc.SetWriteDeadline(time.Now())
			}
		case <-over:
		}
	})
	return ctx, func() {
		close(over)
		watch.Wait()
		cancel(nil)
		<-a.archives.slots
		a.sessions.leave()
	}, nil
}

// moving has every read and write of an archive in its own time.
type moving struct {
	rc  *http.ResponseController
	r   io.Reader
	w   io.Writer
	err error // of w
}

func (m *moving) Read(p []byte) (int, error) {
	_ = m.rc.SetReadDeadline(time.Now().Add(archiveIdle)) // not every connection has deadlines
	return m.r.Read(p)
}

func (m *moving) Write(p []byte) (int, error) {
	_ = m.rc.SetWriteDeadline(time.Now().Add(archiveIdle))
	n, err := m.w.Write(p)
	if err != nil {
		m.err = err
	}
	return n, err
}

func (a *agent) getArchive(w http.ResponseWriter, r *http.Request) {
	req, err := a.archiveRequest(r, "follow")
	if err != nil {
		writeFileError(w, err)
		return
	}
	ctx, leave, err := a.transfer(w, r)
	if err != nil {
		writeFileError(w, err)
		return
	}
	defer leave()
	begun := false
	out := &moving{rc: http.NewResponseController(w), w: w}
	buf := bufio.NewWriterSize(out, archiveBuffer)
	err = a.archives.pack(ctx, buf, req.file, func() error {
		w.Header().Set("Content-Type", archive.MediaType)
		w.WriteHeader(http.StatusOK)
		begun = true
		return out.rc.Flush() // the host is waiting for this much
	})
	if err != nil && !begun {
		writeFileError(w, err)
		return
	}
	err = errors.Join(err, buf.Flush())
	if err == nil {
		_ = out.rc.SetWriteDeadline(time.Time{}) // it would end the connection's next request
		return
	}
	if out.err != nil {
		return // the host has gone
	}
	_, e := wireError(err)
	if b, jsonErr := json.Marshal(e); jsonErr == nil {
		w.Header().Set(http.TrailerPrefix+wire.TrailerError, string(b))
		return
	}
	panic(http.ErrAbortHandler) // so that it cannot look whole
}

func (a *agent) putArchive(w http.ResponseWriter, r *http.Request) {
	req, err := a.archiveRequest(r, "keep")
	if err != nil {
		a.refuseArchive(w, r, err)
		return
	}
	ctx, leave, err := a.transfer(w, r)
	if err != nil {
		a.refuseArchive(w, r, err)
		return
	}
	defer leave()
	in := &moving{rc: http.NewResponseController(w), r: r.Body}
	if err = a.archives.unpack(ctx, in, req.file, req.flag); err == nil {
		err = padding(in)
	}
	if err != nil {
		if ctx.Err() != nil {
			err = fileErrorf(wire.ErrorConflict, "%w", context.Cause(ctx))
		}
		a.refuseArchive(w, r, err)
		return
	}
	_ = in.rc.SetReadDeadline(time.Time{}) // it would end the connection's next request
	w.WriteHeader(http.StatusNoContent)
}

// padding reads what may follow the end of an archive.
func padding(r io.Reader) error {
	n, err := io.CopyN(io.Discard, r, maxPadding+1)
	if err == io.EOF { //nolint:errorlint // it is bare
		return nil
	}
	if err == nil && n > maxPadding {
		return fileErrorf(wire.ErrorInvalid, "something follows the archive; it was unpacked")
	}
	return err
}

// refuseArchive answers before the host has sent everything, which would not
// look for an answer on a connection that was closed under it.
func (a *agent) refuseArchive(w http.ResponseWriter, r *http.Request, err error) {
	rc := http.NewResponseController(w)
	_ = rc.EnableFullDuplex() // else the server reads some first
	w.Header().Set("Connection", "close")
	_ = rc.SetWriteDeadline(time.Now().Add(drainIdle))
	writeFileError(w, err)
	if rc.Flush() != nil {
		return
	}
	// It stands until the connection is closed: the server reads on, too.
	_ = rc.SetReadDeadline(time.Now().Add(drainIdle))
	_, _ = io.Copy(io.Discard, r.Body) // until the host has closed it
}
