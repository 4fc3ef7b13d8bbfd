package random

import (
	"fmt"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

// String answers the operation as a line of code.
func (o operation) String() string {
	switch o.kind {
	case streamStep:
		return "stream " + formatRequest(o.request)
	case watchStep:
		return fmt.Sprintf("watch[%d] = watch(%s)", o.slot, strings.Join(append(spanArguments(o.create.Key, o.create.RangeEnd),
			arguments("from", o.create.StartRevision, "prev_kv", o.create.PrevKv, "filters", filters(o.create))...), ", "))
	case unwatchStep:
		return fmt.Sprintf("cancel watch[%d]", o.slot)
	case syncStep:
		return "compare the events of all watches"
	case restartStep:
		return "kill and restart"
	}
	return formatRequest(o.request)
}

func filters(create *pb.WatchCreateRequest) string {
	if len(create.Filters) == 0 {
		return ""
	}
	return fmt.Sprint(create.Filters)
}

func formatRequest(request proto.Message) string {
	switch r := request.(type) {
	case *pb.PutRequest:
		return formatPut(r)
	case *pb.RangeRequest:
		return formatRange(r)
	case *pb.DeleteRangeRequest:
		return formatCall("delete", append(spanArguments(r.Key, r.RangeEnd), arguments("prev_kv", r.PrevKv)...))
	case *pb.TxnRequest:
		return formatTxn(r)
	case *pb.CompactionRequest:
		return formatCall("compact", []string{formatRevision(r.Revision)})
	case *pb.LeaseGrantRequest:
		return fmt.Sprintf("grant(id: %d, ttl: %d)", r.ID, r.TTL)
	case *pb.LeaseRevokeRequest:
		return fmt.Sprintf("revoke(id: %d)", r.ID)
	case *pb.LeaseTimeToLiveRequest:
		return fmt.Sprintf("time_to_live(id: %d)", r.ID)
	case *pb.LeaseLeasesRequest:
		return "leases()"
	case *pb.HashKVRequest:
		return formatCall("hash_kv", []string{formatRevision(r.Revision)})
	}
	return fmt.Sprint(request)
}

func formatCall(name string, arguments []string) string {
	return name + "(" + strings.Join(arguments, ", ") + ")"
}

func formatPut(r *pb.PutRequest) string {
	value := fmt.Sprintf("%q", r.Value)
	if len(r.Value) > 40 {
		value = fmt.Sprintf("%q… %d bytes", r.Value[:8], len(r.Value))
	}
	return formatCall("put", append([]string{fmt.Sprintf("%q", r.Key), value},
		arguments("lease", r.Lease, "prev_kv", r.PrevKv, "ignore_value", r.IgnoreValue, "ignore_lease", r.IgnoreLease)...))
}

func formatRange(r *pb.RangeRequest) string {
	sort := ""
	if r.SortOrder != 0 || r.SortTarget != 0 {
		sort = fmt.Sprintf("%s %s", r.SortTarget, r.SortOrder)
	}
	return formatCall("range", append(spanArguments(r.Key, r.RangeEnd), arguments(
		"at", r.Revision, "limit", r.Limit, "sort", sort, "keys_only", r.KeysOnly, "count_only", r.CountOnly,
		"serializable", r.Serializable, "min_mod", r.MinModRevision, "max_mod", r.MaxModRevision,
		"min_create", r.MinCreateRevision, "max_create", r.MaxCreateRevision)...))
}

func formatTxn(r *pb.TxnRequest) string {
	var compares []string
	for _, compare := range r.Compare {
		compares = append(compares, formatCompare(compare))
	}
	return fmt.Sprintf("txn(if [%s] then [%s] else [%s])", strings.Join(compares, ", "), formatOps(r.Success), formatOps(r.Failure))
}

func formatOps(ops []*pb.RequestOp) string {
	var all []string
	for _, op := range ops {
		switch request := op.Request.(type) {
		case *pb.RequestOp_RequestPut:
			all = append(all, formatPut(request.RequestPut))
		case *pb.RequestOp_RequestRange:
			all = append(all, formatRange(request.RequestRange))
		case *pb.RequestOp_RequestDeleteRange:
			all = append(all, formatRequest(request.RequestDeleteRange))
		case *pb.RequestOp_RequestTxn:
			all = append(all, formatTxn(request.RequestTxn))
		}
	}
	return strings.Join(all, ", ")
}

func formatCompare(c *pb.Compare) string {
	sign := map[pb.Compare_CompareResult]string{pb.Compare_EQUAL: "=", pb.Compare_GREATER: ">", pb.Compare_LESS: "<", pb.Compare_NOT_EQUAL: "!="}[c.Result]
	var operand string
	switch union := c.TargetUnion.(type) {
	case *pb.Compare_Version:
		operand = fmt.Sprint("version ", union.Version)
	case *pb.Compare_CreateRevision:
		operand = "create " + formatRevision(union.CreateRevision)
	case *pb.Compare_ModRevision:
		operand = "mod " + formatRevision(union.ModRevision)
	case *pb.Compare_Value:
		operand = fmt.Sprintf("value %.20q", union.Value)
	case *pb.Compare_Lease:
		operand = fmt.Sprint("lease ", union.Lease)
	default:
		operand = "nothing"
	}
	return fmt.Sprintf("%s(%s) %s %s", c.Target, strings.Join(spanArguments(c.Key, c.RangeEnd), ", "), sign, operand)
}

func spanArguments(key, end []byte) []string {
	if end == nil {
		return []string{fmt.Sprintf("%q", key)}
	}
	return []string{fmt.Sprintf("%q", key), fmt.Sprintf("%q", end)}
}

// arguments answers name: value for each value that is not its zero.
func arguments(pairs ...any) []string {
	var all []string
	for i := 0; i < len(pairs); i += 2 {
		switch value := pairs[i+1].(type) {
		case bool:
			if value {
				all = append(all, pairs[i].(string))
			}
		case int64:
			if value != 0 {
				all = append(all, fmt.Sprintf("%s: %s", pairs[i], formatRevision(value)))
			}
		case string:
			if value != "" {
				all = append(all, fmt.Sprintf("%s: %s", pairs[i], value))
			}
		}
	}
	return all
}

func formatRevision(value int64) string {
	switch {
	case near(value, head):
		return fmt.Sprintf("head%+d", value-int64(head))
	case near(value, compacted):
		return fmt.Sprintf("compacted%+d", value-int64(compacted))
	}
	return fmt.Sprint(value)
}
