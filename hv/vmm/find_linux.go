package vmm

import (
	"context"
	"encoding/json"
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

// recognize rebuilds the record of a process from what Launch gave it.
func recognize(pid int, driver, dir string) (hv.Record, bool) {
	for _, v := range Environ(pid) {
		text, ok := strings.CutPrefix(v, environment+"=")
		if !ok {
			continue
		}
		var rec hv.Record
		if json.Unmarshal([]byte(text), &rec) != nil || rec.Driver != driver || rec.Dir != dir {
			return hv.Record{}, false
		}
		var err error
		rec.PID = pid
		rec.StartTime, err = StartTime(pid)
		if err != nil {
			return hv.Record{}, false
		}
		proc, err := Verify(rec)
		if err != nil {
			return hv.Record{}, false
		}
		proc.Close()
		return rec, true
	}
	return hv.Record{}, false
}
