package vmm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/volantvm/volant/hv"
)

// environment is the name of the only variable that a VMM is given: what the
// record holds beyond the process's identity, for Find.
const environment = "VOLANT_MACHINE"

// Environment returns the environment of the VMM of a record that lacks the
// process's identity.
func Environment(rec hv.Record) ([]string, error) {
	b, err := json.Marshal(rec)
	if err != nil {
		return nil, err
	}
	return []string{environment + "=" + string(b)}, nil
}

// Find looks for the VMM that driver launched with dir: by the record in it, or
// else among all processes for one that was started with Environment and an
// argument vector that owns accepts. The error wraps hv.ErrGone when there is
// none.
func Find(ctx context.Context, driver, dir string, owns func(argv []string) bool) (hv.Record, error) {
	if rec, err := ReadRecord(dir); err == nil && rec.Driver == driver {
		if proc, err := Verify(rec); err == nil {
			proc.Close()
			return rec, nil
		}
	}
	pids, err := Processes()
	if err != nil {
		return hv.Record{}, err
	}
	for _, pid := range pids {
		if err := ctx.Err(); err != nil {
			return hv.Record{}, err
		}
		if !owns(Argv(pid)) {
			continue
		}
		if rec, ok := recognize(pid, driver, dir); ok {
			return rec, nil
		}
	}
	return hv.Record{}, hv.ErrGone
}

// Machines returns the records of the VMMs that driver launched with a directory
// below dir, whether or not it is there still: processes that were started with
// Environment and an argument vector that owns accepts as that of a machine in
// its directory.
func Machines(ctx context.Context, driver, dir string, owns func(dir string, argv []string) bool) ([]hv.Record, error) {
	pids, err := Processes()
	if err != nil {
		return nil, err
	}
	var recs []hv.Record
	for _, pid := range pids {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		rec, ok := inherited(pid)
		if !ok || rec.Driver != driver || !strings.HasPrefix(rec.Dir, dir+"/") || !owns(rec.Dir, Argv(pid)) {
			continue
		}
		if rec, ok = identify(rec, pid); ok {
			recs = append(recs, rec)
		}
	}
	return recs, nil
}

// EndMachine kills the process of a record and returns when it is gone, nil if
// it was.
func EndMachine(ctx context.Context, rec hv.Record) error {
	proc, err := Verify(rec)
	if errors.Is(err, hv.ErrGone) {
		return nil
	}
	if err != nil {
		return err
	}
	defer proc.Close()
	if err := proc.Kill(); err != nil {
		return err
	}
	select {
	case <-proc.Done():
		return nil
	case <-ctx.Done():
		return fmt.Errorf("process %d did not end after SIGKILL: %w", rec.PID, ctx.Err())
	}
}

// recognize rebuilds the record of a process from what Launch gave it.
func recognize(pid int, driver, dir string) (hv.Record, bool) {
	rec, ok := inherited(pid)
	if !ok || rec.Driver != driver || rec.Dir != dir {
		return hv.Record{}, false
	}
	return identify(rec, pid)
}

// inherited returns what a process was given with Environment.
func inherited(pid int) (rec hv.Record, ok bool) {
	for _, v := range Environ(pid) {
		if text, found := strings.CutPrefix(v, environment+"="); found {
			return rec, json.Unmarshal([]byte(text), &rec) == nil
		}
	}
	return rec, false
}

// identify adds to a record the process that it is of, if it is.
func identify(rec hv.Record, pid int) (hv.Record, bool) {
	var err error
	rec.PID = pid
	if rec.StartTime, err = StartTime(pid); err != nil {
		return hv.Record{}, false
	}
	proc, err := Verify(rec)
	if err != nil {
		return hv.Record{}, false
	}
	proc.Close()
	return rec, true
}
