#!/bin/bash
# Answers inference requests on two nodes of a Slurm cluster, until its time is up or it is cancelled.
#
#   source .venv/bin/activate
#   sbatch hostfiles/slurm-serve.sh models/            # or a run of `weft train`
#   tail -f weft-serve-*.out                           # tells where it listens, and how to get there
#
# Rank 0 listens on the first node. From your own machine a tunnel leads there through the login node:
#
#   ssh -L 8000:NODE:PORT LOGIN                        # then ask http://localhost:8000
#
# Others on the cluster reach that port as well. So whoever asks must send the token, which is in a file that
# is yours alone, as `Authorization: Bearer TOKEN`; WEFT_TOKEN in your environment chooses it.
#
# Options before the script override its #SBATCH lines, those behind it go to `weft serve`:
#   sbatch --nodes=4 --time=08:00:00 hostfiles/slurm-serve.sh models/ --profile

#SBATCH --job-name=weft-serve
#SBATCH --output=%x-%j.out
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=1
#SBATCH --time=01:00:00
# A minute before the end, and with `scancel --signal=TERM JOB`: what has been accepted is answered, no more.
#SBATCH --signal=TERM@60
# GPUs, account and partition: see slurm-digits.sh, and there which --mpi is right.

set -euo pipefail

if [ -z "${WEFT_TOKEN:-}" ]; then
    WEFT_TOKEN=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
    token=weft-serve-$SLURM_JOB_ID.token
    (umask 077 && echo "$WEFT_TOKEN" > "$token")
    trap 'rm -f "$token"' EXIT
    echo "the token is in $PWD/$token"
fi
export WEFT_TOKEN

# Other jobs may share the node and its ports: each takes another. SERVE_PORT in your environment chooses it.
port=${SERVE_PORT:-$((20000 + SLURM_JOB_ID % 10000))}
echo "from your machine: ssh -L 8000:$(hostname):$port ${SLURM_SUBMIT_HOST:-LOGIN}, then localhost:8000"

srun --mpi=pmi2 --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
    weft serve --host 0.0.0.0 --port "$port" "$@"  # (a node's own name may be a loopback address there)
