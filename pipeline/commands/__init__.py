"""Hold the commands of `python -m pipeline`: one module each, named as the command, and its line in the table below.

A module has `EPILOG`, `add_arguments(parser)` and `run(arguments, stop)`. It imports nothing heavy before `run`.
"""

COMMANDS = {
    "train": "pretrain; the same line starts a run and resumes it",
    "evaluate": "accuracy of a run's checkpoints, or of any model, by protocols and suites",
    "finetune": "choose settings on a part of the training images, train on all of them, test once",
    "export": "write weights for timm, transformers, Google's code or ONNX, with a model card",
    "import": "read weights of timm, transformers or Google into a weights file of this software",
    "embed": "write features of any shards, by any number of ranks",
    "figures": "draw what a model has learned: filters, positions, attention distance and rollout",
    "report": "print a run's results and draw its curves",
    "compare": "where two runs part, and whether one is better by more than chance",
    "status": "what a run is doing, from its files alone: from any machine that sees the folder",
    "workspace": "arrange the panels of a run's project at W&B as a saved view, and send pictures",
    "samples": "print the samples that a run sees at a step, without running it: for loss spikes",
    "show-config": "print the resolved configuration",
    "doctor": "how a configuration deviates from a recipe, and what follows from it",
    "plan": "what a run will need and cost, on paper: memory, hours, store, checkpoints; no data, no GPU",
    "preflight": "whether the machines here are fit for a training, and which of them is the odd one",
    "benchmark": "measure training, the loader, augmentations, architectural choices, or what planning costs at scale",
    "demo": "shards, pretraining on two ranks, a kill, a resume, evaluation and plots, on a CPU",
}
