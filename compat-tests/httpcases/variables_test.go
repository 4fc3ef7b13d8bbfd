package httpcases

import (
	"encoding/json"
	"maps"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// compareVariables compares what of /debug/vars does not hang on the language
// or the command line.
func compareVariables(t *testing.T, at addresses) {
	type variables struct {
		Names []string
		Files float64
		Raft  map[string]any
	}
	read := func(address string) variables {
		got, err := send(address, get("/debug/vars"))
		if err != nil {
			t.Fatal(err)
		}
		if kind := got.Header.Get("Content-Type"); kind != "application/json; charset=utf-8" {
			t.Errorf("%s: Content-Type %q", address, kind)
		}
		all := map[string]any{}
		if err := json.Unmarshal([]byte(got.Body), &all); err != nil {
			t.Fatalf("%s: %v\n%s", address, err, got.Body)
		}
		raft, _ := all["raft.status"].(map[string]any)
		for _, own := range []string{"term", "commit", "applied", "progress"} {
			if raft[own] == nil {
				t.Errorf("%s: no %s in %v", address, own, raft)
			}
			delete(raft, own)
		}
		files, _ := all["file_descriptor_limit"].(float64)
		return variables{slices.Sorted(maps.Keys(all)), files, raft}
	}
	if diff := cmp.Diff(read(at.etched), read(at.etcd)); diff != "" {
		t.Errorf("/debug/vars (-etched +etcd)\n%s", diff)
	}
}
