"""The solvers of the evaluator's probes, side by side with others' on the same features (`benchmark eval`)."""
