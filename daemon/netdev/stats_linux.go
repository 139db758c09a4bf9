package netdev

import (
	"context"
	"fmt"
	"math"
)

// Traffic returns how many bytes the VM has received and sent through its tap
// since that was made. The error wraps ErrNoTap when it has none.
func (n *Network) Traffic(ctx context.Context, vmID string) (received, sent int64, err error) {
	if err := checkVMID(vmID); err != nil {
		return 0, 0, err
	}
	if err := ctx.Err(); err != nil {
		return 0, 0, err
	}
	op := fmt.Sprintf("tap %s of VM %s", TapName(vmID), vmID)
	link, err := findTap(vmID)
	if err != nil {
		return 0, 0, explain(op, featNone, err)
	}
	if link == nil || link.Attrs().Statistics == nil {
		return 0, 0, fmt.Errorf("%s: %w", op, ErrNoTap)
	}
	s := link.Attrs().Statistics
	// What the host sends through the device is what the guest receives.
	return int64(s.TxBytes & math.MaxInt64), int64(s.RxBytes & math.MaxInt64), nil
}
