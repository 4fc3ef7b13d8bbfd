package ctl

import (
	"strings"
	"testing"

	"etched.dev/compat-tests/harness"
)

// formats are the output formats that are text; the binary one holds the raft
// term and is compared by the messages themselves elsewhere.
var formats = []string{"simple", "json", "fields"}

func (b *bench) fill() {
	b.t.Helper()
	for _, line := range strings.Split(strings.TrimSpace(`
		put a 1
		put a 2
		put ab two
		put ac three
		put b 1
		put c ''
		put d gone
		del d
		put b 2
		put z last`), "\n") {
		b.ok(line)
	}
}

func TestPutGetDel(t *testing.T) {
	t.Parallel()
	b := newBench(t, harness.Options{})
	b.fill()
	for _, format := range formats {
		for _, line := range []string{
			"get a", "get a --hex", "get missing", "get a b", "get a z", "get --prefix a", "get --prefix ''", "get --from-key b", "get --from-key ''",
			"get '' --prefix --keys-only", "get '' --prefix --count-only", "get --prefix a --limit 2", "get --prefix a --rev 3",
			"get --prefix '' --sort-by MODIFY --order DESCEND", "get --prefix '' --sort-by CREATE", "get --prefix '' --sort-by VERSION --order ASCEND",
			"get --prefix '' --sort-by VALUE --order DESCEND --limit 3", "get --prefix '' --sort-by KEY --order DESCEND",
			"get --prefix '' --min-mod-rev 4 --max-mod-rev 6", "get --prefix '' --min-create-rev 4 --max-create-rev 6",
			"get a --consistency s", "get --prefix '' --stream", "get --prefix '' --stream --limit 3", "get a --rev 99", "get a --rev -1",
			"put a 3", "put --prev-kv a 4", "put --prev-kv new 1", "put a --ignore-value", "put --ignore-lease a 5", "put --ignore-value missing",
			"del missing", "del --prev-kv new", "del --range --prev-kv x y",
		} {
			b.do(line + " -w " + format)
		}
	}
	for _, line := range []string{
		"get --prefix a --print-value-only", "get", "get a b c", "get a --prefix --from-key", "get a --sort-by BANANA", "get a --order BANANA", "get a --consistency x",
		"get a b --prefix", "get a --keys-only --count-only", "get a -w banana", "get a -w table", "get a --banana", "put", "put a", "put a 1 --lease banana", "put a 1 --lease 77", "put a --ignore-value x",
		"put a 1 --ignore-lease --lease 5", "put '' 1", "get ''", "del ''", "del", "del a b", "del a b c", "del a --prefix --from-key", "del a b --range --prefix", "del a b --range --from-key",
		"get --print-value-only a -w json", "get a --rev banana",
	} {
		b.do(line)
	}
	b.input("put piped", "from stdin")
	b.input("put -- -dashed", "value of -dashed")
	b.ok("get --prefix ''")
	b.ok("del a ac --range")
	b.ok("del --from-key z --prev-kv")
	b.ok("get --prefix ''")
	b.ok("del --prefix '' --prev-kv")
	b.ok("get --prefix ''")
}

func TestCompaction(t *testing.T) {
	t.Parallel()
	b := newBench(t, harness.Options{})
	b.fill()
	b.ok("compaction 4")
	b.fails("compaction 4")
	b.fails("compaction 3")
	b.fails("compaction 100")
	b.ok("compaction 6 --physical")
	b.fails("compaction")
	b.fails("compaction banana")
	b.fails("compaction -- -1")
	b.fails("get a --rev 5")
	b.ok("get a --rev 6")
	b.ok("compaction 7 -w json")
}

func TestTxn(t *testing.T) {
	t.Parallel()
	b := newBench(t, harness.Options{})
	b.fill()
	for _, input := range []string{
		"ver(\"a\") = \"2\"\n\nput a 3\nget a\ndel missing\n\nput a failed\n\n",
		"val(\"a\") = \"nothing\"\n\nput a 4\n\nget --prefix a\ndel --prefix ab --prev-kv\n\n",
		"mod(\"a\") > \"0\"\ncreate(\"missing\") = \"0\"\n\nput --prev-kv a 5\nput new \"with blanks\"\n\n\n",
		"c(\"a\") = \"2\"\nm(\"b\") < \"100\"\nlease(\"a\") = \"0\"\n\n\n\n",
		"value(\"a\") > \"0\"\n\nget a --rev 2\n\n\n",
		"\nput a 1\nput a 2\n\n\n",
		"\nput a 1\ndel --prefix a\n\n\n",
		"\nget a --rev 1000\n\n\n",
		"banana\n\n\n\n",
		"ver(\"a\") ? \"2\"\n\n\n\n",
		"\nbanana\n\n\n",
		"\n\n\n",
	} {
		for _, format := range formats {
			b.input("txn -w "+format, input)
		}
		b.input("txn -i", input)
	}
	b.do("txn banana")
	b.ok("get --prefix '' -w json")
}
