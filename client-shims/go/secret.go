// A secret in the hands of a bot: it can be read, and does not print itself.

package keyhatch

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"unicode/utf8"
)

// Secret is the value of a secret, with its name and version. It can be read, and does not print itself: every way to
// print, log or encode it shows its name alone.
//
// The value lies in a closure. The fmt package does not call the methods of what lies in an unexported field but walks
// its memory, as debug printers do; neither can walk into a func.
type Secret struct {
	name    string
	version string
	stale   bool
	value   func() string
}

func newSecret(name, version, value string, stale bool) *Secret {
	return &Secret{name: name, version: version, stale: stale, value: func() string { return value }}
}

// Reveal gives the value, exactly. Call it where the value is used, and do not keep what it returns.
func (s Secret) Reveal() string {
	if s.value == nil {
		return ""
	}
	return s.value()
}

// RevealBytes gives a copy of the value, exactly.
func (s Secret) RevealBytes() []byte {
	return []byte(s.Reveal())
}

// Name gives the secret's name.
func (s Secret) Name() string { return s.name }

// Version says which value this is: an opaque text, another one for every value of the secret.
func (s Secret) Version() string { return s.version }

// Stale says whether the source has been away for so long that there may be a newer value.
func (s Secret) Stale() bool { return s.stale }

// Field gives one field of a value that is a JSON object: the text of a string, the JSON of anything else. The error
// is [ErrNoField] where there is none.
func (s Secret) Field(field string) (*Secret, error) {
	value, ok := jsonField(s.Reveal(), field)
	if !ok {
		// The cause is left out: it may quote the value.
		return nil, &Error{
			Kind:   ErrNoField,
			detail: fmt.Sprintf("the value of %s is not a JSON object with a field %q", s.name, field),
		}
	}
	return newSecret(s.name, s.version, value, s.stale), nil
}

func jsonField(object, field string) (string, bool) {
	var fields map[string]json.RawMessage
	if !utf8.ValidString(object) || json.Unmarshal([]byte(object), &fields) != nil {
		return "", false
	}
	raw, ok := fields[field]
	if !ok {
		return "", false
	}
	if raw[0] != '"' {
		return string(raw), true
	}
	var text string
	if json.Unmarshal(raw, &text) != nil {
		return "", false
	}
	return text, true
}

// String gives the secret's name, and that its value is hidden.
func (s Secret) String() string {
	return "[hidden: " + s.name + "]"
}

// GoString is String for the verb %#v.
func (s Secret) GoString() string {
	return fmt.Sprintf("keyhatch.Secret{name:%q, version:%q, value:[hidden]}", s.name, s.version)
}

// Format writes the same as String, or GoString, for every verb.
func (s Secret) Format(state fmt.State, verb rune) {
	text := s.String()
	if verb == 'v' && state.Flag('#') {
		text = s.GoString()
	}
	_, _ = io.WriteString(state, text)
}

// MarshalJSON gives what String gives, as a JSON string.
func (s Secret) MarshalJSON() ([]byte, error) { return json.Marshal(s.String()) }

// MarshalText gives what String gives.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// MarshalBinary gives what String gives; encoding/gob uses it.
func (s Secret) MarshalBinary() ([]byte, error) { return []byte(s.String()), nil }

// LogValue gives what String gives; log/slog uses it.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }
