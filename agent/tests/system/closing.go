// A server that closes its listener when it is asked to, goes on with what it has, and listens again a while later.
package main

import (
	"encoding/json"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"
)

func main() {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	go func() { <-stop; os.Exit(0) }()
	var listener net.Listener
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Host") == "close" || r.Host == "close" {
			listener.Close()
		}
		slot, _ := strconv.Atoi(os.Getenv("SHERD_SLOT"))
		json.NewEncoder(w).Encode(map[string]any{"slot": slot, "pid": os.Getpid()})
	})
	for {
		var err error
		if listener, err = net.Listen("tcp", ":80"); err != nil {
			os.Exit(1)
		}
		http.Serve(listener, nil)
		time.Sleep(3 * time.Second)
	}
}
