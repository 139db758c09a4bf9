package oci

// Limits bound what an image may cost. A zero field means its default.
type Limits struct {
	Layers        int   // layers of an image; default 128 (Docker makes 127 at most)
	LayerBytes    int64 // of one layer, uncompressed; default 64 GiB
	TotalBytes    int64 // of all layers of a pull or load, uncompressed, and of an archive; default 64 GiB
	Ratio         int64 // uncompressed to compressed, for layers over 64 MiB; default 1000
	ManifestBytes int64 // of one manifest or index; default 4 MiB, as registries have it
	ConfigBytes   int64 // of an image's configuration; default 8 MiB
	Members       int   // of an archive; default 65536
	Images        int   // of an archive or layout; default 256
}

// ratioFrom is the size from which Limits.Ratio counts: a small file of zeros
// is no bomb.
const ratioFrom = 64 << 20

func (l Limits) withDefaults() Limits {
	def := func(v *int64, d int64) {
		if *v <= 0 {
			*v = d
		}
	}
	if l.Layers <= 0 {
		l.Layers = 128
	}
	if l.Members <= 0 {
		l.Members = 1 << 16
	}
	if l.Images <= 0 {
		l.Images = 256
	}
	def(&l.LayerBytes, 64<<30)
	def(&l.TotalBytes, 64<<30)
	def(&l.Ratio, 1000)
	def(&l.ManifestBytes, 4<<20)
	def(&l.ConfigBytes, 8<<20)
	return l
}
