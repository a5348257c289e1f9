#!/bin/sh
# Lets the bundle's model answer:  sh chat.sh "What is a Raspberry Pi?" [--engine gguf|onnx] [--max-tokens N] …
# Everything after the script's name goes to `edgekit run`.
set -eu
root=$(CDPATH='' cd -P -- "$(dirname -- "$0")" && pwd -P)
venv=$(sh "$root/install.sh" --place)/venv
if [ ! -f "$venv/.whole" ]; then
    printf 'edgekit: what runs the model is not installed yet — sh %s\n' "'$root/install.sh'" >&2
    exit 24
fi
exec "$venv/bin/python" -I -m edgekit run "$root" "$@"
