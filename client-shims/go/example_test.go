package keyhatch_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log"
	"net/http"

	keyhatch "github.com/keyhatch/keyhatch/client-shims/go"
)

var ctx = context.Background()

func ExampleGet() {
	key, err := keyhatch.Get(ctx, "openai/api-key")
	if err != nil {
		log.Fatal(err)
	}
	request, err := http.NewRequest(http.MethodGet, "https://api.openai.com/v1/models", nil)
	if err != nil {
		log.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+key.Reveal())
	log.Print("asking with ", key) // asking with [hidden: openai/api-key]
}

func ExampleSecret_Field() {
	login, err := keyhatch.Get(ctx, "app/db")
	if err != nil {
		log.Fatal(err)
	}
	password, err := login.Field("password")
	if err != nil {
		log.Fatal(err)
	}
	_, _ = sql.Open("postgres", "user=app password="+password.Reveal())
}

func ExampleError() {
	_, err := keyhatch.Get(ctx, "openai/api-key")
	var refused *keyhatch.Error
	switch {
	case errors.Is(err, keyhatch.ErrDenied):
		log.Print("this bot has no grant for it")
	case errors.As(err, &refused) && refused.Temporary():
		log.Print("try again later: ", refused.Kind, " ", refused.RequestID)
	}
}

func ExampleWatch() {
	watcher, err := keyhatch.Watch(ctx, "openai/api-key", "app/db")
	if err != nil {
		log.Fatal(err)
	}
	for change := range watcher.Changes() {
		log.Print(change.Name, " is ", change.Kind)
	}
	log.Print(watcher.Err())
}

func ExampleOnRotate() {
	err := keyhatch.OnRotate(ctx, "app/db", func(login *keyhatch.Secret) {
		log.Print("connecting anew with version ", login.Version())
	})
	if err != nil {
		log.Fatal(err)
	}
}

func ExampleBatch() {
	result, err := keyhatch.Batch(ctx, "openai/api-key", "app/db")
	if err != nil {
		log.Fatal(err)
	}
	for _, refused := range result.Errors {
		log.Print(refused.Name, ": ", refused.Code)
	}
	if key := result.Get("openai/api-key"); key != nil {
		fmt.Println(key.Version())
	}
}

func ExampleWithCache() {
	client := keyhatch.New(keyhatch.WithCache())
	defer client.Close()
	for range make([]int, 1000) {
		// Asks the agent a time or two, and again after each rotation.
		if _, err := client.Get(ctx, "openai/api-key"); err != nil {
			log.Fatal(err)
		}
	}
}

func ExampleClient_Transport() {
	agent := &http.Client{Transport: keyhatch.DefaultClient.Transport()}
	response, err := agent.Get("http://keyhatch/v1/health")
	if err != nil {
		log.Fatal(err)
	}
	defer response.Body.Close()
	log.Print(response.Status)
}

func ExampleRoute() {
	github := &http.Client{Transport: keyhatch.Route("github")}
	response, err := github.Get("https://api.github.com/user")
	if errors.Is(err, keyhatch.ErrDenied) {
		log.Fatal("this bot may not use the route, or the route does not allow this call")
	} else if err != nil {
		log.Fatal(err)
	}
	defer response.Body.Close()
	log.Print("GitHub says ", response.Status)
}
