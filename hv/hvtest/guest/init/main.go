// Command init is PID 1, and the only process, of the conformance suite's
// machines. It serves package guest on the agent channel, powers off when the
// power button is pressed, and does nothing else.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/yamux"
	"github.com/mdlayher/vsock"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/guest/wire"
	"github.com/volantvm/volant/hv/hvtest/guest"
)

func main() {
	if err := guard(); err != nil {
		fmt.Fprintln(os.Stderr, "init:", err)
		os.Exit(2)
	}
	// From here on the program is alone in a machine of its own, and its end
	// is a kernel panic that the host sees.
	fmt.Println("init:", run())
	os.Exit(1)
}

// guard refuses to run anywhere but as the first process of a machine that
// lives in its initramfs.
func guard() error {
	if os.Getpid() != 1 {
		return errors.New("runs only as PID 1 of a test machine")
	}
	var fs unix.Statfs_t
	if err := unix.Statfs("/", &fs); err != nil {
		return err
	}
	if fs.Type != unix.RAMFS_MAGIC && fs.Type != unix.TMPFS_MAGIC {
		return errors.New("runs only where / is an initramfs")
	}
	if _, err := os.Stat("/proc/self"); err == nil {
		return errors.New("runs only where nothing is mounted yet")
	}
	return nil
}

type machine struct{ console, shares sync.Mutex }

func (*machine) PowerOff() { unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF) }
func (*machine) Reset()    { unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART) }
func (*machine) Panic()    { os.Exit(1) }

func (p *machine) Print(text string) {
	p.console.Lock()
	defer p.console.Unlock()
	os.Stdout.WriteString(text)
}

// OpenDisk finds the disk in /sys and opens its device.
func (*machine) OpenDisk(serial string) (*os.File, error) {
	names, err := filepath.Glob("/sys/block/*/serial")
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil || strings.TrimSpace(string(b)) != serial {
			continue
		}
		dev := "/dev/" + filepath.Base(filepath.Dir(name))
		f, err := os.OpenFile(dev, os.O_RDWR, 0)
		if errors.Is(err, unix.EROFS) || errors.Is(err, unix.EACCES) {
			return os.Open(dev)
		}
		return f, err
	}
	return nil, fmt.Errorf("no disk %q", serial)
}

// Size brings the processors online that were plugged, and counts.
func (*machine) Size() (vcpus, memoryMiB int) {
	plugged, _ := filepath.Glob("/sys/devices/system/cpu/cpu[0-9]*/online") // fails for a malformed pattern only
	for _, file := range plugged {
		if b, err := os.ReadFile(file); err == nil && strings.TrimSpace(string(b)) == "0" {
			os.WriteFile(file, []byte("1"), 0) // the count tells whether it worked
		}
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 0, 0
	}
	return online(), int(info.Totalram * uint64(info.Unit) >> 20)
}

// online counts the processors that /proc/stat has a line of.
func online() int {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0
	}
	var n int
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, "cpu") && !strings.HasPrefix(line, "cpu ") {
			n++
		}
	}
	return n
}

// NICs lists the addresses of all interfaces that have one.
// OpenShare mounts the share, once, below the root of the machine.
func (p *machine) OpenShare(tag string) (*os.Root, error) {
	p.shares.Lock()
	defer p.shares.Unlock()
	if tag == "" || strings.ContainsAny(tag, "/.") {
		return nil, fmt.Errorf("tag %q", tag)
	}
	dir := "/share-" + tag
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return nil, err
		}
		if err := unix.Mount(tag, dir, "virtiofs", 0, ""); err != nil {
			return nil, errors.Join(fmt.Errorf("mount %s: %w", tag, err), os.Remove(dir))
		}
	}
	return os.OpenRoot(dir)
}

func (*machine) NICs() []string {
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil
	}
	var list []string
	for _, i := range interfaces {
		if len(i.HardwareAddr) > 0 && i.Flags&net.FlagLoopback == 0 {
			list = append(list, i.HardwareAddr.String())
		}
	}
	return list
}

// run serves until something fails; it never returns nil.
func run() error {
	for _, m := range []struct{ fs, dir string }{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}} {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.fs, m.dir, m.fs, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	// Memory that is plugged is used at once; a kernel that cannot have any has no
	// such file.
	os.WriteFile("/sys/devices/system/memory/auto_online_blocks", []byte("online"), 0)
	p := &machine{}
	server := &http.Server{Handler: guest.Handler(p, guest.NewMemory())}
	go func() {
		if err := button(); err != nil {
			p.Print("init: power button: " + err.Error() + "\n")
			return
		}
		p.PowerOff()
	}()
	// On any context id: a restored machine may have another.
	if l, err := vsock.ListenContextID(1<<32-1, wire.AgentPort, nil); err == nil {
		go server.Serve(l)
		if conn, err := vsock.Dial(vsock.Host, wire.ReadyPort, nil); err == nil {
			conn.Close() // nothing was said
		}
	}
	p.Print("init: up\n")
	return serial(server)
}

// serial serves the agent's port, if there is one.
func serial(server *http.Server) error {
	port, err := openPort()
	if err != nil {
		return err
	}
	if port == nil {
		fmt.Println("init: no port " + wire.SerialPort + ", so vsock only")
		select {}
	}
	a := wire.NewAcceptor(port)
	for {
		link, err := a.Accept(context.Background())
		if err != nil {
			return err
		}
		config := yamux.DefaultConfig()
		config.EnableKeepAlive = false
		config.LogOutput = io.Discard
		s, err := yamux.Server(link, config)
		if err != nil {
			return err
		}
		go server.Serve(streams{s})
	}
}

// streams is a session as a net.Listener.
type streams struct{ *yamux.Session }

func (s streams) Accept() (net.Conn, error) { return s.Session.Accept() }

// openPort finds the port by its name and opens it; the device node follows
// the sysfs entry a moment later. The port itself is told to the guest on a queue
// that a busy host may take long to come to.
func openPort() (*os.File, error) {
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); {
		names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			b, err := os.ReadFile(name)
			if err != nil || strings.TrimSpace(string(b)) != wire.SerialPort {
				continue
			}
			f, err := os.OpenFile("/dev/"+filepath.Base(filepath.Dir(name)), os.O_RDWR|unix.O_NONBLOCK, 0)
			if err == nil {
				return f, nil
			}
		}
		time.Sleep(5 * time.Millisecond)
	}
	return nil, nil
}

// button waits for the ACPI power button, which the kernel reports on the
// generic netlink family acpi_event (drivers/acpi/event.c).
func button() error {
	family, err := netlink.GenlFamilyGet("acpi_event")
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_GENERIC)
	if err != nil {
		return err
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	for _, g := range family.Groups {
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, int(g.ID)); err != nil {
			return err
		}
	}
	b := make([]byte, 4096)
	for {
		n, _, err := unix.Recvfrom(fd, b, 0)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		if n > 0 && strings.Contains(string(b[:n]), "button/power") {
			return nil
		}
	}
}
