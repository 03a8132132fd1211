#!/usr/bin/env bash
# Fine-tune weights on one node: the points of a grid, a choice, the final training.
#   sbatch slurm/finetune.sh configs/finetune/paper_pets.yaml init_from=runs/l16_in21k data.train=... evaluation.validation=...
# The points as tasks of an array, and what follows them as a job behind it:
#   job=$(sbatch --parsable --array=0-3 slurm/finetune.sh CONFIG ...); sbatch --dependency=afterok:$job slurm/finetune.sh CONFIG ...
# `python -m pipeline finetune CONFIG --list` counts the points. Give every job the same settings.
#SBATCH --job-name=finetune
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@180
#SBATCH --open-mode=append
#SBATCH --output=slurm/logs/%A_%a.log
source "${PIPELINE_HOME:-$SLURM_SUBMIT_DIR}/slurm/common.sh" || exit 2
finetune "$@"
