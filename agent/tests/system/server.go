// A shard for tests: answers with what the agent told it, and with what its kernel says of it.
package main

import (
	"encoding/json"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func status(key string) string {
	text, _ := os.ReadFile("/proc/self/status")
	for _, line := range strings.Split(string(text), "\n") {
		if name, value, found := strings.Cut(line, ":"); found && name == key {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

func main() {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	go func() { <-stop; os.Exit(0) }()
	switch os.Getenv("FAIL") {
	case "exit":
		os.Exit(3)
	case "mute": // it never listens
		time.Sleep(time.Hour)
	}
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		slot, _ := strconv.Atoi(os.Getenv("SHERD_SLOT"))
		json.NewEncoder(w).Encode(map[string]any{
			"slot": slot, "group": os.Getenv("SHERD_GROUP"), "shards": os.Getenv("SHERD_SHARDS"),
			"cpus": status("Cpus_allowed_list"), "mems": status("Mems_allowed_list"), "told": os.Getenv("SHERD_CPUS"),
			"gomaxprocs": os.Getenv("GOMAXPROCS"), "client": r.RemoteAddr, "host": r.Host, "pid": os.Getpid(),
			"version": os.Getenv("VERSION"),
		})
	})
	// Memory that is used, page by page, until there is no more of it.
	http.HandleFunc("/eat", func(w http.ResponseWriter, r *http.Request) {
		for eaten := [][]byte{}; ; {
			page := make([]byte, 1<<20)
			for at := 0; at < len(page); at += 4096 {
				page[at] = 1
			}
			eaten = append(eaten, page)
		}
	})
	if err := http.ListenAndServe(":80", nil); err != nil {
		os.Stderr.WriteString(err.Error() + "\n")
		os.Exit(1)
	}
}
