package vmm

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/volantvm/volant/hv"
)

// Names of the files in an incarnation's directory.
const (
	RecordFile = "record.json"
	ExitFile   = "exit.json"
)

// maxRecord bounds what is read of a record, in bytes.
const maxRecord = 64 << 10

// WriteRecord keeps rec in its directory. It is whole or absent, also after a
// crash of the host.
func WriteRecord(rec hv.Record) error {
	return writeJSON(filepath.Join(rec.Dir, RecordFile), rec)
}

// ReadRecord reads the record in dir. The error wraps fs.ErrNotExist when
// there is none. A record that names another directory is refused: it has been
// copied, and what it says is not about this one.
func ReadRecord(dir string) (hv.Record, error) {
	var rec hv.Record
	path := filepath.Join(dir, RecordFile)
	if err := ReadJSON(path, &rec); err != nil {
		return hv.Record{}, err
	}
	if rec.Dir != dir {
		return hv.Record{}, fmt.Errorf("%s: is the record of %q", path, rec.Dir)
	}
	return rec, nil
}

// WriteExit keeps how the machine in dir ended, for a daemon that comes later.
func WriteExit(dir string, exit hv.Exit) error {
	return writeJSON(filepath.Join(dir, ExitFile), exit)
}

// ReadExit reads what WriteExit kept. The error wraps fs.ErrNotExist when
// there is nothing.
func ReadExit(dir string) (hv.Exit, error) {
	var exit hv.Exit
	err := ReadJSON(filepath.Join(dir, ExitFile), &exit)
	return exit, err
}

// ReadJSON reads what a driver keeps in a machine's or a snapshot's directory. A
// file that somebody else made there, such as the VMM's user, is refused.
func ReadJSON(path string, v any) error {
	f, err := openOwn(path)
	if err != nil {
		return err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxRecord))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

func writeJSON(path string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(path, append(b, '\n'))
}

// writeFile writes path whole: temporary file in the same directory, sync,
// rename, sync of the directory.
func writeFile(path string, b []byte) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+"-")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, RemoveIfThere(f.Name()))
		}
	}()
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
