// A service that works for its answers: GET /N is N bytes, byte i being i modulo 251, after a piece of work of the kind that
// it was started for.
package main

import (
	"crypto/sha256"
	"encoding/json"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
)

const maxAnswer = 4 << 20

// A tree of many small allocations, all garbage when its request is answered.
type node struct {
	left, right *node
	name        string
}

func grow(depth, seed int) *node {
	if depth == 0 {
		return nil
	}
	return &node{grow(depth-1, 2*seed), grow(depth-1, 2*seed+1), strconv.Itoa(1000 + seed)}
}

func (tree *node) count() int {
	if tree == nil {
		return 0
	}
	return tree.left.count() + tree.right.count() + len(tree.name)/4
}

// About 1,000 nodes and as many strings.
func allocate() bool { return grow(10, 1).count() >= 1023 }

type item struct {
	Name  string
	Price float64
	Tags  []string
}

var (
	document = func() []byte {
		items := make([]item, 20)
		for i := range items {
			items[i] = item{"item " + strconv.Itoa(i), float64(i) / 7, []string{"a", "b"}}
		}
		text, err := json.Marshal(items)
		if err != nil {
			panic(err)
		}
		return text
	}()
	block = []byte(strings.Repeat("sherd", 8<<10))
)

// A document that is read, and 40 KiB that are hashed.
func compute() bool {
	var items []item
	err := json.Unmarshal(document, &items)
	sum := sha256.Sum256(block)
	return err == nil && len(items) == 20 && sum != [32]byte{}
}

func main() {
	work := map[string]func() bool{"allocate": allocate, "compute": compute}[os.Args[1]]
	body := make([]byte, maxAnswer)
	for i := range body {
		body[i] = byte(i % 251)
	}
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		length, err := strconv.Atoi("0" + r.URL.Path[1:])
		if err != nil || length > maxAnswer || !work() {
			http.Error(w, "GET /N, and N bytes at most 4 MiB", http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Length", strconv.Itoa(length))
		w.Write(body[:length])
	})
	// IPv4 alone: one address of the host is published, and a socket for both families would be relayed.
	listener, err := net.Listen("tcp4", os.Args[2])
	if err == nil {
		err = http.Serve(listener, nil)
	}
	os.Stderr.WriteString(err.Error() + "\n")
	os.Exit(1)
}
