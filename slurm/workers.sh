#!/usr/bin/env bash
# Work for a command of the data tools: a Dask worker for each core. `python -m data_tools ... --cluster slurm` submits it, as an array.
#SBATCH --job-name=data-tools-workers
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@60
#SBATCH --open-mode=append
#SBATCH --output=slurm/logs/%A_%a.log
source "${PIPELINE_HOME:-$SLURM_SUBMIT_DIR}/slurm/common.sh" || exit 2
workers
