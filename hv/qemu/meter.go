package qemu

import (
	"context"

	"github.com/volantvm/volant/hv"
)

var _ hv.Meter = (*machine)(nil)

// Counters implements hv.Meter: of each disk what BlockDeviceStats of QEMU's
// machine protocol has, as far as it is of use. QEMU counts nothing for NICs.
func (m *machine) Counters(ctx context.Context) (map[string]map[string]uint64, error) {
	var disks []struct {
		Device string `json:"device"`
		Stats  struct {
			ReadBytes  uint64 `json:"rd_bytes"`
			WriteBytes uint64 `json:"wr_bytes"`
			Reads      uint64 `json:"rd_operations"`
			Writes     uint64 `json:"wr_operations"`
		} `json:"stats"`
	}
	if err := m.monitor.run(ctx, "query-blockstats", nil, &disks); err != nil {
		return nil, m.wrap(ctx, "counters of", err)
	}
	counters := make(map[string]map[string]uint64, len(disks))
	for _, d := range disks {
		if d.Device == "" {
			continue
		}
		counters[d.Device] = map[string]uint64{
			"rd_bytes": d.Stats.ReadBytes, "wr_bytes": d.Stats.WriteBytes, "rd_operations": d.Stats.Reads, "wr_operations": d.Stats.Writes,
		}
	}
	return counters, nil
}
