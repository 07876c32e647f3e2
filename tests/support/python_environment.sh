#!/usr/bin/env bash
# Makes .venv-tests, the Python of the tests and comparisons; the program itself needs none.
#   python_environment.sh            numpy and h5py, which open our files as any user would
#   python_environment.sh --torch    and PyTorch, for golden/make_golden.py and benchmarks/compare_pytorch.py
#   python_environment.sh --transformers    and with it Hugging Face's transformers, for launcher/transformers_test.cpp
# Run again, it does nothing where everything is there. PYTHON names another interpreter than python3.
set -euo pipefail
cd "$(dirname "$0")/../.."

torch_version=2.5.1
transformers_version=4.46.3
want_torch=no
want_transformers=no
for argument in "$@"; do
  case $argument in
    --torch) want_torch=yes ;;
    --transformers) want_torch=yes want_transformers=yes ;;
    -h | --help) sed -n '2,6s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) echo "$0: unknown option $argument; valid: --torch, --transformers" >&2; exit 2 ;;
  esac
done

venv=.venv-tests
has() { "$venv/bin/python" -c "import $1" >/dev/null 2>&1; }
install() { "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }

if ! has pip; then
  python=${PYTHON:-python3}
  if ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
    echo "$0: $python cannot make virtual environments: launcher/install_dependencies.sh --with-tests installs what it needs" >&2
    exit 1
  fi
  echo "python: making $venv with $("$python" --version)"
  rm -rf "$venv"
  "$python" -m venv "$venv"
fi
if has numpy && has h5py; then
  echo "python: numpy and h5py are in $venv"
else
  echo "python: installing numpy and h5py into $venv"
  install 'numpy>=1.24,<3' 'h5py>=3.8'
fi
if [[ $want_torch == yes ]]; then
  if has torch; then
    echo "python: PyTorch is in $venv"
  # Where the package index offers the build for processors only, it is a tenth of the size.
  elif echo "python: installing PyTorch $torch_version into $venv" && install "torch==$torch_version+cpu" 2>/dev/null; then
    :
  else
    echo "python: the package index has only the build with GPU libraries: about 3 GB to download, 6 GB on disk"
    install "torch==$torch_version"
  fi
fi
if [[ $want_transformers == yes ]]; then
  if has transformers && has safetensors; then
    echo "python: transformers is in $venv"
  else
    echo "python: installing transformers $transformers_version into $venv"
    install "transformers==$transformers_version" safetensors
  fi
fi
