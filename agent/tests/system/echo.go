// Sends back every byte it gets, and ends its side when the client has ended its own.
package main

import (
	"io"
	"net"
	"os"
)

func main() {
	port := os.Getenv("PORT")
	if port == "" {
		port = "80"
	}
	listener, err := net.Listen("tcp", ":"+port)
	if err != nil {
		panic(err)
	}
	for {
		conn, err := listener.Accept()
		if err != nil {
			panic(err)
		}
		go func() {
			io.Copy(conn, conn)
			conn.Close()
		}()
	}
}
