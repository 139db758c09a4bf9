package main

// What packages do when they are initialized, every role pays for, and every guest
// before its workload: under emulation what is below took 30 ms of a guest's 130.
// The copies do the same when it is first needed.

// changeCompress makes no table of a checksum before there is one to compute.
func changeCompress(files map[string]string) error {
	for _, name := range []string{"zstd/snappy.go", "internal/snapref/snappy.go"} {
		if err := edit(files, name,
			change{"var crcTable = crc32.MakeTable(crc32.Castagnoli)", "func crcTable() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }", 1},
			change{"crc32.Update(0, crcTable, b)", "crc32.Update(0, crcTable(), b)", 1}); err != nil {
			return err
		}
	}
	return nil
}

// editLazy changes a file whose module is from before generics: the constraint has
// the file be compiled as Go 1.21, for sync.OnceValue.
func editLazy(files map[string]string, name string, changes ...change) error {
	changes = append(changes, change{"\t\"regexp\"\n", "\t\"regexp\"\n\t\"sync\"\n", 1})
	err := edit(files, name, changes...)
	files[name] = "//go:build go1.21\n\n" + files[name]
	return err
}

// changeDigest compiles expressions when a digest is first checked.
func changeDigest(files map[string]string) error {
	err := editLazy(files, "algorithm.go",
		change{"anchoredEncodedRegexps = map[Algorithm]*regexp.Regexp{", "anchoredEncodedRegexps = sync.OnceValue(func() map[Algorithm]*regexp.Regexp {\n\t\treturn map[Algorithm]*regexp.Regexp{", 1},
		change{"`^[a-f0-9]{128}$`),\n\t}\n", "`^[a-f0-9]{128}$`),\n\t}\n\t})\n", 1},
		change{"anchoredEncodedRegexps[a]", "anchoredEncodedRegexps()[a]", 1})
	if err != nil {
		return err
	}
	return editLazy(files, "digest.go",
		change{"var DigestRegexp = regexp.MustCompile(`[a-z0-9]+(?:[.+_-][a-z0-9]+)*:[a-zA-Z0-9=_-]+`)",
			"const digestExpr = `[a-z0-9]+(?:[.+_-][a-z0-9]+)*:[a-zA-Z0-9=_-]+`\n\nvar DigestRegexp = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(digestExpr) })", 1},
		change{"var DigestRegexpAnchored = regexp.MustCompile(`^` + DigestRegexp.String() + `$`)",
			"var DigestRegexpAnchored = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^` + digestExpr + `$`) })", 1},
		change{"DigestRegexpAnchored.MatchString", "DigestRegexpAnchored().MatchString", 1})
}

// changeYAML compiles expressions when a number is first read or written.
func changeYAML(files map[string]string) error {
	err := editLazy(files, "encode.go",
		change{"var base60float = regexp.MustCompile(`^[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\\.[0-9_]*)?$`)",
			"var base60float = sync.OnceValue(func() *regexp.Regexp {\n\treturn regexp.MustCompile(`^[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\\.[0-9_]*)?$`)\n})", 1},
		change{"base60float.MatchString", "base60float().MatchString", 1})
	if err != nil {
		return err
	}
	return editLazy(files, "resolve.go",
		change{"var yamlStyleFloat = regexp.MustCompile(`^[-+]?(\\.[0-9]+|[0-9]+(\\.[0-9]*)?)([eE][-+]?[0-9]+)?$`)",
			"var yamlStyleFloat = sync.OnceValue(func() *regexp.Regexp {\n\treturn regexp.MustCompile(`^[-+]?(\\.[0-9]+|[0-9]+(\\.[0-9]*)?)([eE][-+]?[0-9]+)?$`)\n})", 1},
		change{"yamlStyleFloat.MatchString", "yamlStyleFloat().MatchString", 1})
}

// changeRegistry compiles expressions when a registry's name is first looked at.
func changeRegistry(files map[string]string) error {
	var changes []change
	for _, e := range []struct{ name, expr string }{
		{"reLocal", "`.*\\.localhost(?::\\d{1,5})?$`"},
		{"reLoopback", "`^127\\.0\\.0\\.1(?::\\d{1,5})?$`"},
		{"reipv6Loopback", "`^(::1|\\[::1\\](?::\\d{1,5})?)$`"},
	} {
		changes = append(changes,
			change{"var " + e.name + " = regexp.MustCompile(" + e.expr + ")", "var " + e.name + " = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(" + e.expr + ") })", 1},
			change{e.name + ".MatchString", e.name + "().MatchString", 1})
	}
	return editLazy(files, "pkg/name/registry.go", changes...)
}
