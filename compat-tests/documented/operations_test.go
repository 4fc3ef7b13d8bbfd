package documented

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"sigs.k8s.io/yaml"

	"etched.dev/compat-tests/harness"
)

const operations = "OPERATIONS.md"

// sections are those of the document with commands, and what carries them out.
var sections = map[string]func(*operation){
	"## Install":                      install,
	"## Upgrade":                      upgrade,
	"## Replace a member":             replaceMember,
	"## Recover from a lost majority": recoverMajority,
	"## Backups":                      backups,
	"## Space":                        space,
	"## Tune":                         tune,
	"## Monitor":                      monitor,
	"## Logs":                         logs,
}

// operation is a section, with the commands of Install to start members.
type operation struct {
	*site
	startCommand string
	stops        map[int]func()
}

func TestOperations(t *testing.T) {
	for section, run := range sections {
		t.Run(strings.TrimPrefix(section, "## "), func(t *testing.T) {
			t.Parallel()
			o := newOperation(t, section)
			run(o)
			o.allTried()
		})
	}
}

func newOperation(t *testing.T, section string) *operation {
	t.Helper()
	o := &operation{site: newSite(t, operations, section, harness.Etcd), stops: map[int]func(){}}
	o.Replace = strings.NewReplacer("10.0.", o.network, "/var/lib/", o.Dir+"/m$n/", "/usr/local/", o.Dir+"/usr-local/",
		"/etc/", o.Dir+"/etc/", "/var/backups/", o.Dir+"/backups/", "/tmp/etched-trial", o.Dir+"/trial")
	for _, dir := range []string{"m1", "m2", "m3", "m4", "usr-local/bin", "etc/systemd/system", "etc/cron.d"} {
		if err := os.MkdirAll(filepath.Join(o.Dir, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	first := harness.ReadDocument(t, "../../docs/"+operations, "## Install", nil)
	o.startCommand = first.Block("etched --name m$n --data-dir")
	return o
}

// A section with commands that is not in the list above, nor that of docs/KUBERNETES.md that a
// test of its own runs.
func TestEverySectionIsRun(t *testing.T) {
	for document, runs := range map[string]func(section string) bool{
		operations: func(section string) bool { return sections[section] != nil },
		kubernetes: func(section string) bool { return section == inKubernetes },
	} {
		text, err := os.ReadFile("../../docs/" + document)
		if err != nil {
			t.Fatal(err)
		}
		run := 0
		for _, section := range regexp.MustCompile(`(?m)^## `).Split(string(text), -1) {
			title, body, _ := strings.Cut(section, "\n")
			switch {
			case !strings.Contains(body, "```bash"):
			case runs("## " + title):
				run++
			default:
				t.Errorf("%s: the section %q has commands that nothing runs", document, title)
			}
		}
		if run == 0 {
			t.Errorf("%s has no commands", document)
		}
	}
}

// What is installed is called by the version that this checkout makes.
func TestVersionsInDocuments(t *testing.T) {
	manifest, err := os.ReadFile("../../Cargo.toml")
	if err != nil {
		t.Fatal(err)
	}
	own := regexp.MustCompile(`(?m)^version = "(.+)"$`).FindSubmatch(manifest)
	files := regexp.MustCompile(`etched(?:-server|-client)?[-_:/]v?([0-9]+\.[0-9]+\.[0-9]+)`)
	for _, document := range []string{operations, kubernetes} {
		text, err := os.ReadFile("../../docs/" + document)
		if err != nil {
			t.Fatal(err)
		}
		found := files.FindAllSubmatch(text, -1)
		for _, one := range found {
			if string(one[1]) != string(own[1]) {
				t.Errorf("%s names %s, and the version is %s", document, one[0], own[1])
			}
		}
		if len(found) < 3 {
			t.Errorf("%s names %q alone", document, found)
		}
	}
}

// start starts a member, with flags beside those of the document.
func (o *operation) start(member int, flags ...string) {
	o.t.Helper()
	command := strings.TrimRight(o.on(member, o.startCommand), "\n") + " " + strings.Join(flags, " ")
	o.stops[member] = o.Start(command)
}

// startAll starts the cluster, and answers a client of it once it serves.
func (o *operation) startAll(flags ...string) *clientv3.Client {
	o.t.Helper()
	for member := 1; member <= 3; member++ {
		o.start(member, flags...)
	}
	client := o.client("10.0.0.")
	o.serves(client)
	return client
}

// serves waits until the cluster answers a linearizable read.
func (o *operation) serves(client *clientv3.Client) {
	o.t.Helper()
	ctx := harness.Context(o.t, limit)
	for {
		attempt, cancel := context.WithTimeout(ctx, 2*time.Second)
		_, err := client.Get(attempt, "none")
		cancel()
		if err == nil {
			return
		}
		if ctx.Err() != nil {
			o.t.Fatalf("the cluster does not serve: %v", err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func (o *operation) stopAll() {
	for _, stop := range o.stops {
		stop()
	}
}

// has fails where the output lacks a text so many times.
func (o *operation) has(output, text string, times int) {
	o.t.Helper()
	if found := strings.Count(output, text); found != times {
		o.t.Errorf("%q is there %d times, not %d:\n%s", text, found, times, output)
	}
}

func install(o *operation) {
	// What scripts/package makes, as far as the commands need it.
	o.Run(`release=etched-v0.1.0-linux-amd64
mkdir $release
cp -L $(command -v etched) $release/etched
cp -L $(command -v etcdctl) $release/etcdctl
tar --create --use-compress-program 'gzip -1' --file $release.tar.gz $release
rm -r $release
sha256sum $release.tar.gz >SHA256SUMS`)
	o.has(o.Run(o.Block("sha256sum --check")), "etched Version: ", 1)
	for _, name := range []string{"etched", "etcd", "etcdctl"} {
		o.Run("test -x /usr/local/bin/" + name)
	}
	o.Run(recorded + o.Block("[Service]"))
	if verifier, err := exec.LookPath("systemd-analyze"); err == nil {
		output, err := exec.Command(verifier, "verify", filepath.Join(o.Dir, "etc/systemd/system/etched.service")).CombinedOutput()
		if err != nil {
			o.t.Errorf("the unit: %v\n%s", err, output)
		}
	}
	// The service's program with the service's environment.
	for member := 1; member <= 3; member++ {
		o.Run(recorded + o.on(member, o.Block("ETCD_NAME=m$n")))
		o.stops[member] = o.Start("set -a\n. /etc/etched.env\netched \n")
	}
	checkService(o)
	client := o.client("10.0.0.")
	o.serves(client)
	before := o.members(client)
	o.stopAll()
	o.Block("etched --name m$n --data-dir")
	o.startAll()
	if after := o.members(client); after != before {
		o.t.Errorf("with variables the members are %s, with flags %s", before, after)
	}
	output := o.Run(o.Block("endpoint health"))
	o.has(output, "is healthy", 3)
	o.has(output, "3.7.3", 3)
}

// recorded has what would change this machine written down instead.
const recorded = `useradd() { echo "useradd $*" >>commands; }
systemctl() { echo "systemctl $*" >>commands; }
`

// checkService fails where the user of the unit is not made, or systemd does not hear of the unit.
func checkService(o *operation) {
	o.t.Helper()
	unit := o.Run("cat /etc/systemd/system/etched.service")
	user := regexp.MustCompile(`(?m)^User=(.+)$`).FindStringSubmatch(unit)
	if user == nil {
		o.t.Fatalf("the unit has no user:\n%s", unit)
	}
	typed := o.Run("cat commands")
	expected := `useradd --system [^\n]* ` + user[1] + `\n(systemctl daemon-reload\nsystemctl enable etched\nsystemctl [^\n]*start etched\n){3}`
	if !regexp.MustCompile(`^` + expected + `$`).MatchString(typed) {
		o.t.Errorf("the service of the user %s does not start by\n%s", user[1], typed)
	}
}

func upgrade(o *operation) {
	client := o.startAll()
	o.fill(client)
	before := o.contents(client)
	o.has(o.Run(o.Block("endpoint hashkv")), "is healthy", 3)
	for member := 1; member <= 3; member++ {
		o.stops[member]()
		o.start(member)
		o.has(o.Run(o.on(member, o.Block("/readyz"))), "ok", 1)
	}
	o.has(o.Run(o.Block("etcd_server_version")), `server_version="3.7.3"} 1`, 3)
	if after := o.contents(client); after != before {
		o.t.Errorf("before\n%s\nafter\n%s", before, after)
	}
}

func replaceMember(o *operation) {
	client := o.startAll()
	o.fill(client)
	before := o.contents(client)
	o.stops[3]()
	o.Run(o.Block("', m3, '"))
	o.has(o.Run(o.Block("member add m4")), "added as learner to cluster", 1)
	o.stops[4] = o.Start(o.Block("n=4"))
	output := o.Run(o.Block("member promote"))
	o.has(output, "promoted in cluster", 1)
	o.Run(o.Block("', m2, '"))
	o.stops[2]()
	moved := strings.NewReplacer("peer-urls http://10.0.0.$n:2380", "peer-urls http://10.0.0.$n:2390")
	o.startCommand = moved.Replace(o.startCommand)
	o.start(2)
	o.serves(client)
	// The fourth is reached by the second at its new address: with the first gone they are a majority.
	o.stops[1]()
	o.serves(client)
	if after := o.contents(client); after != before {
		o.t.Errorf("before\n%s\nafter\n%s", before, after)
	}
	members := o.members(client)
	for _, text := range []string{" m1 ", " m2 ", " m4 ", "2:2390"} {
		o.has(members, text, 1)
	}
	o.has(members, " m3 ", 0)
}

func recoverMajority(o *operation) {
	client := o.startAll()
	o.fill(client)
	o.Run("etcdctl --endpoints http://10.0.0.1:2379 snapshot save backup.db")
	before := o.contents(client)
	o.stopAll()
	output := o.Run(o.Block("/var/lib/etched.before"))
	o.has(output, `"index"`, 1)
	force := o.Start(o.Block("--force-new-cluster"))
	alone := o.endpoints("http://10.0.0.1:2379")
	o.serves(alone)
	o.has(o.members(alone), "2380", 1)
	force()
	o.start(1)
	o.serves(alone)
	if after := o.contents(alone); after != before {
		o.t.Errorf("before\n%s\nof the survivor\n%s", before, after)
	}
	o.has(o.members(alone), "2380", 1)
	o.stopAll()
	for member := 1; member <= 3; member++ {
		o.Run(fmt.Sprintf("n=%d\nrm -rf /var/lib/etched", member))
		o.Run(o.on(member, o.Block("--bump-revision")))
	}
	o.startCommand = strings.ReplaceAll(o.startCommand, "production-1", "production-2")
	o.startAll()
	after := o.contents(client)
	_, rest, _ := strings.Cut(before, " ")
	if _, restored, _ := strings.Cut(after, " "); !strings.HasPrefix(after, "10000") || restored != rest {
		o.t.Errorf("before\n%s\nrestored\n%s", before, after)
	}
}

func backups(o *operation) {
	client := o.startAll()
	o.fill(client)
	o.Run(o.Block("cat >/usr/local/bin/etched-backup"))
	schedule, err := os.ReadFile(filepath.Join(o.Dir, "etc/cron.d/etched-backup"))
	if err != nil {
		o.t.Fatal(err)
	}
	entry := regexp.MustCompile(`(?m)^(?:[0-9*/,-]+ ){5}root (etched-backup .*)$`).FindStringSubmatch(string(schedule))
	if entry == nil {
		o.t.Fatalf("no entry for cron:\n%s", schedule)
	}
	const kept = 14
	for range kept + 2 {
		o.Run(`PATH=/usr/local/bin:$PATH; ` + entry[1])
	}
	files, err := filepath.Glob(filepath.Join(o.Dir, "backups/etched/*"))
	if err != nil || len(files) != kept {
		o.t.Errorf("%d files are kept: %v, %v", len(files), files, err)
	}
	for _, file := range files {
		if stat, err := os.Stat(file); err != nil || stat.Mode().Perm() != 0o600 {
			o.t.Errorf("%s: %v, %v", file, stat, err)
		}
	}
	o.Run(o.Block("etched check"))
	// A backup that was not made is none, and is noticed.
	o.stopAll()
	o.Run(`! PATH=/usr/local/bin:$PATH ` + entry[1])
	if after, _ := filepath.Glob(filepath.Join(o.Dir, "backups/etched/*.db")); len(after) != kept {
		o.t.Errorf("%d files after a backup that failed", len(after))
	}
}

func space(o *operation) {
	client := o.startAll("--quota-backend-bytes", "33554432")
	value := strings.Repeat("etched", 100<<10)
	ctx := harness.Context(o.t, limit)
	full := func() error {
		for i := range 400 {
			if _, err := client.Put(ctx, fmt.Sprintf("key%d", i%5), fmt.Sprint(value, i)); err != nil {
				return err
			}
		}
		return nil
	}
	if err := full(); !errors.Is(err, rpctypes.ErrNoSpace) {
		o.t.Fatalf("200 MB into a quota of 32 MiB: %v", err)
	}
	o.has(o.Run(o.Block("alarm disarm")), "alarm:NOSPACE", 2) // listed, and cleared
	if _, err := client.Put(ctx, "after", "the alarm"); err != nil {
		o.t.Errorf("after the alarm: %v", err)
	}
}

func tune(o *operation) {
	o.startAll()
	// Peers are probed every few seconds.
	ctx := harness.Context(o.t, limit)
	for {
		page := o.page("http://10.0.0.1:2381/metrics")
		if strings.Contains(page, "etcd_network_peer_round_trip_time_seconds_count") {
			break
		}
		if ctx.Err() != nil {
			o.t.Fatal("no round trip was measured")
		}
		time.Sleep(200 * time.Millisecond)
	}
	o.has(o.Run(o.Block("round_trip")), "etcd_disk_wal_fsync_duration_seconds_count", 1)
}

func monitor(o *operation) {
	o.startAll()
	output := o.Run(o.Block("/readyz?verbose"))
	o.has(output, "[+]linearizable_read ok", 1)
	o.has(output, `{"health":"true","reason":""}`, 1)
}

func logs(o *operation) {
	o.stops[1] = o.Start(o.Block("--log-outputs"))
	o.serves(o.endpoints("http://10.0.0.1:2389"))
	if output := o.Run(o.Block("grep -v")); strings.Contains(output, `"level":"info"`) {
		o.t.Errorf("lines that were to be left out:\n%s", output)
	}
	o.has(o.Run("n=1\ncat /var/lib/etched-logs.log"), `"msg":"ready to serve client requests"`, 1)
	debug := `"level":"debug"`
	o.has(o.Run("n=1\ngrep -v info /var/lib/etched-logs.log || true"), debug, 0)
	o.has(o.Run(o.Block("/debug/log-level")), debug, 2)
	o.Run("n=1\netcdctl --endpoints http://10.0.0.$n:2389 get none\ngrep -q '" + debug + "' /var/lib/etched-logs.log")
}

// endpoints answers a client of these.
func (o *operation) endpoints(urls ...string) *clientv3.Client {
	o.t.Helper()
	for i := range urls {
		urls[i] = o.Replace.Replace(urls[i])
	}
	client, err := clientv3.New(clientv3.Config{Endpoints: urls, DialTimeout: 10 * time.Second})
	if err != nil {
		o.t.Fatal(err)
	}
	o.t.Cleanup(func() { _ = client.Close() })
	return client
}

// page is what a URL answers.
func (s *site) page(url string) string {
	s.t.Helper()
	ctx := harness.Context(s.t, limit)
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.Replace.Replace(url), nil)
	if err != nil {
		s.t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		s.t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return string(body)
}

// rules is a file of rules for Prometheus, as far as it matters here.
type rules struct {
	Groups []struct {
		Name  string `json:"name"`
		Rules []rule `json:"rules"`
	} `json:"groups"`
}

type rule struct {
	Alert       string            `json:"alert"`
	Expr        string            `json:"expr"`
	For         string            `json:"for,omitempty"`
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
}

var (
	series  = regexp.MustCompile(`((?:etcd|etched|grpc|process)_[a-z_]+)\{([^}]*)\}`)
	jobs    = regexp.MustCompile(`\bjob="([^"]*)"`)
	matcher = regexp.MustCompile(`([A-Za-z_]+) *(?:=~|!=|!~|=)`)
)

// Every metric and every label that an alert asks for is on a member's page, and every alert is in
// the document.
func TestAlertsHaveTheirMetrics(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../packaging/prometheus/etched.rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	var file rules
	if err := yaml.UnmarshalStrict(text, &file); err != nil {
		t.Fatal(err)
	}
	document, err := os.ReadFile("../../docs/" + operations)
	if err != nil {
		t.Fatal(err)
	}
	page := alertedPage(t)
	job := harness.ScrapeJob(t, "../../docs/"+operations)
	if !strings.Contains(job, "etcd") {
		t.Errorf("the job is %s, and etcd's own rules want one with etcd in its name", job)
	}
	count := 0
	for _, one := range file.Groups[0].Rules {
		count++
		if !strings.Contains(string(document), "| "+one.Alert) && !strings.Contains(string(document), ", "+one.Alert) {
			t.Errorf("%s is not in docs/%s", one.Alert, operations)
		}
		for _, selected := range jobs.FindAllStringSubmatch(one.Expr, -1) {
			if selected[1] != job {
				t.Errorf("%s is about the job %s, and the document has Prometheus scrape %s", one.Alert, selected[1], job)
			}
		}
		if len(jobs.FindAllString(one.Expr, -1)) != strings.Count(one.Expr, "{") {
			t.Errorf("%s selects series of any job: %s", one.Alert, one.Expr)
		}
		for _, found := range series.FindAllStringSubmatch(one.Expr, -1) {
			line := regexp.MustCompile(`(?m)^` + found[1] + `(\{.*\})? `).FindString(page)
			if line == "" {
				t.Errorf("%s: no member has %s", one.Alert, found[1])
			}
			for _, label := range matcher.FindAllStringSubmatch(found[2], -1) {
				if label[1] != "job" && !strings.Contains(line, label[1]+"=") {
					t.Errorf("%s: %s has no label %s: %s", one.Alert, found[1], label[1], line)
				}
			}
		}
	}
	if count < 15 {
		t.Errorf("%d alerts", count)
	}
	if promtool, err := exec.LookPath("promtool"); err == nil {
		output, err := exec.Command(promtool, "check", "rules", "../../packaging/prometheus/etched.rules.yml").CombinedOutput()
		if err != nil {
			t.Errorf("promtool: %v\n%s", err, output)
		}
	}
}

// alertedPage has the metrics of three members with certificates and an alarm.
func alertedPage(t *testing.T) string {
	t.Helper()
	o := newOperation(t, "## Install")
	o.startCommand = regexp.MustCompile(`http(://[0-9.$n]+:2380)`).ReplaceAllString(o.startCommand, "https$1")
	client := o.startAll("--peer-auto-tls")
	ctx := harness.Context(t, limit)
	status, err := client.Status(ctx, client.Endpoints()[0])
	if err != nil {
		t.Fatal(err)
	}
	alarm := &pb.AlarmRequest{Action: pb.AlarmRequest_ACTIVATE, MemberID: status.Header.MemberId, Alarm: pb.AlarmType_NOSPACE}
	if _, err := pb.NewMaintenanceClient(client.ActiveConnection()).Alarm(ctx, alarm); err != nil {
		t.Fatal(err)
	}
	// Each metric of peers comes with the first that happens with a peer.
	for {
		page := o.page("http://10.0.0.1:2381/metrics")
		if strings.Contains(page, "etcd_network_active_peers{") && strings.Contains(page, "etcd_debugging_server_alarms{") {
			return page
		}
		if ctx.Err() != nil {
			return page
		}
		time.Sleep(100 * time.Millisecond)
	}
}
