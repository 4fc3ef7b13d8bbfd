// Package protocheck compares the interface in proto/, and the flags, with what etcd's own
// modules carry, in both directions: nothing missing, nothing of our own that is not said to be.
package protocheck

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	_ "go.etcd.io/etcd/api/v3/authpb"
	_ "go.etcd.io/etcd/api/v3/etcdserverpb"
	_ "go.etcd.io/etcd/api/v3/membershippb"
	_ "go.etcd.io/etcd/api/v3/mvccpb"
	_ "go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
	_ "go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"
	_ "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
)

// packages are compared; every other package of either side is left alone
// (between members etched speaks a language of its own).
var packages = []protoreflect.FullName{
	"etcdserverpb", "mvccpb", "authpb", "membershippb", "v3lockpb", "v3electionpb", "grpc.health.v1",
}

// storageOnly are messages that share a package with the interface but are only
// ever written into etcd's own files (here: the head of its write-ahead log).
var storageOnly = map[protoreflect.FullName]bool{"etcdserverpb.Metadata": true}

const protoDir = "../../proto"

func TestInterfaceEqualsEtcds(t *testing.T) {
	ours, theirs := facts(compiled(t)), facts(protoregistry.GlobalFiles)
	for _, name := range packages {
		if !slices.ContainsFunc(slices.Collect(maps.Keys(theirs)), func(fact string) bool {
			return strings.Contains(fact, " "+string(name)+".")
		}) {
			t.Fatalf("nothing known of etcd's package %s", name)
		}
	}
	for _, fact := range slices.Sorted(maps.Keys(theirs)) {
		if !ours[fact] {
			t.Errorf("missing in proto/: %s", fact)
		}
	}
	for _, fact := range slices.Sorted(maps.Keys(ours)) {
		if !theirs[fact] {
			t.Errorf("not etcd's: %s", fact)
		}
	}
	t.Logf("%d facts compared", len(theirs))
}

func compiled(t *testing.T) *protoregistry.Files {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(protoDir, "*.proto"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no *.proto in %s: %v", protoDir, err)
	}
	set := filepath.Join(t.TempDir(), "set")
	command := exec.Command("protoc", append([]string{
		"--proto_path=" + protoDir, "--include_imports", "--descriptor_set_out=" + set,
	}, paths...)...)
	if out, err := command.CombinedOutput(); err != nil {
		t.Fatalf("protoc (Debian package protobuf-compiler): %v\n%s", err, out)
	}
	content, err := os.ReadFile(set)
	if err != nil {
		t.Fatal(err)
	}
	var descriptors descriptorpb.FileDescriptorSet
	if err := proto.Unmarshal(content, &descriptors); err != nil {
		t.Fatal(err)
	}
	files, err := protodesc.NewFiles(&descriptors)
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// facts answers one line for each service, method, message, field, oneof,
// enum and enum value of the compared packages.
func facts(files *protoregistry.Files) map[string]bool {
	found := map[string]bool{}
	for _, name := range packages {
		files.RangeFilesByPackage(name, func(file protoreflect.FileDescriptor) bool {
			if file.Package() != name {
				return true
			}
			for i := range file.Services().Len() {
				serviceFacts(found, file.Services().Get(i))
			}
			messageFacts(found, file.Messages())
			enumFacts(found, file.Enums())
			return true
		})
	}
	return found
}

func serviceFacts(found map[string]bool, service protoreflect.ServiceDescriptor) {
	found["service "+string(service.FullName())] = true
	for i := range service.Methods().Len() {
		method := service.Methods().Get(i)
		found[fmt.Sprintf("method %s(%s%s) returns (%s%s)", method.FullName(),
			stream(method.IsStreamingClient()), method.Input().FullName(),
			stream(method.IsStreamingServer()), method.Output().FullName())] = true
	}
}

func stream(is bool) string {
	if is {
		return "stream "
	}
	return ""
}

func messageFacts(found map[string]bool, messages protoreflect.MessageDescriptors) {
	for i := range messages.Len() {
		message := messages.Get(i)
		if storageOnly[message.FullName()] {
			continue
		}
		found["message "+string(message.FullName())] = true
		for j := range message.Fields().Len() {
			found[fieldFact(message.Fields().Get(j))] = true
		}
		messageFacts(found, message.Messages())
		enumFacts(found, message.Enums())
	}
}

func fieldFact(field protoreflect.FieldDescriptor) string {
	kind := field.Kind().String()
	switch {
	case field.IsMap():
		kind = fmt.Sprintf("map<%s, %s>", field.MapKey().Kind(), field.MapValue().Kind())
	case field.Message() != nil:
		kind = string(field.Message().FullName())
	case field.Enum() != nil:
		kind = string(field.Enum().FullName())
	}
	fact := fmt.Sprintf("field %s = %d: %s %s packed=%v presence=%v",
		field.FullName(), field.Number(), field.Cardinality(), kind, field.IsPacked(), field.HasPresence())
	if oneof := field.ContainingOneof(); oneof != nil {
		fact += " in oneof " + string(oneof.Name())
	}
	return fact
}

func enumFacts(found map[string]bool, enums protoreflect.EnumDescriptors) {
	for i := range enums.Len() {
		enum := enums.Get(i)
		found["enum "+string(enum.FullName())] = true
		for j := range enum.Values().Len() {
			value := enum.Values().Get(j)
			found[fmt.Sprintf("enum value %s.%s = %d", enum.FullName(), value.Name(), value.Number())] = true
		}
	}
}

func TestFactsSeeDifferences(t *testing.T) {
	base := `package: "authpb" name: "a.proto" syntax: "proto3" message_type { name: "M" field { name: "f" number: 1 type: TYPE_STRING label: LABEL_OPTIONAL json_name: "f" } }`
	for _, change := range [][2]string{
		{`number: 1`, `number: 2`},
		{`TYPE_STRING`, `TYPE_BYTES`},
		{`LABEL_OPTIONAL`, `LABEL_REPEATED`},
		{`name: "M"`, `name: "N"`},
		{`name: "f"`, `name: "g"`},
	} {
		one, two := parsed(t, base), parsed(t, strings.Replace(base, change[0], change[1], 1))
		if maps.Equal(one, two) {
			t.Errorf("%s to %s goes unseen", change[0], change[1])
		}
	}
}

func parsed(t *testing.T, text string) map[string]bool {
	t.Helper()
	var file descriptorpb.FileDescriptorProto
	if err := prototext.Unmarshal([]byte(text), &file); err != nil {
		t.Fatal(err)
	}
	files, err := protodesc.NewFiles(&descriptorpb.FileDescriptorSet{File: []*descriptorpb.FileDescriptorProto{&file}})
	if err != nil {
		t.Fatal(err)
	}
	return facts(files)
}
