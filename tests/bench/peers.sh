#!/usr/bin/env bash
# Environments of the libraries that the benchmarks measure beside distllm, each on its own: litdata asks
# for torchvision, which replaces a CPU build of torch, and datatrove pins an old trafilatura.
# Exact pins are in tests/bench/peers/*.lock. The peer itself is installed without what it asks for; the
# rest with it, so that a CUDA build of torch gets its libraries.
#
# usage: tests/bench/peers.sh [DIRECTORY]      default data/peers; then DIRECTORY/datatrove/bin/python ...
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
target=${1:-data/peers}
python=$(command -v python3.11 || command -v python3)

make_peer() { # name, then what must import
  local venv=$target/$1 lock=$here/peers/$1.lock
  if ! cmp -s "$lock" "$venv/.installed"; then
    "$python" -m venv --clear "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check -r <(grep -v "^$1==" "$lock")
    "$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps "$(grep "^$1==" "$lock")"
    "$venv/bin/python" -c "$2"
    cp "$lock" "$venv/.installed"
  fi
  echo "$1: $venv/bin/python"
}

make_peer datatrove 'import spacy, rensa
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import MinhashDedupSignature
from datatrove.pipeline.filters import C4QualityFilter, FineWebQualityFilter, GopherRepetitionFilter
from datatrove.pipeline.formatters import PIIFormatter
from datatrove.pipeline.tokens import DocumentTokenizer'
make_peer litdata 'import litdata, torch
assert "torchvision" not in __import__("sys").modules
from litdata import StreamingDataLoader, StreamingDataset, TokensLoader, optimize'
