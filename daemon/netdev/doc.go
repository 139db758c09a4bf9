// Package netdev owns Volant's network devices on the host: one bridge, a tap for each VM, and the nftables rules between
// them. It is the only user of netlink and nftables on the host. It remembers nothing and decides nothing: the daemon says
// which VMs have which addresses, the kernel says which devices exist.
//
// # What is ours
//
// A device belongs to Volant if its alias says so ("ip link" shows it): "volant" on the bridge, "volant:" and the VM's id on a tap.
// What carries another alias, or none, is never changed and never deleted, whatever its name; the call fails with ErrForeign. A tap gets its
// alias before it is made persistent and the bridge is made with an address derived from its name, so a daemon killed between any two
// system calls leaves either nothing or something it will recognise.
//
// A bridge that the administrator made is used if it carries exactly the configured address, and left standing by Teardown.
//
// # Rules
//
// Two tables, both named "volant" and both replaced whole in one transaction by ApplyRules, so no packet ever meets half of
// them. Nothing outside of them is touched.
//
// Table bridge volant says what a guest may send. A frame that enters through any tap of ours (the name matches vlt*) is dropped unless
//
//   - it is IPv4 and its tap, source MAC and source address are together in the set "ports", or
//   - it is ARP for IPv4 over Ethernet, and both its source MAC with its sender address, and its sender MAC with its sender
//     address, are in that set for its tap.
//
// Everything else is dropped: IPv6, VLAN tags, spanning tree, LLDP, DHCP requests (their source is 0.0.0.0; addresses are static) and ARP probes
// for the same reason. A tap that no port names can send nothing, so a tap is closed from its first moment until ApplyRules opens it.
// Frames to link-local groups (01:80:c2:00:00:xx), which a bridge otherwise treats before any rule sees them, are sent the same
// way by the port's group_fwd_mask. The set is one hash lookup per frame for any number of VMs.
//
// Table ip volant has chains for what is routed: masquerading of what leaves the bridge, and a forward chain that lets in from other
// interfaces only answers and what a destination NAT rule sent here, and, with Config.Isolate, nothing
// from guest to guest through the gateway.
//
// # Published ports
//
// Two maps of table ip volant say which guest a host port leads to, one for ports of all the host's addresses and one for those of
// one address. A packet is looked up in them if it is to an address of the host, whether it comes from another interface, from a guest or
// from the host itself, 127.0.0.0/8 included; one that passes through is not. The guest sees the client's own address, except that it
// sees the bridge's where the answer would not come back through the host: from other guests, from itself, and from 127.0.0.0/8. With
// Config.Isolate a guest reaches another guest's published port no more than that guest.
//
// For 127.0.0.0/8 the bridge gets route_localnet, while a port is published there, and a chain before connection tracking that drops
// what uses such addresses on the bridge. Whoever flushes the host's whole ruleset takes that chain away and leaves the switch, until the next
// ApplyRules.
//
// When a port is no longer published, or leads to another guest, the connections that it led to the old one are removed from the kernel's
// table; when a UDP port is published, those that went to the host itself before, since for as long as a client goes on sending the rules
// would not be asked.
//
// Reserve keeps a port from the host's programs. It does so for as long as the process runs, while rules stay: a program that binds a
// published port while the daemon is down hears nothing there.
//
// # What others can do
//
// A chain of ours cannot accept what another program's chain drops: if the host's own forward policy is drop, its administrator has to
// allow the bridge there; packets to published ports pass that hook as "ct status dnat", those of the host itself pass output, and none
// passes input. Of two programs that translate the same destination, the one whose chain was there first wins.
//
// Beside the rules stand permanent ARP entries for the ports on the bridge, so the host finds a guest without asking and no guest can
// tell it otherwise. Permanent entries for other addresses of the prefix on this bridge are taken for those of VMs that are gone.
//
// The rules hold with net.bridge.bridge-nf-call-iptables set to 0 or 1. That switch belongs to whoever set it; Ensure reports it and leaves it.
package netdev
