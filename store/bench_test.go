package store

import (
	"context"
	"fmt"
	"testing"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/store/row"
)

func BenchmarkStore(b *testing.B) {
	ctx := context.Background()
	for _, n := range []int{0, 1000, 5000} {
		s := newStore(b)
		p := putPlugin(b, s, "hello", "1")
		fill(b, s, p, n)
		next := n
		b.Run(fmt.Sprintf("create/%d", n), func(b *testing.B) {
			for b.Loop() {
				next++
				vm := newVM(p, next)
				vm.ID += "-new"
				if _, _, err := s.CreateVM(ctx, ofPlugin(p, vm, nth), api.Event{Type: api.EventVMCreated}); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				if _, err := s.DeleteVM(ctx, vm.ID, api.Event{Type: api.EventVMDeleted}); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
		if n == 0 {
			continue
		}
		b.Run(fmt.Sprintf("change/%d", n), func(b *testing.B) {
			for b.Loop() {
				if _, _, err := s.ChangeVM(ctx, "id7", func(v *row.VM) ([]api.Event, error) {
					v.Incarnation++
					return []api.Event{{Type: api.EventVMStarting}}, nil
				}); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(fmt.Sprintf("get/%d", n), func(b *testing.B) {
			for b.Loop() {
				if _, err := s.VM(ctx, "vm77"); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(fmt.Sprintf("list/%d", n), func(b *testing.B) {
			for b.Loop() {
				if _, _, err := s.VMs(ctx, api.VMFilter{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
