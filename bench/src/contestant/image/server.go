// The shard's service in Go: answers GET /N with N bytes, byte i being i modulo 251.
package main

import (
	"context"
	"net"
	"net/http"
	"os"
	"strconv"
	"syscall"
)

// SO_REUSEPORT of <asm-generic/socket.h>; package syscall has no name for it.
const reusePort = 15

const maxAnswer = 4 << 20

func main() {
	body := make([]byte, maxAnswer)
	for i := range body {
		body[i] = byte(i % 251)
	}
	control := func(_, _ string, connection syscall.RawConn) error {
		var failed error
		err := connection.Control(func(fd uintptr) {
			failed = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, reusePort, 1)
		})
		if err != nil {
			return err
		}
		return failed
	}
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		length, err := strconv.Atoi("0" + r.URL.Path[1:])
		if err != nil || length > maxAnswer {
			http.Error(w, "GET /N, and N bytes at most 4 MiB", http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Length", strconv.Itoa(length))
		w.Write(body[:length])
	})
	// IPv4 alone, as the shard: one address of the host is published, and a socket for both families would be relayed.
	listener, err := (&net.ListenConfig{Control: control}).Listen(context.Background(), "tcp4", os.Args[1])
	if err == nil {
		err = http.Serve(listener, nil)
	}
	os.Stderr.WriteString(err.Error() + "\n")
	os.Exit(1)
}
