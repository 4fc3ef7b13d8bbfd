package tls

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
)

const callLimit = 10 * time.Second

// from is a dialler with an address of its own on this machine, so that a server's
// log tells callers apart.
func from(source string) *net.Dialer {
	dialler := &net.Dialer{Timeout: callLimit}
	if source != "" {
		dialler.LocalAddr = &net.TCPAddr{IP: net.ParseIP(source)}
	}
	return dialler
}

// alert is what a server says as it refuses; the rest of an error is the caller's library's.
var alert = regexp.MustCompile(`remote error: tls: [a-z' ]+`)

// outcome is what there is to compare of an error.
func outcome(err error) string {
	var network net.Error
	switch {
	case err == nil:
		return "OK"
	case errors.As(err, &network) && network.Timeout():
		return "no answer"
	}
	if found := alert.FindString(err.Error()); found != "" {
		return found
	}
	return "refused: " + reset.ReplaceAllString(err.Error(), "EOF")
}

// reset is an end of a connection that depends on what was still unread.
var reset = regexp.MustCompile(`(read|write) tcp .*(connection reset by peer|broken pipe)|unexpected EOF`)

// http1 asks for a path by HTTP/1.1 on a connection of its own.
func http1(dialler *net.Dialer, address string, config *tls.Config, path string) string {
	raw, err := dialler.Dial("tcp", address)
	if err != nil {
		return outcome(err)
	}
	defer raw.Close()
	_ = raw.SetDeadline(time.Now().Add(callLimit))
	connection := tls.Client(raw, config)
	if err := connection.Handshake(); err != nil {
		return outcome(err)
	}
	if _, err := fmt.Fprintf(connection, "GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", path); err != nil {
		// Why it is closed comes with what is received.
		_, err := connection.Read(make([]byte, 1))
		return outcome(err)
	}
	return answer(connection)
}

// answer reads the answer to a GET.
func answer(connection io.Reader) string {
	response, err := http.ReadResponse(bufio.NewReader(connection), nil)
	if err != nil {
		return outcome(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return outcome(err)
	}
	return fmt.Sprintf("%s %s", response.Status, body)
}

// dial is a gRPC connection.
func dial(t testing.TB, dialler *net.Dialer, address string, config *tls.Config) *grpc.ClientConn {
	t.Helper()
	connection, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(credentials.NewTLS(config)),
		grpc.WithDisableRetry(), grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return dialler.DialContext(ctx, "tcp", address)
		}))
	if err != nil {
		t.Fatal(err)
	}
	return connection
}

// grpcOutcome makes a read by gRPC.
func grpcOutcome(t testing.TB, dialler *net.Dialer, address string, config *tls.Config) string {
	t.Helper()
	connection := dial(t, dialler, address, config)
	defer connection.Close()
	result := harness.Invoke(context.Background(), connection, &pb.RangeRequest{Key: []byte("k")})
	if status.Code(result.Err) == codes.Unavailable {
		// Its text has the alert, or not, as the time falls.
		return "Unavailable"
	}
	return harness.ErrorText(result.Err)
}
