package daemon

import "github.com/volantvm/volant/daemon/httpapi"

var _ httpapi.Service = (*Daemon)(nil)
