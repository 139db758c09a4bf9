// Package vmm holds what every driver needs to look after the process of a
// VMM: its identity and its end (Process), how it is found again (Find), the
// files that remember it in the incarnation's directory (record.json,
// exit.json), and the bounded log of the guest's console; and what drivers check
// before they start one: files, kernels, KVM. It knows no hypervisor in
// particular.
package vmm
