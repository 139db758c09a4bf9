package cloudhypervisor

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"github.com/volantvm/volant/hv"
)

// object is a JSON object whose values stay the bytes that they were, and in
// their order: a snapshot's configuration holds fields that this driver does not
// know, and numbers that are too large for a float64.
type object []member

type member struct {
	key   string
	value json.RawMessage
}

var errNoObject = errors.New("want a JSON object")

// UnmarshalJSON implements json.Unmarshaler.
func (o *object) UnmarshalJSON(b []byte) error {
	dec := json.NewDecoder(bytes.NewReader(b))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return errors.Join(errNoObject, err)
	}
	*o = object{}
	for dec.More() {
		t, err := dec.Token()
		if err != nil {
			return err
		}
		key, ok := t.(string)
		if !ok {
			return errNoObject
		}
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return err
		}
		if o.find(key) != nil {
			return fmt.Errorf("field %s is there twice", key)
		}
		*o = append(*o, member{key, value})
	}
	return nil
}

// bytes returns the object. It is no MarshalJSON, for what json makes of the
// result of one is compacted.
func (o object) bytes() ([]byte, error) {
	b := []byte{'{'}
	for i, m := range o {
		if i > 0 {
			b = append(b, ',')
		}
		key, err := json.Marshal(m.key)
		if err != nil {
			return nil, err
		}
		b = append(append(append(b, key...), ':'), m.value...)
	}
	return append(b, '}'), nil
}

// find returns the value of a field, nil when it is not there or null.
func (o object) find(key string) json.RawMessage {
	for _, m := range o {
		if m.key == key && string(m.value) != "null" {
			return m.value
		}
	}
	return nil
}

// text returns the value of a field that is a string, "" of one that is not.
func (o object) text(key string) string {
	var s string
	if json.Unmarshal(o.find(key), &s) != nil {
		return ""
	}
	return s
}

// set gives a field another value, or adds it.
func (o *object) set(key string, value any) error {
	b, err := json.Marshal(value)
	if err != nil {
		return err
	}
	for i := range *o {
		if (*o)[i].key == key {
			(*o)[i].value = b
			return nil
		}
	}
	*o = append(*o, member{key, b})
	return nil
}

// remove takes a field away.
func (o *object) remove(key string) {
	for i := range *o {
		if (*o)[i].key == key {
			*o = append((*o)[:i], (*o)[i+1:]...)
			return
		}
	}
}

// change changes the object that a field is, if it is there.
func (o *object) change(key string, f func(*object) error) error {
	raw := o.find(key)
	if raw == nil {
		return nil
	}
	b, err := changed(raw, f)
	if err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	return o.put(key, b)
}

// changeEach changes the objects that a field is a list of, if it is there.
func (o *object) changeEach(key string, f func(i int, o *object) error) error {
	raw := o.find(key)
	if raw == nil {
		return nil
	}
	var list []json.RawMessage
	if err := json.Unmarshal(raw, &list); err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	b := []byte{'['}
	for i, raw := range list {
		if i > 0 {
			b = append(b, ',')
		}
		entry, err := changed(raw, func(o *object) error { return f(i, o) })
		if err != nil {
			return fmt.Errorf("%s: %d: %w", key, i, err)
		}
		b = append(b, entry...)
	}
	return o.put(key, append(b, ']'))
}

func (o *object) put(key string, raw []byte) error {
	for i := range *o {
		if (*o)[i].key == key {
			(*o)[i].value = raw
		}
	}
	return nil
}

func changed(raw []byte, f func(*object) error) ([]byte, error) {
	var o object
	if err := o.UnmarshalJSON(raw); err != nil {
		return nil, err
	}
	if err := f(&o); err != nil {
		return nil, err
	}
	return o.bytes()
}

// adapt returns the configuration of a snapshot, as config.json holds it, for the
// machine of spec: its own paths, addresses and sockets in the place of those of
// the machine that the snapshot is of, and all the rest as it is. It returns the
// NICs that want a file each, in their order. memory is the template's memory
// file, which is then mapped privately, or "" for memory of the machine's own.
func adapt(config []byte, spec *hv.Spec, f *findings, memory string) (out []byte, nics []netFD, err error) {
	if !json.Valid(config) {
		return nil, nil, errors.New("the snapshot's configuration is no JSON")
	}
	want := newConfig(spec, f)
	out, err = changed(config, func(c *object) error {
		steps := []error{
			// It is not read again, unless the guest resets.
			c.change("payload", func(p *object) error {
				p.remove("initramfs")
				return errors.Join(p.set("kernel", want.Payload.Kernel), setIf(p, "initramfs", want.Payload.Initramfs))
			}),
			c.changeEach("disks", func(i int, d *object) error {
				if i >= len(want.Disks) || d.text("id") != want.Disks[i].ID {
					return fmt.Errorf("disk %q is none of the machine's", d.text("id"))
				}
				return d.set("path", want.Disks[i].Path)
			}),
			c.changeEach("pmem", func(i int, p *object) error {
				if i >= len(want.Pmem) || p.text("id") != want.Pmem[i].ID {
					return fmt.Errorf("disk %q is none of the machine's", p.text("id"))
				}
				return p.set("file", want.Pmem[i].File)
			}),
			c.changeEach("fs", func(i int, fs *object) error {
				if i >= len(want.FS) || fs.text("tag") != want.FS[i].Tag {
					return fmt.Errorf("share %q is none of the machine's", fs.text("tag"))
				}
				return fs.set("socket", want.FS[i].Socket)
			}),
			c.changeEach("net", func(i int, n *object) error {
				id := n.text("id")
				if i >= len(spec.NICs) || id == "" {
					return fmt.Errorf("NIC %q is none of the machine's", id)
				}
				// Up to version 53 the address of the host's side is kept, and to set it
				// again takes CAP_NET_ADMIN.
				n.remove("host_mac")
				nics = append(nics, netFD{ID: id, FDs: 1})
				return n.set("mac", spec.NICs[i].MAC.String())
			}),
			c.change("serial", func(p *object) error { return p.set("socket", want.Serial.Socket) }),
			c.change("vsock", func(v *object) error {
				return errors.Join(v.set("cid", want.Vsock.CID), v.set("socket", want.Vsock.Socket))
			}),
			c.change("memory", func(m *object) error { return adaptMemory(m, memory) }),
			c.set("landlock_enable", want.Landlock),
			c.set("landlock_rules", want.Rules),
		}
		return errors.Join(steps...)
	})
	if err != nil {
		return nil, nil, fmt.Errorf("the snapshot's configuration: %w", err)
	}
	return out, nics, nil
}

// adaptMemory maps a template's memory privately, and gives a machine that was
// forked from one a memory of its own.
func adaptMemory(m *object, file string) error {
	return m.changeEach("zones", func(_ int, z *object) error {
		if id := z.text("id"); id != zoneID {
			return fmt.Errorf("memory zone %s is not known", strconv.Quote(id))
		}
		if file == "" {
			z.remove("file")
			return z.set("shared", true)
		}
		return errors.Join(z.set("file", file), z.set("shared", false))
	})
}

func setIf(o *object, key, value string) error {
	if value == "" {
		return nil
	}
	return o.set(key, value)
}
