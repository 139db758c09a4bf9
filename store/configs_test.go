package store

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/store/row"
)

func TestConfigs(t *testing.T) {
	ctx := context.Background()
	s := newStore(t)
	p := putPlugin(t, s, "hello", "1")
	vm := createVM(t, s, p, newVM(p, 1))
	set := func(version int, check func([]row.Published) error) error {
		m := manifest("hello", fmt.Sprint(version))
		_, _, err := s.ChangeConfig(ctx, vm.ID, row.ConfigChange{
			First:    api.VMConfigVersion{Version: 1, Time: vm.CreatedAt},
			Version:  api.VMConfigVersion{Version: version, Config: api.VMConfig{CPUCores: 1, MemoryMB: 128 + version, Ports: []api.Port{{Port: 80, HostPort: 1000 + version, Protocol: "tcp"}}}},
			Manifest: m, Check: check,
		}, func(*row.VM) ([]api.Event, error) { return []api.Event{{Type: api.EventVMConfigured}}, nil })
		return err
	}
	free := func([]row.Published) error { return nil }
	if err := set(3, free); !errors.Is(err, row.ErrStale) {
		t.Errorf("a version that is not the next: %v, want stale", err)
	}
	refused := errors.New("refused")
	if err := set(2, func([]row.Published) error { return refused }); !errors.Is(err, refused) {
		t.Errorf("refused ports: %v", err)
	}
	const last = api.MaxConfigVersions + 3
	for v := 2; v <= last; v++ {
		if err := set(v, free); err != nil {
			t.Fatal(err)
		}
	}
	list, err := s.Configs(ctx, vm.ID, 0, 1000)
	if err != nil || len(list) != api.MaxConfigVersions || list[0].Version != last || list[0].Config.MemoryMB != 128+last {
		t.Errorf("%d versions, %v; want the newest %d", len(list), err, api.MaxConfigVersions)
	}
	if got := valueOf(t, s.w, `SELECT count(*) FROM manifests`); got != fmt.Sprint(1+api.MaxConfigVersions) {
		t.Errorf("%s manifests, want those of the versions that are kept and the plugin's", got)
	}
	now, err := s.VMByID(ctx, vm.ID) // it is pending: it has no machine, so it took the last one over
	if err != nil || now.MemoryMB != 128+last || now.Next != nil || now.ConfigVersion != last {
		t.Errorf("VM = %+v, %v", now, err)
	}
	if got := valueOf(t, s.w, `SELECT group_concat(host_port) FROM vm_ports`); got != fmt.Sprint(1000+last) {
		t.Errorf("host ports %s, want that of the last version alone", got)
	}
	if _, err := s.DeleteVM(ctx, vm.ID, api.Event{Type: api.EventVMDeleted}); err != nil {
		t.Fatal(err)
	}
	if got := valueOf(t, s.w, `SELECT (SELECT count(*) FROM manifests) || ' ' || (SELECT count(*) FROM vm_configs) || ' ' || (SELECT count(*) FROM vm_ports)`); got != "1 0 0" {
		t.Errorf("left of the VM: %s, want the plugin's manifest alone", got)
	}
}
