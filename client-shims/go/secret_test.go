// Ways to print a secret, none of which shows it.

package keyhatch

import (
	"bytes"
	"encoding/base64"
	"encoding/gob"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"reflect"
	"strings"
	"testing"
	"unsafe"
)

const canary = "CANARY-go-5d1e"

func canarySecret() *Secret {
	return newSecret("app/db", "1-ab", canary, false)
}

// assertHidden fails where text has the canary in it, in any form in which it could be read back.
func assertHidden(t *testing.T, text string) {
	t.Helper()
	lower := strings.ToLower(text)
	forms := []string{
		"canary", hex.EncodeToString([]byte("CANARY")), "43 41 4e 41", "0x43", "67 65 78", "67, 65, 78",
		strings.ToLower(base64.StdEncoding.EncodeToString([]byte("CANARY"))),
	}
	for _, form := range forms {
		if at := strings.Index(lower, form); at >= 0 {
			t.Fatalf("the value is in %q", lower[max(0, at-200):min(len(lower), at+50)])
		}
	}
}

type inUnexported struct {
	value   Secret
	pointer *Secret
	any     any
	list    []Secret
	table   map[string]*Secret
}

type inExported struct {
	Value   Secret
	Pointer *Secret
	Any     any
	List    []Secret
	Table   map[string]*Secret
}

type embedded struct{ *Secret }

func shapes(s *Secret) []any {
	table := map[string]*Secret{"key": s}
	in := inUnexported{*s, s, *s, []Secret{*s}, table}
	out := inExported{*s, s, *s, []Secret{*s}, table}
	return []any{s, *s, &s, in, &in, out, &out, embedded{s}, []any{*s, s}, table, [1]inUnexported{in}}
}

func TestNoVerbShowsTheValue(t *testing.T) {
	for verb := rune('!'); verb <= '~'; verb++ {
		for _, flags := range []string{"", "+", "#", "-", " ", "0", "+#", "20", ".3", "*", "[1]"} {
			for _, shape := range shapes(canarySecret()) {
				assertHidden(t, fmt.Sprintf("%"+flags+string(verb), shape))
			}
		}
	}
	for _, shape := range shapes(canarySecret()) {
		assertHidden(t, fmt.Sprint(shape)+fmt.Sprintln(shape))
	}
}

func TestWhatIsShownInstead(t *testing.T) {
	s := canarySecret()
	for _, verb := range []string{"%v", "%+v", "%s", "%q", "%x", "%d", "%10s"} {
		equal(t, fmt.Sprintf(verb, s), "[hidden: app/db]")
		equal(t, fmt.Sprintf(verb, *s), "[hidden: app/db]")
	}
	equal(t, fmt.Sprintf("%#v", s), `keyhatch.Secret{name:"app/db", version:"1-ab", value:[hidden]}`)
	equal(t, fmt.Sprint(struct{ Key *Secret }{s}), "{[hidden: app/db]}")
	text, err := json.Marshal(map[string]any{"pointer": s, "value": *s})
	must(t, err)
	equal(t, string(text), `{"pointer":"[hidden: app/db]","value":"[hidden: app/db]"}`)
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("m", "key", s, "copy", *s)
	if !strings.Contains(log.String(), `key="[hidden: app/db]" copy="[hidden: app/db]"`) {
		t.Fatal(log.String())
	}
}

func TestEncodedIsNotDecoded(t *testing.T) {
	var buffer bytes.Buffer
	must(t, gob.NewEncoder(&buffer).Encode(inExported{Value: *canarySecret(), Any: nil}))
	assertHidden(t, buffer.String())
	var back Secret
	if json.Unmarshal([]byte(`"x"`), &back) == nil || gob.NewDecoder(&buffer).Decode(&back) == nil {
		t.Fatal("a mask was taken for a secret")
	}
}

// A printer that follows every pointer, exported or not, as debug printers do.
func TestNoWalkThroughMemoryMeetsTheValue(t *testing.T) {
	f := serve(t, valueOf("app/db", canary))
	client := f.client(t, WithCache())
	secret := readUntilCached(t, client, "app/db")
	var found bytes.Buffer
	seen := map[unsafe.Pointer]bool{}
	for _, shape := range append(shapes(secret), client) {
		boxed := reflect.New(reflect.TypeOf(shape)).Elem()
		boxed.Set(reflect.ValueOf(shape))
		walk(&found, boxed, seen)
	}
	if !strings.Contains(found.String(), "app/db") {
		t.Fatal("the walk met nothing")
	}
	assertHidden(t, found.String())
}

func walk(found *bytes.Buffer, v reflect.Value, seen map[unsafe.Pointer]bool) {
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		if v.Kind() == reflect.Pointer && (v.IsNil() || seen[v.UnsafePointer()]) {
			return
		}
		if v.Kind() == reflect.Pointer {
			seen[v.UnsafePointer()] = true
		}
		if !v.IsNil() {
			walk(found, v.Elem(), seen)
		}
	case reflect.Struct:
		for at := 0; at < v.NumField(); at++ {
			walk(found, v.Field(at), seen)
		}
	case reflect.Slice, reflect.Array:
		for at := 0; at < v.Len(); at++ {
			walk(found, v.Index(at), seen)
		}
	case reflect.Map:
		for _, key := range v.MapKeys() {
			walk(found, key, seen)
			walk(found, v.MapIndex(key), seen)
		}
	case reflect.String:
		fmt.Fprintf(found, "%s\n", v.String())
	case reflect.Uint8:
		found.WriteByte(byte(v.Uint()))
	}
}

// The runtime prints a panic by itself, without fmt.
func TestACrashDoesNotShowTheValue(t *testing.T) {
	switch os.Getenv("KEYHATCH_TEST_CRASH") {
	case "pointer":
		panic(canarySecret())
	case "value":
		panic(*canarySecret())
	case "error":
		panic(fmt.Errorf("with %v", canarySecret()))
	}
	for _, what := range []string{"pointer", "value", "error"} {
		crash := exec.Command(os.Args[0], "-test.run=^TestACrashDoesNotShowTheValue$")
		crash.Env = append(os.Environ(), "KEYHATCH_TEST_CRASH="+what, "GOTRACEBACK=all")
		out, err := crash.CombinedOutput()
		if err == nil || !strings.Contains(string(out), "panic: ") {
			t.Fatalf("%v\n%s", err, out)
		}
		assertHidden(t, string(out))
	}
}

func TestFields(t *testing.T) {
	s := newSecret("app/db", "1-ab", `{"password":"CANARY-\u00e9\n","port": [1, 2],"none":null,"":"x"}`, true)
	for field, want := range map[string]string{"password": "CANARY-é\n", "port": "[1, 2]", "none": "null", "": "x"} {
		got, err := s.Field(field)
		must(t, err)
		equal(t, got.Reveal(), want)
		equal(t, got.Name()+got.Version(), "app/db1-ab")
		equal(t, got.Stale(), true)
	}
	for _, value := range []string{
		"", canary, "null", `["CANARY"]`, `"CANARY"`, `{"a":"CANARY"`, "{\"a\":\"CANARY\xff\"}", `{"a":"CANARY"}`,
	} {
		_, err := newSecret("app/db", "1-ab", value, false).Field("b")
		wantError(t, err, ErrNoField)
	}
}

func TestBytesAreACopy(t *testing.T) {
	s := canarySecret()
	s.RevealBytes()[0] = 'x'
	equal(t, s.Reveal(), canary)
	equal(t, string(s.RevealBytes()), canary)
	equal(t, Secret{}.Reveal(), "")
}
