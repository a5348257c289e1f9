#!/bin/sh
# Measures this bundle on the board it is run on, with no network:  sh bench.sh [--protocol smoke|standard|long] …
# Everything after the script's name goes to `edgekit bench`. The figures go to bench.json in the current folder, unless
# --json names another file; on your computer:  edgekit report bench.json -o bench.html
set -eu
root=$(CDPATH='' cd -P -- "$(dirname -- "$0")" && pwd -P)
place=$(sh "$root/install.sh" --place)
venv=$place/venv
if [ ! -f "$venv/.whole" ]; then
    printf 'edgekit: what runs the model is not installed yet — sh %s\n' "'$root/install.sh'" >&2
    exit 24
fi
out=$(pwd -P)/bench.json
case $out in # with a file too many the bundle no longer opens
    "$root"/*) out=$place/bench.json ;;
esac
for word; do
    case $word in
        --json | --json=* | --help | -h) out='' ;;
    esac
done
[ -z "$out" ] || set -- --json "$out" "$@"
written() { # when it was; nothing where there is no such file
    stat -c '%i %y' -- "$out" 2>/dev/null || :
}
code=0 before=$(written)
"$venv/bin/python" -I -m edgekit bench "$root" --device local "$@" || code=$?
if [ -f "$out" ] && [ "$(written)" != "$before" ]; then
    printf 'edgekit: the figures are in %s\n' "$out" >&2
fi
exit "$code"
