package backup

import (
	"path/filepath"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.uber.org/zap"

	"etched.dev/compat-tests/harness"
)

// What a member promised as an etcd binds it as an etched: its term does not go back, and in one in
// which it voted it votes for nobody else. No entry of that term need be in its log.
func TestAVoteIsKept(t *testing.T) {
	for _, version := range []string{"3.7", "3.5"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			cluster := harness.StartCluster(t, harness.Etcd, harness.ClusterOptions{
				Binary: etcdOf(t, version), EtcdFlags: []string{"--pre-vote=false"},
			})
			members := cluster.Members()
			newContent(t, members[0].Server, 50).changes(20)
			voter := members[2]
			voted := votesInVain(t, voter, members[:2])
			for _, member := range members {
				if err := member.Become(harness.Etched); err != nil {
					t.Fatal(err)
				}
			}
			// It starts alone, first on what the etcd left and then on its own.
			for start := range 2 {
				if err := voter.Spawn(); err != nil {
					t.Fatal(err)
				}
				if _, err := voter.WaitLog(limit, 1, tookOver); err != nil {
					t.Fatal(err)
				}
				// Some elections are due meanwhile.
				time.Sleep(time.Duration(start) * 4 * time.Second)
				if err := voter.Kill(); err != nil {
					t.Fatal(err)
				}
				kept := promiseIn(t, exported(t, voter.DataDir()))
				if kept.term < voted.term || kept.term == voted.term && kept.vote != voted.vote {
					t.Errorf("it voted %+v, and has kept %+v after %d starts", voted, kept, start+1)
				}
			}
			for _, member := range members {
				if err := member.Spawn(); err != nil {
					t.Fatal(err)
				}
			}
			if err := cluster.WaitHealthy(limit); err != nil {
				t.Fatal(err)
			}
			// They may begin with a leader of a term before, until they hear of it.
			for _, member := range members {
				for deadline := time.Now().Add(limit); ; time.Sleep(50 * time.Millisecond) {
					status, err := member.Status(t.Context())
					if err == nil && status.RaftTerm > voted.term {
						break
					}
					if time.Now().After(deadline) {
						t.Fatalf("%s has no term after %d: %v, %v", member.Name(), voted.term, status, err)
					}
				}
			}
		})
	}
}

// promise is what binds a voter.
type promise struct{ term, vote uint64 }

// votesInVain stops the others, has the last member of an etcd vote for itself again and again, and
// kills it.
func votesInVain(t *testing.T, voter *harness.Member, others []*harness.Member) promise {
	t.Helper()
	id, err := voter.ID(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, other := range others {
		if err := other.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	began := promiseIn(t, voter.DataDir())
	for deadline := time.Now().Add(limit); promiseIn(t, voter.DataDir()).term < began.term+3; time.Sleep(200 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it begins no elections")
		}
	}
	if err := voter.Kill(); err != nil {
		t.Fatal(err)
	}
	voted := promiseIn(t, voter.DataDir())
	if voted.vote != id {
		t.Fatalf("it voted %+v and is %x", voted, id)
	}
	return voted
}

// promiseIn reads an etcd's raft log as an etcd does.
func promiseIn(t *testing.T, dataDir string) promise {
	t.Helper()
	dir := filepath.Join(dataDir, "member", "wal")
	snapshots, err := wal.ValidSnapshotEntries(zap.NewNop(), dir)
	if err != nil || len(snapshots) == 0 {
		t.Fatalf("%d snapshots in the raft log: %v", len(snapshots), err)
	}
	log, err := wal.OpenForRead(zap.NewNop(), dir, snapshots[len(snapshots)-1])
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	_, state, _, err := log.ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	return promise{state.GetTerm(), state.GetVote()}
}
