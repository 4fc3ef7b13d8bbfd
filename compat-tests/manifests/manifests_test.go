package manifests

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"helm.sh/helm/v3/pkg/lint"
	"helm.sh/helm/v3/pkg/lint/support"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

const (
	chartDir = "../../packaging/helm/etched"
	plain    = "../../packaging/kubernetes/etched.yaml"
	static   = "../../packaging/kubernetes/static-pod.yaml"
)

var update = flag.Bool("update", false, "write "+plain+" anew")

// head is the beginning of the plain manifests.
const head = `# Three members of etched, their services and the budget of disruptions: what the chart in
# packaging/helm makes of its defaults, for kubectl apply. docs/KUBERNETES.md says what has to be
# there before. Made by: go -C compat-tests/manifests test ./... -update
`

// cases are values beside the defaults.
var cases = map[string]map[string]any{
	"defaults":  {},
	"plain":     {"tls": map[string]any{"enabled": false}},
	"five":      {"replicas": 5, "initialReplicas": 5, "topologyKey": "topology.kubernetes.io/zone"},
	"founded":   {"clusterState": "existing"},
	"elsewhere": {"storage": map[string]any{"className": "fast", "size": "100Gi"}, "nodeSelector": map[string]any{"role": "store"}},
	"all": {
		"imagePullSecrets":  []any{map[string]any{"name": "pull"}},
		"priorityClassName": "system-cluster-critical",
		"tolerations":       []any{map[string]any{"key": "store", "operator": "Exists", "effect": "NoSchedule"}},
		"settings":          map[string]any{"ETCD_SNAPSHOT_COUNT": 20000},
		"resources":         map[string]any{"limits": map[string]any{"memory": "2Gi"}},
	},
}

// render is what helm template prints.
func render(t *testing.T, values map[string]any) string {
	t.Helper()
	files, err := rendered(t, values)
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	for _, name := range slices.Sorted(keys(files)) {
		if strings.HasSuffix(name, ".yaml") {
			fmt.Fprintf(&text, "---\n%s\n", strings.TrimSpace(files[name]))
		}
	}
	return text.String()
}

func rendered(t *testing.T, values map[string]any) (map[string]string, error) {
	t.Helper()
	chart, err := loader.Load(chartDir)
	if err != nil {
		t.Fatal(err)
	}
	release := chartutil.ReleaseOptions{Name: "etched", Namespace: "default", Revision: 1, IsInstall: true}
	all, err := chartutil.ToRenderValues(chart, values, release, chartutil.DefaultCapabilities)
	if err != nil {
		t.Fatal(err)
	}
	return engine.Render(chart, all)
}

func keys(files map[string]string) func(func(string) bool) {
	return func(yield func(string) bool) {
		for name := range files {
			if !yield(name) {
				return
			}
		}
	}
}

// objects are what a file describes.
type objects struct {
	set      *appsv1.StatefulSet
	services map[string]*corev1.Service
	scripts  *corev1.ConfigMap
	budget   *policyv1.PodDisruptionBudget
	pod      *corev1.Pod
}

// decode takes no field that Kubernetes does not know.
func decode(t *testing.T, text string) objects {
	t.Helper()
	found := objects{services: map[string]*corev1.Service{}}
	for _, document := range regexp.MustCompile(`(?m)^---$`).Split(text, -1) {
		var kind metav1.TypeMeta
		if err := yaml.Unmarshal([]byte(document), &kind); err != nil {
			t.Fatalf("%v\n%s", err, document)
		}
		var into any
		switch kind.APIVersion + " " + kind.Kind {
		case "apps/v1 StatefulSet":
			found.set = &appsv1.StatefulSet{}
			into = found.set
		case "v1 Service":
			into = &corev1.Service{}
		case "v1 ConfigMap":
			found.scripts = &corev1.ConfigMap{}
			into = found.scripts
		case "policy/v1 PodDisruptionBudget":
			found.budget = &policyv1.PodDisruptionBudget{}
			into = found.budget
		case "v1 Pod":
			found.pod = &corev1.Pod{}
			into = found.pod
		case " ":
			continue // nothing but comments
		default:
			t.Fatalf("unknown: %s %s", kind.APIVersion, kind.Kind)
		}
		if err := yaml.UnmarshalStrict([]byte(document), into); err != nil {
			t.Fatalf("%s: %v", kind.Kind, err)
		}
		if service, ok := into.(*corev1.Service); ok {
			found.services[service.Name] = service
		}
	}
	return found
}

func TestDecodingIsStrict(t *testing.T) {
	var pod corev1.Pod
	if err := yaml.UnmarshalStrict([]byte("kind: Pod\nspec:\n  containerz: []\n"), &pod); err == nil {
		t.Error("a field that is not known is taken")
	}
}

func TestLint(t *testing.T) {
	result := lint.AllWithKubeVersion(chartDir, map[string]any{}, "default", &chartutil.KubeVersion{Version: "v1.33.0", Major: "1", Minor: "33"})
	for _, message := range result.Messages {
		if message.Severity > support.InfoSev {
			t.Errorf("%s", message.Error())
		}
	}
	if len(result.Messages) == 0 {
		t.Error("the chart has no icon, which lint says of each; this time it said nothing")
	}
}

func TestPlainManifestsAreTheChart(t *testing.T) {
	made := head + render(t, map[string]any{})
	if *update {
		if err := os.WriteFile(plain, []byte(made), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	written, err := os.ReadFile(plain)
	if err != nil || string(written) != made {
		t.Errorf("%s is not what the chart makes (%v); renew it by\n    go -C compat-tests/manifests test ./... -update", plain, err)
	}
}

// variables are those of a member's container that are given as text.
func variables(t *testing.T, values map[string]any) map[string]string {
	t.Helper()
	found := map[string]string{}
	for _, variable := range decode(t, render(t, values)).set.Spec.Template.Spec.Containers[0].Env {
		found[variable.Name] = variable.Value
	}
	return found
}

// A file of values has numbers and truths without quotes, as anybody writes them.
func TestSettingsAreAsTheyWereWritten(t *testing.T) {
	const file = `settings:
  ETCD_QUOTA_BACKEND_BYTES: 17179869184
  ETCD_SNAPSHOT_COUNT: 1000000
  ETCD_HEARTBEAT_INTERVAL: 100
  ETCD_MAX_REQUEST_BYTES: 0
  ETCD_DISTRIBUTED_TRACING_SAMPLING_RATE: 1e6
  ETCD_EXPERIMENTAL: 0.5
  ETCD_PRE_VOTE: true
  ETCD_AUTO_COMPACTION_RETENTION: 30m
  ETCD_AUTO_COMPACTION_MODE: "1000000"
`
	var values map[string]any
	if err := yaml.Unmarshal([]byte(file), &values); err != nil {
		t.Fatal(err)
	}
	// As helm reads its files of values.
	if _, isFloat := values["settings"].(map[string]any)["ETCD_SNAPSHOT_COUNT"].(float64); !isFloat {
		t.Fatalf("numbers are read otherwise: %v", values)
	}
	found := variables(t, values)
	for name, expected := range map[string]string{
		"ETCD_QUOTA_BACKEND_BYTES": "17179869184", "ETCD_SNAPSHOT_COUNT": "1000000", "ETCD_HEARTBEAT_INTERVAL": "100",
		"ETCD_MAX_REQUEST_BYTES": "0", "ETCD_DISTRIBUTED_TRACING_SAMPLING_RATE": "1000000", "ETCD_EXPERIMENTAL": "0.5",
		"ETCD_PRE_VOTE": "true", "ETCD_AUTO_COMPACTION_RETENTION": "30m", "ETCD_AUTO_COMPACTION_MODE": "1000000",
	} {
		if found[name] != expected {
			t.Errorf("%s is %q, was written as %q", name, found[name], expected)
		}
	}
}

func TestFoundersAreFoundersOnce(t *testing.T) {
	for state, expected := range map[string]string{"new": "3", "existing": "0"} {
		if found := variables(t, map[string]any{"clusterState": state})["INITIAL"]; found != expected {
			t.Errorf("%s: %q members found the cluster", state, found)
		}
	}
	if _, err := rendered(t, map[string]any{"clusterState": "exists"}); err == nil || !strings.Contains(err.Error(), "clusterState") {
		t.Errorf("a state that is none: %v", err)
	}
}

// What refers to something else in these files refers to what is there.
func TestObjectsFit(t *testing.T) {
	for name, values := range cases {
		t.Run(name, func(t *testing.T) {
			all := decode(t, render(t, values))
			set := all.set
			if set == nil || all.scripts == nil || all.budget == nil || len(all.services) != 2 {
				t.Fatalf("objects are missing: %+v", all)
			}
			labels := set.Spec.Template.Labels
			for what, selector := range map[string]map[string]string{
				"StatefulSet": set.Spec.Selector.MatchLabels,
				"budget":      all.budget.Spec.Selector.MatchLabels,
				"clients":     all.services["etched"].Spec.Selector,
				"members":     all.services["etched-members"].Spec.Selector,
			} {
				if len(selector) == 0 || !reflect.DeepEqual(selector, labels) {
					t.Errorf("%s selects %v, pods have %v", what, selector, labels)
				}
			}
			members := all.services[set.Spec.ServiceName]
			if members == nil || members.Spec.ClusterIP != corev1.ClusterIPNone || !members.Spec.PublishNotReadyAddresses {
				t.Errorf("the members' service is %+v", members)
			}
			if set.Spec.PodManagementPolicy != appsv1.ParallelPodManagement || all.budget.Spec.MaxUnavailable.IntValue() != 1 {
				t.Error("founders have to start together, and a drain may take one")
			}
			volumes := []string{set.Spec.VolumeClaimTemplates[0].Name}
			checkPod(t, set.Spec.Template.Spec, volumes)
			for _, port := range members.Spec.Ports {
				checkPort(t, set.Spec.Template.Spec.Containers[0], port.TargetPort.String())
			}
			for _, script := range []string{"start.sh", "leave.sh"} {
				file, err := os.ReadFile(filepath.Join(chartDir, "files", script))
				if err != nil || strings.TrimSpace(all.scripts.Data[script]) != strings.TrimSpace(string(file)) {
					t.Errorf("%s is not in the ConfigMap as it is: %v", script, err)
				}
			}
			checkVariables(t, set.Spec.Template.Spec.Containers[0])
		})
	}
}

func checkPod(t *testing.T, pod corev1.PodSpec, volumes []string) {
	t.Helper()
	for _, volume := range pod.Volumes {
		volumes = append(volumes, volume.Name)
	}
	var mounted []string
	for _, container := range slices.Concat(pod.InitContainers, pod.Containers) {
		for _, mount := range container.VolumeMounts {
			mounted = append(mounted, mount.Name)
			if !slices.Contains(volumes, mount.Name) {
				t.Errorf("there is no volume %s", mount.Name)
			}
		}
		for _, probe := range []*corev1.Probe{container.LivenessProbe, container.ReadinessProbe, container.StartupProbe} {
			if probe != nil {
				checkPort(t, container, probe.HTTPGet.Port.String())
			}
		}
	}
	for _, volume := range volumes {
		if !slices.Contains(mounted, volume) {
			t.Errorf("nothing mounts %s", volume)
		}
	}
}

func checkPort(t *testing.T, container corev1.Container, port string) {
	t.Helper()
	for _, known := range container.Ports {
		if known.Name == port || fmt.Sprint(known.ContainerPort) == port {
			return
		}
	}
	t.Errorf("container %s has no port %s", container.Name, port)
}

// checkVariables finds variables that etched does not know, and those that the script names and
// the pod lacks.
func checkVariables(t *testing.T, container corev1.Container) {
	t.Helper()
	flags, err := os.ReadFile("../../docs/FLAGS.md")
	if err != nil {
		t.Fatal(err)
	}
	script, err := os.ReadFile(filepath.Join(chartDir, "files/start.sh"))
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, variable := range container.Env {
		if names[variable.Name] {
			t.Errorf("%s is set twice", variable.Name)
		}
		names[variable.Name] = true
		if strings.HasPrefix(variable.Name, "ETCD_") && !strings.Contains(string(flags), "`"+variable.Name+"`") {
			t.Errorf("docs/FLAGS.md has no %s", variable.Name)
		}
		flag := "--" + strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(variable.Name, "ETCD_")), "_", "-") + " "
		if strings.HasPrefix(variable.Name, "ETCD_") && strings.Contains(string(script), flag) {
			t.Errorf("%s is a flag of the start script too: etched refuses both at once", variable.Name)
		}
	}
	used := regexp.MustCompile(`\$\{?([A-Z][A-Z_]+)`).FindAllStringSubmatch(string(script), -1)
	if len(used) < 8 {
		t.Errorf("the script uses %v", used)
	}
	for _, variable := range used {
		if !names[variable[1]] {
			t.Errorf("the pod lacks %s, which the start script uses", variable[1])
		}
	}
}

func TestStaticPod(t *testing.T) {
	text, err := os.ReadFile(static)
	if err != nil {
		t.Fatal(err)
	}
	pod := decode(t, string(text)).pod
	if pod == nil {
		t.Fatal("there is no pod")
	}
	checkPod(t, pod.Spec, nil)
	if !pod.Spec.HostNetwork || pod.Spec.PriorityClassName != "system-node-critical" {
		t.Errorf("a pod of the control plane is on the host's network, and is not evicted: %+v", pod.Spec)
	}
}
