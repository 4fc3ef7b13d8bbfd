package harness

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

// dialerOf answers which of the processes holds the other end of a connection
// over loopback that this process accepted: the kernel's table of connections
// gives the socket of that end, and the processes' open files its holder.
func dialerOf(accepted net.Conn, pids []int) (pid int, err error) {
	remote, ok := accepted.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return 0, fmt.Errorf("%v is no TCP connection", accepted.RemoteAddr())
	}
	local := accepted.LocalAddr().(*net.TCPAddr)
	// The entry may come a moment after the connection.
	const attempts, pause = 5, 2 * time.Millisecond
	for range attempts {
		inode := socketOf(remote, local)
		for _, pid := range pids {
			if inode != "" && holds(pid, inode) {
				return pid, nil
			}
		}
		time.Sleep(pause)
	}
	return 0, fmt.Errorf("no known process holds %v", remote)
}

// socketOf answers the inode of the socket with these ends, or nothing.
func socketOf(local, remote *net.TCPAddr) string {
	content, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		return ""
	}
	wanted := " " + kernelAddress(local) + " " + kernelAddress(remote) + " "
	at := strings.Index(string(content), wanted)
	if at < 0 {
		return ""
	}
	const inodeColumn = 8 // counted from the first address
	rest, _, _ := strings.Cut(string(content[at:]), "\n")
	columns := strings.Fields(rest)
	if len(columns) <= inodeColumn || columns[inodeColumn] == "0" {
		return ""
	}
	return columns[inodeColumn]
}

// kernelAddress writes an IPv4 address as /proc/net/tcp does: the address in the
// machine's byte order, the port in the usual one.
func kernelAddress(address *net.TCPAddr) string {
	ip := address.IP.To4()
	if ip == nil {
		return "none"
	}
	return fmt.Sprintf("%08X:%04X", binary.NativeEndian.Uint32(ip), address.Port)
}

func holds(pid int, inode string) bool {
	directory := "/proc/" + strconv.Itoa(pid) + "/fd"
	entries, err := os.ReadDir(directory)
	if err != nil {
		return false
	}
	for _, entry := range entries {
		if target, err := os.Readlink(directory + "/" + entry.Name()); err == nil && target == "socket:["+inode+"]" {
			return true
		}
	}
	return false
}
