package vmm_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/volantvm/volant/hv"
	"github.com/volantvm/volant/hv/vmm"
)

func TestRecordRoundTrip(t *testing.T) {
	rec := hv.Record{
		Driver: "qemu", Version: "7.2.0", Accel: hv.AccelTCG, ID: "vm1", Dir: t.TempDir(), PID: 7, StartTime: 1 << 60,
		BootID: "b", ArgvSHA256: "h", Channel: hv.ChannelSerial, ConsoleLog: "/log", ConsoleLimit: 5, CID: 3,
	}
	if _, err := vmm.ReadRecord(rec.Dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("ReadRecord of an empty directory: %v, want ErrNotExist", err)
	}
	for range 2 { // the second replaces the first
		if err := vmm.WriteRecord(rec); err != nil {
			t.Fatal(err)
		}
		if got, err := vmm.ReadRecord(rec.Dir); got != rec || err != nil {
			t.Errorf("ReadRecord() = %+v, %v, want %+v", got, err, rec)
		}
	}
	exit := hv.Exit{Reason: hv.ExitPanic, Detail: "why"}
	if err := vmm.WriteExit(rec.Dir, exit); err != nil {
		t.Fatal(err)
	}
	if got, err := vmm.ReadExit(rec.Dir); got != exit || err != nil {
		t.Errorf("ReadExit() = %+v, %v, want %+v", got, err, exit)
	}
	entries, err := os.ReadDir(rec.Dir)
	if err != nil || len(entries) != 2 {
		t.Errorf("directory holds %v, %v, want the record and the exit only", entries, err)
	}
}

func TestReadRecordRefuses(t *testing.T) {
	for name, content := range map[string]string{
		"torn":              `{"driver":"qemu","di`,
		"empty":             ``,
		"another directory": `{"driver":"qemu","dir":"/elsewhere"}`,
		"wrong type":        `{"pid":"7"}`,
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, vmm.RecordFile), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			if rec, err := vmm.ReadRecord(dir); err == nil {
				t.Errorf("ReadRecord of %q = %+v, want an error", content, rec)
			}
		})
	}
}
