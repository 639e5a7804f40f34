// Says who it is to each connection the moment it accepts it, and then echoes: whoever was greeted was accepted.
package main

import (
	"encoding/binary"
	"io"
	"net"
	"os"
)

func main() {
	listener, err := net.Listen("tcp", ":80")
	if err != nil {
		panic(err)
	}
	greeting := make([]byte, 4)
	binary.LittleEndian.PutUint32(greeting, slot())
	for {
		connection, err := listener.Accept()
		if err != nil {
			panic(err)
		}
		connection.Write(greeting)
		go func() {
			io.Copy(connection, connection)
			connection.Close()
		}()
	}
}

// Its host name is the container's id, unique to this shard.
func slot() uint32 {
	name, err := os.Hostname()
	if err != nil {
		panic(err)
	}
	var id uint32
	for _, digit := range []byte(name[:8]) {
		id = id<<4 | uint32(digit&15+digit>>6*9)
	}
	return id
}
