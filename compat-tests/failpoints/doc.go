// Package failpoints ends and holds up members of a build for tests at each of
// its failpoints, by the protocol of gofail and under etcd's names, as etcd's own
// robustness tests do: a process that ended at one has lost nothing that it
// acknowledged.
//
// ETCHED_FAILPOINTS_BIN is the binary, built with the feature failpoints;
// scripts/test failpoints builds it. What is answered is compared with a real
// gofail, within a process of this package.
package failpoints

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// Answer is what a request was answered.
type Answer struct {
	Status int
	Body   string
	// Type and Allow are headers.
	Type, Allow string
}

// Server is where failpoints are set, host:port.
type Server string

// Ask sends a request to a path as it is given, which begins with a slash.
func (s Server) Ask(method, path, body string) (Answer, error) {
	request, err := http.NewRequest(method, "http://"+string(s)+path, bytes.NewBufferString(body))
	if err != nil {
		return Answer{}, err
	}
	client := http.Client{Timeout: 5 * time.Second}
	response, err := client.Do(request)
	if err != nil {
		return Answer{}, err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	header := response.Header
	return Answer{response.StatusCode, string(text), header.Get("Content-Type"), header.Get("Allow")}, err
}

func (s Server) expect(status int, method, path, body string) (string, error) {
	answer, err := s.Ask(method, path, body)
	if err == nil && answer.Status != status {
		err = fmt.Errorf("%s %s: %d %s", method, path, answer.Status, answer.Body)
	}
	return answer.Body, err
}

// Set has a failpoint do what the terms say.
func (s Server) Set(name, terms string) error {
	_, err := s.expect(http.StatusNoContent, http.MethodPut, "/"+name, terms)
	return err
}

// Clear has a failpoint do nothing.
func (s Server) Clear(name string) error {
	_, err := s.expect(http.StatusNoContent, http.MethodDelete, "/"+name, "")
	return err
}

// Count answers how often the terms of a failpoint were carried out.
func (s Server) Count(name string) (string, error) {
	return s.expect(http.StatusOK, http.MethodGet, "/"+name+"/count", "")
}

// Names answers the failpoints that there are.
func (s Server) Names() ([]string, error) {
	text, err := s.expect(http.StatusOK, http.MethodGet, "/", "")
	var names []string
	for line := range strings.Lines(text) {
		name, _, _ := strings.Cut(line, "=")
		names = append(names, name)
	}
	return names, err
}
