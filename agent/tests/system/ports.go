// A server on two ports. By what it is asked on the first it stops accepting on the second, goes on, or closes that listener.
package main

import (
	"encoding/json"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
)

// Accepts only while nobody holds it.
type held struct {
	net.Listener
	mutex sync.Mutex
}

func (l *held) Accept() (net.Conn, error) {
	connection, err := l.Listener.Accept()
	l.mutex.Lock()
	defer l.mutex.Unlock()
	return connection, err
}

func answer(w http.ResponseWriter) {
	slot, _ := strconv.Atoi(os.Getenv("SHERD_SLOT"))
	json.NewEncoder(w).Encode(map[string]any{"slot": slot, "pid": os.Getpid()})
}

func listen(address string) net.Listener {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		os.Stderr.WriteString(err.Error() + "\n")
		os.Exit(1)
	}
	return listener
}

func main() {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	go func() { <-stop; os.Exit(0) }()
	second := &held{Listener: listen(":81")}
	go http.Serve(second, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { answer(w) }))
	http.Serve(listen(":80"), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/hold":
			second.mutex.Lock()
		case "/go":
			second.mutex.Unlock()
		case "/close":
			second.Close()
		}
		answer(w)
	}))
}
