package crash

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
)

// proxy passes every call on to a server as bytes, save for what it tampers with.
type proxy struct {
	listener net.Listener
	server   *grpc.Server
	backend  *grpc.ClientConn
	tamper   tamper

	mu sync.Mutex // held while a tamper function runs
}

// tamper is what a faulty server does. Both functions may be nil.
type tamper struct {
	// request answers the messages to send to the server instead of this one, or
	// an answer to give in its place.
	request func(p *proxy, method string, message []byte) (forward [][]byte, answer []byte)
	// response answers the messages to give to the client instead of this one; an
	// error ends the call with it.
	response func(p *proxy, method string, message []byte) ([][]byte, error)
}

// raw is a message as it is on the wire.
type raw struct{ bytes []byte }

type rawCodec struct{}

func (rawCodec) Name() string { return "proto" }

func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(v.(*raw).bytes)}, nil
}

func (rawCodec) Unmarshal(data mem.BufferSlice, v any) error {
	v.(*raw).bytes = data.Materialize()
	return nil
}

func newProxy(endpoint string, t tamper) (*proxy, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	backend, err := grpc.NewClient(endpoint, Quick, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDisableRetry(), grpc.WithDefaultCallOptions(
			grpc.ForceCodecV2(rawCodec{}), grpc.WaitForReady(true), grpc.MaxCallRecvMsgSize(1<<30)))
	if err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	p := &proxy{listener: listener, backend: backend, tamper: t}
	p.server = grpc.NewServer(grpc.ForceServerCodecV2(rawCodec{}), grpc.UnknownServiceHandler(p.handle))
	go func() { _ = p.server.Serve(listener) }()
	return p, nil
}

func (p *proxy) close() {
	p.server.Stop()
	_ = p.backend.Close()
}

func (p *proxy) handle(_ any, client grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(client)
	ctx, cancel := context.WithCancel(client.Context())
	defer cancel()
	upstream, err := p.backend.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method)
	if err != nil {
		return err
	}
	answered := make(chan []byte, 1)
	go p.requests(method, client, upstream, answered)
	responses := make(chan error, 1)
	go func() { responses <- p.responses(method, client, upstream) }()
	select {
	case answer := <-answered:
		return client.SendMsg(&raw{answer})
	case err := <-responses:
		return err
	}
}

func (p *proxy) requests(method string, client grpc.ServerStream, upstream grpc.ClientStream, answered chan<- []byte) {
	for {
		var message raw
		if err := client.RecvMsg(&message); err != nil {
			_ = upstream.CloseSend()
			return
		}
		forward := [][]byte{message.bytes}
		if p.tamper.request != nil {
			p.mu.Lock()
			var answer []byte
			forward, answer = p.tamper.request(p, method, message.bytes)
			p.mu.Unlock()
			if answer != nil {
				answered <- answer
				return
			}
		}
		for _, bytes := range forward {
			if upstream.SendMsg(&raw{bytes}) != nil {
				return
			}
		}
	}
}

func (p *proxy) responses(method string, client grpc.ServerStream, upstream grpc.ClientStream) error {
	for {
		var message raw
		if err := upstream.RecvMsg(&message); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		give := [][]byte{message.bytes}
		if p.tamper.response != nil {
			p.mu.Lock()
			var err error
			give, err = p.tamper.response(p, method, message.bytes)
			p.mu.Unlock()
			if err != nil {
				return err
			}
		}
		for _, bytes := range give {
			if err := client.SendMsg(&raw{bytes}); err != nil {
				return err
			}
		}
	}
}

// invoke sends a request of its own to the server.
func (p *proxy) invoke(method string, message []byte, response *raw) error {
	ctx, cancel := context.WithTimeout(context.Background(), requestLimit)
	defer cancel()
	return p.backend.Invoke(ctx, method, &raw{message}, response)
}

var errRefused = status.Error(codes.InvalidArgument, "etcdserver: key is not provided")
