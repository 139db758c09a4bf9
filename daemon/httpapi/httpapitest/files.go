package httpapitest

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/client/api/archive"
)

// running finds a VM that runs, and the root of its files, which the caller
// closes.
func (s *Service) running(method, name string) (*os.Root, error) {
	s.lock()
	defer s.mu.Unlock()
	if _, err := s.up(method, name, "files are copied when it is running"); err != nil {
		return nil, err
	}
	return os.OpenRoot(s.Files)
}

// fileError says what went wrong with a VM's files as a guest would.
func fileError(name string, err error) error {
	code := api.CodeConflict
	switch {
	case errors.Is(err, fs.ErrNotExist):
		code = api.CodeNotFound
	case errors.Is(err, archive.ErrMalformed):
		code = api.CodeInvalid
	}
	return api.Errorf(code, "VM %s: %v", name, err)
}

// VMStat resolves links at the end of a path only, which must be relative.
func (s *Service) VMStat(_ context.Context, name, p string, follow bool) (api.File, error) {
	root, err := s.running("VMStat", name)
	if err != nil {
		return api.File{}, err
	}
	defer root.Close()
	at := path.Clean(p)
	stat := root.Lstat
	if follow || strings.HasSuffix(p, "/") || strings.HasSuffix(p, "/.") {
		stat = root.Stat
	}
	info, err := stat("." + at)
	if err != nil {
		return api.File{}, fileError(name, err)
	}
	f := api.File{Name: path.Base(at), Path: at, Type: api.FileOther, Mode: uint32(info.Mode().Perm()), Size: info.Size(), ModTime: info.ModTime()}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		f.UID, f.GID = st.Uid, st.Gid
	}
	switch mode := info.Mode(); {
	case mode.IsRegular():
		f.Type = api.FileRegular
	case mode.IsDir():
		f.Type = api.FileDir
	case mode&fs.ModeSymlink != 0:
		f.Type = api.FileSymlink
		f.Target, err = root.Readlink("." + at)
		return f, err
	}
	if full, err := filepath.EvalSymlinks(filepath.Join(s.Files, at)); err == nil {
		base, err := filepath.EvalSymlinks(s.Files)
		if err != nil {
			return f, err
		}
		f.Path = path.Join("/", strings.TrimPrefix(full, base))
	}
	return f, nil
}

func (s *Service) VMCopyFrom(ctx context.Context, name, p string, follow bool) (io.ReadCloser, error) {
	f, err := s.VMStat(ctx, name, p, follow)
	if err != nil {
		return nil, err
	}
	root, err := s.running("VMCopyFrom", name)
	if err != nil {
		return nil, err
	}
	as := f.Name
	if strings.Trim(p, "/") == "" || strings.HasSuffix(p, "/.") {
		as = "."
	}
	if s.CopyFrom != nil {
		root.Close()
		return s.CopyFrom(f), nil
	}
	r, w := io.Pipe()
	go func() {
		defer root.Close()
		dir, err := root.OpenRoot("." + path.Dir(f.Path))
		if err == nil {
			defer dir.Close()
			base := path.Base(f.Path)
			if f.Path == "/" {
				base = "."
			}
			err = archive.Pack(ctx, w, dir, base, as, archive.PackOptions{})
		}
		w.CloseWithError(err)
	}()
	return r, nil
}

func (s *Service) VMCopyTo(ctx context.Context, name, p string, keep bool, r io.Reader) error {
	f, err := s.VMStat(ctx, name, p, true)
	if err != nil {
		return err
	}
	root, err := s.running("VMCopyTo", name)
	if err != nil {
		return err
	}
	defer root.Close()
	dir, err := root.OpenRoot("." + f.Path)
	if err != nil {
		return fileError(name, err)
	}
	defer dir.Close()
	if err := archive.Extract(ctx, r, dir, archive.ExtractOptions{Keep: keep}); err != nil {
		return fileError(name, err)
	}
	_, err = io.Copy(io.Discard, r)
	return err
}
