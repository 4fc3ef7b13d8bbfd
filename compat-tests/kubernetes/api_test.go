package kubernetes

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// object is anything that the API has: JSON as it comes.
type object map[string]any

// api calls an API server.
type api struct {
	base   string
	client *http.Client
}

// refusal is an answer that is no success.
type refusal struct {
	code            int
	reason, message string
	// next is the token of a list that continues at a newer revision.
	next string
}

func (r *refusal) Error() string { return fmt.Sprintf("%d %s: %s", r.code, r.reason, r.message) }

// codeOf is the HTTP status of a refusal, 200 of no error and 0 of any other.
func codeOf(err error) int {
	var refused *refusal
	switch {
	case err == nil:
		return http.StatusOK
	case errors.As(err, &refused):
		return refused.code
	}
	return 0
}

const (
	asJSON  = "application/json"
	merging = "application/merge-patch+json"
	// applying is YAML, which JSON is.
	applying = "application/apply-patch+yaml"
)

// call sends a request and decodes what comes.
func (a *api) call(ctx context.Context, method, path, contentType string, body any) (object, error) {
	const callLimit = 60 * time.Second
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	response, err := a.send(ctx, method, path, contentType, body)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	// To its end: the API server complains of answers that are not taken.
	content, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %d: %w", method, path, response.StatusCode, err)
	}
	answer := object{}
	if err := json.Unmarshal(content, &answer); err != nil {
		return nil, fmt.Errorf("%s %s: %d: %w", method, path, response.StatusCode, err)
	}
	if response.StatusCode >= http.StatusMultipleChoices {
		return nil, refusalOf(answer, response.StatusCode)
	}
	return answer, nil
}

// refusalOf reads a Status.
func refusalOf(status object, code int) *refusal {
	return &refusal{code: code, reason: status.text("reason"), message: status.text("message"), next: status.text("metadata", "continue")}
}

func (a *api) send(ctx context.Context, method, path, contentType string, body any) (*http.Response, error) {
	var content io.Reader
	if body != nil {
		encoded, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		content = bytes.NewReader(encoded)
	}
	request, err := http.NewRequestWithContext(ctx, method, a.base+path, content)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Accept", asJSON)
	if contentType != "" {
		request.Header.Set("Content-Type", contentType)
	}
	return a.client.Do(request)
}

func (a *api) get(ctx context.Context, path string) (object, error) {
	return a.call(ctx, http.MethodGet, path, "", nil)
}

func (a *api) create(ctx context.Context, path string, one object) (object, error) {
	return a.call(ctx, http.MethodPost, path, asJSON, one)
}

func (a *api) replace(ctx context.Context, path string, one object) (object, error) {
	return a.call(ctx, http.MethodPut, path, asJSON, one)
}

func (a *api) patch(ctx context.Context, path, contentType string, change object) (object, error) {
	return a.call(ctx, http.MethodPatch, path, contentType, change)
}

func (a *api) delete(ctx context.Context, path string, options object) (object, error) {
	return a.call(ctx, http.MethodDelete, path, asJSON, options)
}

// text gets a page that is no JSON.
func (a *api) text(ctx context.Context, path string) (int, string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, a.base+path, nil)
	if err != nil {
		return 0, "", err
	}
	response, err := a.client.Do(request)
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	return response.StatusCode, string(content), err
}

// event is one message of a watch.
type event struct {
	Type   string
	Object object
}

// isInitialEnd says that a bookmark ends the objects of before a watch.
func (e event) isInitialEnd() bool {
	annotations, _ := e.Object.at("metadata", "annotations").(map[string]any)
	return e.Type == "BOOKMARK" && annotations["k8s.io/initial-events-end"] == "true"
}

// errEnough ends a watch in order.
var errEnough = errors.New("enough")

// watch gives every event to a function until that answers an error, the context ends or the server
// ends the watch, which is no error.
func (a *api) watch(ctx context.Context, path string, each func(event) error) error {
	response, err := a.send(ctx, http.MethodGet, path, "", nil)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	reader := bufio.NewReader(response.Body)
	if response.StatusCode != http.StatusOK {
		status := object{}
		if err := json.NewDecoder(reader).Decode(&status); err != nil {
			return err
		}
		return refusalOf(status, response.StatusCode)
	}
	for decoder := json.NewDecoder(reader); ; {
		var one event
		if err := decoder.Decode(&one); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if one.Type == "ERROR" {
			code, _ := one.Object.at("code").(float64)
			return refusalOf(one.Object, int(code))
		}
		if err := each(one); err != nil {
			if errors.Is(err, errEnough) {
				return nil
			}
			return err
		}
	}
}

// at is what lies under these names, nil where nothing does.
func (o object) at(names ...string) any {
	var value any = map[string]any(o)
	for _, name := range names {
		fields, isObject := value.(map[string]any)
		if !isObject {
			return nil
		}
		value = fields[name]
	}
	return value
}

// text is a string that lies under these names, empty where none does.
func (o object) text(names ...string) string {
	text, _ := o.at(names...).(string)
	return text
}

func (o object) name() string { return o.text("metadata", "name") }

func (o object) revision() string { return o.text("metadata", "resourceVersion") }

// items are the objects of a list.
func (o object) items() []object {
	list, _ := o["items"].([]any)
	items := make([]object, 0, len(list))
	for _, one := range list {
		fields, _ := one.(map[string]any)
		items = append(items, fields)
	}
	return items
}

// names are those of the objects of a list.
func (o object) names() []string {
	var names []string
	for _, one := range o.items() {
		names = append(names, one.name())
	}
	return names
}

// configMaps is the path of those of a namespace, and of one where it is named.
func configMaps(namespace string, name ...string) string {
	return strings.Join(append([]string{"/api/v1/namespaces", namespace, "configmaps"}, name...), "/")
}

// configMap is one with data and labels.
func configMap(name string, data map[string]any, labels map[string]any) object {
	one := object{"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": name}, "data": data}
	if labels != nil {
		one["metadata"] = map[string]any{"name": name, "labels": labels}
	}
	return one
}
