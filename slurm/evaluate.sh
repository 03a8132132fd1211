#!/usr/bin/env bash
# Evaluate a run's checkpoints as they come.   RUN_DIR=runs/my-run sbatch slurm/evaluate.sh [evaluation.key=value ...]
# The pretraining scripts submit it by themselves.
#SBATCH --job-name=evaluate
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@60
#SBATCH --open-mode=append
#SBATCH --output=slurm/logs/%j.log
source "${PIPELINE_HOME:-$SLURM_SUBMIT_DIR}/slurm/common.sh" || exit 2
evaluate "${RUN_DIR:?"name the run folder: RUN_DIR=runs/my-run sbatch slurm/evaluate.sh"}" "$@"
