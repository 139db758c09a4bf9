package build

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"
)

// Bounds of a download.
const (
	maxDownload     = 512 << 20 // bytes; a volant binary has 22 MiB at most, a busybox 1
	downloadTimeout = 10 * time.Minute
	headerTimeout   = 30 * time.Second
)

// fetch downloads url into a new file in dir and returns its path. digest is
// the hex SHA-256 that it must have; without it there is no download.
func fetch(ctx context.Context, client *http.Client, url, digest, dir string) (_ string, err error) {
	if client == nil {
		client = &http.Client{Transport: &http.Transport{
			Proxy:                 http.ProxyFromEnvironment,
			DialContext:           (&net.Dialer{Timeout: headerTimeout}).DialContext,
			TLSHandshakeTimeout:   headerTimeout,
			ResponseHeaderTimeout: headerTimeout,
		}}
		defer client.CloseIdleConnections()
	}
	ctx, cancel := context.WithTimeout(ctx, downloadTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("get %s: %s", url, resp.Status)
	}
	if resp.ContentLength > maxDownload {
		return "", fmt.Errorf("get %s: %d bytes, at most %d", url, resp.ContentLength, maxDownload)
	}
	f, err := os.CreateTemp(dir, "download-*")
	if err != nil {
		return "", err
	}
	defer f.Close()
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(f, sum), io.LimitReader(resp.Body, maxDownload+1))
	if err != nil {
		return "", fmt.Errorf("get %s: %w", url, err)
	}
	if n > maxDownload {
		return "", fmt.Errorf("get %s: more than %d bytes", url, maxDownload)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != digest {
		return "", fmt.Errorf("get %s: its digest is sha256:%s, not sha256:%s as the recipe says", url, got, digest)
	}
	return f.Name(), nil
}

// fileDigest returns the hex SHA-256 of a file.
func fileDigest(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}
