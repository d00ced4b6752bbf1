#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# try_steps.sh [FOLDER]: what building and running the image `toy` does, without a container engine.
#
# Takes the files that .dockerignore lets in, runs the RUN lines of the Dockerfile's toy stages with its paths moved into
# FOLDER (a temporary one), then serves from there as user 10001, who can write nothing there, and asks for a picture.
# As root, on Linux with a Python 3.11 that others may read: PYTHON (/usr/bin/python3.11). TORCH_FOR_CPU as the Dockerfile's.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
checkout=$(cd "$here/../.." && pwd)
python=${PYTHON:-/usr/bin/python3.11}
folder=${1:-$(mktemp -d)}
user=10001
test "$(id -u)" = 0 || { echo "try_steps.sh needs root, to become another user" >&2; exit 2; }
test ! -e "$folder/opt" || { echo "$folder has files of an earlier run; name another" >&2; exit 2; }

mkdir -p "$folder/src" "$folder/bin" "$folder/wheels" "$folder/opt"
chmod 755 "$folder"
ln -s "$python" "$folder/bin/python3"
cd "$checkout"
sed -n 's/^!//p' .dockerignore | xargs git ls-files -co --exclude-standard -- | tar -c -T - | tar -x -C "$folder/src"

# Continued lines aren't understood here; the test of this file sees that there are none.
defaults=$(sed -n 's/^ARG \([A-Z_]*=.*\)/\1/p' "$here/Dockerfile")
defaults="$defaults ${TORCH_FOR_CPU+TORCH_FOR_CPU=$TORCH_FOR_CPU}"
awk '/^FROM/ { toy = $NF ~ /^toy/ } toy && sub(/^RUN /, "")' "$here/Dockerfile" >"$folder/run-lines"
while read -r line; do
  moved=$(echo "$line" | sed "s# /\(src\|wheels\|opt\)# $folder/\1#g")
  echo "+ $moved"
  env $defaults PATH="$folder/bin:$PATH" sh -euc "$moved" </dev/null
done <"$folder/run-lines"

install -d -o $user -g $user "$folder/tmp" "$folder/state"
serving="$folder/opt/predict2"
setpriv --reuid $user --regid $user --clear-groups --no-new-privs --inh-caps=-all --bounding-set=-all \
  env -i PATH="$serving/python/bin:/usr/bin:/bin" HOME=/tmp TMPDIR="$folder/tmp" USER=predict2 PYTHONDONTWRITEBYTECODE=1 \
  sh -euc "
    if touch $serving/toy/x $serving/python/x 2>/dev/null; then echo '$serving can be written' >&2; exit 1; fi
    cd /
    predict2-serve $serving/toy --http-port=0 --grpc-port=0 --metrics-port=0 --start-timeout=300 --state=$folder/state -- \
      predict2 text2image --prompt 'a red ball' --num-steps 2 --save-path $folder/tmp/picture.jpg"
size=$(stat -c %s "$folder/tmp/picture.jpg")
echo "a picture of $size bytes from user $user; $(du -sh "$serving/python" | cut -f1) of packages, $(du -sh "$serving/toy" | cut -f1) of engines"
