#!/usr/bin/env bash
# Pretrain ViT-L/32 on ImageNet-21k.   sbatch slurm/pretrain_l32.sh [section.key=value ...]      from the project's folder
# The run folder is named after the job: sbatch --job-name=my-run starts (or resumes) runs/my-run. Options given to sbatch
# come before those below: sbatch --nodes=8 --time=12:00:00 slurm/pretrain_l32.sh
#SBATCH --job-name=l32_in21k
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --dependency=singleton
#SBATCH --signal=USR1@180
#SBATCH --open-mode=append
#SBATCH --output=slurm/logs/%j.log
source "${PIPELINE_HOME:-$SLURM_SUBMIT_DIR}/slurm/common.sh" || exit 2
pretrain configs/l32_in21k.yaml "$@"
