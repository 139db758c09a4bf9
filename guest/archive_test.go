package guest

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/volantvm/volant/client/api/archive"
	"github.com/volantvm/volant/guest/wire"
	"github.com/volantvm/volant/testdata/need"
)

// archiveGuest serves an agent whose root is a directory.
type archiveGuest struct {
	*fakeSys
	agent *testAgent
	url   string
	ready bool
}

func newArchiveGuest(t *testing.T) *archiveGuest {
	g := &archiveGuest{fakeSys: newFakeSys(t), agent: newTestAgent(), ready: true}
	g.agent.archives = newArchives(func() Files { return g.fakeSys }, func() bool { return g.ready })
	srv := httptest.NewServer(g.agent.handler())
	t.Cleanup(srv.Close)
	g.url = srv.URL
	return g
}

func (g *archiveGuest) request(t *testing.T, method, route string, q url.Values, body io.Reader) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, g.url+route+"?"+q.Encode(), body)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return resp
}

// refusal reads the error of an answer, the zero one of a success.
func refusal(t *testing.T, resp *http.Response) (e wire.Error) {
	t.Helper()
	if resp.StatusCode/100 == 2 {
		return e
	}
	b, err := io.ReadAll(resp.Body)
	if err != nil || json.Unmarshal(b, &e) != nil {
		t.Errorf("%s: %q, %v", resp.Status, b, err)
	}
	return e
}

func (g *archiveGuest) mkdir(t *testing.T, paths ...string) {
	t.Helper()
	for _, p := range paths {
		if err := g.MkdirAll(p, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

func (g *archiveGuest) link(t *testing.T, target, path string) {
	t.Helper()
	if err := os.Symlink(target, g.at(path)); err != nil {
		t.Fatal(err)
	}
}

func tarStream(t *testing.T, entries ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for _, h := range entries {
		data := h.Linkname
		if h.Typeflag == 0 {
			h.Typeflag, h.Linkname, h.Size = tar.TypeReg, "", int64(len(data))
		}
		if err := tw.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			_, _ = io.WriteString(tw, data)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestStat resolves paths as a process in the guest would, and never leaves its
// root.
func TestStat(t *testing.T) {
	g := newArchiveGuest(t)
	g.mkdir(t, "/etc", "/usr/lib", "/proc")
	g.put(t, "/etc/hosts", "hello", 0o640)
	g.link(t, "usr/lib", "/lib")
	g.link(t, "/etc/hosts", "/usr/lib/hosts")
	g.link(t, "../../../../../etc", "/usr/out")
	g.link(t, "/nowhere", "/dangling")
	g.link(t, "loop", "/loop")
	for _, tc := range []struct {
		path   string
		follow bool
		want   string // name, path, type, target; or the code
	}{
		{"/etc/hosts", false, "hosts /etc/hosts file "},
		{"/etc//./hosts", false, "hosts /etc/hosts file "},
		{"/lib", false, "lib /lib symlink usr/lib"},
		{"/lib", true, "lib /usr/lib dir "},
		{"/lib/", false, "lib /usr/lib dir "},
		{"/lib/.", false, "lib /usr/lib dir "},
		{"/lib/..", false, "usr /usr dir "},
		{"/lib/hosts", false, "hosts /usr/lib/hosts symlink /etc/hosts"},
		{"/lib/hosts", true, "hosts /etc/hosts file "},
		{"/usr/out/hosts", false, "hosts /etc/hosts file "},
		{"/../../etc", false, "etc /etc dir "},
		{"/", false, "/ / dir "},
		{"/.", false, "/ / dir "},
		{"/none", false, "not_found"},
		{"/none/x", false, "not_found"},
		{"/dangling", true, "not_found"},
		{"/dangling", false, "dangling /dangling symlink /nowhere"},
		{"/etc/hosts/x", false, "conflict"},
		{"/loop", true, "conflict"},
		{"etc", false, "invalid"},
		{"", false, "invalid"},
		{"/a\x00", false, "invalid"},
		{"/" + strings.Repeat("a", 5000), false, "invalid"},
	} {
		resp := g.request(t, "GET", wire.PathStat, url.Values{"path": {tc.path}, "follow": {fmt.Sprint(tc.follow)}}, nil)
		var got string
		if resp.StatusCode == http.StatusOK {
			var info wire.FileInfo
			if err := json.NewDecoder(resp.Body).Decode(&info); err != nil {
				t.Fatal(err)
			}
			got = fmt.Sprintf("%s %s %s %s", info.Name, info.Path, info.Type, info.Target)
		} else {
			got = string(refusal(t, resp).Code)
		}
		if got != tc.want {
			t.Errorf("stat %.40q, follow %v = %q, want %q", tc.path, tc.follow, got, tc.want)
		}
	}
	g.ready = false
	if e := refusal(t, g.request(t, "GET", wire.PathStat, url.Values{"path": {"/"}}, nil)); e.Code != wire.ErrorConflict {
		t.Errorf("stat before the workload = %+v, want conflict", e)
	}
}

// names lists what an archive holds.
func archiveNames(t *testing.T, r io.Reader) string {
	t.Helper()
	var out []string
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return strings.Join(out, " ")
		}
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, h.Name)
	}
}

func TestGetArchive(t *testing.T) {
	g := newArchiveGuest(t)
	g.mkdir(t, "/data/sub", "/proc/1", "/dev/shm", "/sys/x")
	g.put(t, "/data/sub/f", "hello", 0o640)
	g.put(t, "/dev/shm/f", "shared", 0o640)
	g.put(t, "/proc/1/f", "no", 0o640)
	g.link(t, "data", "/link")
	g.link(t, "/proc/1", "/data/proc")
	g.link(t, "/", "/data/sub/root")
	for path, want := range map[string]string{
		"/data":        "data/ data/proc data/sub/ data/sub/f data/sub/root",
		"/data/":       "data/ data/proc data/sub/ data/sub/f data/sub/root",
		"/data/sub/.":  "./ ./f ./root",
		"/data/sub/./": "./ ./f ./root",
		"/data/sub/f":  "f",
		"/link":        "link",
		"/link/.":      "./ ./proc ./sub/ ./sub/f ./sub/root",
		"/link/sub":    "sub/ sub/f sub/root",
		"/dev/shm":     "shm/ shm/f",
		"/dev/shm/f":   "f",
		"/proc":        "conflict",
		"/proc/1/f":    "conflict",
		"/data/proc/f": "conflict",
		"/dev":         "conflict",
		"/none":        "not_found",
		"/data/sub/f/": "conflict",
		"data":         "invalid",
	} {
		resp := g.request(t, "GET", wire.PathArchive, url.Values{"path": {path}}, nil)
		got := string(refusal(t, resp).Code)
		if got == "" {
			got = archiveNames(t, resp.Body)
		}
		sorted := strings.Fields(got)
		slices.Sort(sorted)
		if got = strings.Join(sorted, " "); got != want {
			t.Errorf("archive of %s = %s, want %s", path, got, want)
		}
	}
	all := g.request(t, "GET", wire.PathArchive, url.Values{"path": {"/"}}, nil)
	if got := archiveNames(t, all.Body); strings.Contains(got, "proc/1") || strings.Contains(got, "shm/f") || !strings.Contains(got, "./data/sub/f ") && !strings.HasSuffix(got, "./data/sub/f") {
		t.Errorf("archive of / = %s", got)
	}
	// Whoever asked knows the names by the path alone.
	root := g.request(t, "GET", wire.PathArchive, url.Values{"path": {"/data/sub/root/"}}, nil)
	for _, name := range strings.Fields(archiveNames(t, root.Body)) {
		if !strings.HasPrefix(name, "root/") {
			t.Errorf("the archive of a link to / holds %s", name)
		}
	}
	if resp := g.request(t, "GET", wire.PathArchive, url.Values{"path": {"/link"}, "follow": {"true"}}, nil); archiveNames(t, resp.Body) == "link" {
		t.Error("the link was not followed")
	}
}

// TestGetArchiveFails has packing fail after its beginning: the trailer says why.
func TestGetArchiveFails(t *testing.T) {
	g := newArchiveGuest(t)
	if err := os.WriteFile(g.at("/big"), make([]byte, 8<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	resp := g.request(t, "GET", wire.PathArchive, url.Values{"path": {"/big"}}, nil)
	if _, err := io.CopyN(io.Discard, resp.Body, 1000); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(g.at("/big"), 0); err != nil {
		t.Fatal(err)
	}
	err := archive.Extract(t.Context(), resp.Body, mustRoot(t, t.TempDir()), archive.ExtractOptions{})
	if err == nil {
		t.Error("what there is was taken for whole")
	}
	_, err = io.Copy(io.Discard, resp.Body)
	var e wire.Error
	if trailer := resp.Trailer.Get(wire.TrailerError); err != nil || json.Unmarshal([]byte(trailer), &e) != nil || e.Code != wire.ErrorConflict || !strings.Contains(e.Message, "shorter") {
		t.Errorf("trailer %q, %v", trailer, err)
	}
}

func mustRoot(t *testing.T, dir string) *os.Root {
	t.Helper()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root
}

func TestPutArchive(t *testing.T) {
	need.Root(t, "to give files away")
	when := time.Unix(1700000000, 0)
	whole := tarStream(t,
		tar.Header{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o711, Uid: 7, Gid: 8, ModTime: when},
		tar.Header{Name: "d/f", Linkname: "hello", Mode: 0o4755, Uid: 7, Gid: 8, ModTime: when},
		tar.Header{Name: "d/pipe", Typeflag: tar.TypeFifo, Mode: 0o600, Uid: 7, ModTime: when},
		tar.Header{Name: "d/l", Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd", Uid: 7, ModTime: when},
		tar.Header{Name: "d/h", Typeflag: tar.TypeLink, Linkname: "d/f"})
	for _, keep := range []bool{false, true} {
		t.Run(fmt.Sprintf("keep %v", keep), func(t *testing.T) {
			g := newArchiveGuest(t)
			g.mkdir(t, "/real")
			g.link(t, "real", "/dst")
			resp := g.request(t, "PUT", wire.PathArchive, url.Values{"path": {"/dst"}, "keep": {fmt.Sprint(keep)}}, bytes.NewReader(append(whole, make([]byte, 10240)...)))
			if resp.StatusCode != http.StatusNoContent {
				t.Fatalf("PUT = %s: %+v", resp.Status, refusal(t, resp))
			}
			uid, mode := uint32(0), os.FileMode(0o755)
			if keep {
				uid, mode = 7, 0o755|os.ModeSetuid
			}
			for _, name := range []string{"d", "d/f", "d/pipe", "d/l", "d/h"} {
				info, err := g.Lstat("/real/" + name)
				if err != nil {
					t.Fatal(err)
				}
				if st := info.Sys().(*syscall.Stat_t); st.Uid != uid || !info.ModTime().Equal(when) {
					t.Errorf("%s is of %d, of %v", name, st.Uid, info.ModTime())
				}
				if name == "d/f" && info.Mode() != mode {
					t.Errorf("%s has mode %v, want %v", name, info.Mode(), mode)
				}
			}
			if got := g.content(t, "/real/d/h"); got != "hello" {
				t.Errorf("the further name holds %q", got)
			}
		})
	}
}

// TestPutArchiveRefused sends what must not be done. The error is the agent's,
// not that of a connection that was closed while 8 MiB were sent.
func TestPutArchiveRefused(t *testing.T) {
	big := tar.Header{Name: "z", Linkname: strings.Repeat("z", 8<<20)}
	for name, tc := range map[string]struct {
		path    string
		entries []tar.Header
		want    wire.ErrorCode
		text    string
	}{
		"no directory":           {"/none", nil, wire.ErrorNotFound, "/none"},
		"a file":                 {"/file", nil, wire.ErrorConflict, "not a directory"},
		"the kernel's":           {"/proc", nil, wire.ErrorConflict, "kernel"},
		"the kernel's, by link":  {"/toproc", nil, wire.ErrorConflict, "kernel"},
		"the kernel's, below":    {"/", []tar.Header{{Name: "proc/f", Linkname: "x"}}, wire.ErrorConflict, "kernel"},
		"devices":                {"/", []tar.Header{{Name: "dev/sda", Linkname: "x"}}, wire.ErrorConflict, "kernel"},
		"a device":               {"/dst", []tar.Header{{Name: "sda", Typeflag: tar.TypeBlock}}, wire.ErrorInvalid, "device"},
		"dots":                   {"/dst", []tar.Header{{Name: "../f", Linkname: "x"}}, wire.ErrorInvalid, "leads out"},
		"through a planted link": {"/dst", []tar.Header{{Name: "planted/f", Linkname: "x"}}, wire.ErrorConflict, "in the way"},
		"through its own link":   {"/dst", []tar.Header{{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "/etc"}, {Name: "l/f", Linkname: "x"}}, wire.ErrorConflict, "in the way"},
		"a relative path":        {"dst", nil, wire.ErrorInvalid, "absolute"},
	} {
		t.Run(name, func(t *testing.T) {
			g := newArchiveGuest(t)
			g.mkdir(t, "/dst", "/etc", "/proc", "/dev")
			g.put(t, "/file", "x", 0o644)
			g.link(t, "/proc/", "/toproc")
			g.link(t, "/etc", "/dst/planted")
			resp := g.request(t, "PUT", wire.PathArchive, url.Values{"path": {tc.path}}, bytes.NewReader(tarStream(t, append(tc.entries, big)...)))
			if e := refusal(t, resp); e.Code != tc.want || !strings.Contains(e.Message, tc.text) {
				t.Errorf("PUT = %s %+v, want %s: %s", resp.Status, e, tc.want, tc.text)
			}
			for _, dir := range []string{"/etc", "/proc", "/dev"} {
				if entries, err := os.ReadDir(g.at(dir)); err != nil || len(entries) != 0 {
					t.Errorf("%s holds %v, %v", dir, entries, err)
				}
			}
			if _, err := g.Lstat("/f"); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("/f: %v", err)
			}
		})
	}
}

// endless yields zeros.
type endless struct{}

func (endless) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// TestPutArchiveEndless refuses what would be sent for ever, at once.
func TestPutArchiveEndless(t *testing.T) {
	g := newArchiveGuest(t)
	start := time.Now()
	e := refusal(t, g.request(t, "PUT", wire.PathArchive, url.Values{"path": {"/none"}}, endless{}))
	if took := time.Since(start); e.Code != wire.ErrorNotFound || took > drainIdle/2 {
		t.Errorf("PUT = %+v after %v", e, took)
	}
}

// TestPutArchiveCut has the host go while it sends: no half file is left.
func TestPutArchiveCut(t *testing.T) {
	g := newArchiveGuest(t)
	g.mkdir(t, "/dst")
	data := tarStream(t, tar.Header{Name: "a", Linkname: "first"}, tar.Header{Name: "b", Linkname: strings.Repeat("x", 4<<20)})
	r, w := io.Pipe()
	go func() {
		_, _ = w.Write(data[:2<<20])
		w.CloseWithError(errors.New("the host is gone"))
	}()
	req, err := http.NewRequestWithContext(t.Context(), "PUT", g.url+wire.PathArchive+"?path=/dst", r)
	if err != nil {
		t.Fatal(err)
	}
	if resp, err := http.DefaultClient.Do(req); err == nil {
		t.Errorf("PUT = %s", resp.Status)
	}
	for range 200 { // until the agent has noticed
		entries, err := os.ReadDir(g.at("/dst"))
		if err != nil {
			t.Fatal(err)
		}
		if len(entries) == 1 && entries[0].Name() == "a" && len(g.agent.archives.slots) == 0 {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	entries, _ := os.ReadDir(g.at("/dst"))
	t.Errorf("/dst holds %v, %d archives are under way", entries, len(g.agent.archives.slots))
}

// TestArchivesAtOnce fills the slots, and ends with the guest.
func TestArchivesAtOnce(t *testing.T) {
	g := newArchiveGuest(t)
	g.mkdir(t, "/dst")
	ends := make(chan string, wire.MaxArchives)
	for range wire.MaxArchives {
		r, w := io.Pipe()
		defer w.Close()
		go func() {
			req, _ := http.NewRequestWithContext(t.Context(), "PUT", g.url+wire.PathArchive+"?path=/dst", r)
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				ends <- err.Error()
				return
			}
			defer resp.Body.Close()
			b, _ := io.ReadAll(resp.Body)
			ends <- string(b)
		}()
	}
	for range 200 {
		if len(g.agent.archives.slots) == wire.MaxArchives {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	resp := g.request(t, "PUT", wire.PathArchive, url.Values{"path": {"/dst"}}, bytes.NewReader(tarStream(t)))
	if e := refusal(t, resp); e.Code != wire.ErrorBusy {
		t.Errorf("one too many = %s %+v", resp.Status, e)
	}
	close(g.agent.quit)
	for range wire.MaxArchives {
		select {
		case text := <-ends:
			if !strings.Contains(text, errEnding.Error()) {
				t.Errorf("at the guest's end: %s", text)
			}
		case <-time.After(time.Minute):
			t.Fatal("an archive does not end with the guest")
		}
	}
}
