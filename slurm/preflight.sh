#!/usr/bin/env bash
# Find out whether nodes are fit, with the site's software, network and folders.   sbatch --nodes=8 slurm/preflight.sh [--options]
# The log has a table by node and names the odd one. `sbatch --exclude=NODE slurm/pretrain_l16.sh` then trains without it.
#SBATCH --job-name=preflight
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=00:15:00
#SBATCH --open-mode=append
#SBATCH --output=slurm/logs/%j.log
source "${PIPELINE_HOME:-$SLURM_SUBMIT_DIR}/slurm/common.sh" || exit 2
preflight "$@"
