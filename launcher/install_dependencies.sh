#!/usr/bin/env bash
# Installs the Debian or Ubuntu packages that Longspan is built from.
#   install_dependencies.sh                what the program needs
#   install_dependencies.sh --with-tests   and what its tests need
#   install_dependencies.sh --list         only says which packages those are
# Where nothing is missing it neither uses the network nor asks for a password.
set -euo pipefail

packages=(
  g++ cmake ninja-build ccache pkg-config     # the build
  libopenmpi-dev openmpi-bin                  # ranks
  libhdf5-dev                                 # datasets and checkpoints
  libboost-program-options-dev                # configuration
  libdnnl-dev libhwy-dev                      # matrix products; vector instructions chosen at run time
  libfmt-dev nlohmann-json3-dev               # text, JSON
  libxxhash-dev zlib1g-dev                    # checksums, packed input files
  node-d3                                     # charts of the HTML pages
)
test_packages=(
  libgtest-dev libbenchmark-dev hdf5-tools python3 python3-venv
  slurmctld slurmd slurm-client slurm-wlm-basic-plugins munge iproute2   # the cluster of tests/slurm
  clang libclang-rt-14-dev                    # libFuzzer
  libboost-context-dev                        # fibers: the threads of the emulated GPU
)
# Left out where the distribution has none (Ubuntu): what needs it says that it is skipped.
optional_test_packages=(
  chromium-headless-shell                     # opens the HTML pages
)

list=no
for argument in "$@"; do
  case $argument in
    --with-tests) packages+=("${test_packages[@]}" "${optional_test_packages[@]}") ;;
    --list) list=yes ;;
    -h | --help) sed -n '2,6s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) echo "$0: unknown option $argument; valid: --with-tests, --list" >&2; exit 2 ;;
  esac
done
if [[ $list == yes ]]; then printf '%s\n' "${packages[@]}"; exit 0; fi

if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
  echo "$0: there is no apt on this machine. Longspan needs g++ 12 or newer, CMake 3.22 and what these Debian packages hold:" >&2
  echo "  ${packages[*]}" >&2
  echo "Install their counterparts, then build by hand: cmake -S . -B build -G Ninja && ninja -C build" >&2
  exit 1
fi

missing=()
for package in "${packages[@]}"; do
  state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
  [[ $state == installed ]] || missing+=("$package")
done
if ((${#missing[@]} == 0)); then
  echo "packages: all ${#packages[@]} are installed"
  exit 0
fi

echo "packages: installing ${missing[*]}"
as_root=()
if ((EUID != 0)); then
  if ! command -v sudo >/dev/null; then
    echo "$0: installing packages takes root, and there is no sudo here. As root: apt-get install ${missing[*]}" >&2
    exit 1
  fi
  as_root=(sudo)
fi
apt() { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 "$@"; }
apt update || echo "packages: the lists could not be renewed, going on with those that are here"
there=()
for package in "${missing[@]}"; do
  if [[ " ${optional_test_packages[*]} " == *" $package "* ]] && ! apt-cache show "$package" >/dev/null 2>&1; then
    echo "packages: there is no $package here, going on without it"
  else
    there+=("$package")
  fi
done
if ((${#there[@]} > 0)); then apt install -y --no-install-recommends "${there[@]}"; fi
