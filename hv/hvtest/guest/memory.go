package guest

import (
	"crypto/rand"
	"encoding/json"
	"sync"
	"time"
)

// tick is how long one of the guest's ticks takes.
const tick = 10 * time.Millisecond

// Memory is what a guest remembers. A snapshot of a real machine keeps it with
// all its memory; one of a scripted machine keeps what Save returns. It is safe
// for concurrent use.
type Memory struct {
	mu sync.Mutex
	kept
}

type kept struct {
	Nonce string `json:"nonce"` // of the boot
	Ticks int64  `json:"ticks"`
	Note  string `json:"note"`
}

// NewMemory returns that of a guest that has just booted.
func NewMemory() *Memory { return &Memory{kept: kept{Nonce: rand.Text()}} }

// LoadMemory returns that of a guest that goes on, from what Save returned.
func LoadMemory(b []byte) (*Memory, error) {
	m := new(Memory)
	return m, json.Unmarshal(b, &m.kept)
}

// Save returns all that is remembered.
func (m *Memory) Save() ([]byte, error) { return json.Marshal(m.get()) }

func (m *Memory) get() kept {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.kept
}

func (m *Memory) tick() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.Ticks++
}

func (m *Memory) note(text string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.Note = text
}
