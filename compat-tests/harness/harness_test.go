package harness_test

import (
	"errors"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestBothStartStopAndKeepTheirData(t *testing.T) {
	duo := harness.StartDuo(t, harness.Options{})
	duo.Each(func(server *harness.Server) {
		ctx := harness.Context(t, time.Minute)
		if _, err := server.Client(t).Put(ctx, "key", "value"); err != nil {
			t.Fatalf("%s: put: %v", server.Kind(), err)
		}
		if err := server.Stop(); err != nil {
			t.Fatalf("%s: stop: %v", server.Kind(), err)
		}
		if server.Running() {
			t.Fatalf("%s: runs after Stop", server.Kind())
		}
		if err := server.Restart(); err != nil {
			t.Fatalf("%s: restart: %v", server.Kind(), err)
		}
		if err := server.Kill(); err != nil {
			t.Fatalf("%s: kill: %v", server.Kind(), err)
		}
		if err := server.Restart(); err != nil {
			t.Fatalf("%s: restart after a kill: %v", server.Kind(), err)
		}
		answer, err := server.Client(t).Get(ctx, "key")
		if err != nil || len(answer.Kvs) != 1 || answer.Header.Revision != 2 {
			t.Fatalf("%s: get after restarts: %v, %v", server.Kind(), answer, err)
		}
		if _, err := server.CPUTime(); err != nil {
			t.Error(err)
		}
		if bytes, err := server.ResidentBytes(); err != nil || bytes == 0 {
			t.Errorf("%s: resident bytes: %d, %v", server.Kind(), bytes, err)
		}
	})
}

func TestMissingEtchedIsAnError(t *testing.T) {
	t.Setenv("ETCHED_BIN", "")
	if _, err := harness.Launch(harness.Etched, harness.Options{}); !errors.Is(err, harness.ErrNoEtched) {
		t.Errorf("got %v", err)
	}
}

func TestDiff(t *testing.T) {
	answer := func(revision int64, term uint64) *pb.RangeResponse {
		return &pb.RangeResponse{Header: &pb.ResponseHeader{Revision: revision, RaftTerm: term}}
	}
	if diff := harness.Diff(answer(2, 5), answer(2, 9)); diff != "" {
		t.Errorf("terms must not count: %s", diff)
	}
	if harness.Diff(answer(2, 5), answer(3, 5)) == "" {
		t.Error("revisions must count")
	}
	if harness.Diff(answer(2, 5), nil) == "" {
		t.Error("a missing message must count")
	}
	one := harness.Outcome{Err: status.Error(codes.NotFound, "a")}
	two := harness.Outcome{Err: status.Error(codes.NotFound, "b")}
	if harness.DiffOutcome(one, two) == "" || harness.DiffOutcome(one, one) != "" {
		t.Error("error texts must count")
	}
}
