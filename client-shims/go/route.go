// A route as an http.RoundTripper: what is sent goes to its upstream, with a secret that this process never sees.

package keyhatch

import (
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
)

// routeHeader is on each answer of an upstream, and on none of the agent's own.
const routeHeader = "Keyhatch-Route"

// maxProblem is more than any problem document has.
const maxProblem = 64 * 1024

var routeName = regexp.MustCompile(`^[A-Za-z0-9._@+-]+$`)

// Route sends requests to the upstream of that route: of their URLs, the path and the query count.
//
//	github := &http.Client{Transport: client.Route("github")}
//	user, err := github.Get("https://api.github.com/user")
//
// What the upstream answers is an answer, whatever its status; what the agent itself refuses is an [*Error]. A client that
// follows redirects sends them by the same route.
func (c *Client) Route(name string) http.RoundTripper { return &route{c, name} }

type route struct {
	client *Client
	name   string
}

// RoundTrip makes it an http.RoundTripper.
func (r *route) RoundTrip(request *http.Request) (*http.Response, error) {
	if !routeName.MatchString(r.name) || r.name == "." || r.name == ".." {
		if request.Body != nil {
			request.Body.Close()
		}
		return nil, &Error{Kind: ErrName, detail: fmt.Sprintf("no route is named %q", r.name)}
	}
	asked := request.Clone(request.Context())
	path := asked.URL.EscapedPath()
	if !strings.HasPrefix(path, "/") {
		// A URL that was not parsed may lack it, and what it says is no part of the route's name.
		path = "/" + path
	}
	asked.URL.Scheme, asked.URL.Host, asked.Host = "http", "keyhatch", "keyhatch"
	// The path as it was written, so that the agent sees what the caller meant.
	asked.URL.Opaque = "/v1/use/" + r.name + path
	asked.URL.User = nil
	response, err := r.client.transport.RoundTrip(asked)
	if err != nil {
		return nil, err
	}
	if response.Header.Get(routeHeader) != "" {
		response.Request = request
		return response, nil
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxProblem))
	if err != nil {
		return nil, err
	}
	return nil, refusal("route "+r.name, response, body)
}
