package crash

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// standingWatch is a watch of the official client, which resumes it by itself
// and never learns that the server was killed.
type standingWatch struct {
	client  *clientv3.Client
	watcher *Watcher
	done    chan struct{}
}

func newStandingWatch(endpoint string) (*standingWatch, error) {
	client, err := NewClient(endpoint)
	if err != nil {
		return nil, err
	}
	s := &standingWatch{
		client: client, watcher: NewWatcher("the official client's watch", Everything, firstRevision+1),
		done: make(chan struct{}),
	}
	s.watcher.PrevKV = true
	responses := client.Watch(context.Background(), "\x00",
		clientv3.WithFromKey(), clientv3.WithRev(firstRevision+1), clientv3.WithPrevKV())
	go func() {
		defer close(s.done)
		created := true
		for response := range responses {
			events := make([]*mvccpb.Event, len(response.Events))
			for i, event := range response.Events {
				events[i] = (*mvccpb.Event)(event)
			}
			s.watcher.take(&pb.WatchResponse{
				Header: response.Header, Canceled: response.Canceled,
				CompactRevision: response.CompactRevision, Events: events,
			}, &created)
		}
	}()
	return s, nil
}

func (s *standingWatch) close() {
	_ = s.client.Close()
	<-s.done
}
