#!/usr/bin/env bash
# Trains over rate-limited links: every rank in a network namespace of its own, all on one bridge, tc on both ends of every
# link. The queues hold all that TCP sends and no connection starts slowly again: what is to be seen is the rate, not how
# TCP finds it (BBR, the default of some machines, lets messages stall for a tenth of a second). Calibrates the planner at
# the first rate, then trains at each. For simulation_links_test.cpp.
# Usage: limited_links.sh PROGRAM FOLDER DATASET RANKS "RATE..." SETTINGS...
# Leaves FOLDER/longspan/local.ini and FOLDER/run-RATE. Exit 77 and a reason where that cannot be. Everything that it starts
# and makes ends with it.
set -euo pipefail
if [[ ${LIMITED_LINKS_INSIDE:-} == "" ]]; then
  [[ $(id -u) == 0 ]] || { echo "not root"; exit 77; }
  for tool in ip tc unshare nsenter mpirun; do
    command -v $tool >/dev/null || { echo "no $tool"; exit 77; }
  done
  alone=(unshare --net --uts --mount --pid --fork --kill-child --mount-proc)
  "${alone[@]}" sh -c 'ip link set lo up && ip link add name br0 type bridge && ip link add name v type veth peer name w &&
    tc qdisc add dev v root tbf rate 50mbit burst 64kb limit 16mb' >/dev/null 2>&1 ||
    { echo "no network namespaces with bridge, veth and tc's tbf"; exit 77; }
  LIMITED_LINKS_INSIDE=1 exec "${alone[@]}" "$0" "$@"
fi
program=$1 folder=$2 data=$3 ranks=$4 rates=$5
shift 5
cd "$folder"
hostname head
ip link set lo up
ip link add name br0 type bridge
ip link set br0 up
ip addr add 10.93.0.1/24 dev br0
cp /etc/hosts hosts
echo "10.93.0.1 head" >>hosts
pids=()
for ((i = 1; i <= ranks; ++i)); do
  unshare --net --uts sh -c "hostname n$i && ip link set lo up && echo reno >/proc/sys/net/ipv4/tcp_congestion_control &&
    echo 0 >/proc/sys/net/ipv4/tcp_slow_start_after_idle; touch '$folder/up.$i' && exec sleep 100000" &
  pids+=($!)
  echo $! >"n$i.pid"
  until [[ -e up.$i ]]; do sleep 0.05; done
  ip link add name v$i type veth peer name eth0 netns $!
  ip link set v$i master br0 up
  nsenter -t $! -n ip addr add 10.93.0.$((10 + i))/24 dev eth0
  nsenter -t $! -n ip link set eth0 up
  echo "10.93.0.$((10 + i)) n$i" >>hosts
  echo "n$i slots=1" >>hostfile
done
mount --bind hosts /etc/hosts
# More ranks than cores: each stays on its share of one.
pin='' yield=0
if ((ranks > $(nproc))); then pin="taskset -c \$((\${host#n} % $(nproc)))" yield=1; fi
printf '#!/bin/bash\nhost=$1\nshift\nexec %s nsenter -t "$(cat "%s/$host.pid")" -n -u sh -c "$*"\n' "$pin" "$folder" >enter
chmod +x enter
limit() {
  for ((i = 1; i <= ranks; ++i)); do
    tc qdisc replace dev v$i root tbf rate "$1" burst 64kb limit 16mb
    nsenter -t "${pids[i - 1]}" -n tc qdisc replace dev eth0 root tbf rate "$1" burst 64kb limit 16mb
  done
}
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive
export XDG_CONFIG_HOME=$folder
run=(timeout 200 mpirun --hostfile hostfile -n "$ranks" --map-by node --bind-to none --mca plm_rsh_agent "$folder/enter"
  --mca mpi_yield_when_idle $yield --mca pml ob1 --mca btl self,tcp --mca btl_tcp_if_include eth0 --mca oob_tcp_if_include br0,eth0
  -x OMP_NUM_THREADS -x OMP_WAIT_POLICY -x XDG_CONFIG_HOME)
trap 'tail -n 20 "$folder"/*.log >&2' ERR
calibrated=
for rate in $rates; do
  limit "$rate"
  if [[ -z $calibrated ]]; then "${run[@]}" "$program" doctor --calibrate >calibrate.log 2>&1; fi
  calibrated=yes
  "${run[@]}" "$program" train --data.path "$data" --run.directory "$folder/run-$rate" "$@" >"run-$rate.log" 2>&1
done
kill "${pids[@]}"
