package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/volantvm/volant/client/api"
)

// imagePath is the path of an image by reference or ID. Its slashes stay: the
// route takes the rest of the path.
func imagePath(ref string) string {
	parts := strings.Split(ref, "/")
	for i, p := range parts {
		parts[i] = url.PathEscape(p)
	}
	return "/images/" + strings.Join(parts, "/")
}

// Images lists the images that sel selects of those that the daemon holds, the newest first.
func (c *Client) Images(ctx context.Context, sel api.Selector) (list []api.Image, err error) {
	_, err = c.call(ctx, request{method: http.MethodGet, path: "/images", query: selecting(sel)}, nil, &list)
	return list, err
}

// Image returns one image by reference, ID, or the first digits of its ID.
func (c *Client) Image(ctx context.Context, ref string) (img api.Image, err error) {
	_, err = c.call(ctx, request{method: http.MethodGet, path: imagePath(ref)}, nil, &img)
	return img, err
}

// PullImage has the daemon fetch an image from its registry and returns it when
// it is there. progress, which may be nil, is called meanwhile. The daemon ends
// the work when ctx does, unless others wait for it too.
func (c *Client) PullImage(ctx context.Context, pull api.ImagePull, progress func(api.ImageProgress)) (api.Image, error) {
	body, err := json.Marshal(pull)
	if err != nil {
		return api.Image{}, api.Errorf(api.CodeInvalid, "pull: %v", err)
	}
	images, err := c.imageWork(ctx, request{
		method: http.MethodPost, path: "/images/pull", body: bytes.NewReader(body), size: int64(len(body)),
		header: http.Header{"Content-Type": {"application/json"}},
	}, progress)
	if err != nil {
		return api.Image{}, err
	}
	return images[len(images)-1], nil
}

// LoadImage has the daemon read images from an archive: OCI or docker save,
// compressed or not. name is the reference of an archive with one image that
// does not say its own; form may be empty. r is not closed.
func (c *Client) LoadImage(ctx context.Context, name string, form api.ImageForm, r io.Reader, progress func(api.ImageProgress)) ([]api.Image, error) {
	q := url.Values{}
	if name != "" {
		q.Set("name", name)
	}
	if form != "" {
		q.Set("form", string(form))
	}
	return c.imageWork(ctx, request{
		method: http.MethodPost, path: "/images/load", query: q, body: io.NopCloser(r), size: -1,
		header: http.Header{"Content-Type": {"application/octet-stream"}},
	}, progress)
}

// imageWork sends a request whose answer is a stream of api.ImageProgress and
// returns the images that it names, of which there is at least one.
func (c *Client) imageWork(ctx context.Context, r request, progress func(api.ImageProgress)) ([]api.Image, error) {
	resp, err := c.send(ctx, r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close() // also ends the work at the daemon's side
	var images []api.Image
	sc := bufio.NewScanner(resp.Body)
	sc.Buffer(nil, maxLine)
	for sc.Scan() {
		var p api.ImageProgress
		if err := json.Unmarshal(sc.Bytes(), &p); err != nil {
			return nil, api.Errorf(api.CodeInternal, "volantd sent a line that does not parse: %v", err)
		}
		switch {
		case p.Error != nil:
			return nil, p.Error
		case p.Image != nil:
			images = append(images, *p.Image)
		case progress != nil && p.Step != "":
			progress(p)
		}
	}
	if err := sc.Err(); err != nil {
		return nil, c.transportError(ctx, err)
	}
	if len(images) == 0 {
		return nil, api.Errorf(api.CodeUnavailable, "volantd ended the answer before the image was there").WithHint("ask again: what was fetched is kept for a while; see volantd's log")
	}
	return images, nil
}

// RemoveImage removes a reference and, when it was the last, the image. An ID
// removes the image with its only reference; with force, with all it has. Images
// that VMs were made from stay in any case.
func (c *Client) RemoveImage(ctx context.Context, ref string, force bool) (out api.ImageRemoved, err error) {
	q := url.Values{}
	if force {
		q.Set("force", "true")
	}
	_, err = c.call(ctx, request{method: http.MethodDelete, path: imagePath(ref), query: q}, nil, &out)
	return out, err
}

// PruneImages removes the images that in selects, of those that no VM uses.
func (c *Client) PruneImages(ctx context.Context, in api.ImagePrune) (out api.ImageRemoved, err error) {
	_, err = c.call(ctx, request{method: http.MethodPost, path: "/images/prune"}, in, &out)
	return out, err
}
