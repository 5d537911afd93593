// A client of Go's net/http for the live tests: HTTP_CLIENT URL CA ASKS.
//
// ASKS is a JSON list of [method, path, body].  Prints a line of JSON for each answer: status, fields by name, size and SHA-256 of
// the body.
package main

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
)

func main() {
	if err := run(os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(url, ca, asks string) error {
	authority, err := os.ReadFile(ca)
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(authority)
	client := &http.Client{
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	var list [][]string
	if err := json.Unmarshal([]byte(asks), &list); err != nil {
		return err
	}
	for _, ask := range list {
		request, err := http.NewRequest(ask[0], url+ask[1], strings.NewReader(ask[2]))
		if err != nil {
			return err
		}
		response, err := client.Do(request)
		if err != nil {
			return err
		}
		body, err := io.ReadAll(response.Body)
		response.Body.Close()
		if err != nil {
			return err
		}
		sum := sha256.Sum256(body)
		line, err := json.Marshal([]interface{}{
			response.StatusCode, response.Header, len(body), hex.EncodeToString(sum[:]), response.Proto,
		})
		if err != nil {
			return err
		}
		fmt.Println(string(line))
	}
	return nil
}
