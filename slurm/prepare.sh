#!/usr/bin/env bash
# Prepare a corpus: make, verify, dedup and index.   sbatch slurm/prepare.sh SOURCE FOLDER [--option ...]   from the project's folder
#   sbatch slurm/prepare.sh /raw/winter21_whole /data/imagenet21k --against /data/cifar10/test --within --nodes 16 --cores 32
# This job leads; workers are jobs of their own (--nodes of them), which it submits and cancels. Preempted, requeued or submitted
# again it resumes. `python -m data_tools prepare --help` lists the options.
#SBATCH --job-name=prepare
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --time=48:00:00
#SBATCH --requeue
#SBATCH --dependency=singleton
#SBATCH --signal=B:USR1@120
#SBATCH --open-mode=append
#SBATCH --output=slurm/logs/%j.log
source "${PIPELINE_HOME:-$SLURM_SUBMIT_DIR}/slurm/common.sh" || exit 2
prepare "$@"
