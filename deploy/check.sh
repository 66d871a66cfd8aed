#!/usr/bin/env bash
# The Dockerfile's own steps in a fresh folder, where no container engine is at hand.
#
#     deploy/check.sh [FOLDER]     run them there (default: a temporary folder, removed at the end)
#     deploy/check.sh --steps      print what would be run, and stop
#
# What is run is read from the Dockerfile: its COPYs and RUNs; then its ENTRYPOINT and CMD under its ENV and as the
# numbers of its USER (where root runs this); then its HEALTHCHECK until that succeeds; then its STOPSIGNAL.
# Paths of the image become paths below FOLDER, and the port a free one.
# Not checked: the base image, the making of the account, layers, .dockerignore.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
WAIT=60 # seconds in which the service must be healthy, and in which it must have stopped

# The Dockerfile without comments, each instruction on one line; with a verb, what follows that verb.
instructions() {
	awk '/^[ \t]*#/ { next }
		{ text = text $0; if (sub(/\\$/, "", text)) next; gsub(/[ \t]+/, " ", text); print text; text = "" }' Dockerfile |
		if [ $# = 0 ]; then cat; else sed -n "s/^$1 //p"; fi
}

steps() { instructions | grep -E '^(COPY|RUN) ' | grep -v -e --from= -e useradd; }

if [ "${1:-}" = --steps ]; then
	steps
	exit
fi

folder=${1:-$(mktemp -d)}
made=${1:+kept}
service=
tidy() {
	[ -z "$service" ] || kill -KILL "$service" 2>/dev/null || true
	[ -n "$made" ] || rm -rf "$folder"
}
trap tidy EXIT
if [ -n "$(ls -A "$folder" 2>/dev/null)" ]; then
	echo "$folder is not empty; a fresh folder is wanted" >&2
	exit 2
fi
mkdir -p "$folder/build" "$folder/bin" "$folder/etc/saqm"
chmod 755 "$folder" # mktemp's is its maker's alone
ln -s "$(command -v "$PYTHON")" "$folder/bin/python"

# A line of the Dockerfile as it is run here. Only root gives folders away.
here() {
	local line
	line=$(sed -E "s#/(build|opt/saqm|etc/saqm|var/lib/saqm)\b#$folder/\1#g; s#\b8787\b#$port#g" <<<"$1")
	[ "$(id -u)" = 0 ] || line=${line/ -o 10001 -g 10001/}
	printf '%s' "$line"
}

port=$("$PYTHON" -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')

steps | while read -r verb step; do
	step=$(here "$step")
	printf '%s %s\n' "$verb" "$step"
	if [ "$verb" = COPY ]; then
		step="cp -r $step"
	fi
	PATH="$folder/bin:$PATH" bash -euo pipefail -c "$step" </dev/null
done

# The elements of a JSON list, one a line.
elements() { "$PYTHON" -c 'import json, sys; print(*json.loads(sys.argv[1]), sep="\n")' "$1"; }

read -ra environment <<<"$(here "$(instructions ENV)")"
mapfile -t command < <(elements "$(here "$(instructions ENTRYPOINT)")" && elements "$(here "$(instructions CMD)")")
mapfile -t healthy < <(elements "$(here "$(instructions HEALTHCHECK | sed 's/.* CMD //')")")
as=()
if [ "$(id -u)" = 0 ]; then
	IFS=: read -r uid gid <<<"$(instructions USER)"
	as=(setpriv "--reuid=$uid" "--regid=$gid" --clear-groups --no-new-privs)
	if ! "${as[@]}" env -i "${environment[@]}" python -c '' 2>/dev/null; then
		echo "NOT AS $uid: $(readlink -f "$folder/opt/saqm/bin/python") lies where only root may go; run as root instead"
		as=()
	fi
fi
inside() { exec "${as[@]}" env -i "${environment[@]}" "SAQM_SERVE_PORT=$port" "$@"; }

signal=$(instructions STOPSIGNAL)
printf 'START %s\n' "${command[*]}"
cd "$folder/var/lib/saqm"
(inside "${command[@]}") &
service=$!
began=$SECONDS
until (inside "${healthy[@]}") 2>/dev/null; do
	kill -0 "$service" 2>/dev/null || { echo "ended before it was healthy" >&2; exit 1; }
	((SECONDS - began < WAIT)) || { echo "not healthy in $WAIT s" >&2; exit 1; }
	sleep 0.5
done
printf 'HEALTHY after %d s\n' $((SECONDS - began))

kill -s "$signal" "$service"
began=$SECONDS
while kill -0 "$service" 2>/dev/null; do
	((SECONDS - began < WAIT)) || { echo "not stopped in $WAIT s" >&2; exit 1; }
	sleep 0.2
done
wait "$service" || { echo "stopped with exit code $?" >&2; exit 1; }
service=
printf 'STOPPED in %d s, exit code 0\n' $((SECONDS - began))
printf 'SIZE %s MB in opt/saqm\n' "$(du -sm "$folder/opt/saqm" | cut -f1)"
