package cloudhypervisor

import (
	"fmt"
	"regexp"
	"strconv"
)

const (
	// minMajor is the oldest version that is driven: older ones have a
	// use-after-free that guests can reach (CVE-2026-45782).
	minMajor = 52
	// newestMajor is the newest version whose differences are known; the next
	// ones are taken for it.
	newestMajor = 54
)

// version is a release of Cloud Hypervisor.
type version struct{ major, minor int }

func (v version) String() string { return fmt.Sprintf("%d.%d", v.major, v.minor) }

// parseVersion reads what --version prints: "cloud-hypervisor v52.0",
// "cloud-hypervisor v53.0.0", "cloud-hypervisor v53.0-246-gae44c29".
func parseVersion(text string) (version, error) {
	m := regexp.MustCompile(`^cloud-hypervisor v?(\d{1,5})\.(\d{1,5})\b`).FindStringSubmatch(text)
	if m == nil {
		return version{}, fmt.Errorf("--version says %.100q, which is no version of Cloud Hypervisor", text)
	}
	// Both are of five digits at most.
	major, _ := strconv.Atoi(m[1])
	minor, _ := strconv.Atoi(m[2])
	return version{major, minor}, nil
}

// traits is what the driver must know of a version.
type traits struct {
	major   int // these hold from this version on
	maxBody int // bytes of a request's body; more is refused
	// onDemand says that memory can be restored as the guest touches it. Version 52
	// can, but what is snapshotted of such a machine later is corrupt (its issue
	// 8525).
	onDemand bool
	notice   string
}

// traits returns those of the version, of the newest known one if it is newer.
func (v version) traits() traits {
	table := []traits{
		{54, 4 << 20, true, ""},
		{53, 51200, true, ""},
		{minMajor, 51200, false, "Cloud Hypervisor 52 loses the console's output while volantd is stopped, and its guests' clocks stand still in a pause: 53 or newer is better"},
	}
	for _, t := range table {
		if v.major >= t.major {
			if v.major > newestMajor {
				t.notice = fmt.Sprintf("Cloud Hypervisor %s is newer than this Volant knows; it is treated as %d", v, newestMajor)
			}
			return t
		}
	}
	return table[len(table)-1]
}
