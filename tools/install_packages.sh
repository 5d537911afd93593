#!/bin/bash
# Installs the Debian packages that building and the demo need, and with the argument `test` those of the tests, too.
# Says nothing when all are there.
set -euo pipefail

packages=(
    clang llvm libbpf-dev libbpf1                     # the BPF object and its loader
    gcc libc6-dev python3 python3-venv python3-dev    # the ring reader, the virtual environment
    curl openssl nginx-light                          # what is recorded in the demo
    tshark zstd iproute2 procps util-linux            # what it is looked at with
)
if [[ ${1:-} == test ]]; then
    packages+=(
        python3-bpfcc                                 # the other loader; it compiles when it records
        wrk nghttp2-client nghttp2-server             # what is recorded
        apache2-utils libnginx-mod-http-brotli-filter
        tcpdump bpftool bsdextrautils                 # what is judged by
        libssl-dev libgnutls28-dev libnss3-dev        # TLS libraries, for programs that the tests compile
        libnspr4-dev libwolfssl-dev libmbedtls-dev android-libboringssl
    )
fi
if [[ -d /usr/share/doc/base-files ]] && command -v dpkg >/dev/null; then
    [[ ${1:-} == test ]] && packages+=("linux-headers-$(dpkg --print-architecture)")
else
    echo "tlscap: this is not Debian: install by hand what corresponds to: ${packages[*]}" >&2
    exit 0
fi

installed=$(dpkg-query --show --showformat='${Package} ${db:Status-Status}\n' "${packages[@]}" 2>/dev/null || true)
missing=()
for package in "${packages[@]}"; do
    grep -qx "$package installed" <<<"$installed" || missing+=("$package")
done
# Any flavor of nginx will do.  Debian's module fits Debian's alone; without it a test is skipped.
if command -v nginx >/dev/null || [[ -x /usr/sbin/nginx ]]; then
    unwanted=" nginx-light "
    dpkg-query --show --showformat='${db:Status-Status}' nginx-common 2>/dev/null | grep -qx installed ||
        unwanted+="libnginx-mod-http-brotli-filter "
    for index in "${!missing[@]}"; do
        [[ $unwanted == *" ${missing[index]} "* ]] && unset "missing[index]"
    done
fi
[[ ${#missing[@]} -gt 0 ]] || exit 0

if [[ $EUID -ne 0 ]]; then
    echo "tlscap: Debian packages are missing; as root: apt-get install --no-install-recommends ${missing[*]}" >&2
    exit 1
fi

# A package that brings a service starts it.  nginx is installed as a program: nothing of ours may take port 80, and a
# server that runs already is not restarted for a module.
policy=/usr/sbin/policy-rc.d
if [[ " ${missing[*]} " == *nginx* ]]; then
    if [[ ! -e $policy ]]; then
        trap 'rm -f "$policy"' EXIT
        printf '%s\n' '#!/bin/sh' 'case " $* " in *" nginx "* | *" nginx.service "*) exit 101 ;; esac' 'exit 0' >"$policy"
        chmod 755 "$policy"
    fi
    [[ " ${missing[*]} " == *" nginx-light "* ]] && disable_nginx=1
fi

echo "tlscap: installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get -q update
apt-get -q install -y --no-install-recommends "${missing[@]}"

if [[ -n ${disable_nginx:-} && -d /run/systemd/system ]]; then
    systemctl --quiet disable nginx.service || true # not at the next boot, either
fi
