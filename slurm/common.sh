# shellcheck shell=bash
# The job scripts source this file: it has the project, the site's settings, one srun task a rank, and what follows the ranks' end.
set -euo pipefail
export PIPELINE_HOME=${PIPELINE_HOME:-$SLURM_SUBMIT_DIR}
# shellcheck source=slurm/site.env
source "${SITE_ENV:-$PIPELINE_HOME/slurm/site.env}"
cd "$PIPELINE_HOME"

NODE_LOSS_WAIT_S=900 # three times Slurm's default SlurmdTimeout
PROBE_S=60
LOOK_EVERY_S=${LOOK_EVERY_S:-60}
EXIT_INTERRUPTED=75 # `python -m pipeline train` was asked to stop, and has saved
# scontrol's name for this job: in an array, the plain number may mean all of its tasks.
THIS_JOB=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
THIS_JOB=${THIS_JOB:-${SLURM_JOB_ID:-}}

# Slurm may signal this shell too, which has to live until srun has ended and the job is requeued or over. (It is an empty command,
# not '': srun and every rank would ignore what is ignored here.)
trap : TERM USR1 USR2 HUP INT

# A job's name may hold anything, a run folder's may not. A checksum distinguishes two names that would become one.
run_name() {
    local wanted=$1 name
    name=$(printf '%s' "$wanted" | LC_ALL=C tr -c 'A-Za-z0-9_.-' '_')
    [[ $name == [A-Za-z0-9]* ]] || name=run$name
    [ "$name" = "$wanted" ] || name+=-$(printf '%s' "$wanted" | cksum | cut -d ' ' -f 1)
    printf '%s' "$name"
}

# Load software and network settings, as the site file says.
prepare_node() {
    local script
    if [ ${#SITE_MODULES[@]} -gt 0 ]; then
        set +u # the module systems' own functions read variables that need not be set
        for script in /etc/profile.d/{modules,lmod,z00_lmod}.sh; do
            # shellcheck disable=SC1090
            type module >/dev/null 2>&1 || [ ! -r "$script" ] || source "$script"
        done
        type module >/dev/null 2>&1 || {
            echo "SITE_MODULES is set, but there is no \`module\` command on $(hostname)" >&2
            exit 2
        }
        module load "${SITE_MODULES[@]}"
        set -u
    fi
    [ -z "$SITE_INTERFACE" ] || export NCCL_SOCKET_IFNAME=$SITE_INTERFACE GLOO_SOCKET_IFNAME=$SITE_INTERFACE
    [ -z "$SITE_VENV" ] || export PATH=$SITE_VENV/bin:$PATH
    # Since Slurm 22.05 srun does not take --cpus-per-task over from sbatch: each rank would get one core.
    export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
    export PYTHONUNBUFFERED=1
    # After `sbatch --export=NONE`, srun would pass on none of this, nor PATH.
    export SLURM_EXPORT_ENV=ALL
    mkdir -p "$SITE_RUNS"
    # The log under the run's name belongs to its newest job.
    [ ! -e "slurm/logs/$SLURM_JOB_ID.log" ] || ln -sfn "$SLURM_JOB_ID.log" "slurm/logs/$1.log"
}

# pretrain CONFIG [section.key=value ...]: train as one rank a task, with the evaluator as a job of its own.
pretrain() {
    local config=$1 name code=0
    shift
    check_settings "$@"
    name=$(run_name "$SLURM_JOB_NAME")
    prepare_node "$name"
    submit_evaluator "$name" "$SLURM_JOB_NAME"
    # --kill-on-bad-exit is not used: ranks that agree to stop, or on an error, end one after the other, and the first end would
    # kill the rest. If one rank dies alone, the others are killed after this wait.
    srun --kill-on-bad-exit=0 --wait="$SITE_RANK_WAIT_S" "${SITE_CONTAINER[@]}" \
        python -m pipeline train "$config" name="$name" output_dir="$SITE_RUNS" data.train="$SITE_DATA" \
        ${SITE_EVAL_SETS:+evaluation.datasets="$SITE_EVAL_SETS"} \
        ${SITE_VALIDATION:+evaluation.validation="$SITE_VALIDATION"} "$@" || code=$?
    end_job "$code" "$SITE_RUNS/$name"
}

# sbatch takes its options before the script's name; behind it they would be the script's arguments.
check_settings() {
    local word
    for word in "$@"; do
        [[ $word != -* ]] || {
            echo "$word: options of sbatch come before the script (sbatch $word slurm/pretrain_...), settings of the run after it" >&2
            exit 2
        }
    done
}

# evaluate RUN_DIR [evaluation.key=value ...]: watch a run folder until the run is complete. It may be killed at any time.
# TRAINING names the training's job that has submitted this one: when no job of that name is left, there is nothing to wait for.
evaluate() {
    local code=0 watcher watch
    check_settings "$@"
    prepare_node "$(run_name "$SLURM_JOB_NAME")"
    srun --ntasks=1 "${SITE_CONTAINER[@]}" python -m pipeline evaluate "$@" --watch &
    watcher=$!
    watch_training "$watcher" &
    watch=$!
    await "$watcher" || code=$?
    kill "$watch" 2>/dev/null || :
    if wait "$watch"; then # it has ended the evaluator
        code=0
        echo "[job] no job ${TRAINING:-} is left: what lacks results is evaluated, and then this ends"
        srun --ntasks=1 "${SITE_CONTAINER[@]}" python -m pipeline evaluate "$@" || code=$?
    fi
    end_job "$code" "$1"
}

# finetune CONFIG [section.key=value ...]: run a grid of fine-tunings, or in an array the point of this task. Every training has its
# ranks on this node, started by itself: for it there is no Slurm.
finetune() {
    local code=0 config=${1:?"name a configuration, for example configs/finetune/paper_pets.yaml"} name point=()
    shift
    check_settings "$config" "$@"
    name=$(run_name "$SLURM_JOB_NAME")
    prepare_node "$name"
    [ -z "${SLURM_ARRAY_TASK_ID:-}" ] || point=(--point "$SLURM_ARRAY_TASK_ID")
    # shellcheck disable=SC2016
    srun --ntasks=1 "${SITE_CONTAINER[@]}" bash -c 'unset ${!SLURM_*}; exec python -m pipeline finetune "$@"' finetune \
        "$config" "${point[@]}" name="$name" output_dir="$SITE_RUNS" "$@" &
    await "$!" || code=$?
    end_job "$code" "$SITE_RUNS/$name"
}

# prepare SOURCE FOLDER [--option ...]: make, verify, dedup and index a corpus, by workers that are jobs of their own.
prepare() {
    prepare_node "$(run_name "$SLURM_JOB_NAME")"
    run_tool "${2:?"name a source and a folder for the shards"}" prepare "$@" --cluster slurm \
        ${SITE_INTERFACE:+--interface "$SITE_INTERFACE"}
}

# shares COMMAND ARGUMENT ...: do a share of a data tool's work, in an array; all that is left to do without one.
shares() {
    local share=()
    [ -z "${SLURM_ARRAY_TASK_ID:-}" ] || share=(--share "$SLURM_ARRAY_TASK_ID/$((SLURM_ARRAY_TASK_MAX + 1))")
    prepare_node "$(run_name "$SLURM_JOB_NAME")"
    run_tool "${3:-${2:?"name a command of the data tools and its folders"}}" "$@" "${share[@]}" --workers "${SLURM_CPUS_PER_TASK:-1}"
}

# run_tool FOLDER COMMAND [ARGUMENT ...]: run a data tool that works in FOLDER. Asked to stop it is requeued, and resumes.
run_tool() {
    local code=0 tool asked=0 folder=$1
    shift
    srun --ntasks=1 "${SITE_CONTAINER[@]}" python -m data_tools "$@" &
    tool=$!
    trap 'asked=1; kill -TERM "$tool" 2>/dev/null' USR1 TERM
    await "$tool" || code=$?
    [ "$code" != 1 ] || exit 1    # of `verify`: a training on these shards would stop
    [ "$code" != 130 ] || asked=1 # Slurm has told the tool, and not this shell
    [ "$asked" = 0 ] || [ "$code" = 0 ] || requeue "$EXIT_INTERRUPTED" "asked to stop"
    end_job "$code" "$SITE_RUNS/$(run_name "$SLURM_JOB_NAME")" "$(find "$folder" -type f 2>/dev/null | wc -l) files"
}

# workers: work for a command of the data tools until it ends, or is gone. A task that is asked to stop is requeued.
workers() {
    local code=0 worker asked=0
    prepare_node "$(run_name "$SLURM_JOB_NAME")"
    srun --ntasks=1 "${SITE_CONTAINER[@]}" python -m dask worker "${WORKERS_SCHEDULER:?"is set by the command that submits this"}" \
        --nworkers "${SLURM_CPUS_PER_TASK:-1}" --nthreads 1 --memory-limit 0 --no-dashboard --death-timeout 120 \
        --local-directory "${SLURM_TMPDIR:-${TMPDIR:-/tmp}}" ${WORKERS_INTERFACE:+--interface "$WORKERS_INTERFACE"} \
        --tls-ca-file "$WORKERS_PLACE/ca.pem" --tls-cert "$WORKERS_PLACE/certificate.pem" --tls-key "$WORKERS_PLACE/key.pem" &
    worker=$!
    trap 'asked=1; kill -TERM "$worker" 2>/dev/null' USR1 TERM
    await "$worker" || code=$?
    [ "$asked" = 0 ] || requeue 0 "asked to stop"
    exit "$code"
}

# preflight [--option ...]: examine every node of this job.
preflight() {
    prepare_node "$(run_name "$SLURM_JOB_NAME")"
    srun --kill-on-bad-exit=0 --wait="$SITE_RANK_WAIT_S" "${SITE_CONTAINER[@]}" \
        python -m pipeline preflight --folder "$SITE_RUNS" --data "$SITE_DATA" "$@"
}

# await PROCESS: return its exit code, however often this shell is signalled meanwhile.
await() {
    local code
    while code=0; wait "$1" || code=$?; [ "$code" -gt 128 ] && kill -0 "$1" 2>/dev/null; do :; done
    return "$code"
}

# Return whether the training that submitted this evaluator may still continue. A queue that does not answer is no reason to end.
is_training_queued() {
    local jobs
    [ -n "${TRAINING:-}" ] || return 0
    jobs=$(timeout "$PROBE_S" squeue --me --noheader --name="$TRAINING" --format=%i) || return 0
    [ -n "$jobs" ]
}

# watch_training PROCESS: end it when the training's job is gone: cancelled, failed, or out of time. It must be missing twice in a row:
# a job that is being requeued may be missing for a moment.
watch_training() {
    local unseen=0
    while sleep "$LOOK_EVERY_S"; do
        if is_training_queued; then unseen=0; else unseen=$((unseen + 1)); fi
        [ "$unseen" -lt 2 ] || break
    done
    kill -TERM "$1" 2>/dev/null
}

# end_job CODE RUN_DIR [PLACE]: requeue the job, or end it. PLACE is how far it had come; the newest checkpoint if not given. Slurm itself requeues after a node's failure and after a preemption
# that left no time. It does not after a time limit, nor after a preempted job has ended by itself.
end_job() {
    local code=$1 run_dir=$2 reached=${3:-} place tries fate
    case $code in
    0) exit 0 ;;
    2) exit "$code" ;; # a named error, which would happen again
    "$EXIT_INTERRUPTED") requeue "$code" "stopped and saved" ;;
    129 | 138 | 140 | 143 | 152) # HUP, USR1, USR2, TERM, XCPU: Python, or the container, was still starting
        requeue "$code" "asked to stop before it could listen" ;;
    esac
    fate=$(job_fate)
    # Slurm has ended the ranks, whatever their code, so it does not count as a try.
    [ "$fate" = running ] || [ "$fate" = unknown ] || requeue "$code" "ended by Slurm"
    await_slurm_if_a_node_is_gone
    # Broken off: a rank lost another or met a bug (1), hung (70), lost its run folder to another (73), or was killed (128 and
    # the signal's number). srun gives the highest code of all ranks. The job is retried, a few times from one checkpoint.
    mkdir -p "$run_dir"
    [ ! -d "$run_dir/checkpoints" ] ||
        reached=$(find "$run_dir/checkpoints" -maxdepth 1 -name 'step_*' | sort | tail -n 1)
    reached=${reached:-the start}
    place="job $THIS_JOB from $reached"
    echo "$place: exit code $code" >>"$run_dir/broken-off.log"
    tries=$(grep -cF "$place: " "$run_dir/broken-off.log")
    if [ "$tries" -gt "$SITE_RETRIES" ]; then
        echo "[job] broken off with exit code $code, after $SITE_RETRIES tries from $reached: not requeued again" >&2
        exit "$code"
    fi
    requeue "$code" "broken off with exit code $code; try $tries of $SITE_RETRIES from $reached"
}

# The ranks notice a dead node long before Slurm does (SlurmdTimeout). Slurm then requeues the job by itself, on other
# nodes. Requeued by both it may never start again ("Invalid generic resource specification", Slurm 22.05), so leave it to Slurm.
await_slurm_if_a_node_is_gone() {
    timeout "$PROBE_S" srun --overlap --nodes="$SLURM_NNODES" --ntasks="$SLURM_NNODES" --ntasks-per-node=1 \
        --cpus-per-task=1 --kill-on-bad-exit=1 true && return 0
    echo "[job] a node does not answer; Slurm requeues the job when it has noticed, for which it is given $NODE_LOSS_WAIT_S s" >&2
    sleep "$NODE_LOSS_WAIT_S"
}

# Print the state of this job: running, requeued (by Slurm: preempted, a node failed), over (cancelled, out of time), or unknown where
# the controller does not answer. Until its script ends, Slurm calls all but the first COMPLETING; one that is requeued has
# had its restarts counted already.
job_fate() {
    local shown state restarts
    shown=$(timeout "$PROBE_S" scontrol show job "$THIS_JOB") || :
    state=$(sed -n 's/^ *JobState=\([A-Z_]*\).*/\1/p' <<<"$shown")
    restarts=$(sed -n 's/.* Restarts=\([0-9]*\).*/\1/p' <<<"$shown")
    case $state in
    "") echo unknown ;;
    RUNNING) echo running ;;
    *) if [ "${restarts:-0}" -gt "${SLURM_RESTART_COUNT:-0}" ]; then echo requeued; else echo over; fi ;;
    esac
}

# requeue CODE WHY: requeue this job, which keeps its number, log and run folder.
requeue() {
    local fate
    fate=$(job_fate)
    if [ "$fate" = requeued ]; then
        echo "[job] $2; requeued by Slurm"
    elif [ "$fate" = running ] && scontrol requeue "$THIS_JOB"; then
        echo "[job] $2; requeued (restart $((${SLURM_RESTART_COUNT:-0} + 1)))"
    else
        echo "[job] $2; not requeued from here (the job is $fate); sbatch the same line to go on" >&2
        [ "$fate" != over ] || cancel_evaluator
    fi
    exit "$1"
}

# An evaluator that waits in the queue has nothing to wait for, unless another job of this run is queued. A running one notices by
# itself that the training is gone.
cancel_evaluator() {
    local name
    name=$(run_name "$SLURM_JOB_NAME")-eval
    ! squeue --me --noheader --name="$SLURM_JOB_NAME" --format=%A | grep -qvx "$SLURM_JOB_ID" || return 0
    [ -n "$(squeue --me --noheader --states=PENDING --name="$name")" ] || return 0
    scancel --user="$(id -un)" --state=PENDING --name="$name" && echo "[job] so is the evaluator $name that waited: cancelled" >&2
}

# submit_evaluator NAME JOB_NAME: have one evaluator run and at most one wait behind it (singleton). The next takes over where a
# time limit ends the first, and ends at once if there is nothing left to do. EVALUATE=0 leaves it out.
submit_evaluator() {
    local name=$1-eval partition=${SITE_EVAL_PARTITION:-$SITE_PARTITION} variable
    [ "${EVALUATE:-1}" -eq 1 ] || return 0
    if [ -z "$SITE_EVAL_SETS${SITE_VALIDATION:-}" ]; then
        echo "SITE_EVAL_SETS and SITE_VALIDATION in the site file are empty: no evaluator is submitted" >&2
        return 0
    fi
    [ -z "$(squeue --me --noheader --states=PENDING --name="$name")" ] || return 0
    (
        # The evaluator must not inherit what this job was given (tasks a node, GPUs, ...).
        for variable in "${!SLURM_@}" "${!SRUN_@}" "${!SBATCH_@}"; do
            [ "$variable" = SLURM_CONF ] || unset "$variable"
        done
        RUN_DIR=$SITE_RUNS/$1 TRAINING=$2 sbatch --job-name="$name" --dependency=singleton ${SITE_ACCOUNT:+--account="$SITE_ACCOUNT"} \
            ${partition:+--partition="$partition"} slurm/evaluate.sh
    ) || echo "could not submit the evaluator; start it by hand: RUN_DIR=$SITE_RUNS/$1 sbatch slurm/evaluate.sh" >&2
}
