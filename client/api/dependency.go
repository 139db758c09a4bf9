package api

import (
	"fmt"
	"slices"
)

// Conditions of Dependency.
const (
	DependRunning = "running" // its agent answers (default)
	DependHealthy = "healthy" // its workload answers too
)

// Dependency is another VM that has to be up before this one is started: by its
// operator, by its restart policy, or after a reboot of the host. It is not
// started for that, and may end later.
type Dependency struct {
	VM        string `json:"vm"` // its name
	Condition string `json:"condition,omitempty"`
}

// maxDependencies bounds a list of them.
const maxDependencies = 64

// Wants is the condition, also when it is the default.
func (d Dependency) Wants() string {
	if d.Condition == "" {
		return DependRunning
	}
	return d.Condition
}

func validateDependencies(field string, deps []Dependency) error {
	if len(deps) > maxDependencies {
		return fieldErr(field, "has %d entries; at most %d are allowed", len(deps), maxDependencies)
	}
	for i, d := range deps {
		at := fmt.Sprintf("%s[%d]", field, i)
		if err := ValidateName("VM", d.VM); err != nil {
			return fieldErr(at+".vm", "%v", err)
		}
		if err := oneOf(at+".condition", d.Condition, "", DependRunning, DependHealthy); err != nil {
			return err
		}
		if slices.ContainsFunc(deps[:i], func(o Dependency) bool { return o.VM == d.VM }) {
			return fieldErr(at+".vm", "%s is there twice", d.VM)
		}
	}
	return nil
}
