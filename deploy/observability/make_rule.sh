#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# make_rule.sh >prometheusrule.yaml: the tested rules of alerts.yaml as the Prometheus operator takes them.
set -eu
cat <<'HEAD'
# Made by make_rule.sh from alerts.yaml; edit that.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: predict2
spec:
HEAD
sed -n '/^groups:/,$ { s/^\(.\)/  \1/; p; }' "$(dirname "$0")/alerts.yaml"
