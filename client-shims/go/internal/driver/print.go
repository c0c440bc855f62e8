// A secret printed in every way that the standard library has.

package main

import (
	"bytes"
	"encoding/gob"
	"encoding/json"
	"encoding/xml"
	"errors"
	"expvar"
	"fmt"
	htmltemplate "html/template"
	"log"
	"log/slog"
	"reflect"
	"text/template"

	keyhatch "github.com/keyhatch/keyhatch/client-shims/go"
)

// hidden has a secret where fmt calls no methods.
type hidden struct {
	value   keyhatch.Secret
	pointer *keyhatch.Secret
	any     any
	list    []keyhatch.Secret
	table   map[string]*keyhatch.Secret
}

// shown has one where it does.
type shown struct {
	Value   keyhatch.Secret
	Pointer *keyhatch.Secret
	Any     any
	List    []keyhatch.Secret
}

// printed is the secret in all of them.
func printed(secret *keyhatch.Secret) []string {
	table := map[string]*keyhatch.Secret{"key": secret}
	in := hidden{*secret, secret, *secret, []keyhatch.Secret{*secret}, table}
	out := shown{*secret, secret, secret, []keyhatch.Secret{*secret}}
	var outputs []string
	for _, verb := range []string{
		"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "% x", "%#x", "%d", "%c", "%U", "%b", "%o", "%e", "%f", "%g", "%t",
		"%p", "%T", "%w", "%20.3s", "%-10v", "%!",
	} {
		for _, what := range []any{*secret, secret, in, &in, out, &out, []any{secret}, table} {
			outputs = append(outputs, fmt.Sprintf(verb, what))
		}
	}
	outputs = append(outputs, fmt.Sprint(secret, *secret), fmt.Sprintln(secret), secret.String(), secret.GoString())
	outputs = append(outputs, wrapped(secret)...)
	outputs = append(outputs, logged(secret, in, out)...)
	outputs = append(outputs, encoded(secret, in, out)...)
	return append(outputs, filled(secret, in, out)...)
}

func wrapped(secret *keyhatch.Secret) []string {
	plain := fmt.Errorf("with %v and %+v", secret, *secret)
	joined := errors.Join(plain, fmt.Errorf("over %w", plain))
	_, missing := secret.Field("no such field")
	panicked := func() (text string) {
		defer func() { text = fmt.Sprint(recover()) }()
		panic(secret)
	}()
	return []string{joined.Error(), fmt.Sprintf("%#v", joined), fmt.Sprintf("%+v %#v", missing, missing), panicked}
}

func logged(secret *keyhatch.Secret, in hidden, out shown) []string {
	var buffer bytes.Buffer
	plain := log.New(&buffer, "", 0)
	plain.Print(secret, *secret, in, out)
	plain.Printf("%v %+v %#v", secret, in, out)
	level := &slog.HandlerOptions{Level: slog.LevelDebug}
	for _, handler := range []slog.Handler{slog.NewTextHandler(&buffer, level), slog.NewJSONHandler(&buffer, level)} {
		logger := slog.New(handler).With("with", secret)
		logger.Info("key", "pointer", secret, "value", *secret, "in", in, "out", out)
		logger.Debug("key", slog.Any("any", secret), slog.Group("group", "key", *secret))
	}
	return []string{buffer.String()}
}

func encoded(secret *keyhatch.Secret, in hidden, out shown) []string {
	var outputs []string
	for _, what := range []any{*secret, secret, in, out, map[string]any{"key": secret}} {
		text, err := json.Marshal(what)
		outputs = append(outputs, string(text), fmt.Sprint(err))
		text, err = xml.Marshal(what)
		outputs = append(outputs, string(text), fmt.Sprint(err))
		var buffer bytes.Buffer
		err = gob.NewEncoder(&buffer).Encode(what)
		outputs = append(outputs, buffer.String(), fmt.Sprint(err))
	}
	text, _ := secret.MarshalText()
	binary, _ := secret.MarshalBinary()
	variable := expvar.Func(func() any { return out })
	return append(outputs, string(text), string(binary), variable.String(), secret.LogValue().String())
}

func filled(secret *keyhatch.Secret, in hidden, out shown) []string {
	text := template.Must(template.New("").Parse(`{{.}} {{printf "%v %x %q" . . .}} {{print .}} {{js .}} {{urlquery .}}`))
	html := htmltemplate.Must(htmltemplate.New("").Parse(`<a href="{{.}}">{{.}}</a><script>let x = {{.}}</script>`))
	var buffer bytes.Buffer
	for _, what := range []any{*secret, secret, in, out} {
		for _, execute := range []func() error{
			func() error { return text.Execute(&buffer, what) },
			func() error { return html.Execute(&buffer, what) },
		} {
			if err := execute(); err != nil {
				buffer.WriteString(err.Error())
			}
		}
	}
	value := reflect.ValueOf(*secret)
	for at := 0; at < value.NumField(); at++ {
		fmt.Fprint(&buffer, value.Field(at), value.Field(at).String())
	}
	return []string{buffer.String(), reflect.ValueOf(secret).String()}
}
