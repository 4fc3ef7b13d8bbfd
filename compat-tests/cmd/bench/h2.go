package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"time"

	"golang.org/x/net/http2/hpack"
)

// connection is a bare gRPC client over one plain-text HTTP/2 connection, made to
// cost next to nothing beside the server it measures: one goroutine owns it, all
// requests that are due leave in one write, all answers that have come are read
// in one read, and nothing is allocated per request. A grpc-go client costs about
// as much processor time per call as a fast server, and would hide half of it.
//
// On the wire it looks as grpc-go's does: the same header fields, indexed after
// their first use. Every connection calls one method only.
type connection struct {
	net     net.Conn
	in      []byte // in[start:end] is read and not yet parsed
	start   int
	end     int
	out     []byte
	path    string
	opened  bool // the header fields are in the server's dynamic table
	nextID  uint32
	streams []uint32 // the open stream of each slot, 0 for none
	decoder *hpack.Decoder
	status  string // grpc-status of the block being decoded

	sendWindow int64    // what the server lets us send on this connection
	waiting    [][]byte // DATA frames that wait for that
	consumed   int64    // received DATA not yet credited back

	onData func(slot int, payload []byte)
	onEnd  func(slot int)
}

const (
	frameData, frameHeaders, frameReset, frameSettings  = 0, 1, 3, 4
	framePing, frameGoAway, frameWindow, frameContinued = 6, 7, 8, 9

	flagEndStream, flagAck, flagEndHeaders, flagPadded = 0x1, 0x1, 0x4, 0x8

	frameHeaderLength = 9
	largestFrame      = 16_384 // what a server takes unless it says more
	largestWindow     = 1<<31 - 1
	firstWindow       = 65_535
	ioLimit           = 20 * time.Second
)

// dial connects and sends the preface. Slots is how many calls may be open at once.
func dial(address, path string, slots int) (*connection, error) {
	socket, err := net.DialTimeout("tcp", address, ioLimit)
	if err != nil {
		return nil, err
	}
	c := &connection{
		net: socket, path: path, in: make([]byte, 256<<10), nextID: 1,
		streams: make([]uint32, slots), sendWindow: firstWindow,
		onData: func(int, []byte) {}, onEnd: func(int) {},
	}
	c.decoder = hpack.NewDecoder(4096, func(field hpack.HeaderField) {
		if field.Name == "grpc-status" {
			c.status = field.Value
		}
	})
	c.out = append(c.out, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"...)
	const initialWindowSetting, pushSetting = 4, 2
	c.frame(frameSettings, 0, 0, 12)
	c.out = binary.BigEndian.AppendUint16(c.out, initialWindowSetting)
	c.out = binary.BigEndian.AppendUint32(c.out, largestWindow)
	c.out = binary.BigEndian.AppendUint16(c.out, pushSetting)
	c.out = binary.BigEndian.AppendUint32(c.out, 0)
	c.credit(largestWindow - firstWindow)
	return c, nil
}

func (c *connection) close() { _ = c.net.Close() }

func (c *connection) frame(kind, flags byte, stream uint32, length int) {
	c.out = append(c.out, byte(length>>16), byte(length>>8), byte(length), kind, flags)
	c.out = binary.BigEndian.AppendUint32(c.out, stream)
}

func (c *connection) credit(bytes int64) {
	c.frame(frameWindow, 0, 0, 4)
	c.out = binary.BigEndian.AppendUint32(c.out, uint32(bytes))
}

// call opens a stream in a free slot and queues its message; last closes our side
// of it. The message is copied.
func (c *connection) call(slot int, message []byte, last bool) error {
	if 5+len(message) > largestFrame {
		return fmt.Errorf("a request of %d bytes is too large for one frame", len(message))
	}
	id := c.nextID
	c.nextID += 2
	c.streams[slot] = id
	block := indexedBlock
	if !c.opened {
		block = literalBlock(c.path, c.net.RemoteAddr().String())
		c.opened = true
	}
	c.frame(frameHeaders, flagEndHeaders, id, len(block))
	c.out = append(c.out, block...)
	c.send(id, message, last)
	return nil
}

// send queues a message on an open stream.
func (c *connection) send(id uint32, message []byte, last bool) {
	begin := len(c.out)
	var flags byte
	if last {
		flags = flagEndStream
	}
	c.frame(frameData, flags, id, 5+len(message))
	c.out = append(c.out, 0)
	c.out = binary.BigEndian.AppendUint32(c.out, uint32(len(message)))
	c.out = append(c.out, message...)
	if size := int64(5 + len(message)); len(c.waiting) > 0 || size > c.sendWindow {
		c.waiting = append(c.waiting, bytes.Clone(c.out[begin:]))
		c.out = c.out[:begin]
	} else {
		c.sendWindow -= size
	}
}

func (c *connection) sendWaiting() {
	for len(c.waiting) > 0 {
		size := int64(len(c.waiting[0]) - frameHeaderLength)
		if size > c.sendWindow {
			return
		}
		c.sendWindow -= size
		c.out = append(c.out, c.waiting[0]...)
		c.waiting = c.waiting[1:]
	}
}

// The header fields of a request. The first time they are sent whole, to be
// indexed by the server; from then on as the five entries of its dynamic table.
var indexedBlock = []byte{0x83, 0x86, 0x80 | 66, 0x80 | 65, 0x80 | 64, 0x80 | 63, 0x80 | 62}

func literalBlock(path, authority string) []byte {
	const pathName, authorityName, contentTypeName, userAgentName = 4, 1, 31, 58
	text := func(block []byte, text string) []byte {
		return append(append(block, byte(len(text))), text...)
	}
	indexedName := func(block []byte, name byte, value string) []byte {
		return text(append(block, 0x40|name), value)
	}
	block := []byte{0x83, 0x86} // :method POST, :scheme http
	block = indexedName(block, pathName, path)
	block = indexedName(block, authorityName, authority)
	block = indexedName(block, contentTypeName, "application/grpc")
	block = indexedName(block, userAgentName, "etched-bench")
	return text(text(append(block, 0x40), "te"), "trailers")
}

// flush writes what is queued.
func (c *connection) flush() error {
	if len(c.out) == 0 {
		return nil
	}
	_, err := c.net.Write(c.out)
	c.out = c.out[:0]
	return err
}

// step waits for input and handles every whole frame that came.
func (c *connection) step() error {
	if c.start == c.end {
		c.start, c.end = 0, 0
	} else if c.end == len(c.in) {
		copy(c.in, c.in[c.start:c.end])
		c.start, c.end = 0, c.end-c.start
	}
	n, err := c.net.Read(c.in[c.end:])
	if err != nil {
		return err
	}
	c.end += n
	for c.end-c.start >= frameHeaderLength {
		head := c.in[c.start:]
		length := int(head[0])<<16 | int(head[1])<<8 | int(head[2])
		if length > len(c.in)-frameHeaderLength {
			return fmt.Errorf("a frame of %d bytes", length)
		}
		if c.end-c.start < frameHeaderLength+length {
			return nil
		}
		payload := head[frameHeaderLength : frameHeaderLength+length]
		c.start += frameHeaderLength + length
		if err := c.handle(head[3], head[4], binary.BigEndian.Uint32(head[5:]), payload); err != nil {
			return err
		}
	}
	return nil
}

func (c *connection) handle(kind, flags byte, id uint32, payload []byte) error {
	switch kind {
	case frameData:
		return c.data(flags, id, payload)
	case frameHeaders:
		if flags&flagEndHeaders == 0 || flags&flagPadded != 0 {
			return errors.New("split or padded header fields")
		}
		return c.headers(flags, id, payload)
	case frameReset:
		return fmt.Errorf("stream reset with code %d", binary.BigEndian.Uint32(payload))
	case frameGoAway:
		return fmt.Errorf("the server sent GOAWAY: %q", payload)
	case framePing:
		if flags&flagAck == 0 {
			c.frame(framePing, flagAck, 0, len(payload))
			c.out = append(c.out, payload...)
		}
	case frameSettings:
		if flags&flagAck == 0 {
			c.frame(frameSettings, flagAck, 0, 0)
		}
	case frameWindow:
		if id == 0 {
			c.sendWindow += int64(binary.BigEndian.Uint32(payload))
			c.sendWaiting()
		}
	case frameContinued:
		return errors.New("split header fields")
	}
	return nil
}

func (c *connection) data(flags byte, id uint32, payload []byte) error {
	if flags&flagPadded != 0 {
		return errors.New("padded data")
	}
	const creditEvery = 64 << 20
	if c.consumed += int64(len(payload)); c.consumed > creditEvery {
		c.credit(c.consumed)
		c.consumed = 0
	}
	slot := c.slot(id)
	if slot < 0 {
		return fmt.Errorf("data on unknown stream %d", id)
	}
	c.onData(slot, payload)
	if flags&flagEndStream != 0 {
		return errors.New("a stream ended without a status")
	}
	return nil
}

func (c *connection) headers(flags byte, id uint32, payload []byte) error {
	c.status = ""
	if _, err := c.decoder.Write(payload); err != nil {
		return err
	}
	if err := c.decoder.Close(); err != nil {
		return err
	}
	if flags&flagEndStream == 0 {
		return nil
	}
	if c.status != "0" {
		return fmt.Errorf("%s answered grpc-status %q", c.path, c.status)
	}
	slot := c.slot(id)
	if slot < 0 {
		return fmt.Errorf("the end of unknown stream %d", id)
	}
	c.streams[slot] = 0
	c.onEnd(slot)
	return nil
}

func (c *connection) slot(id uint32) int {
	for slot, open := range c.streams {
		if open == id {
			return slot
		}
	}
	return -1
}
