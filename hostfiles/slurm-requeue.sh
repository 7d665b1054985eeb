#!/bin/bash
# Trains a job for as long as it takes, in turns of the time that a Slurm cluster gives at once.
#
#   source .venv/bin/activate
#   sbatch hostfiles/slurm-requeue.sh job.toml                      # or a packaged job
#   sbatch --nodes=4 --time=12:00:00 hostfiles/slurm-requeue.sh job.toml --set train.epochs=300
#   sbatch hostfiles/slurm-requeue.sh a.toml b.toml                 # several models, one job
#   sbatch hostfiles/slurm-requeue.sh --resume runs/digits-…        # a run that was begun elsewhere
#
# A minute before the time is up Weft writes checkpoints and ends; the job goes back to the queue, and resumes
# its runs when it gets nodes again. So it does when a node fails, from the newest checkpoints: give the job
# files [checkpoint] every. Of a turn's time are lost that minute, up to another by which Slurm warns too early,
# and what it takes to start: give it more. A turn that gets no further than the one before ends the job.

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
shopt -s nullglob
runs=runs/$SLURM_JOB_ID  # the same number in every turn
job=$SLURM_JOB_ID
# Of an array's tasks one has the number that stands for all: they would go back to the queue with it.
if [ -n "${SLURM_ARRAY_JOB_ID:-}" ]; then job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID; fi

case $(scontrol show job "$job") in
    *TimeLimit=00:0[01]:*)
        echo "slurm-requeue.sh: turns of less than 2 minutes are over as soon as they begin, for Slurm warns 60" \
            "to 120 s before the end; give them more time, sbatch --time=MINUTES" >&2
        exit 1
        ;;
esac

trained=("$runs")
for argument in "$@"; do
    if [ -d "${argument#--resume=}" ]; then trained+=("${argument#--resume=}"); fi
done
checkpoints() {
    find "${trained[@]}" -name 'step-*.safetensors' 2>/dev/null | sort
}

resume=()
for run in "$runs"/*/; do
    if [ -z "$(find "$run" -name 'step-*.safetensors')" ]; then
        # A model that failed alone before its first checkpoint would most likely fail again: the others go on.
        if grep -qs '"reason": "failed' "${run}metrics.jsonl"; then continue; fi
        # A node failed before every model had a checkpoint. To resume the others alone would end the job
        # without this one's training: all begin anew, and what there is stays in a folder of its own.
        resume=()
        mv "$runs" "$runs-before-restart-${SLURM_RESTART_COUNT:-0}"
        break
    fi
    resume+=(--resume "${run%/}")
done

if [ ${#resume[@]} != 0 ]; then
    what=("${resume[@]}")  # the runs remember their jobs, and what --set said
elif [[ " $* " == *" --resume"[\ =]* ]]; then
    what=("$@")  # in every turn: from the newest checkpoint of a run that stays where it is
else
    what=("$@" --folder "$runs")
fi

before=$(checkpoints)
status=0
srun --mpi=pmi2 --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
    weft train "${what[@]}" || status=$?  # (the highest of the ranks' own: 137 of one that was killed)
case $status in
    143 | 138)  # 128 + SIGTERM, or SIGUSR1: stopped, with checkpoints
        if [ "${SLURM_RESTART_COUNT:-0}" != 0 ] && [ "$(checkpoints)" = "$before" ]; then
            echo "slurm-requeue.sh: the time of this turn was over before a step was done, and so would be the" \
                "next one's; give turns more, and go on: sbatch --time=MINUTES … slurm-requeue.sh ${what[*]}" >&2
            exit 1
        fi
        scontrol requeue "$job"
        ;;
esac
exit "$status"
