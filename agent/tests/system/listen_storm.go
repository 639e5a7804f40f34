// Listens and closes, over and over, from several threads; every call is a listen(2) that is trapped.
package main

import (
	"net"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	go func() { <-stop; os.Exit(0) }()
	// Whoever has it may call listen(2) on it again and again.
	listener, err := net.Listen("tcp", ":80")
	if err != nil {
		os.Exit(1)
	}
	raw, _ := listener.(*net.TCPListener).SyscallConn()
	for thread := 0; thread < 4; thread++ {
		go raw.Control(func(fd uintptr) {
			for {
				syscall.Listen(int(fd), 128)
			}
		})
	}
	for {
		if other, err := net.Listen("tcp", ":81"); err == nil {
			other.Close()
		}
	}
}
