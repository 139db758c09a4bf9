package kernel

import (
	"bytes"
	"debug/elf"
	"fmt"
	"strings"
)

// maxModinfo bounds the .modinfo section, in bytes. The largest in Debian's kernels,
// with thousands of device aliases, are below 256 KiB.
const maxModinfo = 4 << 20

// modinfo is what a module says about itself in its .modinfo section: strings
// "key=value", each ended by a zero byte (include/linux/module.h, MODULE_INFO).
type modinfo struct {
	version string   // of the kernel it was built for, the first word of vermagic
	depends []string // modules whose symbols it uses
	before  []string // modules or aliases to load first if there are any (softdep pre)
}

// parseModinfo reads the .modinfo section of a module. A signature after the ELF
// object's end does not matter.
func parseModinfo(data []byte) (modinfo, error) {
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return modinfo{}, fmt.Errorf("%w: %w", ErrModule, err)
	}
	if f.Machine != elf.EM_X86_64 || f.Class != elf.ELFCLASS64 || f.Type != elf.ET_REL {
		return modinfo{}, fmt.Errorf("%w: not an x86_64 relocatable object", ErrModule)
	}
	section := f.Section(".modinfo")
	if section == nil || section.Type != elf.SHT_PROGBITS || section.Flags&elf.SHF_COMPRESSED != 0 || section.Size > maxModinfo {
		return modinfo{}, fmt.Errorf("%w: no usable .modinfo section", ErrModule)
	}
	text, err := section.Data()
	if err != nil {
		return modinfo{}, fmt.Errorf("%w: .modinfo: %w", ErrModule, err)
	}
	var info modinfo
	for _, entry := range strings.Split(string(text), "\x00") {
		key, value, _ := strings.Cut(entry, "=")
		switch key {
		case "vermagic":
			info.version, _, _ = strings.Cut(value, " ")
		case "depends":
			for _, name := range strings.Split(value, ",") {
				if name != "" {
					info.depends = append(info.depends, moduleName(name))
				}
			}
		case "softdep": // "pre: a b post: c"
			pre := false
			for _, word := range strings.Fields(value) {
				switch {
				case strings.HasSuffix(word, ":"):
					pre = word == "pre:"
				case pre:
					info.before = append(info.before, moduleName(word))
				}
			}
		}
	}
	if info.version == "" {
		return modinfo{}, fmt.Errorf("%w: no vermagic", ErrModule)
	}
	return info, nil
}
