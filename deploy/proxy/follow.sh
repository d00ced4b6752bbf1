#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# follow.sh NAME PORT: nginx before all servers of a name, such as a headless service's; they may come and go.
#
# Each gets a line of upstream.conf, so that calls about one request stay with one server. nginx's own `resolve` deals them
# out among all addresses of the name, and which server a connection to a service's one address leads to, no proxy can say.
set -u
name=$1 port=$2
given=${PREDICT2_GIVEN:-/etc/predict2}  # nginx.conf, server.crt, server.key, tokens.map
run=${PREDICT2_RUN:-/run/predict2}
nginx="${NGINX:-nginx} -p $run -c $run/nginx.conf"

servers() {
  found=$(getent ahostsv4 "$name" | awk -v port="$port" '$2 == "STREAM" { print "server " $1 ":" port ";" }' | sort -u)
  echo "${found:-server 127.0.0.1:9 down;}"  # nobody is ready
}

for file in nginx.conf server.crt server.key tokens.map; do
  ln -sf "$given/$file" "$run/$file"
done
servers >"$run/upstream.conf"
$nginx -g "daemon off;" &
process=$!
trap '$nginx -s quit' TERM INT  # calls under way end first
while kill -0 "$process" 2>/dev/null; do
  now=$(servers)
  if [ "$now" != "$(cat "$run/upstream.conf")" ]; then
    echo "$now" >"$run/upstream.conf"
    $nginx -s reload
  fi
  sleep 2 &
  wait $!  # a signal ends this, not a sleep in front
done
wait "$process"
