package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
)

// DecodeStrict decodes one JSON document into dst, a pointer to a struct. A
// field that dst does not have is an error that names the nearest one it has;
// so are a field given twice, a wrong type and trailing data. Errors are *Error with CodeInvalid
// whose message begins with the field's path, as in
// "workload.entrypont: is not a known field; did you mean entrypoint?".
// Field names match exactly, in their letter case too.
func DecodeStrict(data []byte, dst any) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	var tree any
	if err := dec.Decode(&tree); err != nil {
		return jsonErr(data, err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return Errorf(CodeInvalid, "there is more data after the JSON document, at byte %d", dec.InputOffset())
	}
	if err := checkTwice("", json.NewDecoder(bytes.NewReader(data))); err != nil {
		return err
	}
	if err := checkFields("", tree, reflect.TypeOf(dst).Elem()); err != nil {
		return err
	}
	if err := json.Unmarshal(data, dst); err != nil {
		return jsonErr(data, err)
	}
	return nil
}

// checkTwice refuses fields that an object has twice, of which package json would
// take the last. dec stands before the value at path at, which is known to parse.
func checkTwice(at string, dec *json.Decoder) error {
	tok, err := dec.Token()
	if err != nil {
		return err
	}
	switch tok {
	case json.Delim('{'):
		seen := make(map[json.Token]bool)
		for dec.More() {
			key, err := dec.Token()
			if err != nil {
				return err
			}
			name := join(at, clip(fmt.Sprint(key)))
			if seen[key] {
				return fieldErr(name, "is given twice")
			}
			seen[key] = true
			if err := checkTwice(name, dec); err != nil {
				return err
			}
		}
	case json.Delim('['):
		for i := 0; dec.More(); i++ {
			if err := checkTwice(fmt.Sprintf("%s[%d]", at, i), dec); err != nil {
				return err
			}
		}
	default:
		return nil
	}
	_, err = dec.Token() // the closing one
	return err
}

// checkFields compares the decoded tree v, found at path at, with type t.
func checkFields(at string, v any, t reflect.Type) error {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t.Implements(reflect.TypeFor[json.Unmarshaler]()) || reflect.PointerTo(t).Implements(reflect.TypeFor[json.Unmarshaler]()) {
		return nil
	}
	switch v := v.(type) {
	case map[string]any:
		switch t.Kind() {
		case reflect.Struct:
			return checkStruct(at, v, t)
		case reflect.Map:
			for _, k := range sortedKeys(v) {
				if err := checkFields(join(at, k), v[k], t.Elem()); err != nil {
					return err
				}
			}
		}
	case []any:
		if t.Kind() == reflect.Slice {
			for i, e := range v {
				if err := checkFields(fmt.Sprintf("%s[%d]", at, i), e, t.Elem()); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func checkStruct(at string, v map[string]any, t reflect.Type) error {
	fields := make(map[string]reflect.Type, t.NumField())
	for f := range t.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name != "" && name != "-" {
			fields[name] = f.Type
		}
	}
	for _, k := range sortedKeys(v) {
		ft, ok := fields[k]
		if !ok {
			msg := "is not a known field"
			if near := Nearest(k, sortedKeys(fields)); near != "" {
				msg += fmt.Sprintf("; did you mean %s?", near)
			}
			return fieldErr(join(at, clip(k)), "%s", msg)
		}
		if err := checkFields(join(at, k), v[k], ft); err != nil {
			return err
		}
	}
	return nil
}

func join(at, name string) string {
	if at == "" {
		return name
	}
	return at + "." + name
}

func clip(s string) string {
	if len(s) > 60 {
		return s[:60] + "..."
	}
	return s
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func jsonErr(data []byte, err error) error {
	var te *json.UnmarshalTypeError
	if errors.As(err, &te) {
		field := te.Field
		if field == "" {
			field = "document"
		}
		// Without the word JSON: manifests come as TOML and YAML too.
		return fieldErr(field, "is %s; it must be %s", valueWord(te.Value), typeWord(te.Type))
	}
	var se *json.SyntaxError
	if errors.As(err, &se) {
		n := min(max(se.Offset-1, 0), int64(len(data)))
		line := 1 + bytes.Count(data[:n], []byte("\n"))
		col := n - int64(bytes.LastIndexByte(data[:n], '\n'))
		return Errorf(CodeInvalid, "line %d, column %d: %v", line, col, se)
	}
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		return Errorf(CodeInvalid, "the JSON document ends too early")
	}
	return Errorf(CodeInvalid, "%v", err)
}

// valueWord turns package json's name of a value's kind into words.
func valueWord(kind string) string {
	switch kind {
	case "array":
		return "a list"
	case "object":
		return "an object"
	case "bool":
		return "true or false"
	}
	if strings.HasPrefix(kind, "number ") {
		return "the " + kind // "number 1.5"
	}
	return "a " + kind // "string", "number"
}

func typeWord(t reflect.Type) string {
	switch t.Kind() {
	case reflect.String:
		return "a string"
	case reflect.Bool:
		return "true or false"
	case reflect.Int, reflect.Int32, reflect.Int64, reflect.Uint, reflect.Uint32, reflect.Uint64:
		return "a whole number"
	case reflect.Slice:
		return "a list"
	case reflect.Map, reflect.Struct:
		return "an object"
	}
	return "a " + t.Kind().String()
}

// Nearest returns the candidate that is closest to name by edit distance, or
// "" when none is close enough to be what was meant. Ties go to the first.
func Nearest(name string, candidates []string) string {
	if len(name) > 64 {
		return ""
	}
	best, bestDist := "", 1+max(2, len(name)/3)
	for _, c := range candidates {
		if d := editDistance(strings.ToLower(name), strings.ToLower(c)); d < bestDist {
			best, bestDist = c, d
		}
	}
	return best
}

// editDistance is the Levenshtein distance in bytes.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diag := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			diag, row[j] = row[j], min(row[j]+1, row[j-1]+1, diag+cost)
		}
	}
	return row[len(b)]
}
