package volantd

import (
	"fmt"
	"net"
	"strings"
)

// notify tells the service manager how volantd is, as sd_notify(3) describes
// it: state is "READY=1" or "STOPPING=1". socket is $NOTIFY_SOCKET; empty means
// that nobody wants to know.
func notify(socket, state string) error {
	if socket == "" {
		return nil
	}
	name := socket
	if strings.HasPrefix(name, "@") { // Linux' abstract namespace
		name = "\x00" + name[1:]
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("notify %s: %w", socket, err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte(state)); err != nil {
		return fmt.Errorf("notify %s: %w", socket, err)
	}
	return nil
}
