package api

import (
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// MaxSelectorLength bounds a selector's text, in bytes.
const MaxSelectorLength = 4096

// Selector selects things by their labels: those that meet every one of its
// requirements. The zero value selects all.
type Selector []Requirement

// SelectorOp is how a Requirement looks at a label.
type SelectorOp string

const (
	SelectIn        SelectorOp = "in"     // the label is there, with one of the values
	SelectNotIn     SelectorOp = "notin"  // it is not there, or has another value
	SelectExists    SelectorOp = "exists" // it is there, whatever its value
	SelectNotExists SelectorOp = "!"      // it is not there
)

// Requirement is what a Selector asks of one label.
type Requirement struct {
	Key    string
	Op     SelectorOp
	Values []string // of SelectIn and SelectNotIn: one or more
}

// ParseSelector reads requirements separated by commas:
//
//	key=value, key==value    the label has this value
//	key!=value               it has another value, or is not there
//	key                      it is there
//	!key                     it is not there
//	key in (a, b)            it has one of these values
//	key notin (a, b)         it has none of them, or is not there
//
// A key or value with a space, a comma or one of ()=!" in it stands in double
// quotes, in which \" and \\ are a quote and a backslash. The empty text
// selects all. Errors have CodeInvalid and say at which byte, counted from 1.
func ParseSelector(text string) (Selector, error) {
	if len(text) > MaxSelectorLength {
		return nil, Errorf(CodeInvalid, "selector: has %d bytes; at most %d are allowed", len(text), MaxSelectorLength)
	}
	p := selectorParser{text: text}
	p.space()
	if p.at == len(text) {
		return nil, nil
	}
	var s Selector
	for {
		r, err := p.requirement()
		if err != nil {
			return nil, err
		}
		s = append(s, r)
		if p.at == len(text) {
			return s, nil
		}
		if !p.take(",") {
			return nil, p.errorf("%s cannot stand here; a comma goes before the next label", p.found())
		}
	}
}

// Matches reports whether s selects something with these labels.
func (s Selector) Matches(labels map[string]string) bool {
	for _, r := range s {
		value, has := labels[r.Key]
		var meets bool
		switch r.Op {
		case SelectIn:
			meets = has && slices.Contains(r.Values, value)
		case SelectNotIn:
			meets = !has || !slices.Contains(r.Values, value)
		case SelectExists:
			meets = has
		case SelectNotExists:
			meets = !has
		}
		if !meets {
			return false
		}
	}
	return true
}

// String returns the text that ParseSelector reads as s.
func (s Selector) String() string {
	var parts []string
	for _, r := range s {
		key := quoteSelector(r.Key)
		if r.Op == SelectExists && (key == "in" || key == "notin") {
			key = `"` + key + `"` // to be told from the operator at a glance
		}
		var values []string
		for _, v := range r.Values {
			values = append(values, quoteSelector(v))
		}
		switch {
		case r.Op == SelectIn && len(values) == 1:
			parts = append(parts, key+"="+values[0])
		case r.Op == SelectNotIn && len(values) == 1:
			parts = append(parts, key+"!="+values[0])
		case r.Op == SelectExists:
			parts = append(parts, key)
		case r.Op == SelectNotExists:
			parts = append(parts, "!"+key)
		default:
			parts = append(parts, key+" "+string(r.Op)+" ("+strings.Join(values, ",")+")")
		}
	}
	return strings.Join(parts, ",")
}

func quoteSelector(word string) string {
	if word != "" && !strings.ContainsFunc(word, selectorSpecial) {
		return word
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(word) + `"`
}

// selectorSpecial reports whether c ends a word that stands without quotes.
func selectorSpecial(c rune) bool { return unicode.IsSpace(c) || strings.ContainsRune(`,()=!"\`, c) }

// selectorParser reads text from at on.
type selectorParser struct {
	text string
	at   int
}

func (p *selectorParser) errorf(format string, args ...any) error {
	return Errorf(CodeInvalid, "selector %.80q: at byte %d: %s", p.text, p.at+1, fmt.Sprintf(format, args...)).
		WithHint("a selector reads app=web,tier!=test,owner,!old,zone in (a,b)")
}

// found names what stands at the present place.
func (p *selectorParser) found() string {
	if p.at == len(p.text) {
		return "the end"
	}
	_, n := utf8.DecodeRuneInString(p.text[p.at:])
	return fmt.Sprintf("%q", p.text[p.at:p.at+n])
}

func (p *selectorParser) space() {
	p.at = len(p.text) - len(strings.TrimLeftFunc(p.text[p.at:], unicode.IsSpace))
}

// take passes over token and the space behind it, if it stands here.
func (p *selectorParser) take(token string) bool {
	if !strings.HasPrefix(p.text[p.at:], token) {
		return false
	}
	p.at += len(token)
	p.space()
	return true
}

func (p *selectorParser) requirement() (Requirement, error) {
	if p.take("!") {
		key, err := p.key()
		return Requirement{Key: key, Op: SelectNotExists}, err
	}
	key, err := p.key()
	if err != nil {
		return Requirement{}, err
	}
	r := Requirement{Key: key, Op: SelectExists}
	switch {
	case p.take("=="), p.take("="):
		r.Op = SelectIn
	case p.take("!="):
		r.Op = SelectNotIn
	case p.at < len(p.text) && p.text[p.at] != ',':
		return p.set(r)
	default:
		return r, nil
	}
	value, err := p.value()
	r.Values = []string{value}
	return r, err
}

// set reads "in (a, b)" or "notin (a, b)" behind a key.
func (p *selectorParser) set(r Requirement) (Requirement, error) {
	begin := p.at
	word, quoted, err := p.word()
	if err != nil {
		return r, err
	}
	switch r.Op = SelectorOp(word); {
	case !quoted && (r.Op == SelectIn || r.Op == SelectNotIn):
	default:
		p.at = begin
		return r, p.errorf("%s cannot stand here; behind a label goes =, !=, in, notin or a comma", p.found())
	}
	if !p.take("(") {
		return r, p.errorf("%s cannot stand here; behind %s go values in parentheses", p.found(), r.Op)
	}
	for {
		value, err := p.value()
		if err != nil {
			return r, err
		}
		r.Values = append(r.Values, value)
		switch {
		case p.take(","):
		case p.take(")"):
			return r, nil
		default:
			return r, p.errorf("%s cannot stand here; a value ends with a comma or a closing parenthesis", p.found())
		}
	}
}

func (p *selectorParser) key() (string, error) {
	begin := p.at
	key, quoted, err := p.word()
	if err != nil {
		return "", err
	}
	if key == "" && !quoted {
		return "", p.errorf("%s cannot stand here; the name of a label goes here", p.found())
	}
	if err := ValidateLabels("", map[string]string{key: ""}); err != nil {
		p.at = begin
		return "", p.errorf("%.40q is no name of a label: they have 1 to %d bytes of UTF-8", key, maxLabelKey)
	}
	return key, nil
}

// value reads a value, which may be empty.
func (p *selectorParser) value() (string, error) {
	begin := p.at
	value, _, err := p.word()
	if err == nil && !utf8.ValidString(value) {
		p.at = begin
		err = p.errorf("the value is not UTF-8")
	}
	return value, err
}

// word reads a word, in quotes or not, and the space behind it. It is empty
// where none stands.
func (p *selectorParser) word() (word string, quoted bool, err error) {
	rest := p.text[p.at:]
	if !strings.HasPrefix(rest, `"`) {
		n := strings.IndexFunc(rest, selectorSpecial)
		if n < 0 {
			n = len(rest)
		}
		p.at += n
		p.space()
		return rest[:n], false, nil
	}
	var b strings.Builder
	for i := 1; i < len(rest); i++ {
		switch c := rest[i]; {
		case c == '"':
			p.at += i + 1
			p.space()
			return b.String(), true, nil
		case c == '\\' && i+1 < len(rest) && (rest[i+1] == '"' || rest[i+1] == '\\'):
			i++
			b.WriteByte(rest[i])
		case c == '\\':
			p.at += i
			return "", true, p.errorf(`a backslash in quotes goes before " or \`)
		default:
			b.WriteByte(c)
		}
	}
	return "", true, p.errorf("the quote is not closed")
}
