package daemon

import (
	"github.com/volantvm/volant/daemon/httpapi"
	"github.com/volantvm/volant/store"
)

// The contracts that this package stands between.
var (
	_ httpapi.Service = (*Daemon)(nil)
	_ Store           = (*store.Store)(nil)
)
