// A shard for tests of health: what it does wrong is in a file that the test writes. As `server check` it says whether
// anything is wrong, as a check within the container does.
package main

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

func mode() string {
	text, _ := os.ReadFile("/modes/" + os.Getenv("SHERD_SLOT"))
	return strings.TrimSpace(string(text))
}

func check() {
	switch mode() {
	case "":
		os.Exit(0)
	case "hang":
		time.Sleep(time.Minute)
	}
	fmt.Println("something is", mode())
	os.Exit(7)
}

func hijack(w http.ResponseWriter) net.Conn {
	connection, _, err := w.(http.Hijacker).Hijack()
	if err != nil {
		panic(err)
	}
	return connection
}

func health(w http.ResponseWriter, r *http.Request) {
	switch mode() {
	case "body":
		fmt.Fprint(w, "all is lost")
	case "status":
		http.Error(w, "OK is what it is not", http.StatusInternalServerError)
	case "head":
		connection := hijack(w)
		defer connection.Close()
		fmt.Fprint(connection, "HTTP/1.1 200 OK\r\n")
		for {
			if _, err := fmt.Fprint(connection, "X-More: of it\r\n"); err != nil {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	case "flood":
		flood := []byte(strings.Repeat("x", 1<<20))
		for sent := 0; sent < 4<<10; sent++ {
			if _, err := w.Write(flood); err != nil {
				return
			}
		}
	default:
		fmt.Fprint(w, "all is OK")
	}
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == "check" {
		check()
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	go func() { <-stop; os.Exit(0) }()
	http.HandleFunc("/health", health)
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if mode() == "drop" {
			connection := hijack(w)
			connection.(*net.TCPConn).SetLinger(0)
			connection.Close()
			return
		}
		fmt.Fprintf(w, `{"slot": %s, "pid": %d}`, os.Getenv("SHERD_SLOT"), os.Getpid())
	})
	if err := http.ListenAndServe(":80", nil); err != nil {
		os.Stderr.WriteString(err.Error() + "\n")
		os.Exit(1)
	}
}
