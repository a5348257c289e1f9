#!/usr/bin/env bash
# Run by action.yml: says where edgekit is, in an environment of this job's own unless it is installed already.
set -euo pipefail

if [ "${EDGEKIT:-}" = installed ]; then
  program=$(command -v edgekit) || {
    echo "::error title=edgekit::there is no edgekit on this runner's PATH"
    exit 1
  }
  echo "program=$program" >>"$GITHUB_OUTPUT"
  exit 0
fi
environment=$RUNNER_TEMP/edgekit-environment
source=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../../.." && pwd)
python3 -m venv -- "$environment"
"$environment/bin/python" -m pip install --quiet --disable-pip-version-check --constraint "$source/constraints.txt" \
  "${EDGEKIT:-$source}"
echo "program=$environment/bin/edgekit" >>"$GITHUB_OUTPUT"
