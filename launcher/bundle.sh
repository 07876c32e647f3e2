#!/bin/bash
# Packs longspan, its GPU plug-in, its GPU tests and what they need of this system (Open MPI, HDF5, Boost, ...) into
# one folder that runs on another x86-64 Linux machine with none of them, from whatever place it is put.
#
#   launcher/bundle.sh [--build build] [--output bundle] [--archive xz|gz|none]
#
# Then, on the other machine: bundle/bin/longspan doctor, bundle/bin/run-gpu-tests. Left to that machine: the C library
# (at least as new as this one's), the GPU driver, and the CUDA libraries (cudart, cublasLt, NCCL, cuDNN), which are
# looked for in $CUDA_LIBS, beside nvcc, in /usr/local/cuda, in Python's site-packages/nvidia and /usr/local/nvidia.
# Only MPI between ranks of one machine is packed: shared memory and TCP, no InfiniBand, no Slurm.
set -euo pipefail
die() { echo "bundle.sh: $*" >&2; exit 1; }

here=$(cd "$(dirname "$0")/.." && pwd)
build=$here/build output=bundle archive=none
while [ $# -gt 0 ]; do
  case $1 in
    --build) build=$(cd "$2" && pwd); shift 2 ;;
    --output) output=$2; shift 2 ;;
    --archive) archive=$2; shift 2 ;;
    --help | -h) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"; exit 0 ;;
    *) echo "bundle.sh: unknown argument '$1': see --help" >&2; exit 2 ;;
  esac
done
[[ $archive =~ ^(xz|gz|none)$ ]] || { echo "bundle.sh: --archive $archive: it must be xz, gz or none" >&2; exit 2; }
[ -x "$build/longspan" ] || die "no program $build/longspan: build it first"
if [ -e "$output" ] && [ ! -e "$output/MANIFEST" ]; then die "$output is there and is no bundle: choose another --output"; fi

# Never packed: the C library and the loader; CUDA and the driver.
left_out='^(ld-linux.*|libc|libm|libpthread|libdl|librt|libresolv|libutil|libnsl|libanl|libmvec|libnss_.*)\.so'
left_out+='|^(libcuda|libcudart|libcublas|libcublasLt|libcudnn.*|libnccl|libnvrtc.*|libnvJitLink|libnvidia.*)\.so'
# Packed, but used only where the other machine has none of its own.
compiler='^(libstdc\+\+|libgcc_s|libgomp|libquadmath|libgfortran)\.so'
# Open MPI's components for one machine.
components='^mca_(allocator|bml|btl_(self|sm|tcp|vader)|coll_(adapt|basic|han|inter|libnbc|self|sm|sync|tuned)|compress_gzip'
components+='|crs_none|errmgr|ess_(env|hnp|pmi|singleton|tool)|fbtl|fcoll|filem|fs_ufs|grpcomm|io_|iof|mpool|odls|oob|op_'
components+='|osc_(pt2pt|rdma|sm)|patcher|plm_isolated|pmix_(ext3x|isolated|pmix3x)|pml_ob1|pstat|rcache|reachable_weighted'
components+='|regx|rmaps|rml|routed|rtc|schizo_(ompi|orte)|sharedfp|shmem|state|topo|vprotocol)'

rm -rf "$output"
mkdir -p "$output"/{bin,libexec/tests,lib/compiler,lib/openmpi,lib/pmix,share/openmpi,share/pmix,share/configs/{gpu,machines},share/pytorch,etc}
root=$(cd "$output" && pwd)

pack_libraries() { # of the given file, those it needs, theirs included
  ldd "$1" 2>/dev/null | awk '$2 == "=>" && $3 ~ /^\// {print $1, $3}' | while read -r name path; do
    [[ $name =~ $left_out ]] && continue
    local folder=$root/lib
    [[ $name =~ $compiler ]] && folder=$root/lib/compiler
    [ -e "$folder/$name" ] || cp -L "$path" "$folder/$name"
  done
}
pack_program() { # file, folder below libexec
  cp -L "$1" "$root/libexec/$2"
  pack_libraries "$1"
}

pack_program "$build/longspan" .
if [ -e "$build/liblongspan_cuda.so" ]; then
  pack_program "$build/liblongspan_cuda.so" . # beside the program, where it looks first
else
  echo "bundle.sh: no GPU plug-in in $build (no CUDA toolkit?): the bundle computes on processors alone" >&2
fi
while read -r name; do
  [ -x "$build/tests/$name" ] || continue
  pack_program "$build/tests/$name" tests
  echo "$name" >> "$root/share/gpu_tests.txt"
done < "$build/gpu_tests.txt"
[ -x "$build/benchmarks/bench_gpu_kernels" ] && pack_program "$build/benchmarks/bench_gpu_kernels" .
for folder in . gpu machines; do cp "$here/configs/$folder"/*.ini "$root/share/configs/$folder/"; done
cp "$here/tests/gpu/run.sh" "$root/libexec/run-gpu-tests"
cp "$here"/tests/gpu/{rows,figures}.sh "$root/share/"
cp "$here"/tests/benchmarks/{compare_pytorch_gpu,compare_pytorch,pytorch_training}.py "$root/share/pytorch/"

path_of() { ompi_info --parsable --path "$1" | awk -F: '{print $NF; exit}'; }
for name in orterun orted ompi_info; do pack_program "$(readlink -f "$(command -v $name)")" $name; done
for file in "$(path_of pkglibdir)"/*.so; do
  [[ $(basename "$file") =~ $components ]] || continue
  cp -L "$file" "$root/lib/openmpi/"
  pack_libraries "$file"
done
cp "$(path_of pkgdatadir)"/*.txt "$root/share/openmpi/" 2>/dev/null || true
for file in /usr/lib/"$(gcc -print-multiarch)"/pmix2/lib/pmix/*.so; do
  [[ -e $file && $file != *slurm* ]] || continue
  cp -L "$file" "$root/lib/pmix/"
  pack_libraries "$file"
done
cp /usr/share/pmix/*.txt "$root/share/pmix/" 2>/dev/null || true
touch "$root/etc/openmpi-default-hostfile"
cat > "$root/etc/openmpi-mca-params.conf" <<'PARAMETERS'
# Ranks of one machine, without ssh; the environment and the command line say otherwise if they must.
pml = ob1
btl = self,vader,tcp
btl_tcp_if_include = lo
oob_tcp_if_include = lo
# Containers do not allow one process to read another's memory.
btl_vader_single_copy_mechanism = none
plm = isolated
rmaps_base_oversubscribe = 1
hwloc_base_binding_policy = none
orte_tmpdir_base = /tmp
PARAMETERS
strip --strip-unneeded "$root"/lib/*.so* "$root"/lib/*/*.so* 2>/dev/null || true

cat > "$root/environment.sh" <<'ENVIRONMENT'
# Sourced by the programs in bin/, with bundle = the folder that this file is in.
if [ "${LONGSPAN_BUNDLE:-}" != "$bundle" ]; then
  export LONGSPAN_BUNDLE="$bundle" LONGSPAN_CALLERS_LIBRARY_PATH="${LD_LIBRARY_PATH:-}" # for programs of the caller's own
  libraries=$bundle/lib
  (ldconfig -p 2>/dev/null || /sbin/ldconfig -p 2>/dev/null) | grep -q 'libstdc++\.so\.6' || libraries=$libraries:$bundle/lib/compiler
  (ldconfig -p 2>/dev/null || /sbin/ldconfig -p 2>/dev/null) | grep -q 'libgomp\.so\.1' || libraries=$libraries:$bundle/lib/compiler
  nvcc=$(command -v nvcc 2>/dev/null) && nvcc=$(dirname "$(dirname "$(readlink -f "$nvcc")")")
  python=$(command -v python3 2>/dev/null) && python=$(dirname "$(dirname "$python")")
  for folder in ${CUDA_LIBS:-} ${nvcc:+$nvcc/lib64} /usr/local/cuda/lib64 \
                ${VIRTUAL_ENV:+$VIRTUAL_ENV/lib/python3*/site-packages/nvidia/*/lib} \
                ${python:+$python/lib/python3*/site-packages/nvidia/*/lib} \
                /usr/local/lib/python3*/dist-packages/nvidia/*/lib /usr/lib/python3/dist-packages/nvidia/*/lib \
                /usr/local/nvidia/lib64 /usr/local/nvidia/lib; do
    [ -d "$folder" ] && libraries=$libraries:$folder
  done
  export LD_LIBRARY_PATH="$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
  export OPAL_PREFIX="$bundle" OPAL_EXEC_PREFIX="$bundle" OPAL_BINDIR="$bundle/bin" OPAL_LIBDIR="$bundle/lib" \
         OPAL_PKGLIBDIR="$bundle/lib/openmpi" OPAL_DATADIR="$bundle/share" OPAL_PKGDATADIR="$bundle/share/openmpi" \
         OPAL_SYSCONFDIR="$bundle/etc" PMIX_INSTALL_PREFIX="$bundle" \
         PMIX_MCA_mca_base_component_path="$bundle/lib/pmix" HWLOC_PLUGINS_PATH="$bundle/lib/none"
  if [ "$(id -u)" = 0 ]; then export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1; fi
  export PATH="$bundle/bin:$PATH"
fi
ENVIRONMENT
cat > "$root/bin/longspan" <<'WRAPPER'
#!/bin/sh
bundle=$(dirname "$(dirname "$(readlink -f "$0")")")
. "$bundle/environment.sh"
exec "$bundle/libexec/$(basename "$0")" "$@"
WRAPPER
chmod 755 "$root/bin/longspan" "$root"/libexec/run-gpu-tests
for file in "$root"/libexec/*; do
  name=$(basename "$file")
  if [ -f "$file" ] && [[ $name != longspan && $name != *.so ]]; then cp "$root/bin/longspan" "$root/bin/$name"; fi
done
for name in mpirun mpiexec; do printf '#!/bin/sh\nexec "$(dirname "$(readlink -f "$0")")/orterun" "$@"\n' > "$root/bin/$name"; chmod 755 "$root/bin/$name"; done

{
  echo "$("$build/longspan" --version), packed $(date -u +%F)"
  echo "the other machine's C library must be at least $(
    find "$root/lib" "$root/libexec" -type f -exec objdump -T {} + 2>/dev/null | grep -o 'GLIBC_2\.[0-9.]*' | sort -uV | tail -1)"
  (cd "$root" && find . -type f ! -name MANIFEST -printf '%s %p\n' | sort -k2)
} > "$root/MANIFEST"
packed=
case $archive in
  xz) packed=$root.tar.xz; tar -C "$(dirname "$root")" -c "$(basename "$root")" | xz -6 -T2 > "$packed" ;;
  gz) packed=$root.tar.gz; tar -C "$(dirname "$root")" -cz "$(basename "$root")" > "$packed" ;;
esac
echo "$root: $(du -sm "$root" | cut -f1) MB, $(find "$root/lib" -name '*.so*' | wc -l) libraries${packed:+; $packed: $(du -k "$packed" | cut -f1) KB}"
