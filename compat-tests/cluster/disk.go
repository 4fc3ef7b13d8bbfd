package cluster

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// SmallDisks are file systems of a fixed size, one for each member.
type SmallDisks struct{ dir string }

// NewSmallDisks mounts them for the length of a test, which it skips where this
// process may not.
func NewSmallDisks(tb testing.TB, members, bytes int) *SmallDisks {
	tb.Helper()
	disks := &SmallDisks{dir: tb.TempDir()}
	for member := range members {
		mounted := filepath.Dir(disks.Dir(member))
		if err := os.Mkdir(mounted, 0o700); err != nil {
			tb.Fatal(err)
		}
		err := syscall.Mount("tmpfs", mounted, "tmpfs", 0, fmt.Sprintf("size=%d,mode=0700", bytes))
		if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EACCES) {
			tb.Skip("only root may mount the small file systems that this test fills")
		}
		if err != nil {
			tb.Fatalf("mount: %v", err)
		}
		tb.Cleanup(func() {
			if err := syscall.Unmount(mounted, syscall.MNT_DETACH); err != nil {
				tb.Errorf("unmount: %v", err)
			}
		})
	}
	return disks
}

// Dir is the data directory of a member, by its number.
func (d *SmallDisks) Dir(member int) string {
	return filepath.Join(d.dir, fmt.Sprint("disk-", member), "data")
}

func (d *SmallDisks) ballast(member int) string {
	return filepath.Join(filepath.Dir(d.Dir(member)), "ballast")
}

// Fill leaves a member's disk without a free block.
func (d *SmallDisks) Fill(member int) error {
	file, err := os.OpenFile(d.ballast(member), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer file.Close()
	var at int64
	for step := int64(16 << 20); step >= 4<<10; {
		switch err := syscall.Fallocate(int(file.Fd()), 0, at, step); {
		case err == nil:
			at += step
		case errors.Is(err, syscall.ENOSPC):
			step /= 2
		default:
			return err
		}
	}
	return nil
}

// Free gives the space back.
func (d *SmallDisks) Free(member int) error { return os.Remove(d.ballast(member)) }

// FillBut leaves so many bytes of a member's disk free, whatever was free before.
func (d *SmallDisks) FillBut(member int, free int64) error {
	if err := d.Free(member); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := d.Fill(member); err != nil {
		return err
	}
	ballast, err := os.Stat(d.ballast(member))
	if err != nil {
		return err
	}
	return os.Truncate(d.ballast(member), max(ballast.Size()-free, 0))
}
