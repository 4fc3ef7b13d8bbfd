package harness

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// dialerOf answers which of the processes holds the other end of a connection
// over loopback that this process accepted: the kernel knows the socket of that
// end, and the processes' open files its holder.
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

// socketOf answers the inode of the socket with these ends, or nothing. It asks the
// kernel for this one: /proc/net/tcp has every connection of the machine, and a
// machine that just ended some ten thousand takes longer to print them than members
// wait for a connection.
func socketOf(local, remote *net.TCPAddr) string {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return ""
	}
	defer unix.Close(fd)
	limit := unix.Timeval{Sec: 1}
	if unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit) != nil {
		return ""
	}
	if unix.Sendto(fd, oneSocket(local, remote), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}) != nil {
		return ""
	}
	answer := make([]byte, unix.Getpagesize())
	count, _, err := unix.Recvfrom(fd, answer, 0)
	// A header, then inet_diag_msg of sock_diag(7): four bytes, the ends, four numbers.
	const inode = unix.SizeofNlMsghdr + 4 + sizeofEnds + 4*4
	if err != nil || count < inode+4 || binary.NativeEndian.Uint16(answer[4:]) != unix.SOCK_DIAG_BY_FAMILY {
		return ""
	}
	if number := binary.NativeEndian.Uint32(answer[inode:]); number != 0 {
		return strconv.FormatUint(uint64(number), 10)
	}
	return ""
}

// sizeofEnds is the size of inet_diag_sockid: two ports, two addresses of 16 bytes,
// an interface, a cookie of 8.
const sizeofEnds = 2 + 2 + 16 + 16 + 4 + 8

// oneSocket is the request for the socket with these ends: inet_diag_req_v2 of
// sock_diag(7).
func oneSocket(local, remote *net.TCPAddr) []byte {
	const size = unix.SizeofNlMsghdr + 8 + sizeofEnds
	request := binary.NativeEndian.AppendUint32(nil, size)
	request = binary.NativeEndian.AppendUint16(request, unix.SOCK_DIAG_BY_FAMILY)
	request = binary.NativeEndian.AppendUint16(request, unix.NLM_F_REQUEST)
	request = append(request, make([]byte, 4+4)...) // the number of the request and the port: none
	request = append(request, unix.AF_INET, unix.IPPROTO_TCP, 0, 0)
	request = binary.NativeEndian.AppendUint32(request, ^uint32(0)) // in any state
	request = binary.BigEndian.AppendUint16(request, uint16(local.Port))
	request = binary.BigEndian.AppendUint16(request, uint16(remote.Port))
	for _, address := range []*net.TCPAddr{local, remote} {
		var ip [16]byte
		copy(ip[:], address.IP.To4())
		request = append(request, ip[:]...)
	}
	request = append(request, make([]byte, 4)...)                // on any interface
	return binary.NativeEndian.AppendUint64(request, ^uint64(0)) // whatever its cookie
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
