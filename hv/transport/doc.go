// Package transport holds the host's ends of the agent channel: the streams
// that an hv.VM's Agent opens, over whatever its VMM offers. All of them meet
// the same agent, and none of them supports half-close.
//
//   - Serial: a virtio-serial port, which is one byte pipe, carries the link of
//     package wire, and the link carries yamux streams.
//   - Vsock: AF_VSOCK of the host's kernel (vhost-vsock), vsock(7).
//   - HybridVsock: the Unix socket of VMMs that implement vsock themselves,
//     with a CONNECT line before the stream.
package transport
