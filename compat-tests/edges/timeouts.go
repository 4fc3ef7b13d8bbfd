package edges

import (
	"context"
	"fmt"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/protobuf/proto"
)

// timeoutValues are extreme and malformed values of grpc-timeout.
var timeoutValues = []string{
	"0n", "0S", "0H", "00000000m", "00000009S", "99999999H", "99999999n", "000000001S", "123456789S", "1", "S", "", " 5S", "5 S", "5s", "+5S", "-5S", "5.0S", "0x5S", "5SS", "5S,5S", "５S",
}

func timeouts(ctx context.Context, s *attackRun) error {
	for _, value := range timeoutValues {
		outcome, err := callAlone(ctx, s, pb.KV_Range_FullMethodName, rangeOf("nothing", ""), hpack.HeaderField{Name: "grpc-timeout", Value: value})
		if err != nil {
			return err
		}
		s.answers.add(fmt.Sprintf("%q: %s", value, outcome))
	}
	return nil
}

// callAlone makes a call on its own connection and returns its outcome.
func callAlone(ctx context.Context, s *attackRun, path string, request proto.Message, more ...hpack.HeaderField) (string, error) {
	const limit = 5 * time.Second
	w, err := s.http2Conn(clientOptions{})
	if err != nil {
		return "", err
	}
	asked, err := w.ask(ctx, path, request, more...)
	// The server may answer before the request is complete.
	if err != nil && err != errEnded {
		return errorText(err), nil
	}
	return asked.await(limit), nil
}

// unknownAlarms sends Alarm GET with unknown types.
func unknownAlarms(ctx context.Context, s *attackRun) error {
	const firstUnknown, farUnknown = 3, 77
	for _, kind := range []pb.AlarmType{firstUnknown, farUnknown, -1} {
		limited, cancel := context.WithTimeout(ctx, probeLimit)
		answer, err := pb.NewMaintenanceClient(s.client.ActiveConnection()).Alarm(limited, &pb.AlarmRequest{Action: pb.AlarmRequest_GET, Alarm: kind})
		cancel()
		outcome := errorText(err)
		if err == nil {
			outcome = fmt.Sprintf("OK, %d alarms", len(answer.Alarms))
		}
		s.answers.add(fmt.Sprintf("type %d: %s", kind, outcome))
	}
	return ctx.Err()
}
