#!/bin/bash
# Records real curl commands against Debian's nginx over TLS, and shows what they said.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
tlscap=.venv/bin/tlscap

if [[ $EUID -ne 0 ]]; then
    echo "tlscap: recording needs root: sudo make demo" >&2
    exit 3
fi

work=$(mktemp -d)
nginx_pid=
cleanup() {
    if [[ -n $nginx_pid ]]; then
        kill "$nginx_pid" 2>/dev/null || true
        wait "$nginx_pid" 2>/dev/null || true
    fi
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

# --- A certificate authority and a certificate for localhost: curl verifies it, nothing is switched off ---

cat >"$work/openssl.cnf" <<'CNF'
[req]
distinguished_name = name
[name]
[authority]
basicConstraints = critical, CA:true
keyUsage = critical, keyCertSign
subjectKeyIdentifier = hash
[leaf]
basicConstraints = critical, CA:false
subjectAltName = DNS:localhost, IP:127.0.0.1
authorityKeyIdentifier = keyid
CNF
new_certificate=(openssl req -x509 -config "$work/openssl.cnf" -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes)
{
    "${new_certificate[@]}" -extensions authority -subj "/CN=tlscap demo" -keyout "$work/ca.key" -out "$work/ca.pem"
    "${new_certificate[@]}" -extensions leaf -subj /CN=localhost -CA "$work/ca.pem" -CAkey "$work/ca.key" \
        -keyout "$work/leaf.key" -out "$work/leaf.pem"
} 2>"$work/openssl.log" || { cat "$work/openssl.log" >&2; exit 1; }

# --- A server with a few things to ask for ---

port=$(/usr/bin/python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
mkdir "$work/www" "$work/temp"
head -c 100000 /dev/urandom >"$work/www/100k.bin"
for number in {1..200}; do echo "<p>Paragraph $number says: nothing is as plain as plaintext.</p>"; done >"$work/www/index.html"
cat >"$work/nginx.conf" <<CONF
daemon off;
user root;
pid $work/nginx.pid;
error_log $work/error.log;
worker_processes 1;
events { worker_connections 64; }
http {
    access_log off;
    client_body_temp_path $work/temp/body;
    proxy_temp_path $work/temp/proxy;
    fastcgi_temp_path $work/temp/fastcgi;
    uwsgi_temp_path $work/temp/uwsgi;
    scgi_temp_path $work/temp/scgi;
    types { text/html html; application/octet-stream bin; }
    gzip on;
    gzip_min_length 100;
    server {
        listen 127.0.0.1:$port ssl http2;
        ssl_certificate $work/leaf.pem;
        ssl_certificate_key $work/leaf.key;
        root $work/www;
        location = /api/status { default_type application/json; return 200 '{"service": "demo", "healthy": true}'; }
        location = /api/orders { default_type application/json; return 201 '{"order": 4711}'; }
        location = /login { return 302 /index.html; }
    }
}
CONF
PATH=$PATH:/usr/sbin nginx -e "$work/error.log" -c "$work/nginx.conf" 2>>"$work/error.log" &
nginx_pid=$!
for attempt in {1..100}; do
    if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then break; fi
    if [[ $attempt -eq 100 ]] || ! kill -0 "$nginx_pid" 2>/dev/null; then
        echo "tlscap: nginx didn't start:" >&2
        cat "$work/error.log" >&2
        exit 1
    fi
    sleep 0.05
done

# --- The recording ---

mkdir -p .demo
cat >.demo/requests.sh <<COMMANDS
curl \$options https://localhost:$port/ https://localhost:$port/api/status
curl \$options --json '{"item": "teapot", "count": 1}' https://localhost:$port/api/orders
curl \$options --head https://localhost:$port/100k.bin
curl \$options https://localhost:$port/100k.bin
curl \$options --compressed https://localhost:$port/index.html
curl \$options --location https://localhost:$port/login
curl \$options https://localhost:$port/missing
COMMANDS
echo "\$ cat .demo/requests.sh"
cat .demo/requests.sh
echo
echo "\$ sudo tlscap record -o .demo/demo -- sh .demo/requests.sh"
options="--silent --cacert $work/ca.pem --output /dev/null --output /dev/null" \
    "$tlscap" record -o .demo/demo --force -- sh .demo/requests.sh

color=auto
[[ -t 1 && -z ${NO_COLOR:-} ]] && color=always
echo
echo "\$ tlscap inspect .demo/demo.tlscap.zst"
"$tlscap" inspect --color "$color" .demo/demo.tlscap.zst

cat <<TEXT

The recording:      $PWD/.demo/demo.tlscap.zst
For Wireshark:      $PWD/.demo/demo.pcapng

  wireshark $PWD/.demo/demo.pcapng
  tshark -r $PWD/.demo/demo.pcapng -Y http

As a test fixture:

  tlscap fixture make .demo/demo.tlscap.zst 'path:/api/*' -o .demo/orders.tlscap.zst --force
  tlscap replay serve .demo/orders.tlscap.zst --listen 127.0.0.1:8443 --ca-file .demo/replay-ca.pem
  curl --cacert .demo/replay-ca.pem https://127.0.0.1:8443/api/status      # in another terminal
TEXT
