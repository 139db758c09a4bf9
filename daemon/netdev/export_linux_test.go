package netdev

import "context"

// SetTunDev makes n open another file than /dev/net/tun.
func (n *Network) SetTunDev(path string) { n.tunDev = path }

// RemoveTables takes the rules away, so that a test can show that its frames arrive without them.
func RemoveTables(ctx context.Context) error { return removeTables(ctx) }
