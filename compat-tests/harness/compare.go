package harness

import (
	"fmt"
	"strings"

	"github.com/google/go-cmp/cmp"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/testing/protocmp"
)

// Normalise answers a copy of the message in which every raft_term, at any
// depth, is 0: how many elections a server held is its own affair. The alarms in
// a status lose what a build of etcd has in more blanks than another: Go's text
// form of messages has one or two between fields, as the hash of the program has it.
func Normalise[M proto.Message](message M) M {
	if !message.ProtoReflect().IsValid() {
		return message
	}
	copied := proto.Clone(message).(M)
	clearTerms(copied.ProtoReflect())
	if status, ok := proto.Message(copied).(*pb.StatusResponse); ok {
		for i, text := range status.Errors {
			status.Errors[i] = strings.Join(strings.Fields(text), " ")
		}
	}
	return copied
}

func clearTerms(message protoreflect.Message) {
	message.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		switch {
		case field.Name() == "raft_term" || field.Name() == "raftTerm":
			message.Clear(field)
		case field.Message() == nil || field.IsMap():
		case field.IsList():
			for i := range value.List().Len() {
				clearTerms(value.List().Get(i).Message())
			}
		default:
			clearTerms(value.Message())
		}
		return true
	})
}

// Diff answers "" where both messages are equal after Normalise, else a
// readable difference: etched's lines begin with -, etcd's with +.
func Diff(etched, etcd proto.Message) string {
	one, two := normal(etched), normal(etcd)
	if proto.Equal(one, two) {
		return ""
	}
	const readable = 64 << 10
	if one != nil && two != nil && proto.Size(one)+proto.Size(two) > readable {
		return diffTexts(prototext.Format(one), prototext.Format(two))
	}
	return cmp.Diff(one, two, protocmp.Transform())
}

func normal(message proto.Message) proto.Message {
	if message == nil || !message.ProtoReflect().IsValid() {
		return nil
	}
	return Normalise(message)
}

// diffTexts answers the first lines in which two large texts differ.
func diffTexts(etched, etcd string) string {
	one, two := strings.Split(etched, "\n"), strings.Split(etcd, "\n")
	same := 0
	for same < len(one) && same < len(two) && one[same] == two[same] {
		same++
	}
	const most = 40
	text := fmt.Sprintf("%d and %d lines, the first %d equal\n", len(one), len(two), same)
	for _, side := range []struct {
		sign  string
		lines []string
	}{{"-", one}, {"+", two}} {
		for _, line := range side.lines[same:min(same+most, len(side.lines))] {
			if len(line) > 200 {
				line = line[:200] + "…"
			}
			text += side.sign + line + "\n"
		}
	}
	return text
}

// ErrorText answers code, text and the number of details of a gRPC error, "OK"
// for nil.
func ErrorText(err error) string {
	if err == nil {
		return codes.OK.String()
	}
	s := status.Convert(err)
	text := fmt.Sprintf("%s: %s", s.Code(), s.Message())
	if details := s.Details(); len(details) > 0 {
		text += fmt.Sprintf(" with %d details", len(details))
	}
	return text
}

// Outcome is what a call gave: a message or an error.
type Outcome struct {
	Message proto.Message
	Err     error
}

// DiffOutcome compares two outcomes: error codes and texts exactly, and the
// messages where both succeeded.
func DiffOutcome(etched, etcd Outcome) string {
	if ErrorText(etched.Err) != ErrorText(etcd.Err) {
		return fmt.Sprintf("-%s: %.500s\n+%s: %.500s", Etched, ErrorText(etched.Err), Etcd, ErrorText(etcd.Err))
	}
	if etched.Err != nil {
		return ""
	}
	return Diff(etched.Message, etcd.Message)
}
