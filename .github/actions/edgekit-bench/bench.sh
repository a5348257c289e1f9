#!/usr/bin/env bash
# Run by action.yml. What a user or a pull request chose comes in variables, so that none of it is read as shell.
set -euo pipefail

results=$(mktemp -d -- "$RUNNER_TEMP/edgekit-bench.XXXXXX")
echo "results=$results" >>"$GITHUB_OUTPUT"

arguments=(
  --device "$DEVICE" --protocol "$PROTOCOL"
  --junit "$results/junit.xml" --json "$results/bench.json"
  --html "$results/report.html" --summary "$results/summary.md"
)
[ -z "${TARGET:-}" ] || arguments+=(--target "$TARGET")
[ -z "${BASELINE:-}" ] || arguments+=(--baseline "$BASELINE")
[ "${GATE:-true}" != true ] || arguments+=(--gate)

# A board's output is a stranger's: until this word comes, which nobody there can know, the log gives the runner no
# commands.
word=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
echo "::stop-commands::$word"
# A cancelled job interrupts this script alone; edgekit then leaves the board in order. Job control, because without it
# what runs in the background never hears of an interrupt.
set -m
"$PROGRAM" bench "${arguments[@]}" -- "$BUNDLE" &
child=$!
trap 'kill -INT "$child" 2>/dev/null || true' INT TERM
code=0
wait "$child" || code=$?
while kill -0 "$child" 2>/dev/null; do
  code=0
  wait "$child" || code=$?
done
trap - INT TERM
echo "::$word::"

# Exit codes: docs/errors.md.
case $code in
  0) [ "${GATE:-true}" = true ] && verdict=PASS || verdict=MEASURED ;;
  23) verdict=FAIL ;;
  39) verdict=INVALID ;;
  *) verdict=ERROR ;;
esac
echo "verdict=$verdict" >>"$GITHUB_OUTPUT"
if [ -s "$results/summary.md" ]; then
  # A step's summary may have 1 MiB.
  head -c 1000000 -- "$results/summary.md" >>"$GITHUB_STEP_SUMMARY"
else
  echo "edgekit bench ended with exit code $code and without a measurement; the log says why." >>"$GITHUB_STEP_SUMMARY"
fi

if [ "$verdict" = INVALID ] && [ "${ON_INVALID:-fail}" = warn ]; then
  echo "::warning title=edgekit::the measurement was disturbed: neither passed nor failed"
  exit 0
fi
exit "$code"
