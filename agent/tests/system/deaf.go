// A server that breaks when its socket is exchanged at listen(2): it accepts from a second descriptor of it.
package main

import (
	"encoding/json"
	"net"
	"net/http"
	"os"
	"strconv"
	"syscall"
)

func try(err error) {
	if err != nil {
		os.Stderr.WriteString(err.Error() + "\n")
		os.Exit(1)
	}
}

func main() {
	socket, err := syscall.Socket(syscall.AF_INET6, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	try(err)
	try(syscall.Bind(socket, &syscall.SockaddrInet6{Port: 80}))
	second, err := syscall.Dup(socket)
	try(err)
	try(syscall.Listen(socket, 128))
	listener, err := net.FileListener(os.NewFile(uintptr(second), "second"))
	try(err)
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		slot, _ := strconv.Atoi(os.Getenv("SHERD_SLOT"))
		json.NewEncoder(w).Encode(map[string]any{"slot": slot, "pid": os.Getpid()})
	})
	try(http.Serve(listener, nil))
}
