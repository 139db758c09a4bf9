package daemon

import (
	"context"
	"io"
	"time"

	"github.com/volantvm/volant/client/api"
)

// Images is what the daemon needs of image building. It is safe for concurrent
// use. Errors that the asker can do something about are *api.Error: invalid
// (what was given is no image, or one that breaks a limit), not_found (no such
// image, none for the platform), denied (the registry wants other
// credentials), unavailable (the registry does not answer), too_large,
// exhausted (disk).
type Images interface {
	// ParseReference returns ref in its full form,
	// "docker.io/library/nginx:latest", with the digest if it has one. It asks
	// nobody.
	ParseReference(ref string) (string, error)
	// Resolve asks the registry which image pull means: the digest of the
	// manifest for its platform, and the reference in its full form.
	Resolve(ctx context.Context, pull api.ImagePull) (id, reference string, err error)
	// Pull fetches the image work.ID, which Resolve returned for pull, and
	// makes it into pull.Form. The result has one file.
	Pull(ctx context.Context, work ImageWork, pull api.ImagePull) (ImageResult, error)
	// Load reads images from archive, an OCI or docker-save archive, compressed
	// or not, and makes each into form. name, when it is not empty, is the
	// reference of an archive that holds one image and does not say its name.
	Load(ctx context.Context, work ImageWork, archive io.Reader, name string, form api.ImageForm) ([]ImageResult, error)
}

// ImageWork is where an image is made.
type ImageWork struct {
	// Dir is an existing directory for what is fetched. The daemon keeps it when
	// the work fails, gives it to the next try for the same image, and removes
	// it when the work is done, or nobody has tried for a while. What is found
	// in it may be cut short: whoever goes on from it verifies it.
	Dir string
	// Out begins the paths of result files. It is on the file system of Dir, and
	// files of that name that exist are left over and may be replaced. Result
	// files need not be synced.
	Out string
	// ID is the image to pull, as Resolve returned it; empty for a load.
	ID string
	// Progress is called as the work goes on, from any goroutine, and never
	// blocks. It is not nil.
	Progress func(api.ImageProgress)
	// Free returns how many bytes may still be written to the file system
	// before too little is left for the database.
	Free func() (int64, error)
}

// ImageResult is one image that was made.
type ImageResult struct {
	ID         string   // digest of the image's manifest
	References []string // in their full form; none for a pull, whose reference is known
	Platform   string   // "linux/amd64"
	Layers     int
	Config     api.ImageConfig
	CreatedAt  time.Time // as the image says; zero when it does not

	File   string // path of the disk or archive, which now is the daemon's
	Digest string // "sha256:…" of the file
	Size   int64  // bytes of the file, as its length says
}
