#!/usr/bin/env bash
# Installs what a build and the tests need and this machine lacks: protoc with the well-known
# protos (etcd-client compiles etcd's API), etcd and etcdctl, openssl, dnsmasq, mosquitto and its clients,
# prometheus, rsyslogd, and for benches valgrind and ip. Says what it installs; installs nothing that is
# there. Debian and Ubuntu; elsewhere it names what is missing and stops.
set -euo pipefail
PATH=$PATH:/usr/sbin # where dnsmasq, mosquitto and rsyslogd are, which not every user looks into

missing=()
need() { # command package
  command -v "$1" >/dev/null 2>&1 || missing+=("$2")
}
need cc gcc
need c++ g++
need make make
need protoc protobuf-compiler
[ -e /usr/include/google/protobuf/timestamp.proto ] || [ -e /usr/local/include/google/protobuf/timestamp.proto ] || missing+=(libprotobuf-dev)
need valgrind valgrind
need ip iproute2
need etcd etcd-server
need etcdctl etcd-client
need openssl openssl
need dnsmasq dnsmasq-base
need mosquitto mosquitto
need mosquitto_pub mosquitto-clients
need prometheus prometheus
need promtool prometheus
need rsyslogd rsyslog

if [ "${#missing[@]}" -eq 0 ]; then
  echo "ok    protoc, etcd, etcdctl, openssl, dnsmasq, mosquitto, prometheus, rsyslogd, valgrind and ip found"
  exit 0
fi
if ! command -v apt-get >/dev/null 2>&1; then
  echo "missing: ${missing[*]} (names of Debian packages); install them with this system's package manager" >&2
  exit 1
fi
sudo=()
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null 2>&1 || { echo "missing: ${missing[*]}; run as root: apt-get install ${missing[*]}" >&2; exit 1; }
  sudo=(sudo)
fi
echo "      installing ${missing[*]} with apt"
"${sudo[@]}" apt-get update -qq
"${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
# Debian starts etcd and mosquitto as services where there is a service manager; tests start their own.
echo "ok    installed ${missing[*]}"
