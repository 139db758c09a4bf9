package oci_test

import (
	"context"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/volantvm/volant/build/oci"
	"github.com/volantvm/volant/client/api"
)

// home makes an empty user: no file, and a PATH with sh and the helpers of the
// test alone.
func home(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	t.Setenv("HOME", dir)
	for _, name := range []string{"DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"} {
		t.Setenv(name, "")
	}
	t.Setenv("PATH", filepath.Join(dir, "bin")+":/usr/bin:/bin")
	for _, d := range []string{"bin", ".docker", "run/containers"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// helper installs a credential helper that knows one registry.
func helper(t *testing.T, dir, name, registry, answer string) {
	t.Helper()
	script := fmt.Sprintf("#!/bin/sh\n[ \"$1\" = get ] || exit 2\nread -r server\nif [ \"$server\" = %q ]; then echo '%s'; exit; fi\necho 'credentials not found in native keychain'\nexit 1\n", registry, answer)
	if err := os.WriteFile(filepath.Join(dir, "bin", "docker-credential-"+name), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
}

func TestCredentials(t *testing.T) {
	basic := func(user, password string) string {
		return base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
	}
	docker, podman := ".docker/config.json", "run/containers/auth.json"
	for _, tt := range []struct {
		name  string
		files map[string]string
		ref   string
		want  *api.RegistryAuth
		err   string
	}{
		{name: "nothing", ref: "nginx"},
		{name: "Docker Hub", ref: "nginx", files: map[string]string{docker: `{"auths":{"https://index.docker.io/v1/":{"auth":"` + basic("me", "a:b") + `"}}}`},
			want: &api.RegistryAuth{Username: "me", Password: "a:b"}},
		{name: "podman's Docker Hub", ref: "nginx", files: map[string]string{podman: `{"auths":{"docker.io":{"auth":"` + basic("me", "pw") + `"}}}`},
			want: &api.RegistryAuth{Username: "me", Password: "pw"}},
		{name: "another registry", ref: "nginx", files: map[string]string{docker: `{"auths":{"host:5000":{"auth":"` + basic("me", "pw") + `"}}}`}},
		{name: "host", ref: "host:5000/app", files: map[string]string{docker: `{"auths":{"host:5000":{"auth":"` + basic("me", "pw") + `"}}}`},
			want: &api.RegistryAuth{Username: "me", Password: "pw"}},
		{name: "old Docker's spelling", ref: "host.example/app", files: map[string]string{docker: `{"auths":{"https://host.example/v1/":{"username":"me","password":"pw"}}}`},
			want: &api.RegistryAuth{Username: "me", Password: "pw"}},
		{name: "identity token", ref: "host.example/app", files: map[string]string{docker: `{"auths":{"host.example":{"auth":"` + basic("00", "") + `","identitytoken":"tok"}}}`},
			want: &api.RegistryAuth{Username: "00", IdentityToken: "tok"}},
		{name: "the longest path wins", ref: "quay.io/team/app", files: map[string]string{podman: `{"auths":{"quay.io":{"auth":"` + basic("all", "x") + `"},"quay.io/team":{"auth":"` + basic("team", "y") + `"},"quay.io/tea":{"auth":"` + basic("no", "z") + `"}}}`},
			want: &api.RegistryAuth{Username: "team", Password: "y"}},
		{name: "Docker's before Podman's", ref: "host.example/app", files: map[string]string{
			docker: `{"auths":{"host.example":{"auth":"` + basic("docker", "x") + `"}}}`, podman: `{"auths":{"host.example":{"auth":"` + basic("podman", "x") + `"}}}`},
			want: &api.RegistryAuth{Username: "docker", Password: "x"}},
		{name: "Podman's where Docker's has none", ref: "host.example/app", files: map[string]string{
			docker: `{"auths":{}}`, podman: `{"auths":{"host.example":{"auth":"` + basic("podman", "x") + `"}}}`},
			want: &api.RegistryAuth{Username: "podman", Password: "x"}},
		{name: "helper for one", ref: "host.example/app", files: map[string]string{docker: `{"credHelpers":{"host.example":"good"},"auths":{"host.example":{}}}`},
			want: &api.RegistryAuth{Username: "helped", Password: "secret"}},
		{name: "helper for all", ref: "host.example/app", files: map[string]string{docker: `{"credsStore":"good","auths":{"host.example":{}}}`},
			want: &api.RegistryAuth{Username: "helped", Password: "secret"}},
		{name: "helper's token", ref: "nginx", files: map[string]string{docker: `{"credsStore":"token"}`}, want: &api.RegistryAuth{IdentityToken: "tok"}},
		{name: "helper that does not know it", ref: "other.example/app", files: map[string]string{docker: `{"credsStore":"good"}`}},
		{name: "helper missing", ref: "host.example/app", files: map[string]string{docker: `{"credsStore":"absent"}`}, err: "is not in $PATH"},
		{name: "helper broken", ref: "host.example/app", files: map[string]string{docker: `{"credsStore":"broken"}`}, err: `"key ring is locked"`},
		{name: "helper with a path", ref: "host.example/app", files: map[string]string{docker: `{"credsStore":"../../evil"}`}, err: "not the name of a credential helper"},
		{name: "no JSON", ref: "nginx", files: map[string]string{docker: `{"auths":{"x":{"auth":"hunter2"`}, err: "is not valid JSON"},
		{name: "damaged entry", ref: "host.example/app", files: map[string]string{docker: `{"auths":{"host.example":{"auth":"!!hunter2"}}}`}, err: "log in again"},
		{name: "empty file", ref: "nginx", files: map[string]string{docker: ""}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := home(t)
			t.Setenv("XDG_RUNTIME_DIR", filepath.Join(dir, "run"))
			helper(t, dir, "good", "host.example", `{"ServerURL":"host.example","Username":"helped","Secret":"secret"}`)
			helper(t, dir, "token", "https://index.docker.io/v1/", `{"Username":"<token>","Secret":"tok"}`)
			if err := os.WriteFile(filepath.Join(dir, "bin/docker-credential-broken"), []byte("#!/bin/sh\necho 'key ring is locked' >&2\nexit 1\n"), 0o700); err != nil {
				t.Fatal(err)
			}
			for name, data := range tt.files {
				writeFile(t, filepath.Join(dir, name), []byte(data))
			}
			got, err := oci.Credentials(context.Background(), parse(t, tt.ref))
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("error = %v, want one with %q", err, tt.err)
				}
				if strings.Contains(err.Error(), "hunter2") {
					t.Errorf("error %q shows a secret", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got == nil || tt.want == nil {
				if got != tt.want {
					t.Errorf("Credentials(%q) = %+v, want %+v", tt.ref, got, tt.want)
				}
				return
			}
			if *got != *tt.want {
				t.Errorf("Credentials(%q) = %+v, want %+v", tt.ref, *got, *tt.want)
			}
		})
	}
}

// TestCredentialsEnvironment: files that the environment names come first.
func TestCredentialsEnvironment(t *testing.T) {
	dir := home(t)
	entry := func(user string) []byte {
		return []byte(`{"auths":{"host.example":{"username":"` + user + `","password":"x"}}}`)
	}
	writeFile(t, filepath.Join(dir, ".docker/config.json"), entry("home"))
	writeFile(t, filepath.Join(dir, "config.json"), entry("config"))
	writeFile(t, filepath.Join(dir, "auth"), entry("file"))
	check := func(want string) {
		t.Helper()
		got, err := oci.Credentials(context.Background(), parse(t, "host.example/app"))
		if err != nil || got == nil || got.Username != want {
			t.Errorf("Credentials = %+v, %v; want %s's", got, err, want)
		}
	}
	check("home")
	t.Setenv("DOCKER_CONFIG", dir)
	check("config")
	t.Setenv("REGISTRY_AUTH_FILE", filepath.Join(dir, "auth"))
	check("file")
}

// TestCredentialsStock: what skopeo writes on login is found, and lets in.
func TestCredentialsStock(t *testing.T) {
	addr, roots := startRegistry(t, registryConfig{login: true, tls: true})
	dir := home(t)
	file := filepath.Join(dir, "auth.json")
	run(t, "skopeo", "login", "--tls-verify=false", "--authfile", file, "-u", testUser, "-p", testPassword, addr)
	t.Setenv("REGISTRY_AUTH_FILE", file)
	ref := parse(t, addr+"/none:1")
	auth, err := oci.Credentials(context.Background(), ref)
	if err != nil || auth == nil {
		t.Fatalf("Credentials = %v, %v; want what skopeo wrote", auth, err)
	}
	_, err = (&oci.Registry{RootCAs: roots}).Resolve(context.Background(), ref, oci.Platform{}, auth)
	wantError(t, err, oci.ErrNotFound) // let in, and not there
}
