#!/bin/bash
# Run "it's \"the\" run": 8 ranks on 4 nodes. Written by longspan submit; the same settings give the same bytes.
#SBATCH --job-name="it's \"the\" run"
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=2
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=2
#SBATCH --mem=64G
#SBATCH --time=12:00:00
#SBATCH --partition=gpu
#SBATCH --account=climate
#SBATCH --qos=normal
#SBATCH --constraint="ib&a100"
#SBATCH --reservation="spring school"
#SBATCH --dependency=afterok:12
#SBATCH --exclusive
#SBATCH --mail-type=END
# Appended to: otherwise a restart of the job empties it.
#SBATCH --output="/scratch/ada/it's 100%%/slurm-%j.log"
#SBATCH --open-mode=append
#SBATCH --requeue
# Time to save before the limit: one step 12.50 s (measured) + one save 3.20 s (measured) + 60 s margin.
#SBATCH --signal=B:USR1@76

cd -- '/home/ada/my runs' || exit 1

# A batch shell may not have the command that login shells have.
if ! type module >/dev/null 2>&1; then
  for file in /etc/profile.d/{modules,lmod,z00_lmod}.sh; do
    if [[ -r $file ]]; then source "$file"; fi
  done
fi
module load gcc/12 openmpi/4.1 || exit 2

export OMP_PROC_BIND=true
export GREETING='two words'

longspan=/opt/longspan/bin/longspan
run_directory='/scratch/ada/it'\''s 100%'
# Every setting that is not the default, so that a restart does the same whatever has become of the
# configuration file.
settings=(
  --run.name 'it'\''s "the" run'
  --data.path data/code.h5
)
settings+=(--run.directory "$run_directory")

# The ranks find each other by PMIx. Where Slurm does not speak it, Open MPI's own starter does.
if [[ $(srun --mpi=list 2>&1) == *pmix* ]]; then
  # --kill-on-bad-exit: or else the ranks wait for ever for one that has crashed. --export=ALL: or else
  # they get no PATH where the job was submitted with --export=NONE. The fence that Slurm 22.05 chooses
  # by itself lets ranks leave MPI_Init too early: 4 starts in 100 crash.
  export SLURM_PMIX_FENCE=ring
  start=(srun --mpi=pmix --kill-on-bad-exit=1 --export=ALL --ntasks-per-node=2 --cpus-per-task=8 --cpu-bind=cores)
else
  # mpirun refuses to serve root unless told so.
  if ((EUID == 0)); then export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1; fi
  start=(mpirun --map-by ppr:2:node:PE=8 --bind-to core)
fi

# Whoever wants the run to end for good makes this file.
if [[ -e $run_directory/stop ]]; then
  echo "longspan: $run_directory/stop exists: not started"
  exit 0
fi
echo "longspan: job $SLURM_JOB_ID, restart ${SLURM_RESTART_COUNT:-0}, on $SLURM_JOB_NODELIST, by ${start[0]}"

# Slurm warns this shell alone (--signal=B:), since what it sends to steps does not reach every rank
# under mpirun. srun and mpirun both pass on to all ranks what they get from here: the ranks agree
# on a step, save, and leave with status 75. SIGTERM (scancel, preemption, time is up) reaches the
# ranks without us; this shell has to outlive it.
signals=0
ranks=
trap 'signals=$((signals + 1)); if [[ $ranks ]]; then kill -USR1 "$ranks" 2>/dev/null; fi' USR1
trap 'signals=$((signals + 1))' TERM

status=75
if ((signals == 0)); then
  "${start[@]}" "$longspan" train "${settings[@]}" &
  ranks=$!
  if ((signals > 0)); then kill -USR1 "$ranks" 2>/dev/null; fi
  # A signal cuts wait short: only the status of a wait without one is that of the ranks.
  while :; do
    before=$signals
    wait "$ranks"
    status=$?
    if ((signals == before)); then break; fi
  done
fi

# Done, again, or stop: that is decided, written into the run's history and carried out there.
trap '' USR1 TERM
"$longspan" submit --after "$status" "${settings[@]}" ||
  echo "longspan: the run is not started again; the ranks ended with status $status" >&2
exit "$status"
