package api

import (
	"strings"
	"testing"
)

func TestVMCreateValidate(t *testing.T) {
	digest := "sha256:" + strings.Repeat("a", 64)
	for name, c := range map[string]struct {
		req VMCreate
		err string // prefix; "" for none
	}{
		"nothing":               {VMCreate{}, ""},
		"plugin and image":      {VMCreate{Plugin: "a", Image: "b"}, "image: stands beside"},
		"name":                  {VMCreate{Name: "A"}, "name: VM name"},
		"form of a plugin":      {VMCreate{Plugin: "a", Form: FormDisk}, "form: only an image"},
		"form of a kind":        {VMCreate{Image: "a", Form: "tape"}, "form: "},
		"variable":              {VMCreate{Env: map[string]string{"": "x"}}, "env: "},
		"argument with a NUL":   {VMCreate{Command: list("a", "b\x00")}, "command[1]: "},
		"relative workdir":      {VMCreate{Workdir: "x"}, "workdir: "},
		"user":                  {VMCreate{User: "www:data"}, ""},
		"user with a blank":     {VMCreate{User: "a b"}, "user: "},
		"user with two groups":  {VMCreate{User: "a:b:c"}, "user: "},
		"signal":                {VMCreate{StopSignal: "SIGRTMIN+3"}, ""},
		"stop timeout":          {VMCreate{StopTimeout: 1}, ""},
		"negative stop timeout": {VMCreate{StopTimeout: -1}, "stop_timeout_ms: "},
		"signal of signs":       {VMCreate{StopSignal: "$(x)"}, "stop_signal: "},
		"hostname":              {VMCreate{Hostname: "Db-1.example"}, ""},
		"hostname with a blank": {VMCreate{Hostname: "a b"}, "hostname: "},
		"hostname, empty label": {VMCreate{Hostname: "a..b"}, "hostname: "},
		"network":               {VMCreate{NetworkMode: "nat"}, "network_mode: "},
		"root":                  {VMCreate{Root: &Root{Mode: RootMemory, SizeMB: 5}}, ""},
		"root of a kind":        {VMCreate{Root: &Root{Mode: "tape"}}, "root.mode: "},
		"small root":            {VMCreate{Root: &Root{SizeMB: 15}}, "root.size_mb: "},
		"size of a fixed root":  {VMCreate{Root: &Root{Mode: RootReadOnly, SizeMB: 5}}, "root.size_mb: "},
		"volume":                {VMCreate{Volumes: []VolumeMount{{Name: "a", Target: "/a"}, {Blob: digest, Target: "/b"}}}, ""},
		"volume without either": {VMCreate{Volumes: []VolumeMount{{Target: "/a", SizeMB: 16}, {Target: "/b"}}}, ""},
		"volume with both":      {VMCreate{Volumes: []VolumeMount{{Name: "a", Blob: digest, Target: "/a"}}}, "volumes[0]: has both"},
		"volume twice":          {VMCreate{Volumes: []VolumeMount{{Name: "a", Target: "/a"}, {Name: "a", Target: "/b"}}}, "volumes[1].name: "},
		"volume that climbs":    {VMCreate{Volumes: []VolumeMount{{Name: "../a", Target: "/a"}}}, "volumes[0].name: "},
		"blob with a size":      {VMCreate{Volumes: []VolumeMount{{Blob: digest, Target: "/a", SizeMB: 20}}}, "volumes[0].size_mb: "},
		"blob of a kind":        {VMCreate{Volumes: []VolumeMount{{Blob: "x", Target: "/a"}}}, "volumes[0].blob: "},
		"no target":             {VMCreate{Volumes: []VolumeMount{{Name: "a"}}}, "volumes[0].target: "},
		"relative target":       {VMCreate{Volumes: []VolumeMount{{Name: "a", Target: "a"}}}, "volumes[0].target: "},
		"target that climbs":    {VMCreate{Volumes: []VolumeMount{{Name: "a", Target: "/a/../b"}}}, "volumes[0].target: "},
		"target /":              {VMCreate{Tmpfs: []Tmpfs{{Target: "/"}}}, "tmpfs[0].target: "},
		"target below /dev":     {VMCreate{Tmpfs: []Tmpfs{{Target: "/dev/shm"}}}, "tmpfs[0].target: "},
		"target beside /dev":    {VMCreate{Tmpfs: []Tmpfs{{Target: "/developer"}}}, ""},
		"one target twice":      {VMCreate{Volumes: []VolumeMount{{Name: "a", Target: "/a"}}, Tmpfs: []Tmpfs{{Target: "/a"}}}, "tmpfs[0].target: "},
		"tmpfs mode":            {VMCreate{Tmpfs: []Tmpfs{{Target: "/a", Mode: "1777"}}}, ""},
		"tmpfs mode of a kind":  {VMCreate{Tmpfs: []Tmpfs{{Target: "/a", Mode: "rwx"}}}, "tmpfs[0].mode: "},
		"tmpfs size":            {VMCreate{Tmpfs: []Tmpfs{{Target: "/a", SizeMB: -1}}}, "tmpfs[0].size_mb: "},
		"port":                  {VMCreate{Ports: []Port{{Port: 80, HostIP: "127.0.0.1"}, {Port: 80, HostPort: 8080}}}, ""},
		"port 0":                {VMCreate{Ports: []Port{{}}}, "ports[0].port: "},
		"port too high":         {VMCreate{Ports: []Port{{Port: 65536}}}, "ports[0].port: "},
		"host port too high":    {VMCreate{Ports: []Port{{Port: 1, HostPort: 65536}}}, "ports[0].host_port: "},
		"host ip":               {VMCreate{Ports: []Port{{Port: 1, HostIP: "localhost"}}}, "ports[0].host_ip: "},
		"host ip of version 6":  {VMCreate{Ports: []Port{{Port: 1, HostIP: "::1"}}}, "ports[0].host_ip: "},
		"protocol":              {VMCreate{Ports: []Port{{Port: 1, Protocol: "sctp"}}}, "ports[0].protocol: "},
		"host port twice":       {VMCreate{Ports: []Port{{Port: 1, HostPort: 80}, {Port: 2, HostPort: 80}}}, "ports[1].host_port: "},
		"restart":               {VMCreate{Restart: &Restart{Policy: "always"}}, ""},
		"restart of a kind":     {VMCreate{Restart: &Restart{Policy: "daily"}}, "restart.policy: "},
		"removed and restarted": {VMCreate{AutoRemove: true, Restart: &Restart{Policy: "on-failure"}}, "auto_remove: "},
	} {
		err := c.req.Validate()
		switch {
		case c.err == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case c.err != "" && (CodeOf(err) != CodeInvalid || !strings.HasPrefix(err.Error(), c.err)):
			t.Errorf("%s: error %v, want invalid with %q", name, err, c.err)
		}
	}
}
