// What is a secret name, checked before anything is sent.

package keyhatch

import (
	"fmt"
	"strings"
)

const maxName = 512

// wanted is one value that is asked for: of a whole secret, or of one field of it.
type wanted struct {
	name     string
	field    string
	hasField bool
}

// parseWanted reads NAME or NAME#field.
func parseWanted(text string) (wanted, error) {
	name, field, hasField := strings.Cut(text, "#")
	return wanted{name, field, hasField}, checkName(name)
}

// question asks for it.
func (w wanted) question() *question {
	q := &question{what: w.name, path: "/v1/secrets/" + w.name, limit: maxDocument}
	if w.hasField {
		q.query = append(q.query, [2]string{"field", w.field})
	}
	return q
}

// checkName refuses what is not a secret's name, so that nothing is sent for it.
func checkName(name string) error {
	if wrong := wrongWith(name); wrong != "" {
		return &Error{Kind: ErrName, detail: fmt.Sprintf("%q is not a secret name: %s", name, wrong)}
	}
	return nil
}

func wrongWith(name string) string {
	if name == "" {
		return "a secret name cannot be empty"
	}
	if len(name) > maxName {
		return fmt.Sprintf("a secret name has at most %d bytes", maxName)
	}
	for _, segment := range strings.Split(name, "/") {
		switch {
		case segment == "":
			return "a secret name cannot have an empty segment: no slash at an end, no two in a row"
		case segment == "." || segment == "..":
			return "a secret name cannot have a segment . or .."
		case strings.ContainsFunc(segment, outsideAlphabet):
			return "a secret name has only letters, digits and . _ + = @ - between its slashes"
		}
	}
	return ""
}

func outsideAlphabet(r rune) bool {
	letter := 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z'
	return !letter && !('0' <= r && r <= '9') && !strings.ContainsRune("._+=@-", r)
}
