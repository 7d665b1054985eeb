#!/bin/bash
# Trains a job for as long as it takes, in turns of the time that a Slurm cluster gives at once.
#
#   source .venv/bin/activate
#   sbatch hostfiles/slurm-requeue.sh job.toml                      # or a packaged job
#   sbatch --nodes=4 --time=12:00:00 hostfiles/slurm-requeue.sh job.toml --set train.epochs=300
#
# A minute before the time is up Weft writes a checkpoint and ends; the job goes back to the queue, and resumes
# its run when it gets nodes again. So it does when a node fails, from the newest checkpoint: give the job file
# [checkpoint] every.

#SBATCH --job-name=weft
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=1
#SBATCH --time=01:00:00
#SBATCH --signal=TERM@60
# GPUs, account and partition: see slurm-digits.sh, and there which --mpi is right.

set -eu
runs=runs/$SLURM_JOB_ID  # the same number in every turn

newest=$(find "$runs" -path '*/checkpoints/step-*.safetensors' 2> /dev/null | sort | tail -1)
if [ -n "$newest" ]; then
    what=(--resume "${newest%/checkpoints/*}")  # the run remembers its job, and what --set said
else
    what=("$@" --folder "$runs")
fi

status=0
srun --mpi=pmi2 weft train "${what[@]}" || status=$?
if [ "$status" = 143 ]; then  # 128 + SIGTERM: stopped, with a checkpoint
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
