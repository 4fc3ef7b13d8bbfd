package manifests

import (
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"

	"helm.sh/helm/v3/pkg/strvals"
	"sigs.k8s.io/yaml"
)

const document = "../../docs/KUBERNETES.md"

var (
	inSentence = regexp.MustCompile("`((?:helm|kubectl|podman) [^`]+)`")
	valuesRow  = regexp.MustCompile("(?m)^\\| ((?:`[A-Za-z.]+`(?:, )?)+) \\|")
	backquoted = regexp.MustCompile("`([^`]+)`")
)

func documentText(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// commandsOfOthers are those of helm, kubectl and podman: no test runs them, since that would take
// a cluster, but what they name has to be there.
func commandsOfOthers(t *testing.T) [][]string {
	t.Helper()
	const fence = "```"
	var found [][]string
	block := ""
	for line := range strings.Lines(documentText(t)) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, fence) && block == "":
			block = line
		case line == fence:
			block = ""
		case block == fence:
			command, _, _ := strings.Cut(line, " #")
			found = append(found, strings.Fields(command))
		case block == "":
			for _, one := range inSentence.FindAllStringSubmatch(line, -1) {
				found = append(found, strings.Fields(one[1]))
			}
		}
	}
	return found
}

func defaultValues(t *testing.T) map[string]any {
	t.Helper()
	text, err := os.ReadFile(path.Join(chartDir, "values.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var values map[string]any
	if err := yaml.Unmarshal(text, &values); err != nil {
		t.Fatal(err)
	}
	return values
}

// names are those of values, as a table of the document has them.
func names(values map[string]any, within string) []string {
	var found []string
	for name, value := range values {
		inner, isTable := value.(map[string]any)
		if isTable && (name == "tls" || name == "storage") {
			found = append(found, names(inner, name+".")...)
			continue
		}
		found = append(found, within+name)
	}
	return found
}

// after answers the word behind another one, or the one that begins with it and "=".
func after(words []string, flag string) string {
	for i, word := range words {
		if rest, joined := strings.CutPrefix(word, flag+"="); joined {
			return rest
		}
		if word == flag && i+1 < len(words) {
			return words[i+1]
		}
	}
	return ""
}

func TestCommandsNameWhatIsThere(t *testing.T) {
	all := decode(t, render(t, map[string]any{}))
	container := all.set.Spec.Template.Spec.Containers[0]
	known := names(defaultValues(t), "")
	commands := commandsOfOthers(t)
	for _, words := range commands {
		command := strings.Join(words, " ")
		switch {
		case words[0] == "helm" && (words[1] == "install" || words[1] == "upgrade"):
			if words[2] != all.set.Name || path.Join("../..", words[3]) != path.Clean(chartDir) {
				t.Errorf("%s: the chart in %s makes %s", command, chartDir, all.set.Name)
			}
			set := after(words, "--set")
			values := map[string]any{}
			if err := strvals.ParseInto(set, values); err != nil {
				t.Errorf("%s: %v", command, err)
			}
			for _, name := range names(values, "") {
				if !slices.Contains(known, name) {
					t.Errorf("%s: the chart has no value %s", command, name)
				}
			}
			if render(t, values) == render(t, map[string]any{}) {
				t.Errorf("%s: the value changes nothing", command)
			}
		case strings.HasPrefix(command, "kubectl apply -f "):
			if _, err := os.Stat(path.Join("../..", words[3])); err != nil {
				t.Errorf("%s: %v", command, err)
			}
		case strings.HasPrefix(command, "kubectl scale statefulset "):
			if words[3] != all.set.Name || after(words, "--replicas") == "" {
				t.Errorf("%s: the StatefulSet is %s", command, all.set.Name)
			}
		case strings.HasPrefix(command, "kubectl exec "):
			if !strings.HasPrefix(words[2], all.set.Name+"-") || words[3] != "--" {
				t.Errorf("%s: pods are those of %s", command, all.set.Name)
			}
			for _, file := range words[4:] {
				mounted := false
				for _, mount := range container.VolumeMounts {
					if path.Dir(file) == mount.MountPath {
						_, isScript := all.scripts.Data[path.Base(file)]
						mounted = mount.Name != "scripts" || isScript
					}
				}
				if !mounted {
					t.Errorf("%s: a pod has no %s", command, file)
				}
			}
		case words[0] == "podman":
			if last := words[len(words)-1]; !strings.Contains(last, "etched") {
				t.Errorf("%s: no image of etched's", command)
			}
		case command == "kubectl -n kube-system edit configmap kubeadm-config":
			// kubeadm's own.
		default:
			t.Errorf("nothing looks at %q", command)
		}
	}
	if len(commands) < 9 {
		t.Errorf("%d commands: %q", len(commands), commands)
	}
}

// The table of values has those of the chart, all and no others.
func TestValuesOfTheDocument(t *testing.T) {
	_, table, found := strings.Cut(documentText(t), "\n| value | default | |\n")
	if !found {
		t.Fatal("there is no table of values")
	}
	table, _, _ = strings.Cut(table, "\n\n")
	var listed []string
	for _, row := range valuesRow.FindAllStringSubmatch(table, -1) {
		for _, name := range backquoted.FindAllStringSubmatch(row[1], -1) {
			listed = append(listed, name[1])
		}
	}
	known := names(defaultValues(t), "")
	slices.Sort(listed)
	slices.Sort(known)
	if !slices.Equal(listed, known) {
		t.Errorf("the document has %q\nthe chart has %q", listed, known)
	}
}
