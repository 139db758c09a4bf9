package volar

import (
	"io"
	"reflect"
	"strings"
	"testing"

	"github.com/alecthomas/kong"

	"github.com/volantvm/volant/client/api/stdio"
	"github.com/volantvm/volant/roles/cmdline"
)

// parse returns what the grammar makes of args.
func parse(t *testing.T, args ...string) grammar {
	t.Helper()
	var g grammar
	parser, err := cmdline.New("volar", "", "1", &g, io.Discard, io.Discard, kong.Bind(&cli{}))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parser.Parse(args); err != nil {
		t.Fatalf("volar %q: %v", args, err)
	}
	return g
}

// TestRunArguments checks where our flags end: at the image.
func TestRunArguments(t *testing.T) {
	for line, want := range map[string]runCmd{
		"alpine":                 {Image: "alpine"},
		"alpine ls -la":          {Image: "alpine", Command: []string{"ls", "-la"}},
		"alpine -it":             {Image: "alpine", Command: []string{"-it"}},
		"alpine --rm --nonsense": {Image: "alpine", Command: []string{"--rm", "--nonsense"}},
		"alpine --help":          {Image: "alpine", Command: []string{"--help"}},
		"alpine -- ls":           {Image: "alpine", Command: []string{"--", "ls"}},
		"alpine sh -c a=b;c":     {Image: "alpine", Command: []string{"sh", "-c", "a=b;c"}},
		"--rm -it alpine sh":     {Image: "alpine", Command: []string{"sh"}, RM: true, vmFlags: vmFlags{Interactive: true, TTY: true}},
		"-itd --name x alpine":   {Image: "alpine", Name: "x", Detach: true, vmFlags: vmFlags{Interactive: true, TTY: true}},
		"-p8080:80 -p 53:53/udp -e A=1,2 -eB -m1g nginx": {Image: "nginx", vmFlags: vmFlags{
			Publish: []string{"8080:80", "53:53/udp"}, Env: []string{"A=1,2", "B"}, Memory: "1g",
		}},
		"--tmpfs /t:size=1m,mode=700 -v a:/a:ro,nocopy --label=a=b,c --env-file=f x": {Image: "x", vmFlags: vmFlags{
			Tmpfs: []string{"/t:size=1m,mode=700"}, Volume: []string{"a:/a:ro,nocopy"}, Label: []string{"a=b,c"}, EnvFile: []string{"f"},
		}},
		"--net none --cpu 2 x":      {Image: "x", vmFlags: vmFlags{Network: "none", CPUs: "2"}},
		"-P --pull always x -o yes": {Image: "x", Command: []string{"-o", "yes"}, imageFlags: imageFlags{PublishAll: true, Pull: "always"}},
		"-d --wait=healthy x":       {Image: "x", Detach: true, Wait: waitFlag{what: "healthy"}},
		"-d --no-wait x":            {Image: "x", Detach: true, Wait: waitFlag{off: true}},
	} {
		if want.Pull == "" {
			want.Pull = pullMissing
		}
		want.Timeout = 2 * 60e9
		if got := parse(t, append([]string{"run"}, strings.Fields(line)...)...).Run; !reflect.DeepEqual(got, want) {
			t.Errorf("volar run %s = %+v, want %+v", line, got, want)
		}
	}
	empty := ""
	if got := parse(t, "run", "--entrypoint", "", "x").Run.Entrypoint; !reflect.DeepEqual(got, &empty) {
		t.Errorf("an empty entrypoint is %v", got)
	}
	if got := parse(t, "vms", "create", "web", "--image", "x", "-e", "A=1", "sh", "-c", "x").VMs.Create; got.Name != "web" || got.Image != "x" || len(got.Command) != 3 {
		t.Errorf("vms create = %+v", got)
	}
}

// TestRunRefuses checks bad input that is found before anybody is asked: each
// has one sentence, and the status that docker has for it.
func TestRunRefuses(t *testing.T) {
	t.Setenv("VOLANT_HOST", "unix:///nowhere/v.sock")
	for line, want := range map[string]string{
		"":                                          `expected "<image>`,
		"--nonsense alpine":                         "unknown flag --nonsense",
		"-p 80:http alpine":                         `--publish "80:http": the guest's port "http"`,
		"-v data alpine":                            `--volume "data": "data" is not an absolute path`,
		"-m 1q alpine":                              `--memory "1q"`,
		"-m 536870912 alpine":                       "a plain number is MiB",
		"--cpus 0.5 alpine":                         "a microVM has whole CPUs",
		"--disk 1 alpine":                           "at least 16 MiB",
		"--restart on-failure:0 alpine":             "a number of times from 1 on",
		"--depends-on db:there alpine":              "with :healthy behind it",
		"--restart always:3 alpine":                 "on-failure:N",
		"--rm --restart always alpine":              "contradict",
		"--health-interval 30 alpine":               "--health-interval \"30\": give a time such as 30s",
		"--health-timeout 25h alpine":               "from 1ms to 24h",
		"--health-retries -1 alpine":                "--health-retries",
		"--no-healthcheck --health-cmd true alpine": "contradict",
		"--pull sometimes alpine":                   `"missing","always","never"`,
		"--name Web alpine":                         `VM name "Web" is not valid`,
		"-it alpine":                                "standard input is not a terminal",
		"--wait=healthy alpine":                     "--wait needs --detach",
		"-d --wait=stopped alpine":                  "give one of running, healthy, none",
		"-d --timeout 1h alpine":                    "up to 10m",
		"-e =1 alpine":                              "NAME=VALUE",
		"--network host alpine":                     "publish its ports",
		"--read-only --disk 1g alpine":              "contradict",
		"-d alpine":                                 "no socket /nowhere/v.sock",
	} {
		status, stdout, stderr := run(t, append([]string{"run"}, strings.Fields(line)...)...)
		if status != stdio.CodeFailed || stdout != "" || !strings.Contains(stderr, want) {
			t.Errorf("volar run %s = %d, stderr %q; want %d and %q", line, status, stderr, stdio.CodeFailed, want)
		}
		if strings.Contains(strings.TrimSuffix(stderr, "\n"), "\n") && !strings.Contains(stderr, "\nhint: ") {
			t.Errorf("volar run %s says more than one sentence: %q", line, stderr)
		}
	}
}
