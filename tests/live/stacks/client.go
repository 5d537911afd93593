// A client of Go's crypto/tls for the live tests: SUBJECT HOST PORT OUTFILE INFILE PLAN.
//
// PLAN is a list, separated by commas, of [REPEATx]OUT:IN: send the next OUT bytes of OUTFILE in one call of Write, then
// receive exactly IN bytes and append them to INFILE.  At the end one line of JSON with both addresses is printed.
// It compiles with Go 1.15 and later, without modules and with nothing but the standard library.
package main

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
)

type step struct{ repeat, out, in int }

func parse(plan string) ([]step, error) {
	var steps []step
	for _, item := range strings.Split(plan, ",") {
		next := step{repeat: 1}
		var err error
		if x := strings.Index(item, "x"); x >= 0 {
			if next.repeat, err = strconv.Atoi(item[:x]); err != nil {
				return nil, err
			}
			item = item[x+1:]
		}
		sizes := strings.SplitN(item, ":", 2)
		if len(sizes) != 2 {
			return nil, fmt.Errorf("not OUT:IN: %q", item)
		}
		if next.out, err = strconv.Atoi(sizes[0]); err != nil {
			return nil, err
		}
		if next.in, err = strconv.Atoi(sizes[1]); err != nil {
			return nil, err
		}
		steps = append(steps, next)
	}
	return steps, nil
}

// talk carries out the plan over a connection.
func talk(conn *tls.Conn, source io.Reader, sink io.Writer, steps []step) error {
	for _, next := range steps {
		out, in := make([]byte, next.out), make([]byte, next.in)
		for i := 0; i < next.repeat; i++ {
			if _, err := io.ReadFull(source, out); err != nil {
				return err
			}
			if len(out) > 0 {
				if _, err := conn.Write(out); err != nil {
					return err
				}
			}
			if _, err := io.ReadFull(conn, in); err != nil {
				return err
			}
			if _, err := sink.Write(in); err != nil {
				return err
			}
		}
	}
	return nil
}

func pair(address net.Addr) []interface{} {
	tcp := address.(*net.TCPAddr)
	return []interface{}{tcp.IP.String(), tcp.Port}
}

func run(host, port, outFile, inFile, plan string) error {
	steps, err := parse(plan)
	if err != nil {
		return err
	}
	source, err := os.Open(outFile)
	if err != nil {
		return err
	}
	defer source.Close()
	sink, err := os.Create(inFile)
	if err != nil {
		return err
	}
	defer sink.Close()
	plain, err := net.Dial("tcp", net.JoinHostPort(host, port))
	if err != nil {
		return err
	}
	conn := tls.Client(plain, &tls.Config{
		InsecureSkipVerify: true,
		ServerName:         "localhost",
		NextProtos:         []string{"tlscap-test"},
	})
	if err := conn.Handshake(); err != nil {
		return err
	}
	if err := talk(conn, bufio.NewReader(source), sink, steps); err != nil {
		return err
	}
	addresses := map[string]interface{}{"local": pair(conn.LocalAddr()), "remote": pair(conn.RemoteAddr())}
	if err := conn.Close(); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(addresses)
}

func main() {
	if len(os.Args) != 6 {
		fmt.Fprintln(os.Stderr, "usage: client HOST PORT OUTFILE INFILE PLAN")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2], os.Args[3], os.Args[4], os.Args[5]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
