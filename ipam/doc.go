// Package ipam computes what a VM is called on the network: its IPv4 address, its MAC address, its vsock CID and its
// machine id.
//
// It is arithmetic and nothing else: no I/O, no clock, no randomness, no memory of earlier calls. Who holds which address is
// the caller's to know (package store keeps it, in the transaction that also writes the VM) and is passed in as "taken". The
// same input therefore always gives the same output, which is what lets a VM keep its address across stop, restart and a reboot
// of the host, and what lets a lost host be rebuilt from its database.
//
// Addresses are handed out lowest first, in numeric order, so that the tenth VM is where one expects it. MAC, CID and machine
// id come from the VM's identity by SHA-256, each under a label of its own, so that knowing one of them tells nothing about
// the others.
//
// Only IPv4 is handled; an IPv6 prefix or address is refused with ErrFamily.
package ipam
