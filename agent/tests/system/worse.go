// A shard whose specification says how much worse than others it does: FAIL percent of its connections end without an
// answer, all others are answered after DELAY milliseconds and CPU ones of work. With CRASH it ends after so many
// milliseconds; with DEAF it doesn't when it is told to.
package main

import (
	"io"
	"net"
	"os"
	"os/signal"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"
)

func number(name string) int {
	number, _ := strconv.Atoi(os.Getenv(name))
	return number
}

func main() {
	if crash := number("CRASH"); crash > 0 {
		time.AfterFunc(time.Duration(crash)*time.Millisecond, func() { os.Exit(3) })
	}
	go func() {
		if number("DEAF") > 0 {
			signal.Ignore(syscall.SIGTERM)
			return
		}
		ended := make(chan os.Signal, 1)
		signal.Notify(ended, syscall.SIGTERM)
		<-ended
		os.Exit(0)
	}()
	fail, delay, work := number("FAIL"), number("DELAY"), number("CPU")
	listener, err := net.Listen("tcp", ":80")
	if err != nil {
		panic(err)
	}
	var asked atomic.Int64
	for {
		connection, err := listener.Accept()
		if err != nil {
			continue
		}
		go func() {
			defer connection.Close()
			if _, err := connection.Read(make([]byte, 4096)); err != nil {
				return
			}
			if int(asked.Add(1)%100) < fail {
				return
			}
			time.Sleep(time.Duration(delay) * time.Millisecond)
			for end := time.Now().Add(time.Duration(work) * time.Millisecond); time.Now().Before(end); {
			}
			io.WriteString(connection, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nOK")
		}()
	}
}
