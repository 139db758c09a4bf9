package wire

import "net/netip"

// The fields of a boot configuration, as jsonReader reads them. TestBootFields
// holds them against the structs.

func (c *BootConfig) read(r *jsonReader) {
	r.object(func(key string) {
		switch key {
		case "protocol":
			integer(r, &c.Protocol)
		case "version":
			r.string(&c.Version)
		case "vm":
			r.string(&c.VM)
		case "name":
			r.string(&c.Name)
		case "incarnation":
			integer(r, &c.Incarnation)
		case "hostname":
			r.string(&c.Hostname)
		case "machine_id":
			r.string(&c.MachineID)
		case "time":
			r.text(&c.Time)
		case "seed":
			r.bytes(&c.Seed)
		case "network":
			optional(r, &c.Network, (*NetworkConfig).read)
		case "root":
			optional(r, &c.Root, (*RootConfig).read)
		case "mounts":
			r.array(func() {
				var m MountConfig
				m.read(r)
				c.Mounts = append(c.Mounts, m)
			})
		case "workload":
			c.Workload.read(r)
		default:
			r.skip()
		}
	})
}

// optional reads a value that may be left out.
func optional[T any](r *jsonReader, to **T, read func(*T, *jsonReader)) {
	if r.null() {
		return
	}
	*to = new(T)
	read(*to, r)
}

func (n *NetworkConfig) read(r *jsonReader) {
	r.object(func(key string) {
		switch key {
		case "mac":
			r.string(&n.MAC)
		case "address":
			r.text(&n.Address)
		case "gateway":
			r.text(&n.Gateway)
		case "mtu":
			integer(r, &n.MTU)
		case "nameservers":
			r.array(func() {
				var a netip.Addr
				r.text(&a)
				n.Nameservers = append(n.Nameservers, a)
			})
		case "search":
			r.strings(&n.Search)
		default:
			r.skip()
		}
	})
}

func (c *RootConfig) read(r *jsonReader) {
	r.object(func(key string) {
		switch key {
		case "upper":
			r.string((*string)(&c.Upper))
		case "size_mib":
			integer(r, &c.SizeMiB)
		default:
			r.skip()
		}
	})
}

func (m *MountConfig) read(r *jsonReader) {
	r.object(func(key string) {
		switch key {
		case "type":
			r.string((*string)(&m.Type))
		case "target":
			r.string(&m.Target)
		case "read_only":
			r.bool(&m.ReadOnly)
		case "size_mib":
			integer(r, &m.SizeMiB)
		case "mode":
			integer(r, &m.Mode)
		case "copy":
			r.bool(&m.Copy)
		default:
			r.skip()
		}
	})
}

func (w *WorkloadConfig) read(r *jsonReader) {
	r.object(func(key string) {
		switch key {
		case "args":
			r.strings(&w.Args)
		case "env":
			r.strings(&w.Env)
		case "workdir":
			r.string(&w.Workdir)
		case "user":
			r.string(&w.User)
		case "restart":
			r.string((*string)(&w.Restart))
		case "restart_max":
			integer(r, &w.RestartMax)
		case "stop_signal":
			r.string(&w.StopSignal)
		case "stop_timeout":
			integer(r, &w.StopTimeout)
		case "base_url":
			r.string(&w.BaseURL)
		case "health":
			optional(r, &w.Health, (*Health).read)
		case "tty":
			r.bool(&w.TTY)
		case "stdin":
			r.bool(&w.Stdin)
		case "init":
			r.bool(&w.Init)
		case "attach":
			r.bool(&w.Attach)
		default:
			r.skip()
		}
	})
}

func (h *Health) read(r *jsonReader) {
	r.object(func(key string) {
		switch key {
		case "http":
			r.string(&h.HTTP)
		case "tcp":
			r.string(&h.TCP)
		case "exec":
			r.strings(&h.Exec)
		case "start_period":
			integer(r, &h.StartPeriod)
		case "timeout":
			integer(r, &h.Timeout)
		case "interval":
			integer(r, &h.Interval)
		case "retries":
			integer(r, &h.Retries)
		default:
			r.skip()
		}
	})
}
