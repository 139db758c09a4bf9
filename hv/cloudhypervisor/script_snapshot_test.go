package cloudhypervisor

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/volantvm/volant/hv/hvtest/guest"
)

// unknown is what the configuration of a snapshot holds beyond what anybody knows.
// It must come back byte by byte: the number is the largest of its type.
const unknown = `"unknown_field": {"of" : [18446744073709551615, 1e400,"<&>"]}`

// scriptedState is the state of a snapshot: what a real one's is good for, and
// what a real one's would not fit.
type scriptedState struct {
	Version string          `json:"version"`
	Devices []string        `json:"devices"`
	Trial   bool            `json:"trial"` // the guest is the trial machine's
	Memory  json.RawMessage `json:"memory,omitempty"`
}

func (s *scripted) snapshot(body []byte) answer {
	var r struct {
		Destination string `json:"destination_url"`
	}
	if err := decodeStrict(body, &r); err != nil {
		return refuse(http.StatusBadRequest, err.Error())
	}
	dir, ok := strings.CutPrefix(r.Destination, "file://")
	switch {
	case !ok:
		return refuse(http.StatusInternalServerError, "Invalid destination")
	case s.state != statePaused:
		return refuse(http.StatusInternalServerError, "Cannot snapshot VM: it is not paused")
	case len(s.config.Devices) > 0 || s.NoState:
		return refuse(http.StatusInternalServerError, "Cannot snapshot VM", "KVM_GET_NESTED_STATE: Invalid argument (os error 22)")
	case !s.granted(dir):
		return refuse(http.StatusInternalServerError, "Cannot send VM snapshot", "Permission denied (os error 13)")
	}
	s.say("vm", "snapshotting", "")
	s.say("vm", "snapshotted", "") // before the files are there
	config, err := json.Marshal(s.config)
	if err != nil {
		s.fail("%v", err)
	}
	config = append(config[:len(config)-1], (", " + unknown + "}")...)
	memory := []byte("{}")
	if s.memory != nil {
		if memory, err = s.memory.Save(); err != nil {
			s.fail("%v", err)
		}
	}
	state, err := json.Marshal(scriptedState{Version: s.Version, Devices: slices.Sorted(maps.Keys(s.devices)), Trial: s.server == nil})
	if err != nil {
		s.fail("%v", err)
	}
	parts := map[string][]byte{configFile: config, stateFile: state, memoryFile: memory}
	if zones := s.config.Memory.Zones; len(zones) == 1 && zones[0].Shared && zones[0].File != "" {
		delete(parts, memoryFile) // the file is the memory
		f, err := os.OpenFile(zones[0].File, os.O_WRONLY, 0)
		if err == nil {
			_, err = f.WriteAt(append(memory, '\n'), 0)
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			s.fail("%v", err)
		}
	}
	for name, b := range parts {
		if name == s.Torn {
			continue
		}
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return refuse(http.StatusInternalServerError, "Cannot send VM snapshot", err.Error())
		}
		_, err = f.Write(b)
		if err := errors.Join(err, f.Close()); err != nil {
			return refuse(http.StatusInternalServerError, "Cannot send VM snapshot", err.Error())
		}
	}
	return done()
}

func (s *scripted) restore(body []byte, files []*os.File) answer {
	var r struct {
		Source   string `json:"source_url"`
		Prefault bool   `json:"prefault"`
		Mode     string `json:"memory_restore_mode"`
		Resume   bool   `json:"resume"`
		NetFDs   []struct {
			ID  string `json:"id"`
			Num int    `json:"num_fds"`
		} `json:"net_fds"`
	}
	if err := decodeStrict(body, &r); err != nil {
		return refuse(http.StatusBadRequest, err.Error())
	}
	if s.config != nil {
		return refuse(http.StatusInternalServerError, "VM is already created")
	}
	s.say("vm", "restoring", "")
	dir := strings.TrimPrefix(r.Source, "file://")
	config, err := os.ReadFile(filepath.Join(dir, configFile))
	if err != nil {
		return refuse(http.StatusInternalServerError, "Cannot restore VM", err.Error())
	}
	if !bytes.Contains(config, []byte(unknown[strings.Index(unknown, "{"):])) {
		return refuse(http.StatusInternalServerError, "the test wants what it does not know to stay as it is")
	}
	var c scriptedConfig
	if err := json.Unmarshal(config, &c); err != nil {
		return refuse(http.StatusInternalServerError, "Cannot restore VM", err.Error())
	}
	b, err := os.ReadFile(filepath.Join(dir, stateFile))
	var state scriptedState
	if err = errors.Join(err, json.Unmarshal(b, &state)); err != nil {
		return refuse(http.StatusInternalServerError, "Cannot restore VM", err.Error())
	}
	if state.Version != s.Version {
		return refuse(http.StatusInternalServerError, "Cannot restore VM", "missing field in the state")
	}
	s.config = &c // stored, whatever comes of it
	for i := range c.Net {
		n := &c.Net[i]
		at := slices.IndexFunc(r.NetFDs, func(f struct {
			ID  string `json:"id"`
			Num int    `json:"num_fds"`
		}) bool {
			return f.ID == n.ID && f.Num == len(n.FDs)
		})
		if at < 0 || at >= len(files) {
			return refuse(http.StatusBadRequest, "Net id "+n.ID+" is associated with FDs and is required")
		}
		if n.HostMAC != "" {
			return refuse(http.StatusInternalServerError, "Cannot set the MAC address of the tap: Operation not permitted (os error 1)")
		}
		s.taps[n.ID] = files[at]
	}
	memory, err := s.load(dir, r.Mode)
	if err != nil {
		return refuse(http.StatusInternalServerError, "Cannot restore VM", err.Error())
	}
	if err := s.confine(); err != nil {
		return refuse(http.StatusInternalServerError, err.Error())
	}
	if err := s.openSerial(); err != nil {
		return refuse(http.StatusInternalServerError, "Error creating console devices", err.Error())
	}
	if err := errors.Join(s.openMemory(), s.openDevices()); err != nil {
		return refuse(http.StatusInternalServerError, "Cannot restore VM", err.Error())
	}
	if got := slices.Sorted(maps.Keys(s.devices)); !slices.Equal(got, state.Devices) {
		return refuse(http.StatusInternalServerError, fmt.Sprintf("Cannot restore VM: devices %q, want %q", got, state.Devices))
	}
	s.state, s.memory = statePaused, memory
	s.run(state.Trial)
	s.say("vm", "restored", "")
	if r.Resume {
		s.state = stateRunning
		s.gate.Broadcast()
	}
	return done()
}

// load reads the guest's memory. s.mu is held.
func (s *scripted) load(dir, mode string) (*guest.Memory, error) {
	file := filepath.Join(dir, memoryFile)
	if mode == "OnDemand" && s.NoFault {
		return nil, errors.New("Failed to create userfaultfd: Operation not permitted (os error 1)")
	}
	if zones := s.config.Memory.Zones; len(zones) == 1 && zones[0].File != "" {
		if mode == "OnDemand" || zones[0].Shared {
			return nil, errors.New("the test wants a template's memory to be mapped privately")
		}
		if _, err := os.Lstat(file); err != nil {
			file = zones[0].File
		}
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var b json.RawMessage
	if err := json.NewDecoder(f).Decode(&b); err != nil {
		return nil, err
	}
	return guest.LoadMemory(b)
}
