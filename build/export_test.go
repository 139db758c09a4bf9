package build

// SetRoot makes libraries be looked for below dir instead of /.
func (o *Options) SetRoot(dir string) { o.root = dir }
