#!/bin/sh
# A gate before an AI: only images that pass reach it; the others are listed, each with its reason.
#
#   sh examples/gate_in_a_pipeline.sh FOLDER OUT [--pass 60 --fail 40 --model NAME …]
#
# Leaves OUT/gate.jsonl (a record for each image), OUT/exclude.tsv (what did not pass, and why) and OUT/passed.txt.
# SAQM names the command (by itself: saqm). What stands for the AI is at the end; put yours there.
set -u
incoming=$1 out=$2
shift 2
[ $# -gt 0 ] || set -- --pass 60 --fail 40
mkdir -p "$out" || exit 2

${SAQM:-saqm} gate "$incoming" "$@" --exclude-list "$out/exclude.tsv" > "$out/gate.jsonl"
code=$?
case $code in
    0) echo "all images passed" ;;
    10) echo "somebody should look at these:" ;;
    20) echo "not fit for use, or for somebody to look at:" ;;
    *) # 2 is a refusal: no such model, wrong options. There is no verdict, so nothing may go on.
        echo "the gate itself failed (exit code $code): nothing goes on" >&2
        exit 2
        ;;
esac
tail -n +2 "$out/exclude.tsv" | cut -f 1,3,4

# A file goes on where every frame of it passed: no frame of it is in the list.
${PYTHON:-python3} - "$out/gate.jsonl" > "$out/passed.txt" <<'PYTHON'
import json, sys
with open(sys.argv[1], encoding="utf-8") as lines:
    records = [json.loads(line) for line in lines]
held_back = {record["path"] for record in records if record["verdict"] != "pass"}
for path in dict.fromkeys(record["path"] for record in records):
    if path not in held_back:
        print(path)
PYTHON

while IFS= read -r image; do
    echo "to the AI: $image"
done < "$out/passed.txt"
exit "$code"
