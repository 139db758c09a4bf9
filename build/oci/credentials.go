package oci

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/volantvm/volant/client/api"
)

const (
	maxCredentials = 1 << 20 // bytes of a configuration or a helper's answer
	// helperTimeout is long: a helper may ask its user to unlock a key ring.
	helperTimeout = 2 * time.Minute
	// dockerHubKey is what Docker Hub is called in Docker's configuration.
	dockerHubKey = "https://index.docker.io/v1/"
	// tokenUser is what a helper calls the user of an identity token.
	tokenUser = "<token>"
)

// credentialsFile is Docker's config.json, and containers-auth.json(5).
type credentialsFile struct {
	Auths map[string]struct {
		Auth          string `json:"auth"` // base64 of user:password
		Username      string `json:"username"`
		Password      string `json:"password"`
		IdentityToken string `json:"identitytoken"`
		RegistryToken string `json:"registrytoken"`
	} `json:"auths"`
	CredHelpers map[string]string `json:"credHelpers"`
	CredsStore  string            `json:"credsStore"`
}

// credentialsFiles lists where credentials may be, first come first served:
// what the environment names, Docker's, Podman's.
func credentialsFiles() []string {
	var list []string
	if f := os.Getenv("REGISTRY_AUTH_FILE"); f != "" {
		list = append(list, f)
	}
	home, _ := os.UserHomeDir()
	if dir := os.Getenv("DOCKER_CONFIG"); dir != "" {
		list = append(list, filepath.Join(dir, "config.json"))
	} else if home != "" {
		list = append(list, filepath.Join(home, ".docker", "config.json"))
	}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
		list = append(list, filepath.Join(dir, "containers", "auth.json"))
	}
	if dir, err := os.UserConfigDir(); err == nil {
		list = append(list, filepath.Join(dir, "containers", "auth.json"))
	}
	return list
}

// Credentials finds how this user logs in to the registry of ref: in
// $REGISTRY_AUTH_FILE, Docker's configuration or Podman's, or by the credential
// helper that one of them names. It returns nil where none has an entry, which
// is no error: most images are public.
//
// An entry for a part of a registry, "quay.io/team", goes before one for the
// whole. It may block while a helper asks its user.
func Credentials(ctx context.Context, ref Reference) (*api.RegistryAuth, error) {
	keys := credentialKeys(ref)
	for _, name := range credentialsFiles() {
		c, err := readCredentials(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		auth, err := c.find(ctx, keys)
		if err != nil {
			return nil, fmt.Errorf("credentials for %s by %s: %w", ref.Registry, name, err)
		}
		if auth != nil {
			return auth, nil
		}
	}
	return nil, nil
}

// credentialKeys are the names that an entry for ref may have, best first.
func credentialKeys(ref Reference) []string {
	var keys []string
	for name := ref.Name(); ; {
		keys = append(keys, name)
		i := strings.LastIndexByte(name, '/')
		if i < 0 {
			break
		}
		name = name[:i]
	}
	if ref.Registry == dockerHub {
		return append(keys, dockerHubKey, "index.docker.io", "registry-1.docker.io")
	}
	return keys
}

func readCredentials(name string) (*credentialsFile, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxCredentials+1))
	if err != nil {
		return nil, err
	}
	var c credentialsFile
	switch {
	case len(data) > maxCredentials:
		return nil, fmt.Errorf("%s has more than %d bytes", name, maxCredentials)
	case len(bytes.TrimSpace(data)) == 0:
		return &c, nil
	}
	if err := json.Unmarshal(data, &c); err != nil {
		var se *json.SyntaxError // its text could show a part of a secret
		if errors.As(err, &se) {
			return nil, fmt.Errorf("%s is not valid JSON at byte %d: correct it, or log in again", name, se.Offset)
		}
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return &c, nil
}

// find looks keys up: in the helper for one, in the file, in the helper for all.
func (c *credentialsFile) find(ctx context.Context, keys []string) (*api.RegistryAuth, error) {
	for _, key := range keys {
		if helper := c.CredHelpers[key]; helper != "" {
			if auth, err := askHelper(ctx, helper, key); err != nil || auth != nil {
				return auth, err
			}
		}
	}
	for _, key := range keys {
		for _, have := range c.entries(key) {
			a := c.Auths[have]
			auth := &api.RegistryAuth{Username: a.Username, Password: a.Password, IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken}
			if a.Auth != "" {
				plain, err := base64.StdEncoding.DecodeString(a.Auth)
				user, password, ok := strings.Cut(string(plain), ":")
				if err != nil || !ok {
					return nil, fmt.Errorf("the entry %s is damaged: log in again", clip(have))
				}
				auth.Username, auth.Password = user, strings.TrimRight(password, "\x00")
			}
			if *auth != (api.RegistryAuth{}) {
				return auth, nil
			}
			// Docker leaves an empty entry for what its helper keeps.
		}
	}
	if c.CredsStore == "" {
		return nil, nil
	}
	for _, key := range keys {
		if strings.Contains(key, "/") && key != dockerHubKey {
			continue // helpers know whole registries
		}
		if auth, err := askHelper(ctx, c.CredsStore, key); err != nil || auth != nil {
			return auth, err
		}
	}
	return nil, nil
}

// entries are the names of the entries for key, the exact one first.
func (c *credentialsFile) entries(key string) []string {
	var names []string
	for name := range c.Auths {
		if name != key && bareKey(name) == key {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	if _, ok := c.Auths[key]; ok {
		names = slices.Insert(names, 0, key)
	}
	return names
}

// bareKey is an entry's name without what old Dockers wrote around it:
// "https://host/v1/" is "host".
func bareKey(key string) string {
	rest := strings.TrimPrefix(strings.TrimPrefix(key, "https://"), "http://")
	for _, suffix := range [...]string{"/", "/v1", "/v2"} {
		rest = strings.TrimSuffix(rest, suffix)
	}
	return rest
}

// askHelper runs docker-credential-NAME get for a registry. It returns nil for
// one that the helper does not know.
func askHelper(ctx context.Context, helper, registry string) (*api.RegistryAuth, error) {
	name := "docker-credential-" + helper
	if strings.ContainsAny(helper, "/\x00") {
		return nil, fmt.Errorf("%s is not the name of a credential helper", clip(helper))
	}
	bin, err := exec.LookPath(name)
	if err != nil {
		return nil, fmt.Errorf("the credential helper %s is not in $PATH: install it, or remove it from the configuration", clip(name))
	}
	ctx, cancel := context.WithTimeout(ctx, helperTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, bin, "get")
	cmd.Stdin = strings.NewReader(registry)
	cmd.WaitDelay = time.Second
	var out, complaint limitedBuffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		said := strings.TrimSpace(out.b.String())
		switch {
		case ctx.Err() != nil:
			return nil, fmt.Errorf("the credential helper %s: %w", name, ctx.Err())
		case strings.Contains(said, "credentials not found"):
			return nil, nil
		}
		return nil, fmt.Errorf("the credential helper %s fails: %w: %s", name, err, clip(strings.TrimSpace(said+" "+complaint.b.String())))
	}
	var answer struct{ Username, Secret string }
	if err := json.Unmarshal(out.b.Bytes(), &answer); err != nil {
		return nil, fmt.Errorf("the credential helper %s does not answer in JSON", name)
	}
	if answer.Username == tokenUser {
		return &api.RegistryAuth{IdentityToken: answer.Secret}, nil
	}
	if answer.Username == "" && answer.Secret == "" {
		return nil, nil
	}
	return &api.RegistryAuth{Username: answer.Username, Password: answer.Secret}, nil
}

// limitedBuffer keeps the first bytes written to it and drops the rest.
type limitedBuffer struct{ b bytes.Buffer }

func (l *limitedBuffer) Write(p []byte) (int, error) {
	if room := maxCredentials - l.b.Len(); room > 0 {
		l.b.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}
