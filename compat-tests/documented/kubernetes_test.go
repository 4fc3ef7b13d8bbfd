package documented

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"sigs.k8s.io/yaml"

	"etched.dev/compat-tests/harness"
)

// manifest reads the first object of a kind from a file of packaging/kubernetes.
func manifest(t *testing.T, file, kind string, into any) {
	t.Helper()
	text, err := os.ReadFile("../../packaging/kubernetes/" + file)
	if err != nil {
		t.Fatal(err)
	}
	for _, document := range regexp.MustCompile(`(?m)^---$`).Split(string(text), -1) {
		if !strings.Contains(document, "\nkind: "+kind+"\n") {
			continue
		}
		if err := yaml.Unmarshal([]byte(document), into); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Fatalf("%s has no %s", file, kind)
}

// pods are members started by the script of the manifests, as its StatefulSet would.
type pods struct {
	*site
	stops map[int]func()
	uids  map[int]int
	// initial is how many found the cluster.
	initial int
}

// env is what the manifest gives to a pod's container.
func (p *pods) env(number int) string {
	dir := filepath.Join(p.Dir, fmt.Sprintf("volume%d", number))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		p.t.Fatal(err)
	}
	var endpoints []string
	for member := range 4 {
		endpoints = append(endpoints, fmt.Sprintf("http://%s0.%d:2379", p.network, member))
	}
	return fmt.Sprintf("env NAME=etched-%d UID_OF_POD=uid-%d HOST_PREFIX=%s0. HOST_SUFFIX= ENDPOINTS=%s INITIAL=%d DATA=%s LISTEN=%s0.%d SCHEME=http ",
		number, p.uids[number], p.network, strings.Join(endpoints, ","), p.initial, dir, p.network, number)
}

func (p *pods) start(number int) { p.stops[number] = p.Start("exec " + p.env(number) + "sh start.sh") }

func (p *pods) client(numbers ...int) *clientv3.Client {
	p.t.Helper()
	var endpoints []string
	for _, number := range numbers {
		endpoints = append(endpoints, fmt.Sprintf("http://%s0.%d:2379", p.network, number))
	}
	client, err := clientv3.New(clientv3.Config{Endpoints: endpoints, DialTimeout: 10 * time.Second})
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { _ = client.Close() })
	return client
}

// voters waits until these and nobody else are the members, have a vote and serve; it answers
// their ids.
func (p *pods) voters(numbers ...int) map[string]uint64 {
	p.t.Helper()
	client := p.client(numbers...)
	ctx := harness.Context(p.t, limit)
	for {
		ids, last := p.look(ctx, client, numbers)
		if ids != nil {
			return ids
		}
		if ctx.Err() != nil {
			p.t.Fatalf("members are not %v: %s", numbers, last)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

func (p *pods) look(ctx context.Context, client *clientv3.Client, numbers []int) (map[string]uint64, string) {
	attempt, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	list, err := client.MemberList(attempt)
	if err != nil {
		return nil, err.Error()
	}
	ids := map[string]uint64{}
	for _, member := range list.Members {
		if !member.IsLearner && len(member.ClientURLs) == 1 {
			ids[member.Name] = member.ID
		}
	}
	for _, number := range numbers {
		status, err := client.Status(attempt, fmt.Sprintf("http://%s0.%d:2379", p.network, number))
		if err != nil {
			return nil, err.Error()
		}
		if ids[fmt.Sprintf("etched-%d", number)] != status.Header.MemberId {
			return nil, fmt.Sprint(list.Members)
		}
	}
	if len(ids) != len(numbers) || len(list.Members) != len(numbers) {
		return nil, fmt.Sprint(list.Members)
	}
	return ids, ""
}

const (
	kubernetes   = "KUBERNETES.md"
	inKubernetes = "## A cluster in Kubernetes"
)

func TestMembersOfTheManifests(t *testing.T) {
	t.Parallel()
	var scripts struct {
		Data map[string]string `json:"data"`
	}
	manifest(t, "etched.yaml", "ConfigMap", &scripts)
	// The etcd that the script starts is etched, as in its image.
	p := &pods{newSite(t, kubernetes, "## Probes", harness.Etched), map[int]func(){}, map[int]int{}, 3}
	for name, text := range scripts.Data {
		if err := os.WriteFile(filepath.Join(p.Dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// Two found the cluster; the third comes when it serves already.
	p.start(0)
	p.start(1)
	client := p.client(0, 1)
	o := &operation{site: p.site}
	o.serves(client)
	p.start(2)
	first := p.voters(0, 1, 2)
	p.fill(client)
	before := p.contents(client)

	p.start(3)
	grown := p.voters(0, 1, 2, 3)
	if grown["etched-0"] != first["etched-0"] || grown["etched-2"] != first["etched-2"] {
		t.Errorf("ids were %v, are %v", first, grown)
	}
	// What was restarted continues.
	p.stops[3]()
	p.start(3)
	if again := p.voters(0, 1, 2, 3); again["etched-3"] != grown["etched-3"] {
		t.Errorf("ids were %v, are %v", grown, again)
	}

	// A member leaves; its pod may be started again before it is scaled in.
	p.Run(p.env(3) + "sh leave.sh")
	p.voters(0, 1, 2)
	p.stops[3]()
	p.start(3)
	time.Sleep(3 * time.Second)
	p.voters(0, 1, 2)
	p.stops[3]()
	p.leaveInVain(2, 1)
	if again := p.voters(0, 1, 2); fmt.Sprint(again) != fmt.Sprint(first) {
		t.Errorf("ids were %v, are %v", first, again)
	}
	// Scaled out again, with a volume that stayed.
	p.uids[3]++
	p.start(3)
	if again := p.voters(0, 1, 2, 3); again["etched-3"] == grown["etched-3"] {
		t.Errorf("etched-3 is back under its old id: %v", again)
	}

	// A volume is lost.
	p.stops[1]()
	if err := os.RemoveAll(filepath.Join(p.Dir, "volume1")); err != nil {
		t.Fatal(err)
	}
	p.start(1)
	last := p.voters(0, 1, 2, 3)
	if last["etched-1"] == first["etched-1"] {
		t.Errorf("etched-1 is back under its old id: %v", last)
	}

	for _, stop := range p.stops {
		stop()
	}
	for number := range 4 {
		p.start(number)
	}
	if after := p.voters(0, 1, 2, 3); fmt.Sprint(after) != fmt.Sprint(last) {
		t.Errorf("ids were %v, are %v", last, after)
	}

	p.loseWithAllDown(2, last)
	if after := p.contents(client); after != before {
		t.Errorf("before\n%s\nafter\n%s", before, after)
	}
}

// leaveInVain has a member ask to leave while another is away, which the others refuse, and be
// interrupted. Started again it continues as the member that it is, in the same pod or in a new one.
func (p *pods) leaveInVain(number, away int) {
	p.t.Helper()
	left := filepath.Join(p.Dir, fmt.Sprintf("volume%d", number), "left")
	for _, pods := range []int{0, 1} {
		p.stops[away]()
		p.Run("! timeout 3 " + p.env(number) + "sh leave.sh")
		if _, err := os.Stat(left); err != nil {
			p.t.Fatalf("leave.sh was not interrupted where this is about: %v", err)
		}
		p.start(away)
		p.voters(0, 1, 2)
		p.stops[number]()
		p.uids[number] += pods
		p.start(number)
		p.voters(0, 1, 2)
		if _, err := os.Stat(left); err == nil {
			p.t.Error("a member that has not left is still marked")
		}
	}
}

// loseWithAllDown takes a founder's volume while no member runs. Where the cluster was founded it
// waits for the others rather than to vote under its old id: they need the one that is away.
func (p *pods) loseWithAllDown(number int, before map[string]uint64) {
	p.t.Helper()
	for _, stop := range p.stops {
		stop()
	}
	p.initial = 0
	volume := filepath.Join(p.Dir, fmt.Sprintf("volume%d", number))
	if err := os.RemoveAll(volume); err != nil {
		p.t.Fatal(err)
	}
	p.start(number)
	time.Sleep(5 * time.Second)
	if _, err := os.Stat(filepath.Join(volume, "data")); err == nil {
		p.t.Error("a member without data began a cluster of its own")
	}
	p.start(0)
	p.start(1)
	attempt, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if _, err := p.client(0, 1).Get(attempt, "none"); err == nil {
		p.t.Error("two of four members serve, with a third that has lost its data")
	}
	p.start(3)
	after := p.voters(0, 1, 2, 3)
	name := fmt.Sprintf("etched-%d", number)
	if after[name] == before[name] {
		p.t.Errorf("%s is back under its old id: %v", name, after)
	}
}

// The command of the static pod, with certificates laid out as kubeadm's.
func TestStaticPod(t *testing.T) {
	t.Parallel()
	type probe struct {
		HTTPGet struct {
			Host string `json:"host"`
			Path string `json:"path"`
		} `json:"httpGet"`
	}
	var pod struct {
		Spec struct {
			Containers []struct {
				Command        []string `json:"command"`
				LivenessProbe  probe    `json:"livenessProbe"`
				ReadinessProbe probe    `json:"readinessProbe"`
				StartupProbe   probe    `json:"startupProbe"`
			} `json:"containers"`
		} `json:"spec"`
	}
	manifest(t, "static-pod.yaml", "Pod", &pod)
	container := pod.Spec.Containers[0]
	s := newSite(t, kubernetes, "## Probes", harness.Etched)
	s.Replace = strings.NewReplacer("10.0.0.1", s.network+"0.1", "127.0.0.1", s.network+"9.1",
		"/var/lib/etcd", s.Dir+"/data", "/etc/kubernetes/pki/etcd", s.Dir+"/pki")
	s.Run(`umask 077
mkdir /etc/kubernetes/pki/etcd
cd /etc/kubernetes/pki/etcd
new="openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
$new -x509 -days 3650 -subj /CN=etcd-ca -keyout ca.key -out ca.crt
pair() {
  $new -subj /CN=$1 -keyout $1.key -out $1.csr
  printf 'extendedKeyUsage=%s\n%s' $2 ${3:-} >$1.ext
  openssl x509 -req -CA ca.crt -CAkey ca.key -CAcreateserial -days 365 -extfile $1.ext -in $1.csr -out $1.crt
}
names=subjectAltName=DNS:localhost,DNS:m1,IP:10.0.0.1,IP:127.0.0.1
pair server serverAuth,clientAuth $names
pair peer serverAuth,clientAuth $names
pair healthcheck-client clientAuth
`)
	if container.Command[0] != "etcd" {
		t.Fatalf("the command is %v", container.Command)
	}
	s.Start(strings.Join(container.Command, " "))
	ctx := harness.Context(t, limit)
	for _, probe := range []probe{container.StartupProbe, container.LivenessProbe, container.ReadinessProbe} {
		url := s.Replace.Replace(fmt.Sprintf("http://%s:2381%s", probe.HTTPGet.Host, probe.HTTPGet.Path))
		for {
			response, err := http.Get(url)
			if err == nil {
				_ = response.Body.Close()
				if response.StatusCode == http.StatusOK {
					break
				}
			}
			if ctx.Err() != nil {
				t.Fatalf("%s: %v %v", url, response, err)
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
	client := "--cacert /etc/kubernetes/pki/etcd/ca.crt --cert /etc/kubernetes/pki/etcd/healthcheck-client.crt --key /etc/kubernetes/pki/etcd/healthcheck-client.key"
	for _, endpoint := range []string{"10.0.0.1", "127.0.0.1"} {
		output := s.Run(fmt.Sprintf("etcdctl --endpoints https://%s:2379 %s endpoint health 2>&1", endpoint, client))
		if !strings.Contains(output, "is healthy") {
			t.Errorf("%s: %s", endpoint, output)
		}
	}
	s.Run("! etcdctl --endpoints https://10.0.0.1:2379 --cacert /etc/kubernetes/pki/etcd/ca.crt --command-timeout 2s get a")
}

// The command for clients of the chart's cluster, on a member that is started as in its pod, with
// certificates laid out as its Secrets.
func TestClientInKubernetes(t *testing.T) {
	t.Parallel()
	s := newSite(t, kubernetes, inKubernetes, harness.Etched)
	address := s.network + "0.0"
	s.Replace = strings.NewReplacer("etched.NAMESPACE.svc.cluster.local", address, "/etc/etched/", s.Dir+"/etc/")
	p := &pods{s, map[int]func(){}, map[int]int{}, 1}
	for _, secret := range []string{"client", "peer"} {
		p.Run(fmt.Sprintf(`mkdir -p /etc/etched/%s
cd /etc/etched/%[1]s
new="openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
$new -x509 -days 3650 -subj /CN=authority -keyout ca.key -out ca.crt
$new -subj /CN=etched -keyout tls.key -out tls.csr
printf 'extendedKeyUsage=serverAuth,clientAuth\nsubjectAltName=IP:%s' >names
openssl x509 -req -CA ca.crt -CAkey ca.key -CAcreateserial -days 365 -extfile names -in tls.csr -out tls.crt
`, secret, address))
	}
	var scripts struct {
		Data map[string]string `json:"data"`
	}
	manifest(t, "etched.yaml", "ConfigMap", &scripts)
	if err := os.WriteFile(filepath.Join(p.Dir, "start.sh"), []byte(scripts.Data["start.sh"]), 0o600); err != nil {
		t.Fatal(err)
	}
	var set struct {
		Spec struct {
			Template struct {
				Spec struct {
					Containers []struct {
						Env []struct{ Name, Value string } `json:"env"`
					} `json:"containers"`
				} `json:"spec"`
			} `json:"template"`
		} `json:"spec"`
	}
	manifest(t, "etched.yaml", "StatefulSet", &set)
	env, secured := strings.ReplaceAll(strings.ReplaceAll(p.env(0), "SCHEME=http ", "SCHEME=https "), "http://", "https://"), 0
	for _, variable := range set.Spec.Template.Spec.Containers[0].Env {
		if strings.HasPrefix(variable.Name, "ETCD") && strings.Contains(variable.Name, "_C") || strings.Contains(variable.Value, "/etc/etched/") {
			env += variable.Name + "=" + variable.Value + " "
			secured++
		}
	}
	if secured < 11 {
		t.Fatalf("of the pod's variables are about certificates: %s", env)
	}
	p.Start("exec " + env + "sh start.sh")
	command, ctx := "cd /etc/etched/client\n"+strings.TrimSpace(p.Block("endpoint health")), harness.Context(t, limit)
	for {
		if output := p.Run(command + " || true"); strings.Contains(output, address+":2379 is healthy") {
			break
		} else if ctx.Err() != nil {
			t.Fatalf("%s\n%s", command, output)
		}
		time.Sleep(200 * time.Millisecond)
	}
	without := strings.NewReplacer("--cert tls.crt", "", "--key tls.key", "").Replace(command)
	p.Run(strings.Replace(without, "\netcdctl", "\n! etcdctl --command-timeout 2s", 1))
	p.allTried()
}
