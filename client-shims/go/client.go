// The client: its options, and the calls that are answered at once.

package keyhatch

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"net"
	"net/http"
	"time"
)

const (
	defaultTimeout = 10 * time.Second

	// Previous, as a version, is the value before the current one. It is kept for the grace time of a rotation.
	Previous = "previous"

	maxBatch = 100
	maxValue = 65_536
	// JSON escapes make at most six bytes of one; the rest of the document is small.
	maxDocument = 6*maxValue + 16*1024
	maxPage     = 4 * 1024 * 1024
	maxSmall    = 1024 * 1024
)

// Client asks one agent for secrets. It keeps connections open between calls, and any number of goroutines may use it.
type Client struct {
	dialer  *dialer
	timeout time.Duration
	cache   *cache
	pool    *pool
	// polls has the connections that wait for changes: reads do not wait for them.
	polls     *pool
	transport *http.Transport
	// life ends with Close.
	life context.Context
	end  context.CancelFunc
}

// Option changes what New makes.
type Option func(*Client)

// WithSocket names the agent's socket, instead of the usual places.
func WithSocket(path string) Option {
	return func(c *Client) { c.dialer.address.path = path }
}

// WithTimeout bounds how long a call waits for its answer, instead of ten seconds. A call's context may end it sooner.
func WithTimeout(timeout time.Duration) Option {
	return func(c *Client) { c.timeout, c.dialer.timeout = timeout, timeout }
}

// WithCache has Get keep the values that it gave, in this process. Each is kept current by a watch over a connection of
// its own, and forgotten when that breaks, when the grant goes, and with [Client.Close].
func WithCache() Option {
	return func(c *Client) { c.cache = newCache(c) }
}

// New makes a client. It connects when it is first asked something.
func New(options ...Option) *Client {
	client := &Client{dialer: &dialer{timeout: defaultTimeout}, timeout: defaultTimeout}
	client.life, client.end = context.WithCancel(context.Background())
	for _, option := range options {
		option(client)
	}
	client.pool, client.polls = newPool(client.dialer.dial), newPool(client.dialer.dial)
	client.transport = &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return client.dialer.dial(ctx) },
	}
	return client
}

// Close ends the client's watches, forgets its cache and closes its idle connections.
func (c *Client) Close() {
	c.end()
	c.pool.closeIdle(0)
	c.polls.closeIdle(0)
	c.transport.CloseIdleConnections()
}

// Transport sends requests for http://keyhatch/... to the agent, with the same check of who listens. Use it for what
// the client has no call for:
//
//	agent := &http.Client{Transport: client.Transport()}
//	models, err := agent.Get("http://keyhatch/v1/use/openai/v1/models")
func (c *Client) Transport() http.RoundTripper { return c.transport }

// Get gives the current value of a secret, or of one field of it: "NAME#field".
func (c *Client) Get(ctx context.Context, name string) (*Secret, error) {
	wanted, err := parseWanted(name)
	if err != nil {
		return nil, err
	}
	if c.cache == nil {
		return c.read(ctx, wanted, "")
	}
	if secret := c.cache.get(wanted); secret != nil {
		return secret, nil
	}
	secret, err := c.read(ctx, wanted, "")
	if err == nil {
		c.cache.keep(wanted, secret)
	}
	return secret, err
}

// GetVersion gives the value of one version: [Previous], or what [Secret.Version] gave.
func (c *Client) GetVersion(ctx context.Context, name, version string) (*Secret, error) {
	wanted, err := parseWanted(name)
	if err != nil {
		return nil, err
	}
	return c.read(ctx, wanted, version)
}

func (c *Client) read(ctx context.Context, wanted wanted, version string) (*Secret, error) {
	q := wanted.question()
	if version != "" {
		q.query = append(q.query, [2]string{"version", version})
	}
	return c.valueOf(ctx, wanted, q)
}

func (c *Client) valueOf(ctx context.Context, wanted wanted, q *question) (*Secret, error) {
	var answer document
	if err := c.askFor(ctx, q, &answer); err != nil {
		return nil, err
	}
	secret, err := answer.secret()
	if err != nil {
		return nil, err
	}
	if secret.name != wanted.name {
		return nil, notAnAnswer("it is about another secret")
	}
	return secret, nil
}

// document is the agent's JSON about one value.
type document struct {
	Name        string  `json:"name"`
	Version     string  `json:"version"`
	Stale       bool    `json:"stale"`
	Value       *string `json:"value"`
	ValueBase64 *string `json:"value_base64"`
}

func (d *document) secret() (*Secret, error) {
	if d.Name == "" || d.Version == "" || (d.Value == nil) == (d.ValueBase64 == nil) {
		return nil, errShape
	}
	if d.Value != nil {
		return newSecret(d.Name, d.Version, *d.Value, d.Stale), nil
	}
	value, err := base64.StdEncoding.DecodeString(*d.ValueBase64)
	if err != nil {
		return nil, errShape
	}
	return newSecret(d.Name, d.Version, string(value), d.Stale), nil
}

// Listed is one name that a bot may see.
type Listed struct {
	Name    string `json:"name"`
	Version string `json:"version"`
}

// List gives the names that this process may see below a prefix, in byte order.
func (c *Client) List(ctx context.Context, prefix string) ([]Listed, error) {
	var listed []Listed
	after := ""
	for {
		q := &question{what: "list", path: "/v1/secrets", query: [][2]string{{"prefix", prefix}}, limit: maxPage}
		if after != "" {
			q.query = append(q.query, [2]string{"after", after})
		}
		var page struct {
			Secrets []Listed `json:"secrets"`
			Next    string   `json:"next"`
		}
		if err := c.askFor(ctx, q, &page); err != nil {
			return nil, err
		}
		listed = append(listed, page.Secrets...)
		if page.Next == "" {
			return listed, nil
		}
		if page.Next <= after {
			return nil, notAnAnswer("its list does not come to an end")
		}
		after = page.Next
	}
}

// BatchResult is many secrets at once: those that were given, and why others were not.
type BatchResult struct {
	Secrets []*Secret
	Errors  []BatchError
}

// BatchError is a name that was refused, with the agent's code for it, such as "denied".
type BatchError struct {
	Name string `json:"name"`
	Code string `json:"code"`
}

// Get gives the secret of that name, or nil where it was not given.
func (b *BatchResult) Get(name string) *Secret {
	for _, secret := range b.Secrets {
		if secret.name == name {
			return secret
		}
	}
	return nil
}

// Batch gives the current values of many secrets. A name that is refused does not fail the others.
func (c *Client) Batch(ctx context.Context, names ...string) (*BatchResult, error) {
	result := &BatchResult{}
	for len(names) > 0 {
		count := min(len(names), maxBatch)
		if err := c.addBatch(ctx, result, names[:count]); err != nil {
			return nil, err
		}
		names = names[count:]
	}
	return result, nil
}

func (c *Client) addBatch(ctx context.Context, result *BatchResult, names []string) error {
	body, err := json.Marshal(map[string][]string{"names": names})
	if err != nil {
		return err
	}
	var answer struct {
		Secrets []document   `json:"secrets"`
		Errors  []BatchError `json:"errors"`
	}
	q := &question{what: "batch", path: "/v1/batch", body: body, limit: maxBatch * maxDocument}
	if err := c.askFor(ctx, q, &answer); err != nil {
		return err
	}
	for at := range answer.Secrets {
		secret, err := answer.Secrets[at].secret()
		if err != nil {
			return err
		}
		result.Secrets = append(result.Secrets, secret)
	}
	result.Errors = append(result.Errors, answer.Errors...)
	return nil
}

// Identity is who the agent thinks a process is, and what it may have.
type Identity struct {
	PID int `json:"pid"`
	// UID and GID are nil where they have no mapping in the agent's user namespace.
	UID      *uint32           `json:"uid"`
	GID      *uint32           `json:"gid"`
	Groups   []uint32          `json:"groups"`
	Exe      string            `json:"exe"`
	Unit     string            `json:"unit"`
	UserUnit string            `json:"user_unit"`
	Bot      string            `json:"bot"`
	Roles    []string          `json:"roles"`
	Grants   []json.RawMessage `json:"grants"`
	// Routes are those that it may use. An older agent does not say.
	Routes []UsableRoute `json:"routes"`
}

// UsableRoute is a route that this process may use, and where its requests go.
type UsableRoute struct {
	Name     string `json:"name"`
	Upstream string `json:"upstream"`
}

// Whoami gives who the agent thinks this process is.
func (c *Client) Whoami(ctx context.Context) (*Identity, error) {
	identity := &Identity{}
	q := &question{what: "whoami", path: "/v1/whoami", limit: maxSmall}
	if err := c.askFor(ctx, q, identity); err != nil {
		return nil, err
	}
	return identity, nil
}

// HealthReport is whether an agent is ready, and why not.
type HealthReport struct {
	// Status is "ready" or "unavailable".
	Status  string   `json:"status"`
	Reasons []string `json:"reasons"`
	// Missing names promises that the host does not let the agent keep.
	Missing []string `json:"missing"`
}

// Health gives whether the agent is ready. That it is not is an answer, and no error.
func (c *Client) Health(ctx context.Context) (*HealthReport, error) {
	report := &HealthReport{}
	q := &question{what: "health", path: "/v1/health", limit: maxSmall, unready: true}
	if err := c.askFor(ctx, q, report); err != nil {
		return nil, err
	}
	if report.Status == "" {
		return nil, errShape
	}
	return report, nil
}

var errShape = notAnAnswer("its JSON has another shape")

// askFor reads the answer's JSON into answer. What encoding/json says is not passed on: it may quote a value.
func (c *Client) askFor(ctx context.Context, q *question, answer any) error {
	body, err := c.ask(ctx, q)
	defer clear(body)
	if err == nil && json.Unmarshal(body, answer) != nil {
		err = errShape
	}
	return err
}
