package harness

import (
	"context"
	"fmt"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"
	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// CallLimit bounds every call of Invoke.
const CallLimit = 20 * time.Second

type method struct {
	path     string
	response protoreflect.MessageType
}

// unary knows the method of each request message that belongs to just one.
var unary = sync.OnceValue(func() map[protoreflect.FullName]method {
	found := map[protoreflect.FullName]method{}
	files := []protoreflect.FileDescriptor{
		pb.File_rpc_proto, v3lockpb.File_v3lock_proto, v3electionpb.File_v3election_proto,
		healthpb.File_grpc_health_v1_health_proto,
	}
	for _, file := range files {
		for i := range file.Services().Len() {
			service := file.Services().Get(i)
			for j := range service.Methods().Len() {
				one := service.Methods().Get(j)
				if one.IsStreamingClient() || one.IsStreamingServer() {
					continue
				}
				response, err := protoregistry.GlobalTypes.FindMessageByName(one.Output().FullName())
				if err != nil {
					panic(err)
				}
				found[one.Input().FullName()] = method{fmt.Sprintf("/%s/%s", service.FullName(), one.Name()), response}
			}
		}
	}
	return found
})

// NewResponse is an empty response of a unary method, nil for an unknown path.
func NewResponse(path string) proto.Message {
	for _, known := range unary() {
		if known.path == path {
			return known.response.New().Interface()
		}
	}
	return nil
}

// Invoke makes the unary call that a request message belongs to.
func Invoke(ctx context.Context, conn *grpc.ClientConn, request proto.Message, options ...grpc.CallOption) Outcome {
	called, ok := unary()[request.ProtoReflect().Descriptor().FullName()]
	if !ok {
		return Outcome{Err: fmt.Errorf("no unary method takes %T", request)}
	}
	ctx, cancel := context.WithTimeout(ctx, CallLimit)
	defer cancel()
	response := called.response.New().Interface()
	err := conn.Invoke(ctx, called.path, request, response, options...)
	return Outcome{Message: response, Err: err}
}
