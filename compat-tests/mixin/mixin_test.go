// Package mixin evaluates etcd's own alerts and dashboards, those of etcd's
// mixin, by a Prometheus that scrapes three members of etched by the job of
// docs/OPERATIONS.md: each of their queries has to find data. It needs the programs prometheus and jsonnet, and
// some minutes.
package mixin

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
)

const (
	// mixinModule is the newest release of etcd's root module that its proxy
	// hands out; the mixin of v3.7 asks for the same metrics.
	mixinModule = "go.etcd.io/etcd/v3@v3.6.8"
	members     = 3
	// answersWithin is longer than the longest step of a subquery, twice.
	answersWithin = 4 * time.Minute
)

func TestMixin(t *testing.T) {
	if os.Getenv("COMPAT_MIXIN") == "" {
		t.Skip("the mixin is evaluated with COMPAT_MIXIN=1, as scripts/test mixin does")
	}
	job := harness.ScrapeJob(t, "../../docs/OPERATIONS.md")
	queries := readMixin(t, job)
	var expressions []string
	for _, query := range queries {
		expressions = append(expressions, selectors(query)...)
		expressions = append(expressions, withoutThreshold(query))
	}
	slices.Sort(expressions)
	expressions = slices.Compact(expressions)
	if len(queries) < 30 || len(expressions) < 50 {
		t.Fatalf("the mixin has %d queries, and they %d expressions: was it read?", len(queries), len(expressions))
	}
	cluster := harness.StartCluster(t, harness.Etched, harness.ClusterOptions{Flags: []string{"--metrics=extensive"}})
	server := startPrometheus(t, cluster, job)
	work(t, cluster)
	// Failures have their metrics only once there are some.
	away := cluster.Members()[2]
	if err := away.Kill(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(3 * time.Second)
	if err := away.Restart(); err != nil {
		t.Fatal(err)
	}
	if why := server.query(t, fmt.Sprintf("etcd_no_such_metric{job=%q}", job)); why == "" {
		t.Error("there is data of a metric that is none")
	}
	deadline := time.Now().Add(answersWithin)
	for len(expressions) > 0 {
		var silent []string
		for _, expression := range expressions {
			if why := server.query(t, expression); why != "" {
				silent = append(silent, expression)
				if time.Now().After(deadline) {
					t.Errorf("%s: %s", why, expression)
				}
			}
		}
		if time.Now().After(deadline) {
			return
		}
		expressions = silent
		time.Sleep(time.Second)
	}
}

// readMixin are the queries of alerts and dashboards, of members that are scraped by a job.
func readMixin(t *testing.T, job string) []string {
	t.Helper()
	download := exec.Command("go", "mod", "download", "-json", mixinModule)
	download.Dir = t.TempDir()
	out, err := download.Output()
	if err != nil {
		t.Fatalf("%s cannot be had: %v\n%s", mixinModule, err, out)
	}
	var module struct{ Dir string }
	if err := json.Unmarshal(out, &module); err != nil {
		t.Fatal(err)
	}
	// The panels of dashboards come from a library that no module has; of it the
	// queries need two functions.
	library := t.TempDir()
	place := filepath.Join(library, "github.com/grafana/grafonnet/gen/grafonnet-v10.0.0")
	if err := os.MkdirAll(place, 0o755); err != nil {
		t.Fatal(err)
	}
	const stub = `{ query: { prometheus: { new(source, expr): { expr: expr }, withLegendFormat(format): {} } } }`
	if err := os.WriteFile(filepath.Join(place, "main.libsonnet"), []byte(stub), 0o644); err != nil {
		t.Fatal(err)
	}
	const program = `
local alerts = (import 'config.libsonnet') + (import 'alerts/alerts.libsonnet');
local old = (import 'config.libsonnet') + { _config+:: { grafana7x: true } } + (import 'dashboards/etcd-grafana7x.libsonnet');
local targets = (import 'dashboards/targets.libsonnet')({ datasource: { name: 'datasource' } }, alerts._config);
{ alerts: alerts.prometheusAlerts, dashboards: old.grafanaDashboards, targets: targets }`
	render := exec.Command("jsonnet", "-J", filepath.Join(module.Dir, "contrib/mixin"), "-J", library, "-e", program)
	render.Stderr = os.Stderr
	out, err = render.Output()
	if err != nil {
		t.Fatalf("jsonnet: %v", err)
	}
	var all any
	if err := json.Unmarshal(out, &all); err != nil {
		t.Fatal(err)
	}
	var queries []string
	var walk func(any)
	walk = func(node any) {
		switch node := node.(type) {
		case map[string]any:
			for key, value := range node {
				if text, ok := value.(string); ok && key == "expr" {
					queries = append(queries, strings.NewReplacer("$__rate_interval", "1m", "$cluster", job).Replace(text))
				}
				walk(value)
			}
		case []any:
			for _, value := range node {
				walk(value)
			}
		}
	}
	walk(all)
	return queries
}

var selector = regexp.MustCompile(`[a-z_:]+\{[^}]*\}`)

// selectors are the series that a query reads, whatever it makes of them.
func selectors(query string) []string {
	return selector.FindAllString(query, -1)
}

// withoutThreshold makes comparisons of the query itself answer 0 or 1 where
// they would leave out what is below a threshold.
func withoutThreshold(query string) string {
	var out strings.Builder
	depth, quoted := 0, false
	for i := 0; i < len(query); i++ {
		c := query[i]
		out.WriteByte(c)
		switch {
		case c == '"':
			quoted = !quoted
		case quoted:
		case strings.ContainsRune("({[", rune(c)):
			depth++
		case strings.ContainsRune(")}]", rune(c)):
			depth--
		case depth == 0 && strings.ContainsRune("<>=", rune(c)):
			if i+1 < len(query) && query[i+1] == '=' {
				i++
				out.WriteByte('=')
			}
			out.WriteString(" bool ")
		}
	}
	return out.String()
}

// prometheus is a running one.
type prometheus struct{ address string }

func startPrometheus(t *testing.T, cluster *harness.Cluster, job string) *prometheus {
	t.Helper()
	port, err := harness.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	var targets []string
	for _, member := range cluster.Members() {
		targets = append(targets, fmt.Sprintf("%q", member.Endpoint()))
	}
	dir := t.TempDir()
	config := fmt.Sprintf("global:\n  scrape_interval: 1s\n  scrape_timeout: 1s\nscrape_configs:\n- job_name: %s\n  static_configs:\n  - targets: [%s]\n", job, strings.Join(targets, ", "))
	path := filepath.Join(dir, "prometheus.yml")
	if err := os.WriteFile(path, []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	address := fmt.Sprintf("127.0.0.1:%d", port)
	command := exec.Command("prometheus", "--config.file="+path, "--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+address)
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	command.Stdout, command.Stderr = log, log
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = command.Process.Kill()
		_ = command.Wait()
	})
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		response, err := http.Get("http://" + address + "/-/ready")
		if err == nil {
			response.Body.Close()
			if response.StatusCode == http.StatusOK {
				return &prometheus{address}
			}
		}
		if time.Now().After(deadline) {
			text, _ := os.ReadFile(log.Name())
			t.Fatalf("prometheus does not start: %v\n%s", err, text)
		}
	}
}

// query says why an expression has no data now; empty where it has.
func (p *prometheus) query(t *testing.T, expression string) string {
	t.Helper()
	response, err := http.Get("http://" + p.address + "/api/v1/query?query=" + url.QueryEscape(expression))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	var answer struct {
		Status, Error string
		Data          struct {
			Result []struct {
				Metric map[string]string
				Value  [2]any
			}
		}
	}
	if err := json.Unmarshal(body, &answer); err != nil || answer.Status != "success" {
		t.Fatalf("%s: %v %s", expression, err, answer.Error)
	}
	// Quantiles of what did not happen are no numbers.
	numbers, instances := 0, map[string]bool{}
	for _, one := range answer.Data.Result {
		text, _ := one.Value[1].(string)
		if value, err := strconv.ParseFloat(text, 64); err == nil && !math.IsNaN(value) {
			numbers++
			instances[one.Metric["instance"]] = true
		}
	}
	switch {
	case numbers == 0:
		return fmt.Sprintf("no number among %d series", len(answer.Data.Result))
	case selector.FindString(expression) == expression && len(instances) < members && !strings.Contains(expression, "failures"):
		return fmt.Sprintf("data of %d members", len(instances))
	}
	return ""
}

// work asks all members for something until the test ends.
func work(t *testing.T, cluster *harness.Cluster) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	var working sync.WaitGroup
	for _, member := range cluster.Members() {
		client := member.Client(t)
		working.Go(func() {
			events := client.Watch(ctx, "a")
			for ctx.Err() == nil {
				// One member is away for a while.
				_, _ = client.Put(ctx, "a", "b")
				_, _ = client.Get(ctx, "a")
				select {
				case <-events:
				case <-time.After(20 * time.Millisecond):
				}
			}
		})
	}
	t.Cleanup(func() {
		stop()
		working.Wait()
	})
}
