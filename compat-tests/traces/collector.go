package traces

import (
	"context"
	"encoding/hex"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	// A collector takes what is compressed.
	_ "google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/stats"
)

// span is what a collector got, in a form that compares.
type span struct {
	Trace, ID, Parent string
	Name              string
	Kind              tracepb.Span_SpanKind
	Attributes        map[string]string
	Events            []string
	Status            string
	Resource          map[string]string
	Scope             string
	Start, End        uint64
}

// collector keeps every span that it is sent.
type collector struct {
	collectorpb.UnimplementedTraceServiceServer
	address string

	mu    sync.Mutex
	spans []span
	// how the last of them were sent.
	how []string
}

// startCollector serves OTLP over gRPC until the test ends.
func startCollector(t *testing.T) *collector {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &collector{address: listener.Addr().String()}
	server := grpc.NewServer(grpc.StatsHandler(c))
	collectorpb.RegisterTraceServiceServer(server, c)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	return c
}

// shownOfCalls are the headers of a call that say how it is made.
var shownOfCalls = []string{"api-key", "tenant"}

// TagRPC and the others see how spans are sent.
func (c *collector) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }

func (c *collector) HandleRPC(_ context.Context, about stats.RPCStats) {
	begun, isHead := about.(*stats.InHeader)
	if !isHead {
		return
	}
	how := []string{"grpc-encoding: " + begun.Compression}
	for _, name := range shownOfCalls {
		for _, value := range begun.Header.Get(name) {
			how = append(how, name+": "+value)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.how = how
}

func (c *collector) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

func (c *collector) HandleConn(context.Context, stats.ConnStats) {}

// sentHow are the headers of the last call that brought spans.
func (c *collector) sentHow() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.how
}

// Export takes spans.
func (c *collector) Export(_ context.Context, request *collectorpb.ExportTraceServiceRequest) (*collectorpb.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, ofResource := range request.ResourceSpans {
		resource := attributes(ofResource.GetResource().GetAttributes())
		for _, ofScope := range ofResource.ScopeSpans {
			for _, one := range ofScope.Spans {
				c.spans = append(c.spans, taken(one, resource, ofScope.GetScope().GetName()))
			}
		}
	}
	return &collectorpb.ExportTraceServiceResponse{}, nil
}

func taken(one *tracepb.Span, resource map[string]string, scope string) span {
	s := span{
		Trace: hex.EncodeToString(one.TraceId), ID: hex.EncodeToString(one.SpanId),
		Parent: hex.EncodeToString(one.ParentSpanId), Name: one.Name, Kind: one.Kind,
		Attributes: attributes(one.Attributes), Resource: resource, Scope: scope,
		Start: one.StartTimeUnixNano, End: one.EndTimeUnixNano,
	}
	for _, event := range one.Events {
		s.Events = append(s.Events, event.Name)
	}
	if status := one.GetStatus(); status.GetCode() != tracepb.Status_STATUS_CODE_UNSET {
		s.Status = fmt.Sprintf("%s %s", status.Code, status.Message)
	}
	return s
}

// attributes are texts with their types: 5 and "5" are not the same.
func attributes(list []*commonpb.KeyValue) map[string]string {
	found := make(map[string]string)
	for _, one := range list {
		switch value := one.GetValue().GetValue().(type) {
		case *commonpb.AnyValue_StringValue:
			found[one.Key] = fmt.Sprintf("%q", value.StringValue)
		case *commonpb.AnyValue_IntValue:
			found[one.Key] = fmt.Sprint(value.IntValue)
		case *commonpb.AnyValue_BoolValue:
			found[one.Key] = fmt.Sprint(value.BoolValue)
		default:
			found[one.Key] = fmt.Sprintf("%T", value)
		}
	}
	return found
}

// all are the spans so far.
func (c *collector) all() []span {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]span(nil), c.spans...)
}

// of are those of one trace.
func (c *collector) of(trace string) []span {
	var found []span
	for _, one := range c.all() {
		if one.Trace == trace {
			found = append(found, one)
		}
	}
	return found
}

// ended waits for the span of a call in a trace, behind which all below it
// have been sent, and answers those of the trace.
func (c *collector) ended(t *testing.T, trace string) []span {
	t.Helper()
	const limit = 10 * time.Second
	for deadline := time.Now().Add(limit); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		for _, one := range c.of(trace) {
			if one.Kind == tracepb.Span_SPAN_KIND_SERVER {
				return c.of(trace)
			}
		}
	}
	t.Fatalf("no span of a call came for trace %s; those of others: %v", trace, c.all())
	return nil
}
